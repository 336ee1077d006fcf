"""Top-K and RandTopK: what is chosen, how its places travel, gradients, and chance.

Shapes: B samples, N tokens, D width; M numbers of a row, k of them sent.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Cut, Message, Peer, ProtocolError
from splitlab.core.catalogue.binding import bind
from splitlab.core.contract.transfer import pretending
from splitlab.core.engine.conversation import hold
from splitlab.plugins.adc import ADC
from splitlab.plugins.common.bits import pack
from splitlab.plugins.quantize import Quantize
from splitlab.plugins.topk import RandTopK, TopK

BOTH = [TopK, RandTopK]


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


@dataclass
class Outcome:
    """What one step left at both peers and between them."""

    leaf: torch.Tensor
    client: Cut
    arrived: torch.Tensor
    server: Cut

    @property
    def sent(self) -> torch.Tensor:
        return self.client.activations.detach()

    @property
    def back(self) -> torch.Tensor:
        return self.server.activations.detach()

    @property
    def chosen(self) -> torch.Tensor:
        """Which numbers the server got; no number of the input must be zero."""
        return self.back != 0


def peer_of(tiny: Any, X: torch.Tensor, role: str = "client", **facts: Any) -> Peer:
    tokens = X.shape[1] if X.ndim > 2 else 1
    sizes = {"batch_size": len(X), "tokens": tokens, "width": X.shape[-1]}
    peer: Peer = tiny.peer(role, **sizes | facts)
    return peer


def run_step(
    tiny: Any,
    plugin: TopK,
    X: torch.Tensor,
    *,
    step: int = 0,
    training: bool = True,
    **facts: Any,
) -> Outcome:
    plugin.setup(peer_of(tiny, X, **facts))
    leaf = X.clone().requires_grad_()
    cut = Cut(
        activations=leaf * 1, targets=torch.zeros(len(X)).long(), step=step, training=training
    )
    plugin.after_client_forward(cut)
    arrived = cut.activations.detach().clone().requires_grad_()
    server = Cut(
        activations=arrived, targets=cut.targets, step=step, training=training, side=dict(cut.side)
    )
    plugin.setup(peer_of(tiny, X, "server", **facts))
    plugin.before_server_forward(server)
    return Outcome(leaf, cut, arrived, server)


def by_sorting(rows: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest magnitudes of every row, ties to the lowest index, one row after the other."""
    mask = torch.zeros_like(rows, dtype=torch.bool)
    for i, row in enumerate(rows.abs().tolist()):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        mask[i, order[:k]] = True
    return mask


