"""ToMe: who merges with whom, against a version with loops; what the sizes do at the server."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import (
    Attention,
    ConfigError,
    Cut,
    Keys,
    Message,
    Peer,
    PluginError,
    ProtocolError,
    hookimpl,
)
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins.common.pooling import SIZES
from splitlab.plugins.tome import ToMe, match

ATTENTION = Attention()


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
    cut = Cut(
        activations=activations.requires_grad_(), targets=torch.zeros(B), step=0, training=training
    )
    cut.measured[ATTENTION] = torch.rand(B, N, generator=draw)
    cut.measured[Keys()] = torch.randn(B, N, 3, generator=draw)
    return cut


def make_peer(made: Cut, role: str = "client", **facts: Any) -> Peer:
    B, N, D = made.activations.shape
    defaults: dict[str, Any] = {"seed": 7, "classes": 5, "tokens": N, "width": D, "cut": 1}
    defaults |= {"prefix_tokens": 1, "class_token": True, "batch_size": B}
    return Tiny().peer(
        role, **({"grid": None} | defaults | {"device": torch.device("cpu")} | facts)
    )  # type: ignore[arg-type]


def run(plugin: ToMe, cut: Cut, /, **facts: Any) -> torch.Tensor:
    """Merge the cut; returns what it was."""
    plugin.setup(make_peer(cut, **facts))
    leaf = cut.activations
    plugin.after_client_forward(cut)
    return leaf


def receive(plugin: ToMe, cut: Cut, sizes: Any, **facts: Any) -> Cut:
    """Decode at a server what the cut became."""
    side = {} if sizes is None else {SIZES: sizes}
    server = Cut(
        activations=cut.activations.detach(), targets=cut.targets, step=0, training=True, side=side
    )
    plugin.setup(make_peer(cut, "server", **facts))
    plugin.before_server_forward(server)
    return server


def groups(metric: torch.Tensor, P: int, K: int) -> list[list[int]]:
    """Which tokens of one row become one, in the order of the result: with loops, by the book."""
    members = [[j] for j in range(len(metric))]
    vectors = [v.double() for v in metric]
    while len(members) > K:
        t = len(members)
        evens = [j for j in range(P, t) if j % 2 == 0]
        odds = [j for j in range(P, t) if j % 2 == 1]
        best = {}
        for i in evens:
            cosines = [float(torch.cosine_similarity(vectors[i], vectors[j], dim=0)) for j in odds]
            best[i] = (max(cosines), odds[cosines.index(max(cosines))])
        r = min(t - K, (t - P) // 2)
        gone = sorted(evens, key=lambda i: (-best[i][0], i))[:r]
        order = [*range(P), *(i for i in evens if i not in gone), *odds]
        joined = {j: [j, *(i for i in gone if best[i][1] == j)] for j in order}
        sizes = [len(m) for m in members]
        vectors = [
            sum((sizes[i] * vectors[i] for i in joined[j]), torch.zeros(()))
            / sum(sizes[i] for i in joined[j])
            for j in order
        ]
        members = [[m for i in joined[j] for m in members[i]] for j in order]
    return members


@settings(max_examples=25, deadline=None)
@given(
    N=st.integers(3, 14),
    P=st.integers(0, 3),
    share=st.floats(0, 1),
    metric=st.sampled_from(["keys", "tokens"]),
    seed=st.integers(0, 5),
)
def test_is_the_method_by_the_book(N: int, P: int, share: float, metric: Any, seed: int) -> None:
    P = min(P, N - 2)
    K = P + 1 + math.floor(share * (N - P - 2))
    cut = make_cut(2, N, 3, seed=seed, dtype=torch.float64)
    attention, keys = cut.measured[ATTENTION], cut.measured[Keys()]
    assert attention is not None
    assert keys is not None
    plugin = ToMe(r=N - K, metric=metric)
    leaf = run(plugin, cut, prefix_tokens=P)
    compared = leaf.detach() if metric == "tokens" else keys
    wanted = [groups(row, P, K) for row in compared]
    expected = torch.stack(
        [torch.stack([x[m].mean(0) for m in row]) for x, row in zip(leaf, wanted, strict=True)]
    )
    torch.testing.assert_close(cut.activations, expected, rtol=0, atol=1e-9)
    assert cut.side[SIZES].tolist() == [[len(m) for m in row] for row in wanted]
    assert plugin.nominal_ratio() == (K / N, K / N)

    # The class token and its like are untouched; what is summed over a row is conserved.
    assert torch.equal(cut.activations[:, :P], leaf[:, :P])
    sizes = cut.side[SIZES].double()
    assert sizes.sum(1).tolist() == [N, N]
    torch.testing.assert_close((sizes[..., None] * cut.activations).sum(1), leaf.sum(1))
    assert ATTENTION in cut.measured
    torch.testing.assert_close(cut.measured[ATTENTION].sum(1), attention.sum(1))
    assert Keys() not in cut.measured

    gradient = torch.randn(2, K, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(z, leaf, gradient)[0] for z in (cut.activations, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_equal_tokens_merge_into_themselves() -> None:
    tokens = torch.eye(4)[[3, 0, 0, 1, 1, 2, 2]][None]  # class token, three pairs
    cut = Cut(
        activations=tokens.clone().requires_grad_(), targets=torch.zeros(1), step=0, training=True
    )
    run(ToMe(r=3, metric="tokens"), cut)
    assert torch.equal(cut.activations, torch.eye(4)[[3, 0, 1, 2]][None])
    assert cut.side[SIZES].tolist() == [[1, 2, 2, 2]]
    assert cut.side[SIZES].dtype == torch.uint8


def test_weights_by_size_when_rounds_merge_what_is_merged() -> None:
    # Patches 5, 5, 5, 1 point the same way; all become one token: their plain mean.
    tokens = torch.tensor([[[7.0], [5], [5], [5], [1]]], dtype=torch.float64)
    cut = Cut(activations=tokens.requires_grad_(), targets=torch.zeros(1), step=0, training=True)
    run(ToMe(r=3, metric="tokens"), cut)
    torch.testing.assert_close(cut.activations.flatten().tolist(), [7.0, 4.0])
    assert cut.side[SIZES].tolist() == [[1, 4]]


def test_later_rounds_compare_means_weighted_by_size() -> None:
    keys = torch.randn(8, 40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slots = match(keys, torch.ones(8, 40, dtype=torch.float64), P=1, K=4)
    for row, into in zip(keys, slots.tolist(), strict=True):
        wanted = [sorted(m) for m in groups(row, 1, 4)]
        assert [[j for j in range(40) if into[j] == k] for k in range(4)] == wanted


def test_ties_merge_the_lowest() -> None:
    slots = match(torch.ones(1, 7, 2), torch.ones(1, 7), P=1, K=5)
    # A = 2, 4, 6; B = 1, 3, 5. Patches 2 and 4 join patch 1; left: 0, 6, 1, 3, 5.
    assert slots.tolist() == [[0, 2, 2, 3, 2, 4, 1]]


@pytest.mark.parametrize(
    ("plugin", "K"),
    [(ToMe(), 19), (ToMe(ratio=0.5), 98), (ToMe(ratio=0.0102), 2), (ToMe(r=8), 189)],
)
def test_sizes_and_bytes_of_a_deit(plugin: ToMe, K: int) -> None:
    cut = make_cut(3, 197, 2)
    run(plugin, cut)
    assert cut.activations.nbytes == 4 * 3 * K * 2
    assert {name: tensor.nbytes for name, tensor in cut.side.items()} == {SIZES: 3 * K}
    assert torch.equal(
        receive(plugin, cut, cut.side[SIZES], tokens=197).token_sizes, cut.side[SIZES]
    )


def test_beyond_255_tokens_sizes_travel_as_uint16(tiny: Any) -> None:
    cut = make_cut(1, 300, 2)
    plugin = ToMe(r=298)
    run(plugin, cut)
    assert cut.side[SIZES].tolist() == [[1, 299]]
    assert cut.side[SIZES].dtype == torch.uint16
    server = receive(plugin, cut, cut.side[SIZES], tokens=300)
    assert server.token_sizes is not None
    assert server.token_sizes.tolist() == [[1, 299]]


def test_the_server_attends_as_if_nothing_were_merged(tiny: Any) -> None:
    """Proportional attention makes the merging of equal tokens exact."""
    server = tiny.server()
    patch = tiny.batch().images.flatten(1)[:, :48].reshape(6, 3, 16)
    tokens = patch[:, [0, 1, 1, 2, 2]]
    merged = Cut(activations=tokens.clone(), targets=torch.zeros(6), step=0, training=True)
    plugin = ToMe(r=2, metric="tokens")
    run(plugin, merged)
    assert merged.activations.shape == (6, 3, 16)
    sizes = receive(plugin, merged, merged.side[SIZES], tokens=5).token_sizes
    part = server._part
    with torch.no_grad():
        whole = part.forward(tokens)
        torch.testing.assert_close(part.forward(merged.activations, sizes), whole)
        assert not torch.allclose(part.forward(merged.activations), whole, atol=1e-3)


def test_the_smallest_share_of_a_model_is_the_nominal_one() -> None:
    cut, plugin = make_cut(), ToMe()
    run(plugin, cut, prefix_tokens=2)
    assert cut.activations.shape[1] == 3
    assert plugin.nominal_ratio() == (3 / 9, 3 / 9)


def test_without_proportional_attention_no_sizes_travel() -> None:
    cut = make_cut()
    plugin = ToMe(prop_attn=False)
    run(plugin, cut)
    assert cut.side == {}
    assert receive(plugin, cut, None).token_sizes is None


def test_a_second_one_counts_on() -> None:
    once, twice = make_cut(dtype=torch.float64), make_cut(dtype=torch.float64)
    run(ToMe(r=6, metric="tokens"), once)
    leaf = run(ToMe(r=4, metric="tokens"), twice)
    run(ToMe(r=2, metric="tokens"), twice, tokens=9)
    assert twice.side[SIZES].sum(1).tolist() == [9] * 6
    total = (twice.side[SIZES].double()[..., None] * twice.activations).sum(1)
    torch.testing.assert_close(total, leaf.sum(1))
    torch.testing.assert_close(twice.activations, once.activations)


def test_sizes_of_another_plugin_are_multiplied() -> None:
    cut = make_cut(1, 3, 2)
    plugin = ToMe(r=1)
    plugin.setup(make_peer(cut, "server"))
    sizes = torch.tensor([[1, 2]], dtype=torch.uint8)
    server = Cut(
        activations=torch.zeros(1, 2, 2),
        targets=cut.targets,
        step=0,
        training=True,
        side={SIZES: sizes},
    )
    server.token_sizes = torch.tensor([[1.0, 0.5]])
    plugin.before_server_forward(server)
    assert server.token_sizes.tolist() == [[1, 1]]
    assert not server.side


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (torch.ones(6, 3, dtype=torch.uint8), r"has shape \[6, 3\], the tokens that arrived"),
        (torch.ones(6, 4), "arrived as torch.float32"),
        (torch.zeros(6, 4, dtype=torch.uint8), "1 or more and add up to at most 9"),
        (torch.full((6, 4), 3, dtype=torch.uint8), "1 or more and add up to at most 9"),
    ],
)
def test_server_refuses_sizes_that_do_not_fit(sizes: torch.Tensor, says: str) -> None:
    plugin = ToMe(r=5)
    cut = make_cut()
    run(plugin, cut)
    with pytest.raises(ProtocolError, match=says):
        receive(plugin, cut, sizes, tokens=9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["keys", "tokens"])
def test_dtypes(dtype: torch.dtype, metric: Any) -> None:
    cut = make_cut(dtype=dtype)
    leaf = run(ToMe(r=5, metric=metric), cut)
    assert cut.activations.dtype == dtype
    assert cut.activations.shape == (6, 4, 4)
    total = (cut.side[SIZES].double()[..., None] * cut.activations).sum(1)
    torch.testing.assert_close(total, leaf.double().sum(1), rtol=0.05, atol=0.1)
    gradient = torch.ones_like(cut.activations)
    assert torch.autograd.grad(cut.activations, leaf, gradient)[0].dtype == dtype


@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "one sample", "nan"])
def test_extreme_values(what: str) -> None:
    cut = make_cut(B=1 if what == "one sample" else 6)
    X = cut.activations.detach()
    if what == "zeros":
        X.zero_()
    elif what == "constant":
        X.fill_(3.5)
    elif what != "one sample":
        X[2, 4, 1] = torch.nan if what == "nan" else 1e37
    cut.activations = X.requires_grad_()
    leaf = run(ToMe(ratio=0.3, metric="tokens"), cut)
    spoilt = (~cut.activations.isfinite()).any(2)
    assert spoilt.sum() == (what == "nan")  # one group of one row
    gradient = torch.ones_like(cut.activations)
    assert torch.autograd.grad(cut.activations, leaf, gradient)[0].isfinite().all()
    assert cut.side[SIZES].sum(1).tolist() == [9] * len(X)


def test_evaluation_is_merged_on_demand() -> None:
    whole, merged = make_cut(training=False), make_cut(training=False)
    leaf = run(ToMe(), whole)
    assert whole.activations is leaf
    assert whole.side == {}
    assert not ToMe().traits().evaluation
    run(ToMe(r=4, evaluation=True), merged)
    assert merged.activations.shape == (6, 5, 4)
    assert ToMe(evaluation=True).traits().evaluation
    assert ToMe().traits().needs == {"keys"}
    assert ToMe(metric="tokens").traits().needs == {"layout"}


def test_repeated_and_independent_of_global_random_state() -> None:
    with torch.random.fork_rng([]):
        first, second = make_cut(), make_cut()
        torch.manual_seed(1)
        run(ToMe(), first)
        torch.manual_seed(2)
        run(ToMe(), second)
    assert torch.equal(first.activations, second.activations)
    assert not hasattr(ToMe, "state_dict")


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="r=0 is refused"):
        ToMe(r=0)
    with pytest.raises(ConfigError, match="leave out ratio or r"):
        ToMe(r=3, ratio=0.5)
    with pytest.raises(ConfigError, match="metric=values is refused"):
        ToMe(metric="values")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"r=8 is too many.* allowed here: r=1 to 7"):
        run(ToMe(r=8), make_cut())
    with pytest.raises(ConfigError, match=r"at least 2 are sent; allowed here: ratio=0.2223 to 1"):
        run(ToMe(ratio=0.2), make_cut())
    with pytest.raises(ConfigError, match="--cut 0"):
        run(ToMe(), make_cut(), unable=Tiny().client(cut=0)._part.unable)
    cut = make_cut()
    run(ToMe(metric="tokens"), cut, cut=0)
    assert cut.activations.shape[1] == 2
    for keys in (None, torch.zeros(6, 5, 3)):
        cut = make_cut()
        cut.measured = {} if keys is None else {Keys(): keys}
        with pytest.raises(PluginError, match="needs an attention key of every token"):
            run(ToMe(), cut)


@pytest.mark.parametrize(
    "stack",
    [
        ["tome:r=2"],
        ["tome:ratio=0.6,evaluation=true"],
        ["adc-batch-merge:ratio=0.5", "tome:ratio=0.6,metric=tokens"],
        ["tome:r=1", "tome:ratio=0.5,metric=tokens"],
        ["tome:r=1", "evit:keep=0.5"],
        ["evit:keep=0.75", "tome:r=1,metric=tokens"],
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


def test_adc_selection_behind_it_keeps_the_sizes_in_line(tiny: Any) -> None:
    plugins = [bind("plugins", text) for text in ("tome:r=1", "adc-token-select:ratio=0.7")]
    assert len(tiny.train(*tiny.pair(plugins), range(2))) == 2


class Forgetful:
    """Drops the last token, and forgets that another plugin counts."""

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        cut.activations = cut.activations[:, :-1]


def test_who_chooses_tokens_behind_it_without_counting_is_told(tiny: Any) -> None:
    plugins = [bind("plugins", "tome:r=1"), tiny.bound(Forgetful)]
    with pytest.raises(ProtocolError, match="put it behind plugins that choose tokens"):
        tiny.train(*tiny.pair(plugins), range(1))


def test_keys_lost_to_an_earlier_reducer_are_missed_before_training(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="needs keys"):
        tiny.client([bind("plugins", "evit:keep=0.5"), bind("plugins", "tome")])
