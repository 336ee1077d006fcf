"""FFT low-pass: against torch's transforms, by its hooks and through real frames.

Shapes: B rows, N tokens, D width; M and Q kept of them.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Cut, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.plugins.adc import ADC
from splitlab.plugins.c3sl import C3SL
from splitlab.plugins.fft_lowpass import SIZE, FFTLowpass, fourier_basis

BLOCKS = ["corner", "mirrored", "centred"]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def client_cut(X: torch.Tensor, *, training: bool = True, **params: Any) -> Cut:
    cut = Cut(
        activations=X, targets=torch.zeros(X.shape[0], dtype=torch.int64), step=0, training=training
    )
    FFTLowpass(**params).after_client_forward(cut)
    return cut


def server_cut(cut: Cut, **params: Any) -> tuple[torch.Tensor, Cut]:
    """Return the leaf that arrived, and the cut as the receiver left it."""
    leaf = cut.activations.detach().clone().requires_grad_()
    there = Cut(
        activations=leaf,
        targets=cut.targets,
        step=cut.step,
        training=cut.training,
        side=dict(cut.side),
    )
    FFTLowpass(**params).before_server_forward(there)
    return leaf, there


def lowpass(X: torch.Tensor, M: int, Q: int, block: str) -> torch.Tensor:
    """The definition: transform all, blank all but the block, transform back."""
    _, N, D = X.shape
    kept = torch.zeros(N, D, dtype=torch.bool)
    if block == "centred":
        down, across = (
            torch.fft.fftfreq(n, 1 / n).abs() <= (n if m == n else m // 2)
            for n, m in ((N, M), (D, Q))
        )
        kept |= down[:, None] & across
    elif (M, Q) == (N, D):
        return X
    else:
        kept[:M, : Q // 2] = True
    if block == "mirrored":
        kept |= kept.roll((-1, -1), (0, 1)).flip(0, 1)
    back = torch.fft.ifft2(torch.fft.fft2(X) * kept)
    if block != "corner":
        assert float(back.imag.detach().abs().max()) < 1e-9
    return back.real


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("N", "D"), [(5, 16), (7, 4), (1, 9), (6, 1), (4, 6)])
@pytest.mark.parametrize(("tokens", "width"), [(0.1, 0.5), (0.5, 1.0), (1.0, 0.3), (0.7, 0.7)])
def test_it_is_fft_block_and_inverse_fft(
    N: int, D: int, tokens: float, width: float, block: Any
) -> None:
    X = noise(3, N, D, dtype=torch.float64).requires_grad_()
    params = {"token_keep": tokens, "width_keep": width, "block": block}
    cut = client_cut(X, **params)
    _, M, Q = cut.activations.shape
    leaf, there = server_cut(cut, **params)
    assert not there.side
    torch.testing.assert_close(there.activations, lowpass(X, M, Q, block), rtol=0, atol=1e-12)

    gradient = noise(3, N, D, seed=1, dtype=torch.float64)
    down = gradient
    if there.activations is not leaf:
        down = torch.autograd.grad(there.activations, leaf, gradient)[0]
    assert down.shape == (3, M, Q)
    ours = down if cut.activations is X else torch.autograd.grad(cut.activations, X, down)[0]
    Y = X.detach().clone().requires_grad_()
    theirs = torch.autograd.grad(lowpass(Y, M, Q, block), Y, gradient)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    # The whole map is symmetric, so that the gradient is smoothed likewise.
    torch.testing.assert_close(ours, lowpass(gradient, M, Q, block), rtol=0, atol=1e-9)


def test_the_corner_in_numbers() -> None:
    """The paper's steps on a matrix of 4 by 4: the mean, and a wave of each diagonal."""
    s, d = torch.arange(4.0)[:, None], torch.arange(4.0)
    falling = torch.cos(math.pi / 2 * (s + d))  # at (1, 1) and (3, 3)
    rising = torch.cos(math.pi / 2 * (s - d))  # at (1, 3) and (3, 1)
    X = (3 + 8 * falling + 5 * rising)[None]
    params: dict[str, Any] = {"token_keep": 0.5, "width_keep": 0.5}
    sent = client_cut(X, **params).activations
    expected = torch.zeros(1, 2, 4)
    expected[0, 0, 0], expected[0, 1, 2] = 4 * 3, 4 * 8 / 2  # Re of (0, 0), Re of (1, 1)
    torch.testing.assert_close(sent, expected)
    for block, found in (
        ("corner", 3 + 4 * falling),
        ("mirrored", 3 + 8 * falling),
    ):
        cut = client_cut(X, block=block, **params)
        back = server_cut(cut, block=block, **params)[1].activations
        torch.testing.assert_close(back, found[None])
    params = {"token_keep": 0.75, "width_keep": 0.75, "block": "centred"}
    back = server_cut(client_cut(X, **params), **params)[1].activations
    torch.testing.assert_close(back, X)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), m=st.integers(1, 40))