# --- What is chosen -------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", [TopK(rate=1 / 3), RandTopK(rate=1 / 3, alpha=0)])
def test_vector(tiny: Any, plugin: TopK) -> None:
    out = run_step(tiny, plugin, torch.tensor([[[3.0, -5, 1, 4, -2, 0]]]))
    assert out.sent.tolist() == [[-5, 4]]
    assert out.back.tolist() == [[[0, -5, 0, 4, 0, 0]]]


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 4),
    row=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    rate=st.floats(0.01, 1),
    scope=st.sampled_from(["sample", "token"]),
    ties=st.booleans(),
    elsewhere=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 3),
)
def test_largest_of_every_row(
    tiny: Any,
    B: int,
    row: list[int],
    rate: float,
    scope: Any,
    ties: bool,
    elsewhere: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    X = noise(B, *row, dtype=dtype, seed=seed)
    if ties:
        X = (X * 2).round()
    facts = {"batch_size": B, "tokens": math.prod(row[:-1]), "width": row[-1]}
    with pretending() if elsewhere else nullcontext():
        out = run_step(tiny, TopK(rate=rate, scope=scope), X, **facts)
    rows = X.flatten(1) if scope == "sample" else X.reshape(-1, row[-1])
    M = rows.shape[1]
    k = max(1, round(rate * M))
    mask = by_sorting(rows, k)
    assert torch.equal(out.back, (rows * mask).view(X.shape))
    assert out.back.dtype == dtype
    assert out.sent.numel() == (X.numel() if k >= M else len(rows) * k)
    if k < M:
        assert torch.equal(out.sent.reshape(-1, k), rows[mask].view(-1, k)), "in the order of j"
        assert out.sent.ndim == (2 if scope == "sample" else X.ndim)


@pytest.mark.parametrize("build", BOTH)
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_gradient_is_that_of_autograd(tiny: Any, build: Any, scope: Any) -> None:
    X = noise(3, 4, 6, dtype=torch.float64)
    out = run_step(tiny, build(rate=0.3, scope=scope), X)
    gradient = noise(3, 4, 6, dtype=torch.float64, seed=5)
    [sent] = torch.autograd.grad(out.server.activations, out.arrived, gradient)
    assert sent.shape == out.sent.shape
    [found] = torch.autograd.grad(out.client.activations, out.leaf, sent)
    assert torch.equal(found, gradient * out.chosen)


def test_special_tokens_may_be_kept(tiny: Any) -> None:
    X = noise(4, 5, 6)
    X[:, :2] *= 1e-3  # never among the largest
    for build in BOTH:
        plugin = build(rate=0.6, keep_cls=True)
        chosen = run_step(tiny, plugin, X, prefix_tokens=2).chosen
        assert chosen[:, :2].all()
        assert (chosen.flatten(1).sum(1) == 18).all()
    top = run_step(tiny, TopK(rate=0.6, keep_cls=True), X, prefix_tokens=2).chosen
    assert torch.equal(top[:, 2:].flatten(1), by_sorting(X[:, 2:].flatten(1), 6))
    few = run_step(tiny, RandTopK(rate=0.01, keep_cls=True), X, prefix_tokens=2).chosen
    assert few.flatten(1).sum(1).tolist() == [12] * 4
    assert few[:, :2].all()
    plain = run_step(tiny, TopK(rate=0.3), X, prefix_tokens=2).chosen
    assert not plain[:, :2].any()


@pytest.mark.parametrize("build", BOTH)
@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "nan", "inf"])
@pytest.mark.parametrize("rate", [1e-9, 0.3, 1])
def test_extreme_values(tiny: Any, build: Any, what: str, rate: float) -> None:
    X = noise(2, 3, 4)
    if what == "zeros":
        X.zero_()
    elif what == "constant":
        X.fill_(-3.5)
    else:
        X[0, 1, 2] = {"outlier": 1e37, "nan": torch.nan, "inf": -torch.inf}[what]
    out = run_step(tiny, build(rate=rate, alpha=0.2) if build is RandTopK else build(rate=rate), X)
    assert out.sent.numel() == {1e-9: 2, 0.3: 8, 1: 24}[rate]
    if what in ("zeros", "constant", "outlier"):
        assert out.back.isfinite().all()
    elif build is TopK:
        assert out.back[0, 1, 2].isnan() == (what == "nan"), "comes first"
        assert out.back[0, 1, 2].isinf() == (what == "inf")
    if what in ("zeros", "constant") and build is TopK and rate == 0.3:
        places = torch.arange(12) < 4
        assert torch.equal(out.back[0].flatten(), X[0].flatten() * places)


def test_a_rate_of_one_changes_nothing(tiny: Any) -> None:
    for build in BOTH:
        out = run_step(tiny, build(rate=1.0), noise(2, 3, 4))
        assert torch.equal(out.sent, out.leaf)
        assert not out.client.side


# --- Bytes ----------------------------------------------------------------------------------------


def bits_of(M: int) -> int:
    return max(1, math.ceil(math.log2(M)))


