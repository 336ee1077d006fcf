"""The attacks do what their papers say, on numbers that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from splitlab.plugins.probes.attacks import distance_correlation, invert, psnr, ridge, ssim


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, side: int, channels: int = 1) -> torch.Tensor:
    """Return smooth images that differ."""
    coarse = torch.rand(count, channels, 3, 3, generator=draws(count))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def test_distance_correlation() -> None:
    x = torch.randn(20, 3, generator=draws())
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=draws(1)))
    assert distance_correlation(x, x) == pytest.approx(1)
    assert distance_correlation(x, 5 * x @ turned + 2) == pytest.approx(1, abs=1e-5)
    # Every pair of values once: independent, exactly.
    a, b = torch.tensor([[0.0, 0, 1, 1]]).T, torch.tensor([[0.0, 1, 0, 1]]).T
    assert distance_correlation(a, b) == pytest.approx(0, abs=1e-9)
    assert distance_correlation(x, torch.ones(20, 2)) == 0
    # By hand: the centred distances of (0, 1, 1) are -4/9, 2/9 and 2/9 in the first row, and so
    # on; both have the variance 8/81, and the covariance with (0, 0, 1) is 2/81.
    c, d = torch.tensor([[0.0, 1, 1]]).T, torch.tensor([[0.0, 0, 1]]).T
    assert distance_correlation(c, d) == pytest.approx((2 / 8) ** 0.5)


def test_peak_signal_to_noise_ratio() -> None:
    black = torch.zeros(2, 3, 4, 4)
    other = torch.stack((black[0] + 0.1, black[0]))
    assert psnr(black, other).tolist() == pytest.approx([20, 100])


def test_structural_similarity() -> None:
    images = blobs(4, 16, channels=3)
    assert ssim(images, images).tolist() == pytest.approx([1] * 4)
    # Of flat images the first factor alone is left.
    flat = torch.full((1, 1, 12, 12), 0.5)
    c1 = 0.01**2
    assert float(ssim(flat, flat / 2)) == pytest.approx((0.25 + c1) / (0.25 + 0.0625 + c1))
    # One window: the weighted moments, written out.
    ours, theirs = blobs(2, 11).double()[:, 0]
    places = torch.arange(-5, 6).double()
    line = (-places.square() / 4.5).exp()
    weights = line[:, None] * line / (line[:, None] * line).sum()
    a, b = (weights * ours).sum(), (weights * theirs).sum()
    va, vb = (weights * (ours - a) ** 2).sum(), (weights * (theirs - b) ** 2).sum()
    both = (weights * (ours - a) * (theirs - b)).sum()
    c2 = 0.03**2
    by_hand = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (va + vb + c2))
    found = ssim(ours[None, None], theirs[None, None])
    assert float(found) == pytest.approx(float(by_hand), abs=1e-4)
    small = blobs(1, 6)
    assert float(ssim(small, small)) == pytest.approx(1)  # a window of 5
    assert float(ssim(images[:1], 1 - images[:1])) < 0.5


def test_ridge_regression_finds_what_is_linear_and_nothing_else() -> None:
    known, asked = torch.randn(60, 5, generator=draws()), torch.randn(40, 5, generator=draws(1))
    weights = torch.randn(5, 2, generator=draws(2))
    found = ridge(known, known @ weights + 3, asked)
    torch.testing.assert_close(found, (asked @ weights + 3).double(), atol=1e-2, rtol=0)
    noise = torch.randn(60, 2, generator=draws(3))
    assert float((ridge(known, noise, asked) - noise.mean(dim=0)).abs().mean()) < 0.5
    assert ridge(torch.zeros(4, 2), torch.eye(4), torch.zeros(1, 2)).tolist() == [[0.25] * 4]


@pytest.mark.parametrize("grid", [(8, 8), None])
def test_a_decoder_inverts_what_holds_the_image(grid: tuple[int, int] | None) -> None:
    images = blobs(192, 8)
    pixels = images.flatten(2).transpose(1, 2)
    there = torch.ones(pixels.shape[:2], dtype=torch.bool)
    before = torch.get_rng_state()

    def made() -> torch.Tensor:
        known, asked = (pixels[:128], there[:128]), (pixels[128:], there[128:])
        return invert(known, images[:128], asked, grid=grid, width=16, epochs=30, draws=draws())

    found = made()
    assert float(ssim(found, images[128:]).mean()) > 0.9
    assert torch.equal(found, made())
    assert torch.equal(before, torch.get_rng_state())