def test_the_basis_is_orthonormal(n: int, m: int) -> None:
    m = min(m, n)
    m -= 1 - m % 2
    basis = fourier_basis(n, m)
    assert basis.shape == (m, n)
    unit = torch.eye(m, dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, unit, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    N=st.sampled_from([1, 5, 50, 197, 256]),
    D=st.sampled_from([1, 2, 16, 192, 384]),
    ratio=st.floats(0.001, 1),
    block=st.sampled_from(BLOCKS),
)
def test_the_block_fills_the_ratio(N: int, D: int, ratio: float, block: Any) -> None:
    M, Q = FFTLowpass(ratio=ratio, block=block)._block(N, D)
    parts = 1 if block == "centred" else 2
    assert max(parts, ratio * N * D) + 1e-6 >= M * Q or (M, Q) == (N, D) == (1, 1)
    if block == "centred":
        assert M % 2 == 1 or M == N
        assert Q % 2 == 1 or Q == D
    else:
        assert (M <= N and Q % 2 == 0 and M * Q < N * D) or (M, Q) == (N, D)
    if N >= 50 and D >= 192 and ratio > 0.05:
        assert 0.9 * ratio * N * D <= M * Q
        if ratio < 1:
            assert 0.8 < (M / N) / (ratio / parts) ** 0.5 < 1.2, "both axes alike"


def test_sizes_of_a_deit() -> None:
    for ratio in (0.05, 0.1, 0.3, 0.5):
        for block in BLOCKS:
            M, Q = FFTLowpass(ratio=ratio, block=block)._block(197, 192)  # type: ignore[arg-type]
            assert 0.97 * ratio < M * Q / (197 * 192) <= ratio
    both = FFTLowpass(token_keep=0.5, width_keep=0.25)
    assert both._block(197, 192) == (98, 2 * 48)
    assert FFTLowpass(token_keep=0.5)._block(197, 192) == (98, 2 * 192)
    assert FFTLowpass(token_keep=0.6)._block(197, 192) == (197, 192), "no more than everything"
    both = FFTLowpass(token_keep=0.5, width_keep=0.25, block="centred")
    assert both._block(197, 192) == (97, 47)
    assert FFTLowpass(token_keep=0.5, block="centred")._block(197, 192) == (97, 192)


@pytest.mark.parametrize("block", BLOCKS)
def test_everything_kept_is_the_identity(block: Any) -> None:
    X = noise(3, 5, 16)
    cut = client_cut(X, ratio=1, block=block)
    assert torch.equal(cut.activations, X)
    assert torch.equal(server_cut(cut, ratio=1, block=block)[1].activations, X)