@pytest.mark.parametrize("build", BOTH)
@pytest.mark.parametrize("scope", ["sample", "token"])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.2, 0.7])
def test_bytes(tiny: Any, build: Any, scope: Any, rate: float) -> None:
    X = noise(3, 7, 50)
    out = run_step(tiny, build(rate=rate, scope=scope), X)
    R, M, dimensions = (3, 350, 2) if scope == "sample" else (21, 50, 1)
    k = round(rate * M)
    name = build.__name__.lower()
    indices, mask = math.ceil(R * k * bits_of(M) / 8), math.ceil(R * M / 8)
    form = "indices" if indices <= mask else "mask"
    assert {key: tensor.nbytes for key, tensor in out.client.side.items()} == {
        f"{name}.{form}": min(indices, mask),
        f"{name}.shape": 4 * dimensions,
    }
    assert out.sent.nbytes == 4 * R * k


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_ratio_is_met_by_what_is_sent(tiny: Any, ratio: float, scope: Any) -> None:
    X = noise(2, 20, 192)
    out = run_step(tiny, TopK(ratio=ratio, scope=scope), X)
    up = out.sent.nbytes + sum(tensor.nbytes for tensor in out.client.side.values())
    got = (up + out.sent.nbytes) / 2 / X.nbytes
    M = 3840 if scope == "sample" else 192
    assert ratio - 1.3 / M <= got <= ratio + 8 / X.nbytes or (
        out.sent.shape[-1] == 1 and got < 0.02
    )


def test_default_ratio_and_what_the_paper_charges(tiny: Any) -> None:
    X = noise(1, 197, 192)
    plugin = TopK()
    out = run_step(tiny, plugin, X)
    k = out.sent.shape[1]
    assert k == math.floor((0.1 - 1 / 64) * 37824)
    assert plugin.nominal_ratio() == (k / 37824 * 1.5, k / 37824)
    plugin = TopK(rate=0.1)
    plugin.setup(peer_of(tiny, X))
    up, down = plugin.nominal_ratio()
    assert (up + down) / 2 == pytest.approx(0.125, abs=1e-4), "1.25 times the rate"
    plugin = RandTopK(rate=0.9)
    plugin.setup(peer_of(tiny, X))
    assert plugin.nominal_ratio() == (1, pytest.approx(0.9, abs=1e-4))


def test_more_than_65536_numbers(tiny: Any) -> None:
    X = noise(2, 100, 700)
    out = run_step(tiny, TopK(rate=0.001), X)
    assert torch.equal(out.chosen.flatten(1), by_sorting(X.flatten(1), 70))
    assert out.client.side["topk.indices"].nbytes == math.ceil(2 * 70 * 17 / 8)


# --- Chance ---------------------------------------------------------------------------------------


def outside(plugin: RandTopK, tiny: Any, X: torch.Tensor, **facts: Any) -> torch.Tensor:
    """How many of the numbers sent of every row are not among the largest."""
    chosen = run_step(tiny, plugin, X, **facts).chosen.flatten(1)
    k = int(chosen[0].sum())
    assert (chosen.sum(1) == k).all()
    return (chosen & ~by_sorting(X.flatten(1), k)).sum(1)


def test_share_from_outside_is_that_of_the_official_code(tiny: Any) -> None:
    X = noise(8, 160, 192)
    share = outside(RandTopK(rate=0.1), tiny, X).sum().item() / (8 * 3072)
    assert 0.17 <= share <= 0.20


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_share_from_outside_is_alpha(tiny: Any, alpha: float) -> None:
    X = noise(8, 40, 192)
    count = outside(RandTopK(rate=0.1, alpha=alpha, mode="binomial"), tiny, X)
    draws = 8 * 768
    assert abs(count.sum() / draws - alpha) <= 3 * math.sqrt(alpha * (1 - alpha) / draws)


