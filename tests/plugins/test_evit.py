"""EViT: which patches stay, what becomes of the others, and that the gradient is exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import Attention, ConfigError, Cut, Message, PluginError
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins.evit import EViT

ATTENTION = Attention()

FUSES = ["sum", "none", "normalised", "mean"]


def make_cut(
    B: int = 6,
    N: int = 9,
    D: int = 4,
    *,
    seed: int = 0,
    training: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Cut:
    draw = torch.Generator().manual_seed(seed)
    activations = torch.randn(B, N, D, generator=draw, dtype=torch.float64).to(dtype)
    attention = (2 * torch.randn(B, N, generator=draw)).softmax(dim=1)
    return Cut(
        activations=activations.requires_grad_(),
        targets=torch.zeros(B),
        step=0,
        training=training,
        measured={ATTENTION: attention},
    )


def run(plugin: EViT, cut: Cut, **facts: Any) -> torch.Tensor:
    """Reduce the cut; returns what it was."""
    B, N, D = cut.activations.shape
    defaults: dict[str, Any] = {"seed": 7, "classes": 5, "tokens": N, "width": D, "cut": 1}
    defaults |= {"prefix_tokens": 1, "class_token": True, "batch_size": B}
    peer = Tiny().peer(
        "client", **({"grid": None} | defaults | {"device": torch.device("cpu")} | facts)
    )
    plugin.setup(peer)
    leaf = cut.activations
    plugin.after_client_forward(cut)
    return leaf


def composed(X: torch.Tensor, attention: torch.Tensor, M: int, fuse: str, P: int) -> torch.Tensor:
    """The same map in plain torch, row by row."""
    rows = []
    for x, a in zip(X, attention.double().tolist(), strict=True):
        ranked = sorted(range(P, len(a)), key=lambda j: (-a[j], j))
        kept, rest = sorted(ranked[:M]), ranked[M:]
        total = sum(a[j] for j in rest)
        row = [x[j] for j in [*range(P), *kept]]
        if fuse == "sum":
            row.append(sum(a[j] * x[j] for j in rest))
        elif fuse == "normalised":
            row.append(sum(a[j] / total * x[j] for j in rest))
        elif fuse == "mean":
            row.append(sum(x[j] for j in rest) / len(rest))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("fuse", "fused"),
    [("sum", [[0.8, 0.4]]), ("normalised", [[8 / 3, 4 / 3]]), ("mean", [[3.0, 1.0]]), ("none", [])],
)
def test_four_patches_by_hand(fuse: Any, fused: list[list[float]]) -> None:
    tokens = torch.tensor([[[9.0, 9], [1, 0], [0, 1], [2, 2], [4, 0]]])
    attention = torch.tensor([[0.0, 0.4, 0.3, 0.2, 0.1]])
    cut = Cut(
        activations=tokens.requires_grad_(),
        targets=torch.zeros(1),
        step=0,
        training=True,
        measured={ATTENTION: attention},
    )
    run(EViT(keep=0.5, fuse=fuse), cut)
    expected = torch.tensor([[[9.0, 9], [1, 0], [0, 1], *fused]])
    torch.testing.assert_close(cut.activations, expected)
    assert ATTENTION in cut.measured
    torch.testing.assert_close(
        cut.measured[ATTENTION], torch.tensor([[0, 0.4, 0.3, 0.3][: expected.shape[1]]])
    )


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 5),
    N=st.integers(3, 10),
    P=st.integers(1, 2),
    keep=st.floats(0.01, 1),
    fuse=st.sampled_from(FUSES),
    seed=st.integers(0, 3),
)
def test_is_the_composed_map_and_its_gradient(
    B: int, N: int, P: int, keep: float, fuse: Any, seed: int
) -> None:
    cut = make_cut(B, N, 3, seed=seed, dtype=torch.float64)
    attention = cut.measured[ATTENTION]
    assert attention is not None
    plugin = EViT(keep=keep, fuse=fuse)
    leaf = run(plugin, cut, prefix_tokens=P)
    M = math.ceil(keep * (N - P) - 1e-9)
    if M == N - P:
        assert cut.activations is leaf
        assert cut.measured[ATTENTION] is attention
        assert plugin.nominal_ratio() == (1, 1)
        return
    expected = composed(leaf, attention, M, fuse, P)
    K = P + M + (fuse != "none")
    assert cut.activations.shape == (B, K, 3)
    assert plugin.nominal_ratio() == (K / N, K / N)
    torch.testing.assert_close(cut.activations, expected, rtol=0, atol=1e-9)
    gradient = torch.randn(B, K, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(z, leaf, gradient)[0] for z in (cut.activations, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert cut.measured[ATTENTION].shape == (B, K)
    if fuse != "none":
        torch.testing.assert_close(cut.measured[ATTENTION].sum(1), attention.sum(1))


@pytest.mark.parametrize(
    ("plugin", "K"),
    [
        (EViT(), 19),
        (EViT(ratio=0.1, fuse="none"), 19),
        (EViT(ratio=0.5), 98),
        (EViT(ratio=0.0102), 2),
        (EViT(keep=0.7), 140),
        (EViT(keep=0.5, fuse="none"), 99),
        (EViT(ratio=1), 197),
    ],
)
def test_sizes_and_bytes_of_a_deit(plugin: EViT, K: int) -> None:
    cut = make_cut(3, 197, 2)
    run(plugin, cut)
    assert cut.activations.nbytes == 4 * 3 * K * 2
    assert not cut.side


def test_ties_keep_the_lowest_patches() -> None:
    cut = make_cut(2, 100, 2)
    cut.measured[ATTENTION] = torch.full((2, 100), 0.01)
    leaf = run(EViT(keep=0.5, fuse="none"), cut)
    assert torch.equal(cut.activations, leaf[:, :51])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fuse", FUSES)
def test_dtypes(dtype: torch.dtype, fuse: Any) -> None:
    cut, exact = make_cut(dtype=dtype), make_cut()
    leaf = run(EViT(keep=0.5, fuse=fuse), cut)
    run(EViT(keep=0.5, fuse=fuse), exact)
    assert cut.activations.dtype == dtype
    torch.testing.assert_close(cut.activations.float(), exact.activations, rtol=1e-2, atol=2e-2)
    gradient = torch.ones_like(cut.activations)
    assert torch.autograd.grad(cut.activations, leaf, gradient)[0].dtype == dtype


@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "no attention left"])
def test_extreme_values_stay_finite(what: str, fuse: Any) -> None:
    cut = make_cut()
    assert ATTENTION in cut.measured
    X = cut.activations.detach()
    if what == "zeros":
        X.zero_()
        cut.measured[ATTENTION].zero_()
    elif what == "constant":
        X.fill_(3.5)
        cut.measured[ATTENTION].fill_(1 / 9)
    elif what == "outlier":
        X[3, 4, 1] = 1e37
    else:
        cut.measured[ATTENTION][:] = torch.eye(9)[0]
    cut.activations = X.requires_grad_()
    leaf = run(EViT(keep=0.3, fuse=fuse), cut)
    assert cut.activations.isfinite().all()
    gradient = torch.ones_like(cut.activations)
    assert torch.autograd.grad(cut.activations, leaf, gradient)[0].isfinite().all()
    if what == "no attention left" and fuse == "normalised":
        torch.testing.assert_close(cut.activations[:, -1], leaf[:, 4:].mean(1))


def test_evaluation_is_reduced_on_demand() -> None:
    whole, reduced = make_cut(training=False), make_cut(training=False)
    leaf = run(EViT(), whole)
    assert whole.activations is leaf
    assert not EViT().traits().evaluation
    run(EViT(keep=0.5, evaluation=True), reduced)
    assert reduced.activations.shape == (6, 6, 4)
    assert EViT(evaluation=True).traits().evaluation


def test_repeated_and_independent_of_global_random_state() -> None:
    with torch.random.fork_rng([]):
        first, second = make_cut(), make_cut()
        torch.manual_seed(1)
        run(EViT(), first)
        torch.manual_seed(2)
        run(EViT(), second)
    assert torch.equal(first.activations, second.activations)
    assert not EViT().traits().stateful
    assert not hasattr(EViT, "state_dict")


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="fuse=avg is refused"):
        EViT(fuse="avg")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave out ratio or keep"):
        EViT(keep=0.5, ratio=0.5)
    with pytest.raises(ConfigError, match=r"at least 2 are sent; allowed here: ratio=0.2223 to 1"):
        run(EViT(ratio=0.2), make_cut())
    run(EViT(ratio=0.2223), make_cut())
    part = Tiny().client(class_token=False, global_pool="avg")._part
    with pytest.raises(ConfigError, match="class token"):
        run(EViT(), make_cut(), unable=part.unable)
    for attention, found in ((None, "none"), (torch.zeros(6, 5), r"shape \[6, 5\]")):
        cut = make_cut()
        cut.measured = {} if attention is None else {ATTENTION: attention}
        with pytest.raises(PluginError, match=f"class-token attention to each of the 9 .* {found}"):
            run(EViT(), cut)


@pytest.mark.parametrize(
    "stack",
    [
        ["evit:keep=0.5"],
        ["evit:keep=0.5,evaluation=true", "adc-token-select:ratio=0.7,evaluation=true"],
        ["adc-batch-merge:ratio=0.5", "evit:ratio=0.6,fuse=mean,heads=mean,score_layer=last"],
        ["evit:keep=0.75", "evit:keep=0.5"],
    ],
)
def test_trains_through_real_frames(tiny: Any, stack: list[str]) -> None:
    plugins = [bind("plugins", text) for text in stack]
    first, second = (tiny.train(*tiny.pair(plugins), range(2)) for _ in range(2))
    assert first == second
    client, server = tiny.pair(plugins)
    assert next(client.train(tiny.batch(), 0))["activations"].shape[1] < 5

    def ask(asked: Message) -> Message:
        assert (asked["activations"].shape[1] < 5) == ("true" in stack[0])
        return tiny.travel(server.handle(tiny.travel(asked)))

    hold(client.query(tiny.batch(0), 0, stacked=True), ask)