def test_what_is_smooth_is_kept_whole_and_what_is_rough_is_lost() -> None:
    tokens, width = fourier_basis(9, 9), fourier_basis(21, 21)
    smooth = (tokens[2][:, None] * width[4])[None]
    rough = (tokens[7][:, None] * width[4])[None]
    params: dict[str, Any] = {"token_keep": 0.4, "width_keep": 0.3, "block": "centred"}
    torch.testing.assert_close(
        server_cut(client_cut(smooth, **params), **params)[1].activations, smooth
    )
    assert server_cut(client_cut(rough, **params), **params)[1].activations.norm() < 1e-12


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, block: Any) -> None:
    X = noise(3, 9, 16).to(dtype).requires_grad_()
    params: dict[str, Any] = {"ratio": 0.3, "block": block}
    cut = client_cut(X, **params)
    assert cut.activations.dtype == dtype
    assert torch.equal(cut.activations, client_cut(X.float(), **params).activations.to(dtype))
    leaf, there = server_cut(cut, **params)
    assert there.activations.dtype == dtype
    down = torch.autograd.grad(there.activations.sum(), leaf)[0]
    assert torch.autograd.grad(cut.activations, X, down)[0].dtype == dtype


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "one row", "one token"])
def test_values_out_of_the_ordinary(what: str, block: Any) -> None:
    X = noise(3, 9, 16)
    if what == "zeros":
        X.zero_()
    elif what == "constant":
        X.fill_(3.5)
    elif what == "outlier":
        X[1, 2, 3] = 1e37
    elif what == "one row":
        X = X[:1]
    else:
        X = X[:, :1]
    found = server_cut(client_cut(X, block=block), block=block)[1].activations
    assert found.shape == X.shape
    assert found.isfinite().all()
    if what in ("zeros", "constant"):
        torch.testing.assert_close(found, X)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_number_that_is_not_finite_spoils_its_sample_alone(block: Any, bad: float) -> None:
    X = noise(3, 9, 16)
    X[1, 2, 3] = bad
    found = server_cut(client_cut(X, block=block), block=block)[1].activations
    assert found.isfinite().flatten(1).all(1).tolist() == [True, False, True]
    assert not found[1].isfinite().any()


def test_evaluation() -> None:
    X = noise(3, 9, 16)
    assert FFTLowpass().traits().evaluation
    assert client_cut(X, training=False).activations.shape == (3, 1, 14)
    assert not FFTLowpass(evaluation=False).traits().evaluation
    cut = client_cut(X, training=False, evaluation=False)
    assert cut.activations is X
    leaf, there = server_cut(cut, evaluation=False)
    assert there.activations is leaf


def test_nominal_ratios() -> None:
    assert FFTLowpass().nominal_ratio() == (0.1, 0.1)
    assert FFTLowpass(ratio=0.3).nominal_ratio() == (0.3, 0.3)
    both = {"token_keep": 0.5, "width_keep": 0.25}
    assert FFTLowpass(**both).nominal_ratio() == (0.25, 0.25), "complex numbers"
    assert FFTLowpass(**both, block="centred").nominal_ratio() == (0.125, 0.125)  # type: ignore[arg-type]
    assert FFTLowpass(token_keep=0.9).nominal_ratio() == (1, 1)


