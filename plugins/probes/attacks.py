"""What somebody can read from activations who has some of them with their images: three attacks.

`distance_correlation` trains nothing, `ridge` is linear, `invert` trains a small convolutional
decoder. `ssim` and `psnr` say how near its images come. All draw from the seed that they are given
and from nothing else, and compute where their inputs lie.

Shapes: n samples or rows, R rows that the attacker knows the images of, S rows that are asked
about, N places of tokens, D width; images (…, channels, height, width) from 0 to 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["distance_correlation", "invert", "psnr", "ridge", "ssim"]

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
_LEAST_ERROR = 1e-10  # 100 dB
_PENALTIES = torch.logspace(-6, 1, 15, dtype=torch.float64)
_BATCH = 64
_SIDE = 7
_NARROWEST = 8


def distance_correlation(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the distance correlation of two sets of vectors, 0 to 1.

    G. Székely, M. Rizzo, N. Bakirov, "Measuring and testing dependence by correlation of
    distances", Annals of Statistics 35(6), 2007; NoPeek (P. Vepakomma, A. Singh, O. Gupta, R.
    Raskar, 2020, arXiv 2008.09161) lowers it between raw data and activations by training. It is
    their sample statistic, which has a bias: of few vectors with many numbers it is far from 0 even
    if they are independent, so compare it with that of shuffled pairs.

    Args:
        ours: (n, anything).
        theirs: (n, anything), in the same order.

    Returns:
        1 where one is the other, turned, moved and scaled; 0 where either does not vary.
    """
    a, b = _centred_distances(ours), _centred_distances(theirs)
    spread = float((a * a).mean()) * float((b * b).mean())
    if spread <= 0:
        return 0.0
    return math.sqrt(max(0.0, float((a * b).mean())) / math.sqrt(spread))


def _centred_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Return the distances of all pairs, less the means of rows and columns: (n, n) float64."""
    flat = vectors.flatten(1).float()
    # Not by a matrix product, in which the distance of two equal vectors is not 0.
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(flat, flat, compute_mode=exact).cpu().double()
    means = distances.mean(dim=0)
    return distances - means - means[:, None] + means.mean()


def ridge(known_RF: torch.Tensor, targets_RC: torch.Tensor, asked_SF: torch.Tensor) -> torch.Tensor:
    """Return what ridge regression predicts of rows, (S, C) float64 on the CPU.

    The penalty is the one of 15 with the smallest leave-one-out error (Allen's PRESS), over the
    known rows alone. It is solved for rows, not for features, which are many.

    Args:
        known_RF: features to learn from.
        targets_RC: what they are to give, such as the shares of classes.
        asked_SF: features to predict of.
    """
    features, mean = known_RF.shape[1], known_RF.mean(dim=0)
    known_RF = known_RF - mean
    gram_RR = (known_RF @ known_RF.T).cpu().double() / features
    across_SR = ((asked_SF - mean) @ known_RF.T).cpu().double() / features
    targets_RC = targets_RC.cpu().double()
    level_C = targets_RC.mean(dim=0)
    values, vectors = torch.linalg.eigh(gram_RR)
    turned = vectors.T @ (targets_RC - level_C)
    size = values.clamp(min=0).mean().clamp(min=1e-12)
    best, found = math.inf, torch.zeros_like(targets_RC)
    for penalty in _PENALTIES * size:
        inverse = 1 / (values.clamp(min=0) + penalty)
        weights_RC = vectors @ (inverse[:, None] * turned)
        left_out = weights_RC / (vectors.square() @ inverse)[:, None]
        if (error := float(left_out.square().mean())) < best:
            best, found = error, weights_RC
    return across_SR @ found + level_C


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the peak signal to noise ratio of every pair of images in dB, at most 100: (n,)."""
    error = (ours - theirs).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=_LEAST_ERROR).log10()