def test_multinomial_draws_like_torch_multinomial(tiny: Any) -> None:
    """Chance of every number against as many draws one by one, on few numbers."""
    M, k, alpha, R = 7, 3, 0.4, 6000
    x = torch.tensor([9.0, 8, 7, 4, 3, 2, 1])
    chosen = run_step(
        tiny, RandTopK(rate=k / M, alpha=alpha), x.expand(R, 1, M).contiguous()
    ).chosen.view(R, M)
    weights = torch.where(torch.arange(M) < k, (1 - alpha) / k, alpha / (M - k)).expand(R, M)
    draw = torch.Generator().manual_seed(0)
    theirs = torch.zeros(R, M).scatter_(1, weights.multinomial(k, generator=draw), 1)
    three_sigma = 3.5 * math.sqrt(2 * 0.25 / R)
    assert ((chosen.float().mean(0) - theirs.mean(0)).abs() <= three_sigma).all()
    together, their_together = (m.float().T @ m.float() / R for m in (chosen, theirs))
    assert ((together - their_together).abs() <= three_sigma).all(), "pairs, too"


@settings(max_examples=25, deadline=None)
@given(
    M=st.integers(2, 30),
    rate=st.floats(0.01, 1),
    alpha=st.floats(0, 0.999),
    mode=st.sampled_from(["multinomial", "binomial"]),
    seed=st.integers(0, 5),
)
def test_k_different_numbers_whatever_alpha(
    tiny: Any, M: int, rate: float, alpha: float, mode: Any, seed: int
) -> None:
    X = noise(5, 1, M)
    out = run_step(tiny, RandTopK(rate=rate, alpha=alpha, mode=mode), X, seed=seed)
    k = max(1, round(rate * M))
    assert (out.chosen.flatten(1).sum(1) == k).all()
    assert torch.equal(out.back, X * out.chosen)


@pytest.mark.parametrize(("rate", "k"), [(0.25, 2), (0.35, 4), (0.001, 1)])
def test_half_a_number_is_rounded_to_even_as_the_official_code_does(
    tiny: Any, rate: float, k: int
) -> None:
    out = run_step(tiny, TopK(rate=rate), noise(3, 1, 10))
    assert out.sent.shape == (3, k)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["multinomial", "binomial"])
def test_chance_never_takes_away_what_is_not_finite(tiny: Any, mode: Any, bad: float) -> None:
    X = noise(8, 1, 40)
    for seed in range(3):
        whole = run_step(tiny, RandTopK(rate=0.05, alpha=0.99, mode=mode), X, seed=seed)
        spoilt = X.clone()
        spoilt[::2, 0, 7] = bad
        found = run_step(tiny, RandTopK(rate=0.05, alpha=0.99, mode=mode), spoilt, seed=seed)
        assert found.back.isfinite().flatten(1).all(1).tolist() == [False, True] * 4
        assert found.chosen.flatten(1).sum(1).tolist() == whole.chosen.flatten(1).sum(1).tolist()


def test_seed_and_step_decide_and_nothing_else(tiny: Any) -> None:
    X = noise(4, 5, 16)

    def chosen(plugin: TopK | None = None, **facts: Any) -> torch.Tensor:
        return run_step(tiny, plugin or RandTopK(rate=0.3, alpha=0.3), X, **facts).chosen

    before = torch.get_rng_state()
    first = chosen()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(chosen(), first)
    assert not torch.equal(chosen(step=1), first)
    assert not torch.equal(chosen(seed=1), first)
    top = chosen(TopK(rate=0.3))
    assert torch.equal(chosen(RandTopK(rate=0.3, alpha=0), step=5), top)
    assert not torch.equal(first, top)


# --- Evaluation, training, stacks -----------------------------------------------------------------


@pytest.mark.parametrize("build", BOTH)
def test_evaluation(tiny: Any, build: Any) -> None:
    X = noise(2, 3, 8)
    out = run_step(tiny, build(rate=0.3), X, training=False)
    assert torch.equal(out.back, X)
    assert not out.client.side
    assert not build().traits().evaluation
    out = run_step(tiny, build(rate=0.3, evaluation=True), X, training=False)
    assert torch.equal(out.chosen.flatten(1), by_sorting(X.flatten(1), 7)), "without chance"
    assert build(evaluation=True).traits().evaluation