# --- What arrives is not trusted ------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        torch.tensor([9, 40], dtype=torch.int32),
        torch.tensor([10**9, 16], dtype=torch.int32),
        torch.tensor([0, 16], dtype=torch.int32),
        torch.tensor([9, 16], dtype=torch.int64),
        torch.tensor([9], dtype=torch.int32),
    ],
)
def test_a_size_that_does_not_fit_is_refused(size: torch.Tensor) -> None:
    cut = client_cut(noise(3, 9, 16), ratio=0.3)
    cut.side[SIZE] = size
    with pytest.raises(ProtocolError, match="no such matrix has this block"):
        server_cut(cut, ratio=0.3)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"ratio": 0.0}, "ratio=0.0 is refused"),
        ({"token_keep": 1.5}, "token_keep=1.5"),
        ({"width_keep": 0.0}, "width_keep=0.0"),
        ({"block": "center"}, "block=center is refused; allowed: corner, mirrored, centred"),
        ({"ratio": 0.1, "token_keep": 0.3}, "allowed: one of ratio, token_keep"),
        ({"ratio": 0.1, "width_keep": 0.3}, "allowed: one of ratio, width_keep"),
    ],
)
def test_bad_parameters(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FFTLowpass(**params)


def test_twice_in_a_stack(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"needs layout .* takes away"):
        tiny.pair([tiny.bound(FFTLowpass)] * 2)


# --- Through real frames --------------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 6])
@pytest.mark.parametrize(
    ("block", "M", "Q"), [("corner", 2, 12), ("mirrored", 2, 12), ("centred", 3, 7)]
)
def test_bytes(tiny: Any, B: int, block: str, M: int, Q: int) -> None:
    """24 of 5 · 16 numbers allowed: 2 · 6 complex ones, or 3 · 7."""
    client, server = tiny.pair([tiny.bound(FFTLowpass, ratio=0.3, block=block)])
    up = next(client.train(tiny.batch(size=B), 0))
    assert up["activations"].shape == (B, M, Q)
    assert [up[name].nbytes for name in up.names(Role.PAYLOAD)] == [4 * B * M * Q]
    assert [up[name].nbytes for name in up.names(Role.SIDE)] == [8]
    down = server.handle(tiny.travel(up))
    assert [down[name].nbytes for name in down] == [4 * B * M * Q]


def test_training_repeats_itself_and_resumes(tiny: Any) -> None:
    def pair() -> Any:
        return tiny.pair([tiny.bound(FFTLowpass, ratio=0.3)])

    client, server = pair()
    first = tiny.train(client, server, range(2))
    states = [copy.deepcopy(worker.state()) for worker in (client, server)]
    later = tiny.train(client, server, range(2, 4))
    assert tiny.train(*pair(), range(2)) == first
    client, server = pair()
    for worker, state in zip((client, server), states, strict=True):
        worker.load_state(*state)
    assert tiny.train(client, server, range(2, 4)) == later


def test_evaluation_through_frames(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(FFTLowpass)])

    def ask(up: Message) -> Message:
        up = tiny.travel(up)
        assert up["activations"].shape == (6, 1, 8), "8 of 80 numbers"
        down = tiny.travel(server.handle(up))
        assert down.kind is Kind.PREDICTION
        return down

    assert hold(client.query(tiny.batch(), 0, stacked=True), ask).ids.shape == (6,)


def test_between_adc_and_c3sl(tiny: Any) -> None:
    stack = [
        tiny.bound(ADC, ratio=0.5),
        tiny.bound(FFTLowpass, ratio=0.5),
        tiny.bound(C3SL, group=2),
    ]
    up = next(tiny.client(stack).train(tiny.batch(), 0))
    assert up["activations"].shape == (2, 1, 24), "4 rows of 3 tokens; 12 complex; 2 to a sum"
    assert all(loss > 0 for loss in tiny.train(*tiny.pair(stack), range(2)))


def test_in_front_of_adc_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="a stack that works: adc"):
        tiny.client([tiny.bound(FFTLowpass), tiny.bound(ADC)])


def test_built_by_name() -> None:
    bound = bind("plugins", "fft-lowpass:token_keep=0.3,width_keep=0.5,evaluation=false")
    assert isinstance(bound.build(), FFTLowpass)


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu() -> None:
    X = noise(8, 197, 192)
    for block in BLOCKS:
        here, there = client_cut(X, block=block), client_cut(X.cuda(), block=block)
        torch.testing.assert_close(there.activations.cpu(), here.activations, rtol=1e-4, atol=1e-4)
        back = server_cut(there, block=block)[1].activations.detach().cpu()
        expected = server_cut(here, block=block)[1].activations.detach()
        torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-4)
