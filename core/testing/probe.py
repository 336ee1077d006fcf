"""The check of a probe: a short training is the same, bit for bit, whether it is watched or not.

The stack under the probe does something in every data hook, so that there is something to see. A
probe may hold what it likes and write into the folder of its report; everything else must be as if
it were not there. What it asks of the engine with `Peer.compare` crosses besides.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.binding import bind
from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import SplitlabError
from splitlab.core.contract.hooks import hookimpl
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.contract.settings import Bound, parameters
from splitlab.core.contract.traits import Traits
from splitlab.core.engine.member import Asked
from splitlab.core.runs.workers import limited_threads
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.report import Check, Failed, Report, run_checks
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.testing.state import GlobalRandom
from splitlab.core.testing.state_checks import state_difference, state_of
from splitlab.core.testing.subject import TINY, TURNS
from splitlab.core.testing.tiny import Tiny

__all__ = ["PROBE_CHECKS", "check_probe"]

_ROLES = ("client", "server")


class _Works:
    """The stack under the probe: half of every number, in half of the bytes, and back."""

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations * 0.5

    @hookimpl
    def before_send(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            message.put(name, message[name].bfloat16(), Role.PAYLOAD)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            message.put(name, message[name].float(), Role.PAYLOAD)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations * 2.0

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        if cut.gradient is not None:
            cut.gradient = cut.gradient * 0.9

    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True, gradient="corrected")


@dataclass
class _Watched:
    """What a short training left behind.

    Attributes:
        arrived: every message as it arrived.
        losses: of every step and evaluation, in order.
        states: of the peers, by role.
        disturbed: the global random generators that were drawn from.
    """

    arrived: list[Seen]
    losses: list[float] = field(default_factory=list)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    disturbed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Subject:
    """A probe under test, and the maker of the peers that it watches."""

    probe: Bound
    tiny: Tiny

    def failed(self, text: str) -> Failed:
        """Return the error that fails the check."""
        return Failed(f"probe {self.probe.label!r}: {text}")

    def run(self, *, watched: bool) -> _Watched:
        """Train and evaluate for a moment, and let the probe report in the end."""
        works = Bound("the stack", "the stack", _Works, {}, {})
        with GlobalRandom(1) as world:
            probes = {
                role: Asked(self.probe.label, self.probe.build()) for role in _ROLES if watched
            }
            watching = {role: [asked.plugin] for role, asked in probes.items()}
            couple = Couple(self.tiny, [works], watching=watching)
            found = _Watched(couple.arrived)
            for what, number in TURNS:
                batch = self.tiny.batch(number)
                if what == "evaluate":
                    found.losses.append(couple.evaluate(batch, number)[1])
                    continue
                found.losses.append(couple.train(batch, number))
                for asked in probes.values():
                    asked.metrics(number)
            for role in _ROLES:
                worker = getattr(couple, role)
                found.states[role] = state_of(worker)
                worker.stack.run_end()
            self._report(probes)
            found.disturbed = world.disturbed()
        return found

    def _report(self, probes: dict[str, Asked]) -> None:
        """Let every instance write into its folder of a run, and look at what is beside it."""
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            run = Path(place, "run")
            folders = {}
            for role in probes:
                folders[role] = run / "probes" / f"{self.probe.label}-{role}"
                folders[role].mkdir(parents=True)
                (run / f"{role}.jsonl").write_text("a record of the run\n")
            for role, asked in probes.items():
                before = _files(Path(place), folders[role])
                if asked.has("report"):
                    asked.ask("report", folder=folders[role])
                after = _files(Path(place), folders[role])
                every = {**before, **after}
                changed = [path for path in every if before.get(path) != after.get(path)]
                if changed:
                    raise self.failed(
                        f"report changes {', '.join(map(str, changed))} outside of the folder that "
                        "it is given; write into that folder, as in folder / 'curve.csv'"
                    )


def _files(place: Path, without: Path) -> dict[Path, bytes]:
    """Return the content of all files below a place, but for those of one folder."""
    return {
        path.relative_to(place): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.is_relative_to(without)
    }


def _of_a_reference(seen: Seen) -> bool:
    """Return whether a message asks for a gradient without the stack, or is the answer."""
    kind, _, training, stacked = seen.facts["flags"]
    return not (training or stacked) and kind in (Kind.ACTIVATION, Kind.GRADIENT)


def changes_nothing(s: _Subject) -> str | None:
    """Frames, losses and state are equal with and without the probe, and no global state moves."""
    alone = s.run(watched=False)
    try:
        watched = s.run(watched=True)
    except SplitlabError as error:  # the engine calls it an observer, as it is one here
        raise Failed(re.sub(r"observer \S+@\d+", f"probe {s.probe.label!r}", str(error))) from error
    if watched.disturbed:
        raise s.failed(
            f"it draws from the global random state of {' and '.join(watched.disturbed)}, which "
            "changes the runs that it watches; draw from peer.generator(purpose, step)"
        )
    advice = "a probe looks and leaves alone; what changes a run is a plugin"
    expected, arrived = (
        [seen for seen in run.arrived if not _of_a_reference(seen)] for run in (alone, watched)
    )
    if found := difference(expected, arrived):
        raise s.failed(f"the run that it watches is another, first in {found}; {advice}")
    for number, (ours, theirs) in enumerate(zip(alone.losses, watched.losses, strict=True)):
        if repr(ours) != repr(theirs):
            raise s.failed(f"loss {number} is {theirs} instead of {ours}; {advice}")
    for role in _ROLES:
        if changed := state_difference(alone.states[role], watched.states[role]):
            raise s.failed(f"the state of the {role} is another ({changed}); {advice}")
    return f"{len(alone.arrived)} frames, {len(alone.losses)} losses and both states are equal"


PROBE_CHECKS: list[Check[_Subject]] = [
    Check("probe-changes-nothing", "the run is the same, watched or not", changes_nothing),
]


def check_probe(
    probe: str | type, *, only: Collection[str] | None = None, tiny: Tiny = TINY
) -> Report:
    """Check that a probe changes nothing of what it watches.

    Its metrics must be numbers by name, and its report written into the folder that it is given.

    Args:
        probe: as users type it (``"NAME:key=value"``, ``"FILE.py:Class"``), or its class, which is
            built with its defaults.
        only: names of checks; all by default.
        tiny: the model, for a probe that refuses the small one.

    Raises:
        ConfigError: an unknown name of a probe, setting or check.
        PluginError: the probe cannot be imported.
    """
    if isinstance(probe, str):
        name, bound = probe, bind("probes", probe)
    else:
        given = {key: p.default for key, p in parameters(probe).items() if not p.required}
        name = probe.__name__
        bound = Bound(name, name, probe, given, {}, kind="probe")
    with limited_threads(1):
        return run_checks(name, _Subject(bound, tiny), PROBE_CHECKS, only)
