"""Which tokens are kept, by every score: against plain torch, draws that repeat, what is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import Attention, ConfigError, Cut, Peer
from splitlab.core.testing import Tiny
from splitlab.plugins.common.selection import Selection

SELECTS: list[Any] = ["attention", "rollout", "norm", "random"]


def a_peer(tokens: int = 9, **facts: Any) -> Peer:
    return Tiny().peer(tokens=tokens, grid=None, prefix_tokens=1, class_token=True, **facts)


def a_cut(T: int = 3, N: int = 9, step: int = 0, dtype: torch.dtype = torch.float32) -> Cut:
    draw = torch.Generator().manual_seed(5)
    found = Cut(
        activations=torch.randn(T, N, 4, generator=draw).to(dtype),
        targets=torch.zeros(T, dtype=torch.int64),
        step=step,
        training=True,
    )
    for layer in ("last", "rollout"):
        found.measured[Attention("mean", layer)] = torch.rand(T, N, generator=draw)
    return found


def scored(select: Any, cut: Cut, peer: Peer | None = None) -> torch.Tensor:
    chosen = Selection("mine", 0.5, "floor", Attention(), select)
    T = len(cut.activations)
    return chosen.scores(cut, peer or a_peer(), T, lambda: cut.activations)


def test_scores() -> None:
    cut = a_cut()
    for layer, select in (("last", "attention"), ("rollout", "rollout")):
        assert torch.equal(scored(select, cut), cut.measured[Attention("mean", layer)])
    squares = cut.activations.square().sum(dim=2)
    torch.testing.assert_close(scored("norm", cut), squares.sqrt())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    cut = a_cut()
    cut.activations = torch.full((3, 9, 4), 6e4, dtype=dtype)
    found = scored("norm", cut)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


def test_chance_is_drawn_anew_for_every_row_and_step_and_repeats() -> None:
    one, again, later = (scored("random", a_cut(step=step)) for step in (0, 0, 1))
    assert one.shape == (3, 9)
    assert torch.equal(one, again)
    ranks = [each.argsort(dim=1).tolist() for each in (one, later)]
    assert ranks[0] != ranks[1]
    assert len({*map(tuple, ranks[0])}) == 3


@pytest.mark.parametrize("select", SELECTS)
def test_the_largest_scores_are_kept_in_their_old_order(select: Any) -> None:
    chosen, cut = Selection("mine", 0.5, "floor", Attention(), select), a_cut()
    scores = scored(select, cut)
    kept = chosen.choose(scores, a_peer())
    assert kept is not None
    for tokens, row in zip(kept.tolist(), scores.tolist(), strict=True):
        best = sorted(range(1, 9), key=lambda j: -row[j])[:3]
        assert tokens == [0, *sorted(best)]


def test_ties_take_the_lowest_token_and_all_tokens_need_no_choice() -> None:
    chosen = Selection("mine", 0.4, "floor", Attention())
    kept = chosen.choose(torch.ones(2, 9), a_peer())
    assert kept is not None
    assert kept.tolist() == [[0, 1, 2]] * 2
    assert Selection("mine", 1.0, "floor", Attention()).choose(torch.ones(2, 9), a_peer()) is None


def test_only_what_ranks_by_attention_asks_for_it() -> None:
    wanted = {
        "attention": [Attention("max", "last")],
        "rollout": [Attention("max", "rollout")],
        "norm": [],
        "random": [],
    }
    for select in SELECTS:
        chosen = Selection("mine", 0.5, "floor", Attention("max"), select)
        peer = a_peer()
        chosen.check(peer)
        assert peer.requests == wanted[select]
        assert ("attention" in chosen.needs) == bool(wanted[select])


def test_an_unknown_score_is_refused() -> None:
    unknown: Any = "size"
    with pytest.raises(ConfigError, match="select=size is refused; allowed: attention, rollout, n"):
        Selection("mine", 0.5, "floor", Attention(), unknown)


def test_a_patch_is_left_to_a_head_that_pools_patches() -> None:
    scores = torch.arange(12.0).expand(2, 12)
    peer = Tiny().peer(tokens=12, prefix_tokens=2, class_token=True, pools=True)
    kept = Selection("mine", 0.01, "floor", Attention(), "attention").choose(scores, peer)
    assert kept is not None
    assert kept.tolist() == [[0, 1, 11]] * 2