def ssim(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity of every pair of images, mean over places: (n,).

    Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE Transactions on Image Processing 13(4), 2004: a Gaussian window of
    11 pixels and a deviation of 1.5, whole windows only, K1 0.01, K2 0.03, range 1; the mean over
    channels, too. Images of less than 11 pixels have the largest odd window that fits. At most 1,
    which equal images have.
    """
    side, channels = min(ours.shape[-2:]), ours.shape[1]
    size = min(_WINDOW, side - 1 + side % 2)
    places = torch.arange(size, dtype=torch.float32, device=ours.device) - size // 2
    line = (-places.square() / (2 * _SIGMA**2)).exp()
    window = torch.outer(line, line) / line.sum().square()
    kernel = window.expand(channels, 1, size, size)

    def mean(images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images, kernel, groups=channels)

    ours, theirs = ours.float(), theirs.float()
    a, b = mean(ours), mean(theirs)
    aa, bb, ab = a * a, b * b, a * b
    spreads = mean(ours * ours) - aa + mean(theirs * theirs) - bb
    together = mean(ours * theirs) - ab
    c1, c2 = _K1**2, _K2**2
    likeness = (2 * ab + c1) * (2 * together + c2) / ((aa + bb + c1) * (spreads + c2))
    return likeness.flatten(1).mean(dim=1)


class _Decoder(nn.Module):
    """Makes an image of the tokens of a row, on top of the mean image.

    Where patches have places, they lie there, a channel tells which of them arrived, and the rest
    (special tokens, mean of the patches) reaches every place. Where they have none, one linear
    layer spreads what there is. Two residual convolutions follow, then transposed ones up to the
    image's size.
    """

    def __init__(
        self, tokens: int, width: int, grid: tuple[int, int] | None, mean: torch.Tensor, hidden: int
    ) -> None:
        super().__init__()
        channels, *size = mean.shape
        self.mean: torch.Tensor
        self._grid, self._size = grid, size
        self._special = tokens - math.prod(grid) if grid else 0
        self.register_buffer("mean", mean)
        if grid is None:
            grid = (min(_SIDE, size[0]), min(_SIDE, size[1]))
            self._start: nn.Module = nn.Linear(tokens * width, hidden * math.prod(grid))
        else:
            # A patch grid that is finer than the image is averaged down to it.
            self._pool = -(-grid[0] // size[0]), -(-grid[1] // size[1])
            grid = -(-grid[0] // self._pool[0]), -(-grid[1] // self._pool[1])
            self._start = nn.Conv2d(width + 1, hidden, 1)
            self._rest = nn.Linear((self._special + 1) * width, hidden)
        self._shape = (hidden, *grid)
        self._places = nn.Parameter(torch.zeros(self._shape))
        self._between = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        up: list[nn.Module] = []
        while all(2 * g <= s for g, s in zip(grid, size, strict=True)):
            grid = (2 * grid[0], 2 * grid[1])
            less = max(hidden // 2, _NARROWEST)
            up += [nn.ConvTranspose2d(hidden, less, 4, stride=2, padding=1), nn.GELU()]
            hidden = less
        self._up = nn.Sequential(*up)
        self._end = nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self._end.weight)
        nn.init.zeros_(self._end.bias)  # type: ignore[arg-type]

    def forward(self, rows_RND: torch.Tensor, there_RN: torch.Tensor) -> torch.Tensor:
        if self._grid is None:
            made = self._start(rows_RND.flatten(1)).view(-1, *self._shape)
        else:
            special, patches = rows_RND[:, : self._special], rows_RND[:, self._special :]
            there = there_RN[:, self._special :, None].float()
            mean = (patches * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
            whole = torch.cat((special.flatten(1), mean), dim=1)
            placed = torch.cat((patches, there), dim=2).transpose(1, 2)
            placed = placed.reshape(len(placed), -1, *self._grid)
            if max(self._pool) > 1:
                placed = F.avg_pool2d(placed, self._pool, ceil_mode=True)
            made = self._start(placed) + self._rest(whole)[:, :, None, None]
        made = made + self._places
        for layer in self._between:
            made = made + layer(F.gelu(made))
        made = self._up(made)
        if list(made.shape[2:]) != self._size:
            # Not bilinear: its backward pass does not repeat itself on a GPU.
            made = F.interpolate(made, size=self._size, mode="nearest")
        found: torch.Tensor = self.mean + self._end(made)
        return found


def invert(
    known: tuple[torch.Tensor, torch.Tensor],
    images: torch.Tensor,
    asked: tuple[torch.Tensor, torch.Tensor],
    *,
    grid: tuple[int, int] | None,
    width: int,
    epochs: int,
    draws: torch.Generator,
) -> torch.Tensor:
    """Train a decoder on known rows, and return the images that it makes of others.

    Squared error, AdamW, one cycle of the learning rate.

    Args:
        known: (R, N, D) rows, their tokens at their places, and (R, N) bool, which are there.
        images: (R, channels, height, width), what the known rows are of.
        asked: the same of the rows to invert, (S, N, D) and (S, N).
        grid: places of the last tokens, row by row; None if they have none.
        width: channels of the decoder.
        epochs: over the known rows.
        draws: of the weights and of the order of the rows; on the CPU.

    Returns:
        (S, channels, height, width), cut off at 0 and 1, where the images lie.
    """
    R, N, D = known[0].shape
    level, spread = known[0].mean(dim=(0, 1)), known[0].std(dim=(0, 1)).clamp(min=1e-6)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which reseeds every GPU.
        torch.default_generator.manual_seed(draws.initial_seed())
        decoder = _Decoder(N, D, grid, images.mean(dim=0).cpu(), width)
    decoder.to(images.device)

    def made(which: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        there = which[1][rows]
        scaled = (which[0][rows] - level) / spread * there[..., None]
        found: torch.Tensor = decoder(scaled, there)
        return found

    steps = epochs * -(-R // _BATCH)
    optimizer = torch.optim.AdamW(decoder.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(R, generator=draws).to(images.device)
            for rows in torch.tensor_split(order, -(-R // _BATCH)):
                optimizer.zero_grad()
                torch.autograd.backward((made(known, rows) - images[rows]).square().mean())
                optimizer.step()
                rate.step()
    with torch.no_grad():
        every = torch.arange(len(asked[0]), device=images.device)
        parts = torch.tensor_split(every, -(-len(every) // _BATCH))
        return torch.cat([made(asked, rows) for rows in parts]).clamp(0, 1)
