"""ADC and its two halves, driven by their hooks: a plain dict is the wire.

Shapes: B samples, N tokens, D width, C classes; T rows and K tokens sent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import Attention, ConfigError, Cut, Peer, PluginError, ProtocolError
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.stack import Stack
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins.adc import ADC, ADCBatchMerge, ADCTokenSelect, merge_select
from splitlab.plugins.common.kmeans import random_partition

ATTENTION = Attention()

Plugin = ADC | ADCBatchMerge | ADCTokenSelect
CRITERIA = ["cls_score", "cls_token", "avg_token", "random", "class_label"]
SELECTS = ["rollout", "norm", "random"]


def make_peer(role: str = "client", **facts: Any) -> Peer:
    defaults: dict[str, Any] = {
        "seed": 7,
        "classes": 5,
        "tokens": 9,
        "width": 4,
        "prefix_tokens": 1,
        "class_token": True,
        "cut": 3,
        "batch_size": 8,
        "device": torch.device("cpu"),
    }
    return Tiny().peer(role, **({"grid": None} | defaults | facts))  # type: ignore[arg-type]


def unable(**settings: Any) -> Any:
    """What the client's part of such a model of twelve blocks cannot measure, and why."""
    return Tiny(depth=12).client(**settings)._part.unable


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11), dtype=dtype)