@pytest.mark.parametrize("build", BOTH)
@pytest.mark.parametrize("settings_", [{}, {"scope": "token"}, {"rate": 0.6, "keep_cls": True}])
def test_training_through_real_frames(tiny: Any, build: Any, settings_: dict[str, Any]) -> None:
    bound = tiny.bound(build, **settings_)
    assert next(tiny.client([bound]).train(tiny.batch(), 0))["activations"].numel() < 6 * 5 * 16
    losses = tiny.train(*tiny.pair([bound]), range(2))
    assert all(math.isfinite(loss) for loss in losses)
    assert losses == tiny.train(*tiny.pair([bound]), range(2))


def test_between_other_plugins(tiny: Any) -> None:
    stack = [
        tiny.bound(ADC, ratio=0.5),
        tiny.bound(TopK, rate=0.5),
        tiny.bound(Quantize, bits=8, per="token"),
    ]
    client, server = tiny.pair(stack)

    def ask(up: Message) -> Message:
        up = tiny.travel(up)
        rows, tokens = 4, 3
        assert up["activations"].nbytes == rows * tokens * 16 // 2
        return tiny.travel(server.handle(up))

    assert math.isfinite(hold(client.train(tiny.batch(), 0), ask).loss)


def test_both_in_one_stack_and_one_twice(tiny: Any) -> None:
    stack = [tiny.bound(TopK, rate=0.5), tiny.bound(RandTopK, rate=0.5)]
    assert all(math.isfinite(loss) for loss in tiny.train(*tiny.pair(stack), range(2)))
    with pytest.raises(ConfigError, match="'topk' may stand in a stack only once"):
        tiny.pair([stack[0], stack[0]])


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", BOTH)
@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"ratio": 0.0}, "ratio=0.0 is refused"),
        ({"ratio": 1.1}, "ratio=1.1"),
        ({"rate": 0}, "rate=0 is refused"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"rate": 0.1, "ratio": 0.1}, "rate=0.1 is refused; allowed: one of ratio, rate"),
        ({"scope": "batch"}, "scope=batch is refused; allowed: sample, token"),
        ({"scope": "token", "keep_cls": True}, "keep_cls=true is refused; allowed: scope=sample"),
    ],
)
def test_bad_parameters(build: Any, settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(**settings_)


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"alpha": 1.0}, "alpha=1.0 is refused"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"mode": "poisson"}, "mode=poisson is refused; allowed: multinomial, binomial"),
    ],
)
def test_bad_chances(settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RandTopK(**settings_)


def test_refused_in_setup(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="more than the 16777216 that an index reaches"):
        TopK().setup(tiny.peer(tokens=4097, width=4096))
    TopK(scope="token").setup(tiny.peer(tokens=4097, width=4096))
    with pytest.raises(ConfigError, match=r"keep_cls=true .* leave it out"):
        TopK(keep_cls=True).setup(tiny.peer(prefix_tokens=0))


def test_special_tokens_that_are_kept_count_in_the_ratio(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"ratio=0.1 cannot be met .* 16 of 80 numbers"):
        TopK(ratio=0.1, keep_cls=True).setup(tiny.peer())
    plugin = TopK(rate=0.01, keep_cls=True)
    plugin.setup(tiny.peer())
    assert plugin.nominal_ratio()[1] == 16 / 80


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("build", BOTH)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shape": integers(3, 11)}, "different places"),
        ({"shape": integers(3000, 8000)}, "a batch has at most 96 numbers"),
        ({"shape": integers(3, 0)}, r"rows of shape \[3, 0\]"),
        ({"shape": integers(-3, -8)}, r"rows of shape \[-3, -8\]"),
        ({"shape": integers(2)}, r"rows of shape \[2\]"),
        ({"shape": integers(*[1] * 8, 24)}, r"rows of shape \[9\]"),
        ({"shape": integers(24)[None]}, r"rows of shape \[1, 1\]"),
        ({"shape": integers()}, r"rows of shape \[0\]"),
        ({"shape": integers(3, 8).long()}, "rows of shape"),
        ({"indices": integers(1)}, "different places"),
        ({"indices": pack(integers(0, 1, 1, 0, 1, 2), 5)}, "different places"),
        ({"indices": pack(integers(0, 2, 1, 0, 1, 2), 5)}, "different places"),
        ({"indices": pack(integers(0, 1, 24, 0, 1, 2), 5)}, "different places below 24"),
        ({"indices": None}, "different places"),
        ({"indices": None, "mask": pack(integers(*[1] * 7, *[0] * 41), 1)}, "different places"),
        ({"indices": None, "mask": pack(integers(*[1] * 6, *[0] * 42), 1)}, "different places"),
        ({"indices": None, "mask": pack(integers(*[1] * 6), 1)}, "different places"),
    ],
)
def test_server_refuses(tiny: Any, build: Any, wrong: dict[str, Any], says: str) -> None:
    plugin, name = build(rate=0.125), build.__name__.lower()
    X = noise(2, 3, 8)
    side = run_step(tiny, plugin, X).client.side
    assert side.keys() == {f"{name}.indices", f"{name}.shape"}
    for key, tensor in wrong.items():
        side.pop(f"{name}.{key}", None)
        if tensor is not None:
            side[f"{name}.{key}"] = tensor

    def receive() -> None:
        cut = Cut(activations=noise(2, 3), targets=torch.zeros(2), step=0, training=True, side=side)
        plugin.before_server_forward(cut)
        cut.verdicts.fetch().settle()

    for place in (nullcontext(), pretending()):
        with place, pytest.raises(ProtocolError, match=f"plugin '{name}': .*{says}"):
            receive()


