"""A plugin whose settings change while a run goes on: which instance is asked when."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Cut, Peer, Traits, hookimpl
from splitlab.core.contract.peer import Schedule
from splitlab.core.contract.settings import Bound, Piecewise
from splitlab.core.engine.stack import Stack


class Scales:
    """Multiplies, counts its steps, and says what it was asked."""

    def __init__(self, *, by: float, log: list[Any]) -> None:
        self.by, self.log, self.steps = by, log, 0

    def note(self, what: str) -> None:
        self.log.append((what, self.by))

    @hookimpl
    def setup(self, peer: Peer) -> None:
        self.note("setup")

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations * self.by

    @hookimpl
    def step_begin(self, step: int) -> None:
        self.steps += 1

    @hookimpl
    def step_end(self, step: int) -> None:
        self.note(f"end of {step}")

    @hookimpl
    def run_end(self) -> None:
        self.note("run_end")

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return self.by, 1.0

    @hookimpl
    def metrics(self, step: int) -> dict[str, float]:
        return {"by": self.by}

    @hookimpl
    def traits(self) -> Traits:
        big = self.by > 0.5
        return Traits(
            needs={"grid"} if big else {"places"},
            changes={"tokens"} if big else set(),
            evaluation=big,
            stateful=True,
            gradient="straight-through" if big else "natural",
            waits="" if big else "it counts",
        )

    @hookimpl
    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    @hookimpl
    def load_state_dict(self, state: Any) -> None:
        self.steps = state["steps"]


class ByStep(Scales):
    """Charges every step for what it was."""

    @hookimpl
    def nominal_ratio(self, step: int | None) -> tuple[float, float]:
        return (self.by if step is None else self.by / (1 + step)), 1.0


def stack(*values: tuple[float, ...], log: list[Any] | None = None, cls: Any = Scales) -> Stack:
    log = [] if log is None else log
    return Stack(
        Bound("scales", "scales", cls, {"by": Piecewise(each), "log": log}, {}) for each in values
    )


def begun(stack: Stack, tiny: Any, steps: int | None = 6) -> Stack:
    peer = tiny.peer()
    peer.schedule = Schedule(60, "steps", 6.0, steps)
    stack.setup(peer)
    return stack


def scale(stack: Stack, *, training: bool = True) -> float:
    """Return what the stack multiplies by."""
    targets = torch.zeros(2, dtype=torch.int64)
    cut = Cut(activations=torch.ones(2, 3, 4), targets=targets, step=0, training=training)
    stack.after_client_forward(cut)
    return cut.activations[0, 0, 0].item()


def test_each_value_holds_for_an_equal_share_of_the_steps_and_the_last_one_beyond(
    tiny: Any,
) -> None:
    changing, seen = begun(stack((0.5, 0.25, 0.125)), tiny, steps=7), []
    for step in range(9):
        changing.step_begin(step)
        seen.append(scale(changing))
        assert scale(changing, training=False) == seen[-1]  # an evaluation between steps
        assert changing.metrics(step) == {"scales": {"by": seen[-1]}}
        assert changing.nominal_ratio(step) == (seen[-1], 1.0)
    assert seen == [0.5] * 3 + [0.25] * 2 + [0.125] * 4


def test_all_are_set_up_and_ended_and_one_hears_of_a_step(tiny: Any) -> None:
    log: list[Any] = []
    changing = begun(stack((0.5, 0.25), log=log), tiny, steps=2)
    for step in range(2):
        changing.step_begin(step)
        changing.step_end(step)
    changing.run_end()
    assert log[:2] == [("setup", 0.5), ("setup", 0.25)]
    assert log[2:4] == [("end of 0", 0.5), ("end of 1", 0.25)]
    assert log[4:] == [("run_end", 0.5), ("run_end", 0.25)]


def test_the_nominal_ratio_of_a_run_is_the_mean_over_its_steps(tiny: Any) -> None:
    assert stack((0.5, 0.25)).nominal_ratio() == (0.375, 1.0)
    both = begun(stack((0.5, 0.25), (1.0, 0.5, 0.25)), tiny, steps=6)
    by_step = [both.nominal_ratio(step)[0] for step in range(6)]
    assert by_step == [0.5, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    assert both.nominal_ratio()[0] == pytest.approx(sum(by_step) / 6)
    assert both.charges_by_step
    assert both.foreseen
    assert not stack((0.5, 0.25), cls=ByStep).foreseen
    assert begun(stack((0.5, 0.25), cls=ByStep), tiny, steps=2).nominal_ratio(1) == (0.125, 1.0)


def test_states_are_kept_of_every_piece_and_which_one_it_is(tiny: Any) -> None:
    first = begun(stack((0.5, 0.25, 0.125)), tiny)
    for step in range(3):
        first.step_begin(step)
    state = first.state_dict()
    assert state == {"scales": {"now": 1, "0": {"steps": 2}, "1": {"steps": 1}, "2": {"steps": 0}}}
    second = begun(stack((0.5, 0.25, 0.125)), tiny)
    second.load_state_dict(state)
    assert scale(second) == 0.25
    assert second.state_dict() == state


def test_what_holds_of_any_piece_is_declared_of_all() -> None:
    traits = stack((1.0, 0.25)).traits()["scales"]
    assert traits == Traits(
        needs={"grid", "places"},
        changes={"tokens"},
        evaluation=True,
        stateful=True,
        gradient="straight-through",
        waits="it counts",
    )


def test_a_piece_that_another_plugin_cannot_follow_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'scales#2' needs grid .* 'scales' in front"):
        stack((0.25, 1.0), (1.0, 0.25))


def test_a_peer_knows_when_settings_change(tiny: Any) -> None:
    changing, peer = stack((0.5, 0.25), (0.5, 0.25, 0.125)), tiny.peer()
    peer.schedule = Schedule(60, "steps", 6.0, 6)
    changing.setup(peer)
    assert [step for step in range(8) if peer.changes(step)] == [2, 3, 4]


def test_without_a_length_of_the_run_no_step_begins(tiny: Any) -> None:
    changing = begun(stack((0.5, 0.25)), tiny, steps=None)
    with pytest.raises(ConfigError, match="needs the run's length in steps"):
        changing.step_begin(0)
