"""Plugins that do not save what they keep, or do not load what they saved: the kit finds out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from right import SMALL, Cast, Remembers

from splitlab.core import Kind, Message, Peer, Role, Traits, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, FreshPeers, check_plugin, resume_checks

CHECK = "state-survives-resume"
SEEN: dict[Any, Any] = {}
"""A variable of the module, which no checkpoint holds."""


class Says(Cast):
    """Keeps numbers at either peer, and says some of them in what it sends."""

    late = 0
    """Steps before what it keeps is said."""
    every = 1
    """Steps from one time to the next."""

    @hookimpl
    def setup(self, peer: Peer) -> None:
        self.kept = {"a": torch.zeros(2), "b": torch.zeros(())}
        self.peer = peer
        SEEN.clear()

    @hookimpl
    def before_send(self, message: Message) -> None:
        if not message.training:
            return
        self.kept = {name: number + 1 for name, number in self.kept.items()}
        step = message.step
        if step >= self.late and step % self.every == self.every - 1:
            message.put("said", self.said(), Role.SIDE)

    def said(self) -> torch.Tensor:
        return torch.cat([number.reshape(-1) for number in self.kept.values()])

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if "said" in message:
            message.take("said")

    @hookimpl
    def traits(self) -> Traits:
        return Traits(stateful=True)

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        return dict(self.kept)

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = dict(state)


class Seldom(Says):
    late, every = 12, 10


class LoadsNothing(Says):
    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class LoadsNothingAndActsLate(Seldom):
    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class LoadsHalf(Seldom):
    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept["a"] = state["a"]


class LosesOne(Seldom):
    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        return {"a": self.kept["a"]}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept["a"] = state["a"]


class SavesOnlyWhatItLoaded(Seldom):
    """Gives back what was loaded, and goes on with something else."""

    loaded: Mapping[str, Any] | None = None

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        loaded, self.loaded = self.loaded, None
        return loaded or dict(self.kept)

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loaded = state


class OnlyTheServerLoadsNothing(Seldom):
    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.peer.role == "client":
            self.kept = dict(state)


class StartsAfterASetting(Says):
    """Has nothing to lose before the step that a setting names, and only that is lost."""

    def __init__(self, *, warmup: int = 50) -> None:
        self._warmup = warmup

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.step >= self._warmup:
            self.kept = {name: number + 1 for name, number in self.kept.items()}
            message.put("said", self.said(), Role.SIDE)

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Caches(Cast):
    """From the second time on, says what a sample was the last time; the server's copy, too."""

    @hookimpl
    def setup(self, peer: Peer) -> None:
        self._last: dict[int, torch.Tensor] = {}

    @hookimpl
    def before_send(self, message: Message) -> None:
        if not message.training or message.kind is not Kind.ACTIVATION:
            return
        key = message.step % 3
        if key in self._last:
            message.put("said", self._last[key], Role.SIDE)
        self._last[key] = message["activations"].mean().clone()

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if "said" in message:
            message.take("said")

    @hookimpl
    def traits(self) -> Traits:
        return Traits(stateful=True)


class Draws(Seldom):
    """A generator of its own, which goes on from step to step."""

    @hookimpl
    def setup(self, peer: Peer) -> None:
        Says.setup(self, peer)
        self._generator = peer.generator("draws")

    def said(self) -> torch.Tensor:
        return torch.rand(1, generator=self._generator)


class KeepsItInTheModule(Cast):
    """What it said first, it says always; the first time is in a variable of the module."""

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.kind is Kind.ACTIVATION:
            first = SEEN.setdefault("first", message["activations"].mean().clone())
            message.put("said", first, Role.SIDE)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if "said" in message:
            message.take("said")


class HidesItsState(Remembers):
    @hookimpl
    def traits(self) -> Traits:
        return Traits()


class NoticesRepeats(Cast):
    @hookimpl
    def setup(self, peer: Peer) -> None:
        self._step = -1

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.kind is Kind.ACTIVATION:
            message.put("again", torch.tensor(int(message.step == self._step)), Role.SIDE)
            self._step = message.step

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if "again" in message:
            message.take("again")


WRONG = [
    (LoadsNothing, "state that the client saves after step 2 is not what it has after loading it"),
    (LoadsNothingAndActsLate, "(plugins / LoadsNothingAndActsLate / a); take back in load_state"),
    (LoadsHalf, "(plugins / LoadsHalf / b); take back in load_state_dict all"),
    (LosesOne, "a resumed run is another, first in ACTIVATION of step 20: tensor 'said'"),
    (SavesOnlyWhatItLoaded, "a resumed run is another, first in ACTIVATION of step 20"),
    (OnlyTheServerLoadsNothing, "the state that the server saves after step 2"),
    (StartsAfterASetting, "the state that the client saves after step 61"),
    (Caches, "a resumed run is another, first in ACTIVATION of step 4: tensors"),
    (Draws, "a resumed run is another, first in"),
    (KeepsItInTheModule, "resumed in another process does not go on as before"),
    (HidesItsState, "traits() says that it keeps no state, but a step depends on earlier ones"),
    (NoticesRepeats, "but encoding one batch twice differs"),
]


@pytest.mark.parametrize(("plugin", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG])
def test_what_is_lost_is_found(plugin: type, reason: str, fresh: FreshPeers) -> None:
    SEEN.clear()
    [row] = check_plugin(plugin, only=[CHECK], fresh=fresh, tiny=SMALL).rows
    assert row.outcome == "failed", row
    assert reason in row.reason
    assert plugin.__name__ in row.reason


def test_one_that_loses_state_fails_nothing_else(
    fails_alone: Callable[[type, str, str], None],
) -> None:
    fails_alone(LosesOne, CHECK, "something that it keeps from earlier steps is not saved")


@pytest.mark.parametrize("plugin", [Says, Seldom])
def test_what_saves_and_loads_all_passes(plugin: type, fresh: FreshPeers) -> None:
    [row] = check_plugin(plugin, only=[CHECK], fresh=fresh, tiny=SMALL).rows
    assert (row.outcome, row.reason) == ("passed", "stateful, 27 steps")


class NeverActs(Says):
    late = 1000


class ActsInManySteps(StartsAfterASetting):
    def __init__(self, *, warmup: int = 100_000) -> None:
        self._warmup = warmup


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [(NeverActs, "are the same if all state is forgotten"), (ActsInManySteps, "warmup=100000")],
)
def test_what_no_check_can_show_is_said(
    plugin: type, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_checks, "_MOST_STEPS", 40)
    [row] = check_plugin(plugin, only=[CHECK], tiny=SMALL).rows
    assert row.outcome == "warning"
    assert reason in row.reason


def test_every_check_finds_something() -> None:
    here = {c.name for c in PLUGIN_CHECKS if c.run.__module__ == resume_checks.__name__}
    assert here == {CHECK}