@pytest.mark.parametrize("mode", ["multinomial", "binomial"])
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_chance_is_the_same_where_nothing_is_at_hand(tiny: Any, mode: Any, scope: Any) -> None:
    X = noise(4, 5, 16)
    outs = []
    for place in (nullcontext(), pretending()):
        with place:
            outs.append(run_step(tiny, RandTopK(rate=0.4, alpha=0.5, mode=mode, scope=scope), X))
    assert torch.equal(outs[0].back, outs[1].back)
    here, there = (out.client.side for out in outs)
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_a_row_that_is_not_finite_exchanges_nothing_wherever_it_is(tiny: Any) -> None:
    X = noise(3, 2, 8)
    X[1, 0, 3] = torch.inf
    for place in (nullcontext(), pretending()):
        with place:
            out = run_step(tiny, RandTopK(rate=0.25, alpha=0.9), X)
            largest = run_step(tiny, TopK(rate=0.25), X)
        assert torch.equal(out.back[1], largest.back[1])
        assert not torch.equal(out.back[0], largest.back[0])


def test_built_by_name() -> None:
    text = "topk:rate=0.2,keep_cls=true,evaluation=true"
    assert type(bind("plugins", text).build()) is TopK
    plugin = bind("plugins", "randtopk:ratio=0.2,alpha=0.3,mode=binomial,scope=token").build()
    assert isinstance(plugin, RandTopK)
    traits = plugin.traits()
    assert (traits.needs, traits.changes) == ({"numbers"}, {"layout"})
    assert traits.gradient == "natural"
    assert TopK(keep_cls=True).traits().needs == {"numbers", "layout", "features"}


@pytest.mark.gpu
@pytest.mark.parametrize("build", BOTH)
def test_gpu_agrees_with_the_cpu(tiny: Any, build: Any) -> None:
    X = noise(8, 20, 48)
    for rate in (0.01, 0.3):
        cpu = run_step(tiny, build(rate=rate), X)
        gpu = run_step(tiny, build(rate=rate), X.cuda(), device=torch.device("cuda"))
        assert torch.equal(gpu.back.cpu(), cpu.back)
        for name, tensor in cpu.client.side.items():
            assert torch.equal(gpu.client.side[name].cpu(), tensor)
