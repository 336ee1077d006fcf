"""The controls: patches drawn at random, and average pooling of the grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from splitlab.core import Attention, ConfigError, Cut, Keys, Message, PluginError
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins.token_controls import GridPool, RandomTokens

ATTENTION = Attention()

Plugin = RandomTokens | GridPool


def make_cut(
    B: int = 6,
    N: int = 9,
    D: int = 4,
    *,
    step: int = 0,
    training: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Cut:
    draw = torch.Generator().manual_seed(0)
    activations = torch.randn(B, N, D, generator=draw, dtype=torch.float64).to(dtype)
    cut = Cut(
        activations=activations.requires_grad_(),
        targets=torch.zeros(B),
        step=step,
        training=training,
    )
    cut.measured[ATTENTION] = torch.rand(B, N, generator=draw)
    cut.measured[Keys()] = torch.randn(B, N, 3, generator=draw)
    return cut


def run(plugin: Plugin, cut: Cut, **facts: Any) -> torch.Tensor:
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


# --- random-tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("P", [0, 1, 2])
def test_draws_patches_and_keeps_special_tokens_and_order(P: int) -> None:
    cut = make_cut(200, 12, 1)
    numbers = torch.arange(12.0).repeat(200, 1)
    cut.activations, cut.measured[ATTENTION] = numbers[..., None].requires_grad_(), numbers
    run(RandomTokens(ratio=0.5), cut, prefix_tokens=P)
    kept = cut.activations[..., 0]
    assert kept.shape == (200, 6)
    assert (kept.diff(dim=1) > 0).all()
    assert torch.equal(kept[:, :P], numbers[:, :P])
    assert torch.equal(cut.measured[ATTENTION], kept)
    assert Keys() not in cut.measured
    # Each of the 12 - P patches in (6 - P) of 12 - P rows, give or take; rows differ.
    counts = kept.long().flatten().bincount(minlength=12)[P:] / 200
    torch.testing.assert_close(
        counts, torch.full_like(counts, (6 - P) / (12 - P)), rtol=0, atol=0.12
    )


def test_draws_by_seed_and_step_and_nothing_else() -> None:
    def draw(seed: int = 7, step: int = 0) -> torch.Tensor:
        cut = make_cut(step=step)
        run(RandomTokens(ratio=0.5), cut, seed=seed)
        return cut.activations.detach()

    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = draw()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(draw(), first)
    assert not torch.equal(draw(step=1), first)
    assert not torch.equal(draw(seed=8), first)


@pytest.mark.parametrize(
    ("plugin", "K"),
    [
        (RandomTokens(), 19),
        (RandomTokens(ratio=0.5), 98),
        (RandomTokens(keep=0.5), 99),
        (RandomTokens(ratio=0.006), 1),
        (RandomTokens(keep=1), 197),
    ],
)
def test_sizes_and_bytes_of_drawing(plugin: RandomTokens, K: int) -> None:
    cut = make_cut(2, 197, 3)
    leaf = run(plugin, cut)
    assert cut.activations.nbytes == 4 * 2 * K * 3
    assert cut.side == {}
    assert (cut.activations is leaf) == (K == 197)
    if K in (98, 19):
        assert plugin.nominal_ratio() == ((0.1, 0.1) if K == 19 else (0.5, 0.5))
    else:
        assert plugin.nominal_ratio()[0] == pytest.approx(K / 197, abs=1e-3)


# --- grid-pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize("P", [0, 1, 3])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 6), (7, 7)])
@pytest.mark.parametrize("factor", [2, 3])
def test_pools_as_torch_does(P: int, grid: tuple[int, int], factor: int) -> None:
    H, W = grid
    cut = make_cut(2, P + H * W, 3, dtype=torch.float64)
    attention = cut.measured[ATTENTION]
    assert attention is not None
    leaf = run(GridPool(factor=factor), cut, grid=grid, prefix_tokens=P)
    image = leaf[:, P:].mT.reshape(2, 3, H, W)
    pooled = F.avg_pool2d(image, factor, ceil_mode=True, count_include_pad=False)
    expected = torch.cat((leaf[:, :P], pooled.flatten(2).mT), dim=1)
    torch.testing.assert_close(cut.activations, expected, rtol=0, atol=1e-12)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator())
    ours, theirs = (torch.autograd.grad(z, leaf, gradient)[0] for z in (cut.activations, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert ATTENTION in cut.measured
    torch.testing.assert_close(cut.measured[ATTENTION].sum(1), attention.sum(1))
    assert cut.measured[ATTENTION].shape == expected.shape[:2]
    assert Keys() not in cut.measured
    assert cut.side == {}


@pytest.mark.parametrize(
    ("plugin", "K"),
    [
        (GridPool(), 17),  # 4 x 4 windows and the class token
        (GridPool(factor=2), 50),
        (GridPool(ratio=0.26), 50),
        (GridPool(ratio=0.25), 26),  # 5 x 5
        (GridPool(ratio=0.02), 2),
        (GridPool(ratio=1), 197),
        (GridPool(factor=1), 197),
    ],
)
def test_sizes_and_bytes_of_pooling(plugin: GridPool, K: int) -> None:
    cut = make_cut(2, 197, 3)
    leaf = run(plugin, cut, grid=(14, 14))
    assert cut.activations.nbytes == 4 * 2 * K * 3
    assert plugin.nominal_ratio() == (K / 197, K / 197)
    assert (cut.activations is leaf) == (K == 197)


def test_what_grid_pool_refuses() -> None:
    with pytest.raises(ConfigError, match="factor=0 is refused"):
        GridPool(factor=0)
    with pytest.raises(ConfigError, match="leave out ratio or factor"):
        GridPool(factor=2, ratio=0.5)
    with pytest.raises(ConfigError, match="more than 0, at most 1"):
        GridPool(ratio=0)
    with pytest.raises(ConfigError, match=r"this model's grid can 0\.2, 0\.5, 1"):
        run(GridPool(ratio=0.1), make_cut(N=10), grid=(3, 3))
    run(GridPool(), make_cut(N=10), grid=(3, 3))
    with pytest.raises(ConfigError, match="factor=4 exceeds the grid of 3 x 3"):
        run(GridPool(factor=4), make_cut(N=10), grid=(3, 3))
    with pytest.raises(ConfigError, match="needs patches in a grid"):
        run(GridPool(), make_cut(), grid=None)
    with pytest.raises(PluginError, match="whole patch grid, 10 tokens, and finds 9"):
        run(GridPool(), make_cut(N=9), grid=(3, 3), tokens=10)


# --- Both -----------------------------------------------------------------------------------------

BOTH = [RandomTokens(ratio=0.5), GridPool(factor=2)]


@pytest.mark.parametrize("plugin", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(plugin: Plugin, dtype: torch.dtype) -> None:
    cut, exact = make_cut(N=17, dtype=dtype), make_cut(N=17)
    leaf = run(plugin, cut, grid=(4, 4))
    run(plugin, exact, grid=(4, 4))
    assert cut.activations.dtype == dtype
    torch.testing.assert_close(cut.activations.float(), exact.activations, rtol=1e-2, atol=1e-2)
    gradient = torch.ones_like(cut.activations)
    assert torch.autograd.grad(cut.activations, leaf, gradient)[0].dtype == dtype


@pytest.mark.parametrize("plugin", BOTH)
@pytest.mark.parametrize("value", [0.0, 3.5, 1e37])
def test_extreme_values_and_one_sample(plugin: Plugin, value: float) -> None:
    cut = make_cut(1, 17, 2)
    cut.activations = torch.full((1, 17, 2), value, requires_grad=True)
    run(plugin, cut, grid=(4, 4))
    torch.testing.assert_close(cut.activations, torch.full_like(cut.activations, value))


@pytest.mark.parametrize("kind", [RandomTokens, GridPool])
def test_evaluation_is_reduced_on_demand(kind: type[Plugin]) -> None:
    whole, reduced = make_cut(N=17, training=False), make_cut(N=17, training=False)
    leaf = run(kind(), whole, grid=(4, 4))
    assert whole.activations is leaf
    assert not kind().traits().evaluation
    run(kind(ratio=0.5, evaluation=True), reduced, grid=(4, 4))
    assert reduced.activations.shape[1] in (8, 5)
    assert kind(evaluation=True).traits().evaluation
    assert not hasattr(kind, "state_dict")


@pytest.mark.parametrize("facts", [{"class_token": False}, {"class_token": True, "pools": True}])
def test_drawing_leaves_a_patch_to_a_head_that_pools_patches(facts: dict[str, bool]) -> None:
    cut, plugin = make_cut(2, 17, 3), RandomTokens()
    run(plugin, cut, prefix_tokens=4, **facts)
    assert cut.activations.shape == (2, 5, 3)
    assert plugin.nominal_ratio() == (5 / 17, 5 / 17)
    with pytest.raises(ConfigError, match="at least 5 are sent"):
        run(RandomTokens(ratio=0.29), make_cut(2, 17, 3), prefix_tokens=4, **facts)


def test_what_random_tokens_refuses() -> None:
    with pytest.raises(ConfigError, match="leave out ratio or keep"):
        RandomTokens(keep=0.5, ratio=0.5)
    with pytest.raises(ConfigError, match=r"at least 3 are sent; allowed here: ratio=0.3334 to 1"):
        run(RandomTokens(ratio=0.3), make_cut(), prefix_tokens=3)


@pytest.mark.parametrize(
    "stack",
    [
        ["random-tokens:keep=0.5"],
        ["random-tokens:ratio=0.6,evaluation=true", "evit:keep=0.5,evaluation=true"],
        ["grid-pool"],
        ["grid-pool:evaluation=true", "random-tokens:keep=0.5,evaluation=true"],
        ["adc-batch-merge:ratio=0.5", "grid-pool:factor=2"],
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


def test_a_pooled_grid_is_no_grid_any_more(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="needs grid"):
        tiny.client([bind("plugins", "random-tokens:keep=0.5"), bind("plugins", "grid-pool")])
