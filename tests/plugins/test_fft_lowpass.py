"""FFT low-pass: against torch's transforms, by its hooks and through real frames.

Shapes: B rows, N tokens, D width; M and Q kept of them.
"""

from __future__ import annotations

import copy
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


def lowpass(X: torch.Tensor, M: int, Q: int) -> torch.Tensor:
    """The definition: transform all, blank all but the block, transform back."""

    def kept(n: int, m: int) -> torch.Tensor:
        frequency = torch.fft.fftfreq(n, 1 / n).abs()
        return torch.ones(n, dtype=torch.bool) if m == n else frequency <= m // 2

    _, N, D = X.shape
    spectrum = torch.fft.fft2(X) * (kept(N, M)[:, None] & kept(D, Q))
    back = torch.fft.ifft2(spectrum)
    assert float(back.imag.detach().abs().max()) < 1e-9
    return back.real


@pytest.mark.parametrize(("N", "D"), [(5, 16), (7, 4), (1, 9), (6, 1)])
@pytest.mark.parametrize(("tokens", "width"), [(0.1, 0.5), (0.5, 1.0), (1.0, 0.3), (0.7, 0.7)])
def test_it_is_fft_block_and_inverse_fft(N: int, D: int, tokens: float, width: float) -> None:
    X = noise(3, N, D, dtype=torch.float64).requires_grad_()
    params = {"token_keep": tokens, "width_keep": width}
    cut = client_cut(X, **params)
    _, M, Q = cut.activations.shape
    leaf, there = server_cut(cut, **params)
    assert not there.side
    torch.testing.assert_close(there.activations, lowpass(X, M, Q), rtol=0, atol=1e-12)

    # The projection is its own adjoint, so that the gradient is smoothed likewise.
    gradient = noise(3, N, D, seed=1, dtype=torch.float64)
    down = torch.autograd.grad(there.activations, leaf, gradient)[0]
    assert down.shape == (3, M, Q)
    ours = torch.autograd.grad(cut.activations, X, down)[0]
    Y = X.detach().clone().requires_grad_()
    theirs = torch.autograd.grad(lowpass(Y, M, Q), Y, gradient)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours, lowpass(gradient, M, Q), rtol=0, atol=1e-9)


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
)
def test_the_block_fills_the_ratio(N: int, D: int, ratio: float) -> None:
    M, Q = FFTLowpass(ratio=ratio)._block(N, D)
    assert M % 2 == 1 or M == N
    assert Q % 2 == 1 or Q == D
    assert max(1, ratio * N * D) + 1e-6 >= M * Q
    if N >= 50 and D >= 192 and ratio > 0.05:
        assert 0.9 * ratio * N * D <= M * Q
        assert 0.8 < (M / N) / ratio**0.5 < 1.2, "both axes alike"


def test_sizes_of_a_deit() -> None:
    for ratio in (0.05, 0.1, 0.3, 0.5):
        M, Q = FFTLowpass(ratio=ratio)._block(197, 192)
        assert 0.97 * ratio < M * Q / (197 * 192) <= ratio
    assert FFTLowpass(token_keep=0.5, width_keep=0.25)._block(197, 192) == (97, 47)
    assert FFTLowpass(token_keep=0.5)._block(197, 192) == (97, 192)


def test_everything_kept_is_the_identity() -> None:
    X = noise(3, 5, 16)
    cut = client_cut(X, ratio=1)
    assert torch.equal(cut.activations, X)
    assert torch.equal(server_cut(cut, ratio=1)[1].activations, X)


def test_what_is_smooth_is_kept_whole_and_what_is_rough_is_lost() -> None:
    tokens, width = fourier_basis(9, 9), fourier_basis(21, 21)
    smooth = (tokens[2][:, None] * width[4])[None]
    rough = (tokens[7][:, None] * width[4])[None]
    params = {"token_keep": 0.4, "width_keep": 0.3}
    torch.testing.assert_close(
        server_cut(client_cut(smooth, **params), **params)[1].activations, smooth
    )
    assert server_cut(client_cut(rough, **params), **params)[1].activations.norm() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    X = noise(3, 9, 16).to(dtype).requires_grad_()
    cut = client_cut(X, ratio=0.3)
    assert cut.activations.dtype == dtype
    assert torch.equal(cut.activations, client_cut(X.float(), ratio=0.3).activations.to(dtype))
    leaf, there = server_cut(cut, ratio=0.3)
    assert there.activations.dtype == dtype
    down = torch.autograd.grad(there.activations.sum(), leaf)[0]
    assert torch.autograd.grad(cut.activations, X, down)[0].dtype == dtype


@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "one row", "one token"])
def test_values_out_of_the_ordinary(what: str) -> None:
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
    found = server_cut(client_cut(X))[1].activations
    assert found.shape == X.shape
    assert found.isfinite().all()
    if what in ("zeros", "constant"):
        torch.testing.assert_close(found, X)


def test_a_number_that_is_not_finite_spoils_its_sample_alone() -> None:
    X = noise(3, 9, 16)
    X[1, 2, 3] = torch.inf
    found = server_cut(client_cut(X))[1].activations
    assert found.isfinite().flatten(1).all(1).tolist() == [True, False, True]
    assert not found[1].isfinite().any()


def test_evaluation() -> None:
    X = noise(3, 9, 16)
    assert FFTLowpass().traits().evaluation
    assert client_cut(X, training=False).activations.shape == (3, 3, 3)
    assert not FFTLowpass(evaluation=False).traits().evaluation
    cut = client_cut(X, training=False, evaluation=False)
    assert cut.activations is X
    leaf, there = server_cut(cut, evaluation=False)
    assert there.activations is leaf


def test_nominal_ratios() -> None:
    assert FFTLowpass().nominal_ratio() == (0.1, 0.1)
    assert FFTLowpass(ratio=0.3).nominal_ratio() == (0.3, 0.3)
    assert FFTLowpass(token_keep=0.5, width_keep=0.25).nominal_ratio() == (0.125, 0.125)


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
def test_bytes(tiny: Any, B: int) -> None:
    client, server = tiny.pair([tiny.bound(FFTLowpass, ratio=0.3)])
    up = next(client.train(tiny.batch(size=B), 0))
    assert up["activations"].shape == (B, 3, 7), "3 · 7 of 24 numbers allowed"
    assert [up[name].nbytes for name in up.names(Role.PAYLOAD)] == [4 * B * 3 * 7]
    assert [up[name].nbytes for name in up.names(Role.SIDE)] == [8]
    down = server.handle(tiny.travel(up))
    assert [down[name].nbytes for name in down] == [4 * B * 3 * 7]


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
        assert up["activations"].shape == (6, 1, 7)
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
    assert up["activations"].shape == (2, 3, 7), "4 rows of 3 tokens; 3 · 7 of 24; 2 to a sum"
    assert all(loss > 0 for loss in tiny.train(*tiny.pair(stack), range(2)))


def test_in_front_of_adc_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="a stack that works: adc"):
        tiny.client([tiny.bound(FFTLowpass), tiny.bound(ADC)])


def test_built_by_name() -> None:
    bound = bind("plugins", "fft-lowpass:token_keep=0.3,width_keep=0.5,evaluation=false")
    assert isinstance(bound.build(), FFTLowpass)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu() -> None:
    X = noise(8, 197, 192)
    here, there = client_cut(X), client_cut(X.cuda())
    torch.testing.assert_close(there.activations.cpu(), here.activations, rtol=1e-4, atol=1e-4)
    back = server_cut(there)[1].activations.detach().cpu()
    expected = server_cut(here)[1].activations.detach()
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-4)