def make_cut(
    B: int = 8,
    N: int = 9,
    D: int = 4,
    C: int = 5,
    *,
    seed: int = 0,
    step: int = 0,
    training: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Cut:
    draw = torch.Generator().manual_seed(seed)
    activations = torch.randn(B, N, D, generator=draw, dtype=torch.float64).to(dtype)
    return Cut(
        activations=activations.requires_grad_(),
        targets=torch.randint(C, (B,), generator=draw),
        step=step,
        training=training,
        measured={
            ATTENTION: (2 * torch.randn(B, N, generator=draw)).softmax(dim=1),
            Attention("mean", "rollout"): torch.rand(B, N, generator=draw),
        },
        sample_ids=torch.arange(B),
    )


@dataclass
class Outcome:
    """What one step left behind at both peers and between them."""

    leaf: torch.Tensor
    client: Cut
    server: Cut
    wire: dict[str, torch.Tensor]

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(self.client.activations, self.leaf, gradient)[0]

    @property
    def clusters(self) -> torch.Tensor:
        return self.wire["adc.clusters"].long()


def run_step(stack: list[Plugin], cut: Cut, **facts: Any) -> Outcome:
    """Send one cut through a stack, as the engine does; the instances play both peers in turn."""
    facts = {"batch_size": cut.activations.shape[0], "tokens": cut.activations.shape[1]} | facts
    facts = {"width": cut.activations.shape[2]} | facts
    client_peer = make_peer("client", **facts)
    for plugin in stack:
        plugin.setup(client_peer)
    leaf = cut.activations
    for plugin in stack:
        plugin.after_client_forward(cut)
    wire = {
        "activations": cut.activations.detach().clone(),
        "targets": cut.targets.to(torch.uint8),
        **cut.side,
    }
    server = receive(stack, wire, cut, **facts)
    return Outcome(leaf, cut, server, wire)


def receive(stack: list[Plugin], wire: dict[str, torch.Tensor], cut: Cut, **facts: Any) -> Cut:
    """Decode at a peer that knows the wire, the step and the configuration, and nothing else."""
    server_peer = make_peer("server", **facts)
    side = {key: value for key, value in wire.items() if key not in ("activations", "targets")}
    server = Cut(
        activations=wire["activations"],
        targets=wire["targets"].long(),
        step=cut.step,
        training=cut.training,
        side=side,
    )
    for plugin in reversed(stack):
        plugin.setup(server_peer)
        if not isinstance(plugin, ADCTokenSelect):
            plugin.before_server_forward(server)
    return server


def composed(X: torch.Tensor, clusters: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The same map in plain torch, cluster by cluster."""
    rows = [X[clusters == i].mean(dim=0)[kept] for i, kept in enumerate(tokens)]
    return torch.stack(rows)


def kept_tokens(
    attention: torch.Tensor, clusters: torch.Tensor, k: int, prefix: int = 1
) -> torch.Tensor:
    """Which tokens section 2.1 of the method keeps, cluster by cluster."""
    rows = []
    for i in range(int(clusters.max()) + 1):
        scores = attention[clusters == i].mean(dim=0).tolist()
        patches = sorted(range(prefix, len(scores)), key=lambda j: (-scores[j], j))
        rows.append(sorted([*range(prefix), *patches[: max(0, k - prefix)]]))
    return torch.tensor(rows)


# --- The published vector, and the table of sizes -------------------------------------------------


def test_vector_of_the_specification() -> None:
    scores = torch.tensor(
        [[0.4, 0.3, 0.2, 0.1], [0.4, 0.28, 0.22, 0.1], [0.1, 0.1, 0.2, 0.6], [0.12, 0.08, 0.2, 0.6]]
    )
    X = torch.arange(32.0).reshape(4, 4, 2).requires_grad_()
    cut = Cut(
        activations=X,
        targets=torch.tensor([0, 0, 1, 2]),
        step=0,
        training=True,
        measured={ATTENTION: scores},
    )
    # Which two samples start K-means decides the numbering, not the result.
    out = run_step([ADC(alloc="explicit", tau=0.5, kappa=0.5)], cut, classes=3)
    assert out.clusters.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    order = [0, 1] if out.clusters[0] == 0 else [1, 0]

    expected = torch.tensor([[[4.0, 5], [6, 7]], [[20, 21], [26, 27]]])
    assert torch.equal(out.wire["activations"][order], expected)
    assert torch.equal(out.server.targets[order], torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]))
    assert ATTENTION in out.client.measured
    torch.testing.assert_close(
        out.client.measured[ATTENTION][order], torch.tensor([[0.4, 0.29], [0.11, 0.6]])
    )

    gradient = torch.zeros(4, 4, 2)
    gradient[0:2, [0, 1]] = 0.5
    gradient[2:4, [0, 3]] = 0.5
    assert torch.equal(out.backward(torch.ones(2, 2, 2)), gradient)


# xi: (T, k) of sqrt, fifth, quarter_bug at B = 128, N = 197.
SIZES = {
    0.01: ((12, 19), (50, 4), (12, 62)),
    0.05: ((28, 44), (70, 17), (28, 93)),
    0.10: ((40, 62), (80, 31), (40, 110)),
    0.20: ((57, 88), (92, 54), (57, 131)),
    0.30: ((70, 107), (100, 75), (70, 145)),
    0.40: ((80, 124), (106, 94), (80, 156)),
    0.50: ((90, 139), (111, 113), (90, 165)),
}


@pytest.mark.parametrize("ratio", SIZES)
@pytest.mark.parametrize("alloc", ["sqrt", "fifth", "quarter_bug"])
def test_table_of_sizes_and_bytes(ratio: float, alloc: Any) -> None:
    D = 2
    plugin = ADC(ratio=ratio, alloc=alloc, iterations=1)
    out = run_step([plugin], make_cut(128, 197, D, 5))
    T, K = SIZES[ratio][["sqrt", "fifth", "quarter_bug"].index(alloc)]
    assert out.wire["activations"].shape == (T, K, D)
    assert plugin.nominal_ratio() == (ratio, ratio), "what the authors charge, bug or no bug"

    # Bytes of what travels, both ways.
    assert out.wire.keys() == {"activations", "targets", "adc.clusters"}
    assert sum(t.nbytes for t in out.wire.values()) == 4 * T * K * D + 2 * 128
    assert out.client.activations.nbytes == 4 * T * K * D


@pytest.mark.parametrize(
    ("ratio", "rounding", "B", "T"),
    [
        (0.29, "floor", 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0.57, "floor", 100, 57),  # 56.99999999999999
        (0.3, "floor", 10, 3),
        (0.35, "floor", 10, 3),
        (0.35, "nearest", 10, 4),
        (0.34, "nearest", 10, 3),
        (0.001, "floor", 10, 2),
    ],
)
def test_rounding(ratio: float, rounding: Any, B: int, T: int) -> None:
    cut = make_cut(B, 4, 2)
    run_step([ADCBatchMerge(ratio=ratio, rounding=rounding)], cut)
    assert cut.activations.shape[0] == T
    cut = make_cut(2, B, 2)
    run_step([ADCTokenSelect(ratio=ratio, rounding=rounding)], cut)
    assert cut.activations.shape[1] == (T if ratio > 0.1 else 1)


# --- What every step must satisfy -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 20),
    N=st.integers(1, 12),
    tau=st.floats(0.01, 1),
    kappa=st.floats(0.01, 1),
    criterion=st.sampled_from(CRITERIA),
    duplicates=st.booleans(),
    seed=st.integers(0, 3),
)
def test_invariants(
    B: int, N: int, tau: float, kappa: float, criterion: Any, duplicates: bool, seed: int
) -> None:
    cut = make_cut(B, N, 3, seed=seed, dtype=torch.float64)
    assert ATTENTION in cut.measured
    if duplicates:
        cut.activations = cut.activations.detach()[:1].repeat(B, 1, 1).requires_grad_()
        cut.measured[ATTENTION] = cut.measured[ATTENTION][:1].repeat(B, 1)
    attention, ids = cut.measured[ATTENTION], cut.targets
    plugin = ADC(alloc="explicit", tau=tau, kappa=kappa, criterion=criterion)
    out = run_step([plugin], cut, batch_size=max(B, 2))
    Z = out.wire["activations"]
    T, K, _ = Z.shape

    if "adc.clusters" not in out.wire:
        assert T == B
        assert torch.equal(out.server.targets, ids)
        clusters = torch.arange(B)
    else:
        clusters = out.clusters
        sizes = torch.bincount(clusters, minlength=T)
        assert len(sizes) == T < B
        assert int(sizes.min()) >= 1
        counts = sizes[:, None] * out.server.targets
        torch.testing.assert_close(counts.sum(0), torch.bincount(ids, minlength=5).float())
        torch.testing.assert_close(out.server.targets.sum(1), torch.ones(T))

    k = max(1, int(kappa * N + 1e-9))
    tokens = kept_tokens(attention, clusters, k)
    if not duplicates:  # equal scores, summed in another order, may rank otherwise
        torch.testing.assert_close(Z, composed(out.leaf, clusters, tokens).detach())
    torch.testing.assert_close(Z[:, 0], composed(out.leaf, clusters, tokens[:, :1]).detach()[:, 0])
    assert ATTENTION in out.client.measured
    assert out.client.measured[ATTENTION].shape == (T, K)

    gradient = noise(T, K, 3, dtype=torch.float64)
    if T < B or K < N:
        grad = out.backward(gradient)
        # What the members of a cluster get of a kept token sums up to what came back for it.
        per_cluster = torch.zeros(T, N, 3, dtype=torch.float64).index_add_(0, clusters, grad)
        torch.testing.assert_close(per_cluster.sum(1), gradient.sum(1))
        assert ((per_cluster != 0).any(-1).sum(1) <= K).all()
    else:
        assert out.client.activations is out.leaf


@pytest.mark.parametrize("criterion", CRITERIA)
def test_merging_conserves_the_sum_of_the_batch(criterion: Any) -> None:
    cut = make_cut(20, 9, 4, dtype=torch.float64)
    out = run_step([ADCBatchMerge(ratio=0.3, criterion=criterion)], cut)
    sizes = torch.bincount(out.clusters).double()
    total = (sizes[:, None, None] * out.wire["activations"]).sum(0)
    torch.testing.assert_close(total, out.leaf.detach().sum(0))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_tokens_are_selected_by_attention_whatever_is_clustered(criterion: Any) -> None:
    cut = make_cut(20, 9, 4, dtype=torch.float64)
    attention = cut.measured[ATTENTION]
    assert attention is not None
    plugin = ADC(alloc="explicit", tau=0.3, kappa=0.5, criterion=criterion)
    out = run_step([plugin], cut)
    tokens = kept_tokens(attention, out.clusters, 4)
    torch.testing.assert_close(
        out.wire["activations"], composed(out.leaf, out.clusters, tokens).detach()
    )
    assert ATTENTION in out.client.measured
    means = torch.stack([attention[out.clusters == i].mean(0) for i in range(6)])
    torch.testing.assert_close(out.client.measured[ATTENTION], means.gather(1, tokens))


@pytest.mark.parametrize(
    ("criterion", "select"),
    [*((each, "attention") for each in CRITERIA), *(("cls_score", each) for each in SELECTS)],
)
@pytest.mark.parametrize(("tau", "kappa"), [(0.3, 0.4), (0.5, 1.0), (1.0, 0.4), (1.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_stacked_halves_equal_the_whole_bit_for_bit(
    criterion: Any, select: Any, tau: float, kappa: float, dtype: torch.dtype
) -> None:
    chosen = {"criterion": criterion, "select": select}
    whole: list[Plugin] = [ADC(alloc="explicit", tau=tau, kappa=kappa, **chosen)]
    halves: list[Plugin] = [
        ADCBatchMerge(ratio=tau, criterion=criterion),
        ADCTokenSelect(ratio=kappa, select=select),
    ]
    one, two = (
        run_step(stack, make_cut(20, 17, 24, step=3, dtype=dtype)) for stack in (whole, halves)
    )
    assert one.wire.keys() == two.wire.keys()
    for name, tensor in one.wire.items():
        assert torch.equal(tensor, two.wire[name]), name
    assert torch.equal(one.server.targets, two.server.targets)
    assert ATTENTION in one.client.measured
    assert ATTENTION in two.client.measured
    assert torch.equal(one.client.measured[ATTENTION], two.client.measured[ATTENTION])
    gradient = noise(*one.client.activations.shape).to(dtype)
    assert torch.equal(one.backward(gradient), two.backward(gradient))


def test_tokens_are_ranked_by_the_norm_of_what_merging_makes_of_them() -> None:
    plugin = ADC(alloc="explicit", tau=0.3, kappa=0.5, select="norm")
    out = run_step([plugin], make_cut(20, 9, 4, dtype=torch.float64))
    merged = composed(out.leaf, out.clusters, torch.arange(9).expand(6, 9)).detach()
    tokens = kept_tokens(merged.norm(dim=2), torch.arange(6), 4)
    expected = composed(out.leaf, out.clusters, tokens)
    torch.testing.assert_close(out.wire["activations"], expected.detach())


def test_one_and_one_is_the_identity() -> None:
    out = run_step([ADC(ratio=1)], make_cut())
    assert out.client.activations is out.leaf
    assert out.wire.keys() == {"activations", "targets"}
    assert out.client.sample_ids is not None


def test_permuted_tokens_permute_what_is_sent() -> None:
    plain, mixed = make_cut(dtype=torch.float64), make_cut(dtype=torch.float64)
    order = torch.tensor([0, 5, 3, 8, 1, 2, 7, 4, 6])
    assert ATTENTION in mixed.measured
    mixed.activations = mixed.activations[:, order]
    mixed.measured[ATTENTION] = mixed.measured[ATTENTION][:, order]
    one, two = (run_step([ADC(ratio=0.3)], cut).wire["activations"] for cut in (plain, mixed))
    assert one.shape == two.shape
    for row_one, row_two in zip(one, two, strict=True):
        torch.testing.assert_close(
            row_one[row_one[:, 0].argsort()], row_two[row_two[:, 0].argsort()]
        )


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "K"), [(1, 1), (1, 9), (3, 4), (8, 9), (8, 1), (5, 9)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_gradient_is_autograd_through_the_composed_map(T: int, K: int, contiguous: bool) -> None:
    draw = torch.Generator().manual_seed(T * K)
    X = torch.randn(8, 9, 6, generator=draw, dtype=torch.float64)
    if not contiguous:
        X = X.transpose(0, 1).contiguous().transpose(0, 1)
    X.requires_grad_()
    clusters = random_partition(8, T, draw)
    tokens = torch.rand(T, 9, generator=draw).argsort(dim=1)[:, :K]
    weight = torch.randn(T, K, 6, generator=draw, dtype=torch.float64)

    ours, theirs = merge_select(X, clusters, tokens), composed(X, clusters, tokens)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad((Z.sin() * weight).sum(), X)[0] for Z in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-9)
    assert torch.autograd.gradcheck(lambda x: merge_select(x, clusters, tokens), (X,))


def test_gradient_of_the_whole_path_with_soft_targets() -> None:
    out = run_step([ADC(ratio=0.25)], make_cut(12, 9, 4, dtype=torch.float64))
    head = noise(4, 5, dtype=torch.float64)

    received = out.server.activations.requires_grad_()
    soft = out.server.targets.double()
    loss = torch.nn.functional.cross_entropy(received.mean(1) @ head, soft)
    grad = out.backward(torch.autograd.grad(loss, received)[0])

    X = out.leaf.detach().clone().requires_grad_()
    attention = make_cut(12, 9, 4, dtype=torch.float64).measured[ATTENTION]
    assert attention is not None
    clusters, K = out.clusters, received.shape[1]
    Z = composed(X, clusters, kept_tokens(attention, clusters, K))
    onehot = torch.nn.functional.one_hot(out.client.targets, 5).double()
    labels = torch.stack([onehot[clusters == i].mean(0) for i in range(len(Z))])
    labels = labels.float().double()  # as the server has them
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(Z.mean(1) @ head, labels), X)
    torch.testing.assert_close(grad, expected[0], rtol=0, atol=1e-9)


def test_members_may_come_in_any_order() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(8, 9, 4, generator=draw)
    clusters, order = random_partition(8, 3, draw), torch.randperm(8, generator=draw)
    tokens = torch.arange(0, 9, 2).expand(3, 5)
    torch.testing.assert_close(
        merge_select(X, clusters, tokens), merge_select(X[order], clusters[order], tokens)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_in_float32(dtype: torch.dtype) -> None:
    # 200 times 1000 overflows float16, and bfloat16 would drop most of the terms.
    X = (1000 + torch.randn(200, 3, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    X.requires_grad_()
    tokens = torch.tensor([[0, 2]])
    Z = merge_select(X, torch.zeros(200, dtype=torch.int64), tokens)
    assert Z.dtype == dtype
    assert torch.equal(Z, X.float().mean(0, keepdim=True)[:, [0, 2]].to(dtype))
    grad = torch.autograd.grad(Z.sum(), X)[0]
    assert grad.dtype == dtype
    assert torch.equal(grad[:, 1], torch.zeros(200, 5, dtype=dtype))


# --- Sizes, special tokens, ties, values out of the ordinary --------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_dtypes_and_shapes(dtype: torch.dtype, criterion: Any) -> None:
    out = run_step([ADC(ratio=0.25, criterion=criterion)], make_cut(dtype=dtype))
    assert out.wire["activations"].dtype == dtype
    assert out.wire["activations"].shape == (4, 4, 4)
    assert out.server.targets.dtype == torch.float32
    assert out.server.targets.shape == (4, 5)
    assert ATTENTION in out.client.measured
    assert out.client.measured[ATTENTION].dtype == torch.float32
    assert out.client.sample_ids is None
    assert out.backward(torch.ones(4, 4, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("kappa", [0.01, 0.3, 0.6])
def test_special_tokens_always_travel(prefix: int, kappa: float) -> None:
    cut = make_cut(6, 10, 3)
    attention = cut.measured[ATTENTION]
    assert attention is not None
    attention[:, :prefix] = 0  # nothing attends to them
    out = run_step([ADCTokenSelect(ratio=kappa)], cut, prefix_tokens=prefix)
    tokens = kept_tokens(attention, torch.arange(6), max(1, int(kappa * 10)), prefix)
    assert tokens.shape[1] == max(prefix, int(kappa * 10))
    assert torch.equal(
        out.wire["activations"], composed(out.leaf, torch.arange(6), tokens).detach()
    )


def test_ties_keep_the_lowest_tokens() -> None:
    cut = make_cut(4, 200, 2)
    cut.measured[ATTENTION] = torch.full((4, 200), 1 / 200)
    out = run_step([ADCTokenSelect(ratio=0.5)], cut)
    assert torch.equal(out.wire["activations"], out.leaf.detach()[:, :100])


def test_one_token_is_the_class_token() -> None:
    out = run_step([ADC(alloc="explicit", tau=0.5, kappa=0.01)], make_cut())
    assert out.wire["activations"].shape == (4, 1, 4)
    expected = composed(out.leaf, out.clusters, torch.zeros(4, 1, dtype=torch.int64))
    torch.testing.assert_close(out.wire["activations"], expected.detach())


@pytest.mark.parametrize(("B", "merged"), [(1, False), (2, False), (3, True), (7, True)])
def test_last_smaller_batch(B: int, merged: bool) -> None:
    out = run_step([ADC(ratio=0.1)], make_cut(B), batch_size=128)
    assert out.wire["activations"].shape == (2 if merged else B, 2, 4)
    assert ("adc.clusters" in out.wire) == merged
    assert out.server.targets.is_floating_point() == merged
    assert out.server.weights is None


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "duplicates", "nan_attention"])
def test_extreme_values(criterion: Any, what: str) -> None:
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
    elif what == "duplicates":
        X[1:] = X[:1].clone()
        cut.measured[ATTENTION][1:] = cut.measured[ATTENTION][:1].clone()
    else:
        cut.measured[ATTENTION][2, 3] = torch.nan
    cut.activations = X.requires_grad_()
    out = run_step([ADC(ratio=0.2, criterion=criterion)], cut)
    assert int(torch.bincount(out.clusters, minlength=3).min()) >= 1
    assert out.wire["activations"].isfinite().all()
    assert out.server.targets.isfinite().all()
    assert out.backward(torch.ones_like(out.client.activations)).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_says_that_a_token_left_out_is_not_finite(bad: float) -> None:
    for stack in ([ADC(ratio=0.2)], [ADCBatchMerge(ratio=0.45), ADCTokenSelect(ratio=0.45)]):
        cut, spoilt = make_cut(), make_cut()
        for each in (cut, spoilt):
            each.measured[ATTENTION][:, 5] = 0  # never among those that are sent
        clean = run_step(stack, cut)
        X = spoilt.activations.detach()
        X[2, 5, 1] = bad
        spoilt.activations = X.requires_grad_()
        out = run_step(stack, spoilt)
        assert torch.equal(out.clusters, clean.clusters)
        row = int(out.clusters[2])
        finite = out.wire["activations"].isfinite().flatten(1)
        assert finite.all(1).tolist() == [i != row for i in range(len(finite))]
        others = [i for i in range(len(finite)) if i != row]
        assert torch.equal(out.wire["activations"][others], clean.wire["activations"][others])


def test_more_than_256_clusters_travel_as_uint16() -> None:
    cut = make_cut(600, 3, 2)
    out = run_step([ADCBatchMerge(ratio=0.5, criterion="random")], cut)
    assert out.wire["adc.clusters"].dtype == torch.uint16
    assert out.server.targets.shape == (300, 5)
    small = run_step([ADCBatchMerge(ratio=0.5, criterion="random")], make_cut(512, 3, 2))
    assert small.wire["adc.clusters"].dtype == torch.uint8
    assert int(small.wire["adc.clusters"].max()) == 255


# --- Randomness and state -------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_seed_and_step_decide_and_nothing_else(criterion: Any) -> None:
    def payload(seed: int = 7, step: int = 0) -> torch.Tensor:
        cut = make_cut(20, 9, 4, step=step)
        return run_step([ADC(ratio=0.1, criterion=criterion)], cut, seed=seed).wire["activations"]

    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = payload()
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
        torch.manual_seed(2)
        assert torch.equal(payload(), first)
    assert any(not torch.equal(payload(step=step), first) for step in range(1, 5))
    assert any(not torch.equal(payload(seed=seed), first) for seed in range(5))


def test_repeated_on_one_instance() -> None:
    one, two = (run_step([plugin], make_cut()).wire for plugin in [ADC()] * 2)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_fresh_server_decodes_from_the_wire_alone() -> None:
    out = run_step([ADC(loss_weight="size")], make_cut())
    fresh = receive([ADC(loss_weight="size")], out.wire, out.client)
    assert torch.equal(fresh.targets, out.server.targets)
    assert fresh.weights is not None
    assert out.server.weights is not None
    assert torch.equal(fresh.weights, out.server.weights)


# --- Loss weights, evaluation, what the plugins say of themselves ---------------------------------


def test_size_weights_average_over_samples() -> None:
    out = run_step([ADC(ratio=0.1, loss_weight="size")], make_cut(20))
    weights, soft = out.server.weights, out.server.targets
    assert weights is not None
    torch.testing.assert_close(weights, torch.bincount(out.clusters).float() / 20)
    torch.testing.assert_close(
        weights @ soft / weights.sum(), torch.bincount(out.client.targets, minlength=5) / 20
    )


def test_where_samples_and_tokens_went_is_told() -> None:
    one, two = make_cut(B=9, N=8), make_cut(B=9, N=8)
    out = run_step([ADC(alloc="explicit", tau=0.5, kappa=0.5)], one)
    run_step([ADCBatchMerge(ratio=0.5), ADCTokenSelect(ratio=0.5)], two)
    rows_B, slots_BN = one.provenance.rows(9), one.provenance.slots(9, 8)
    assert torch.equal(rows_B, out.clusters)
    for b in range(9):
        kept = (slots_BN[b] >= 0).nonzero().flatten()
        members = out.leaf.detach()[rows_B == rows_B[b]]
        torch.testing.assert_close(
            members.mean(dim=0)[kept], one.activations.detach()[rows_B[b]][slots_BN[b][kept]]
        )
    assert torch.equal(two.provenance.rows(9), rows_B)
    assert torch.equal(two.provenance.slots(9, 8), slots_BN)


def test_evaluation_is_not_compressed() -> None:
    for plugin in (ADC(), ADCBatchMerge(), ADCTokenSelect()):
        cut = make_cut(training=False)
        out = run_step([plugin], cut)
        assert cut.activations is out.leaf
        assert not cut.side
        assert torch.equal(out.server.targets, cut.targets)
        assert not plugin.traits().evaluation


@pytest.mark.parametrize(
    "plugin",
    [
        ADC(ratio=0.16, evaluation=True),
        ADC(ratio=0.16, evaluation=True, criterion="cls_token"),
        ADCTokenSelect(ratio=0.4, evaluation=True),
    ],
)
def test_evaluation_may_select_tokens(plugin: Plugin) -> None:
    cut = make_cut(training=False)
    attention = cut.measured[ATTENTION]
    assert attention is not None
    out = run_step([plugin], cut)
    tokens = kept_tokens(attention, torch.arange(8), 3)
    assert torch.equal(out.wire["activations"], composed(out.leaf, torch.arange(8), tokens))
    assert out.wire.keys() == {"activations", "targets"}
    assert not isinstance(plugin, ADCBatchMerge)
    assert plugin.traits().evaluation


def test_nominal_ratios() -> None:
    def nominal(plugin: Any, **facts: Any) -> float:
        plugin.setup(Tiny().peer(batch_size=40, tokens=40, grid=None, **facts))
        up, down = plugin.nominal_ratio()
        assert up == down
        return float(up)

    assert nominal(ADC(ratio=0.05, alloc="quarter_bug")) == 0.05
    assert nominal(ADC(alloc="explicit", tau=0.5, kappa=0.25)) == 0.125
    assert nominal(ADCBatchMerge(ratio=0.3)) == 0.3
    assert nominal(ADCTokenSelect(ratio=0.2)) == 0.2
    many = {"prefix_tokens": 9, "class_token": True, "pools": True}  # one patch is sent, too
    assert nominal(ADCTokenSelect(ratio=0.2), **many) == 0.25
    assert nominal(ADC(alloc="explicit", tau=0.5, kappa=0.125), **many) == 0.125


def test_attention_is_asked_for_where_it_is_used() -> None:
    asks: dict[Plugin, tuple[Any, Any]] = {
        ADC(criterion="random", heads="max"): ("max", "last"),
        ADCTokenSelect(score_layer="rollout"): ("mean", "rollout"),
        ADCBatchMerge(heads="max", score_layer="rollout"): ("max", "rollout"),
        ADCTokenSelect(select="rollout"): ("mean", "rollout"),
        ADC(criterion="avg_token", select="rollout"): ("mean", "rollout"),
    }
    for plugin, (heads, layer) in asks.items():
        peer = make_peer()
        plugin.setup(peer)
        assert peer.requests == [Attention(heads, layer)]
    for criterion in CRITERIA[1:]:
        peer = make_peer()
        ADCBatchMerge(criterion=criterion).setup(peer)  # type: ignore[arg-type]
        assert peer.requests == []
    ADC(select="rollout").setup(peer := make_peer())
    assert peer.requests == [Attention(), Attention("mean", "rollout")]


@pytest.mark.parametrize("select", ["norm", "random"])
@pytest.mark.parametrize("criterion", ["avg_token", "random", "class_label"])
def test_a_model_without_a_class_token_will_do_where_nothing_asks_for_attention(
    criterion: Any, select: Any
) -> None:
    cut = make_cut()
    cut.measured = {}
    plugin = ADC(ratio=0.25, criterion=criterion, select=select)
    out = run_step([plugin], cut, class_token=False)
    assert out.wire["activations"].shape == (4, 4, 4)
    assert "attention" not in plugin.traits().needs
    plugin, cut = ADC(evaluation=True, criterion=criterion, select=select), make_cut(training=False)
    out = run_step([plugin], cut, class_token=False)
    assert out.wire["activations"].shape == (8, 2, 4)
    cut = make_cut()
    cut.measured = {}
    out = run_step([ADCBatchMerge(ratio=0.5, criterion=criterion)], cut, class_token=False)
    assert out.wire["activations"].shape == (4, 9, 4)


def test_oracle_partition_is_pure() -> None:
    cut = make_cut(20, C=4)
    out = run_step([ADC(ratio=0.16, criterion="class_label")], cut)
    assert out.server.targets.shape == (8, 5)
    assert torch.equal(out.server.targets.amax(1), torch.ones(8))


# --- The reference's bug --------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["cls_token", "avg_token"])
def test_reference_bug_selects_tokens_by_feature_number(criterion: Any) -> None:
    cut = make_cut(8, 9, 6, dtype=torch.float64)
    plugin = ADC(alloc="explicit", tau=0.5, kappa=0.5, criterion=criterion, repo_token_bug=True)
    out = run_step([plugin], cut)
    X = out.leaf.detach()
    features = X[:, 0] if criterion == "cls_token" else X.mean(1)
    expected = composed(X, out.clusters, kept_tokens(features, out.clusters, 4))
    torch.testing.assert_close(out.wire["activations"], expected)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratio": 0.0}, "ratio=0.0 is refused; allowed: more than 0, at most 1; for example"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"alloc": "cube"}, "alloc=cube is refused; allowed: sqrt, fifth, quarter_bug, explicit"),
        (
            {"criterion": "cls_token", "repo_token_bug": True, "select": "norm"},
            "repo_token_bug=True is refused; allowed: select=attention",
        ),
        ({"tau": 0.5, "kappa": 0.2}, "tau=0.5 is refused; .* alloc=explicit only"),
        ({"alloc": "explicit"}, "both tau and kappa"),
        ({"alloc": "explicit", "tau": 0.5}, "both tau and kappa"),
        ({"alloc": "explicit", "tau": 0.5, "kappa": 2}, "kappa=2"),
        (
            {"alloc": "explicit", "tau": 0.5, "kappa": 0.5, "ratio": 0.3},
            "allowed: 0.25, the product",
        ),
        ({"criterion": "cls"}, "allowed: cls_score, cls_token"),
        ({"iterations": 0}, "iterations=0"),
        ({"tol": -1e-4}, "tol=-0.0001"),
        ({"tol_mode": "sklearn"}, "absolute, relative"),
        ({"rounding": "ceil"}, "floor, nearest"),
        ({"loss_weight": "log"}, "uniform, size"),
        ({"heads": "min"}, "mean, max"),
        ({"score_layer": "first"}, "last, rollout"),
        ({"repo_token_bug": True}, "criterion=cls_token and criterion=avg_token"),
    ],
)
def test_bad_parameters(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ADC(**settings)


@pytest.mark.parametrize("build", [ADCBatchMerge, ADCTokenSelect])
@pytest.mark.parametrize(
    "settings", [{"ratio": 0}, {"rounding": "up"}, {"heads": "min"}, {"score_layer": "first"}]
)
def test_bad_parameters_of_the_halves(build: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}="):
        build(**settings)


@pytest.mark.parametrize(
    ("plugin", "facts", "says"),
    [
        (ADC(), {"batch_size": 1}, "merges into 2 rows or more, but a batch has 1"),
        (ADCBatchMerge(ratio=0.9), {"batch_size": 1}, "--batch-size 2"),
        (ADCBatchMerge(ratio=0.9), {"batch_size": 80_000}, "uint16"),
        (ADC(), {"unable": unable(class_token=False, global_pool="avg")}, "class token"),
        (ADCBatchMerge(criterion="cls_token"), {"class_token": False}, "allowed here: avg_token"),
        (ADC(), {"unable": unable(cut=0)}, "--cut 1 to 12"),
        (ADC(criterion="cls_token", repo_token_bug=True), {"width": 10}, "10 features .* 9 tokens"),
        (
            ADC(criterion="cls_token", repo_token_bug=True, ratio=0.9),
            {"width": 5},
            "8 tokens .* 5 features",
        ),
    ],
)
def test_refused_in_setup(plugin: Plugin, facts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugin.setup(make_peer(**facts))


def test_batch_size_one_without_merging() -> None:
    out = run_step([ADC(alloc="explicit", tau=1, kappa=0.5)], make_cut(1), batch_size=1)
    assert out.wire["activations"].shape == (1, 4, 4)


def test_halves_may_ask_for_different_attention() -> None:
    peer = make_peer()
    ADCBatchMerge(heads="max").setup(peer)
    ADCTokenSelect(heads="mean").setup(peer)
    assert peer.requests == [Attention("max"), Attention("mean")]


@pytest.mark.parametrize("stack", [*itertools.product(("adc", "adc-batch-merge"), repeat=2)])
def test_merging_twice_is_refused(stack: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"needs targets .* takes away; a stack that works"):
        Stack([bind("plugins", name) for name in stack])


@pytest.mark.parametrize("plugin", [ADC(), ADCBatchMerge(), ADCTokenSelect()])
@pytest.mark.parametrize("attention", [None, torch.zeros(8, 5)])
def test_attention_that_does_not_fit(plugin: Plugin, attention: torch.Tensor | None) -> None:
    cut = make_cut()
    cut.measured = {} if attention is None else {ATTENTION: attention}
    with pytest.raises(PluginError, match="each of the 9 tokens"):
        run_step([plugin], cut)


@pytest.mark.parametrize(
    ("clusters", "says"),
    [
        ([0, 1, 1, 0], "one cluster id per class id"),
        ([0, 1, 2, 3, 3, 3, 3, 9], "each of the 4 rows"),
        ([0, 1, 2, 2, 2, 2, 2, 2], "each of the 4 rows"),
    ],
)
def test_server_refuses_cluster_ids_that_do_not_fit(clusters: list[int], says: str) -> None:
    plugin = ADC(ratio=0.25)
    out = run_step([plugin], make_cut())
    wire = out.wire | {"adc.clusters": torch.tensor(clusters, dtype=torch.uint8)}
    with pytest.raises(ProtocolError, match=says):
        receive([plugin], wire, out.client)


# --- The catalogue --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("adc:ratio=0.05,alloc=fifth,repo_token_bug=false", ADC),
        ("adc:alloc=explicit,tau=0.3,kappa=0.5,iterations=10,tol_mode=relative", ADC),
        ("adc-batch-merge:ratio=0.3,criterion=class_label", ADCBatchMerge),
        ("adc-token-select:ratio=0.3,evaluation=true", ADCTokenSelect),
    ],
)
def test_built_by_name(text: str, kind: type) -> None:
    assert isinstance(bind("plugins", text).build(), kind)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_repeats_itself_and_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(64, 197, 192, generator=draw).to(dtype)
    clusters = random_partition(64, 20, draw)
    tokens = torch.rand(20, 197, generator=draw).argsort(dim=1)[:, :62]
    gradient = torch.randn(20, 62, 192, generator=draw).to(dtype)

    def run(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = X.to(device).requires_grad_()
        Z = merge_select(leaf, clusters.to(device), tokens.to(device))
        grad = torch.autograd.grad(Z, leaf, gradient.to(device))[0]
        return Z.detach().cpu(), grad.cpu()

    torch.use_deterministic_algorithms(True)
    try:
        first, second = run("cuda"), run("cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    for one, two, cpu in zip(first, second, run("cpu"), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, cpu)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_targets_that_are_mixed_already_are_averaged_over_the_cluster(criterion: Any) -> None:
    cut = make_cut(C=5)
    ids = torch.nn.functional.one_hot(cut.targets, 5).float()
    shares_BC = 0.7 * ids + 0.3 * ids.flip(0)
    cut.targets = shares_BC.clone()
    plugin = ADC(ratio=0.25, criterion=criterion)
    plugin.setup(make_peer())
    plugin.after_client_forward(cut)
    clusters_B = cut.side["adc.clusters"].long()
    server = Cut(
        activations=cut.activations.detach(),
        targets=cut.targets,
        step=0,
        training=True,
        side=dict(cut.side),
    )
    plugin.setup(make_peer("server"))
    plugin.before_server_forward(server)
    for row, target_C in enumerate(server.targets):
        torch.testing.assert_close(target_C, shares_BC[clusters_B == row].mean(0))
