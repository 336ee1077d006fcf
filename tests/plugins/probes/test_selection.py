"""Which tokens are kept is counted, remembered and drawn; others say why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import Cut
from splitlab.core.catalogue.binding import bind
from splitlab.plugins.probes.selection import Selection, agreement, fates


def test_a_token_is_alone_or_fused_or_left_out() -> None:
    kept, fused = fates(torch.tensor([[-1, 0, 1, 1], [2, 0, -1, -1]]))
    assert kept.tolist() == [[False, True, False, False], [True, True, False, False]]
    assert fused.tolist() == [[False, False, True, True], [False] * 4]


def test_agreement_is_the_jaccard_index() -> None:
    ours = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    theirs = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    assert agreement(ours, theirs) == pytest.approx((1 / 3 + 1 + 0) / 3)


def look(probe: Selection, step: int, kept: list[list[int]], ids: list[int]) -> dict[str, float]:
    """Let the probe see a cut of which these of 5 tokens are left, the first a class token."""
    cut = Cut(
        activations=torch.zeros(len(kept), 5, 2),
        targets=torch.zeros(len(kept)),
        step=step,
        training=True,
        sample_ids=torch.tensor(ids),
        images=torch.arange(len(kept) * 16.0).view(-1, 1, 4, 4),
    )
    around = probe.after_client_forward(cut)
    next(around)
    cut.provenance.select(torch.tensor(kept))
    with pytest.raises(StopIteration):
        next(around)
    return dict(probe.metrics(step))


def test_samples_that_come_again_are_compared_with_what_was_kept_of_them(tiny: Any) -> None:
    probe: Any = bind("probes", "selection:every=1").build()
    probe.setup(peer=tiny.peer())
    first = look(probe, 0, [[0, 1, 2], [0, 3, 4]], [7, 8])
    assert first == {"kept": 0.5, "fused": 0, "left out": 0.5}
    second = look(probe, 1, [[0, 3, 4], [0, 1, 4]], [8, 9])
    assert second["agreement"] == 1
    assert second["agreement of places"] == pytest.approx(0.5 / (1 * (0.25 + 0.25 + 1) ** 0.5) * 2)
    again: Any = bind("probes", "selection:every=1").build()
    again.setup(peer=tiny.peer())
    again.load_state_dict(state=probe.state_dict())
    third = look(again, 2, [[0, 2, 4], [0, 1, 2]], [7, 9])
    assert third["agreement"] == pytest.approx((1 / 3 + 1 / 3) / 2)


def test_where_no_patch_is_kept_there_are_no_places_to_agree(tiny: Any) -> None:
    probe: Any = bind("probes", "selection:every=1").build()
    probe.setup(peer=tiny.peer())
    for step in range(2):
        numbers = look(probe, step, [[0]], [step])
        assert numbers == {"kept": 0, "fused": 0, "left out": 1}


@pytest.mark.parametrize(
    ("stack", "kept", "fused"),
    [
        ("adc-token-select:ratio=0.3", 4 / 16, 0),  # 5 of 17 tokens
        ("evit:keep=0.25", 4 / 16, 12 / 16),
        ("grid-pool:factor=2", 0, 1),
        ("tome:r=4+random-tokens:keep=0.5", None, None),
    ],
)
def test_a_run_logs_and_draws(
    stack: str, kept: float | None, fused: float | None, seen: Any, tmp_path: Any
) -> None:
    found = seen(*stack.split("+"), probe="selection:every=1", steps=3)
    assert [*found] == [1, 2, 3]
    assert "agreement" not in found[1]
    for numbers in found.values():
        assert numbers["kept"] + numbers["fused"] + numbers["left out"] == pytest.approx(1)
        if kept is not None:
            assert (numbers["kept"], numbers["fused"]) == (kept, fused)
    assert "agreement" in found[3]  # of the second epoch
    folder = tmp_path / "run" / "probes" / "selection"
    assert {each.name for each in folder.iterdir()} == {"places.png", "said.txt", "selection.png"}


def test_where_no_token_is_chosen_it_says_so(probed: Any, tmp_path: Any) -> None:
    probed("adc-batch-merge", probe="selection", steps=1)
    folder = tmp_path / "run" / "probes" / "selection"
    assert [each.name for each in folder.iterdir()] == ["said.txt"]
    assert "no plugin of the stack says that it chooses" in (folder / "said.txt").read_text()
