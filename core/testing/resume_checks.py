"""The check that a resumed run is the run that did not end: all state is saved, and loaded.

The run is longer than that of other checks, and its samples come again: what a plugin does every
few steps, behind a warm-up, or with what it remembers of a sample happens in it. It is interrupted
many times, at places that no usual period divides, since a counter that starts anew at one of its
own multiples would not show.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from splitlab.core.contract.errors import PluginError
from splitlab.core.contract.message import Message
from splitlab.core.runs.checkpoint import Checkpoints
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.fresh import Turn, address
from splitlab.core.testing.report import Failed, Warned
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.testing.state_checks import state_difference
from splitlab.core.testing.subject import State, Subject
from splitlab.core.testing.tiny import Tiny, freeze, thaw

__all__ = ["state_survives_resume"]

Role = Literal["client", "server"]

_BATCHES = 3
"""In an epoch: from the fourth step on, all samples were seen before."""
_STEPS = 27
_MOST_STEPS = 240
_MANY = 32
"""An integer setting up to here may count steps, whatever its name is."""
_COUNTS = re.compile(
    "step|every|warm|epoch|start|begin|after|until|delay|period|interval|refresh|freq|window|histor"
)
"""In the name of a setting that counts steps or epochs."""
_BREAKS = (2, 3, 5, 7, 13, 19, 29, 43, 61, 89, 127, 181)
"""Steps that are done when the run is interrupted."""
_ROLES: tuple[Role, ...] = ("client", "server")


@dataclass
class _Straight:
    """A run that is not interrupted.

    Attributes:
        tiny: makes its peers and batches.
        turns: what was done.
        arrived: two messages for every turn.
        frames: their frames.
        states: of both peers when so many steps were done, by role.
    """

    tiny: Tiny
    turns: Sequence[Turn]
    arrived: list[Seen]
    frames: list[bytes]
    states: dict[int, dict[str, State]]


def state_survives_resume(s: Subject) -> str | None:
    """A run that is resumed from saved state goes on as if it had not ended."""
    s.repeating()
    advice = "return it from state_dict and take it back in load_state_dict"
    stateful = s.traits.stateful
    if not stateful:
        advice = f"{advice}, and declare stateful=True in traits()"
    steps, beyond = _steps(s)
    straight = _straight(s, steps)
    if stateful or _has_state(straight):  # else, to resume is to forget
        _check_resumed(s, straight, advice)
    lost = _interrupted(s, straight, forget=True)
    if not stateful and (lost := lost or _twice(s)):
        raise s.failed(f"traits() says that it keeps no state, but {lost}: {advice}")
    if stateful and not lost and steps < _MOST_STEPS:  # it acts later
        steps = _MOST_STEPS
        straight = _straight(s, steps)
        _check_resumed(s, straight, advice)
        lost = _interrupted(s, straight, forget=True)
    _check_fresh(s, straight, advice)
    if beyond:
        return Warned(
            f"{', '.join(beyond)} may be more steps than the {steps} of this check; check it with "
            "a smaller value, too"
        )
    if stateful and not lost:
        return Warned(
            f"stateful, but {steps} steps are the same if all state is forgotten: nothing shows "
            "whether it is what was saved"
        )
    return f"stateful, {steps} steps" if stateful else f"stateless, {steps} steps"


def _steps(s: Subject) -> tuple[int, list[str]]:
    """Return how many steps the run has, and the settings that may count more of them."""
    steps, beyond = _STEPS, []
    for name, value in itertools.chain.from_iterable(bound.params.items() for bound in s.stack):
        if type(value) is not int or not (value <= _MANY or _COUNTS.search(name)):
            continue
        wanted = 2 * value * (_BATCHES if "epoch" in name else 1) + 3
        if wanted > _MOST_STEPS:
            beyond.append(f"{name}={value}")
        else:
            steps = max(steps, wanted)
    return steps, beyond


def _straight(s: Subject, steps: int) -> _Straight:
    tiny = dataclasses.replace(s.tiny, batches=_BATCHES)
    run = _Straight(tiny, list(_turns(steps)), [], [], {})

    def carry(message: Message, upward: bool) -> Message:
        run.frames.append(freeze(message))
        return thaw(run.frames[-1])

    couple = Couple(tiny, s.stack, carry=carry)
    for turn in run.turns:
        if turn[0] == "train" and turn[1] in _BREAKS:
            run.states[turn[1]] = {role: _saved(couple, role, turn[1]) for role in _ROLES}
        _take(couple, tiny, turn)
    run.arrived = couple.arrived
    return run


def _turns(steps: int) -> Iterator[Turn]:
    """Yield the steps, with an evaluation now and then and in the end."""
    for step in range(steps):
        yield "train", step
        if step % 8 == 4 or step == steps - 1:
            yield "evaluate", step // 8


def _take(couple: Couple, tiny: Tiny, turn: Turn) -> None:
    what, number = turn
    if what == "train":
        couple.train(tiny.batch(number), number)
    else:
        couple.evaluate(tiny.batch(number), number)


def _saved(couple: Couple, role: Role, step: int) -> State:
    """Return what a checkpoint file gives back of a peer."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), role)
        checkpoints.save(step, *getattr(couple, role).state())
        return checkpoints.load(step)


def _state(worker: Any) -> State:
    """Return a copy of the state of a peer."""
    tensors, values = worker.state()
    return {key: t.detach().clone() for key, t in tensors.items()}, json.loads(json.dumps(values))


def _load(worker: Any, state: State) -> None:
    tensors, values = state
    # Clones: an optimizer goes on with the very tensors that it is given.
    worker.load_state({key: t.clone() for key, t in tensors.items()}, values)


def _check_resumed(s: Subject, straight: _Straight, advice: str) -> None:
    if found := _interrupted(s, straight):
        raise s.failed(
            f"a resumed run is another, first in {found}; something that it keeps from earlier "
            f"steps is not saved: {advice}"
        )


def _interrupted(s: Subject, straight: _Straight, *, forget: bool = False) -> str | None:
    """Return where a run differs that is interrupted and resumed again and again, in new peers.

    Args:
        s: the plugin.
        straight: the run that it is compared with.
        forget: whether plugins, and only they, begin anew every time.

    Raises:
        Failed: what was loaded is not what was saved.
    """
    couple = Couple(straight.tiny, s.stack)
    for number, turn in enumerate(straight.turns):
        what, step = turn
        if what == "train" and step in straight.states:
            again = Couple(straight.tiny, s.stack)
            for role in _ROLES:
                worker, state = getattr(again, role), _state(getattr(couple, role))
                _load(worker, _forgotten(state, _state(worker)) if forget else state)
                if not forget:
                    _compare(s, role, step, state, _state(worker))
            couple = again
        _take(couple, straight.tiny, turn)
        found = difference(straight.arrived[2 * number : 2 * number + 2], couple.arrived[-2:])
        if found:
            return f"a step depends on earlier ones ({found})" if forget else found
    return None


def _compare(s: Subject, role: str, step: int, saved: State, loaded: State) -> None:
    """Fail if a peer has another state than it was given."""
    if changed := state_difference(saved[0] | saved[1], loaded[0] | loaded[1]):
        raise s.failed(
            f"the state that the {role} saves after step {step} is not what it has after loading "
            f"it ({changed}); take back in load_state_dict all that state_dict returns"
        )


def _forgotten(trained: State, new: State) -> State:
    """Return the state of the trained model with plugins as they are when new."""
    tensors, values = ({k: v for k, v in part.items() if not _own(k)} for part in trained)
    fresh = ({k: v for k, v in part.items() if _own(k)} for part in new)
    return tensors | next(fresh), values | next(fresh)


def _own(key: str) -> bool:
    return json.loads(key)[0] in ("plugins", "modules")


def _has_state(straight: _Straight) -> bool:
    saved = straight.states[max(straight.states)].values()
    return any(map(_own, itertools.chain.from_iterable(t.keys() | v.keys() for t, v in saved)))


def _twice(s: Subject) -> str | None:
    client = s.couple().client
    twice = [Seen.of(next(client.train(s.tiny.batch(), 0))) for _ in range(2)]
    found = difference(twice[:1], twice[1:])
    return f"encoding one batch twice differs ({found})" if found else None


def _check_fresh(s: Subject, straight: _Straight, advice: str) -> None:
    """Resume once more in a process that remembers nothing, not even in variables of modules."""
    where = address(s.stack, s.text)
    if s.fresh is None or isinstance(where, str) or s.needs_more_than_frames:
        return  # frames-are-enough says why
    step = sorted(straight.states)[len(straight.states) // 2]
    first = straight.turns.index(("train", step))
    frames = straight.frames[2 * first :]
    ups, downs = frames[0::2], frames[1::2]
    with tempfile.TemporaryDirectory() as folder:
        for role in _ROLES:
            Checkpoints(Path(folder), role).save(step, *straight.states[step][role])
        sides: dict[Role, tuple[list[bytes], list[bytes]]]
        sides = {"server": (ups, downs), "client": (downs, ups)}
        for role, (arriving, expected) in sides.items():
            where["checkpoint"] = [folder, step]
            try:
                sent = s.fresh.replay(
                    role,
                    straight.tiny,
                    where,
                    straight.turns[first:],
                    arriving,
                )
            except LookupError:
                return
            except PluginError as error:
                raise _outside(s, role, str(error), advice) from None
            found = difference(
                [Seen.of(thaw(raw)) for raw in expected], [Seen.of(thaw(raw)) for raw in sent]
            )
            if found:
                raise _outside(s, role, f"it is another, first in {found}", advice)


def _outside(s: Subject, role: str, found: str, advice: str) -> Failed:
    return s.failed(
        f"a {role} that is resumed in another process does not go on as before: {found}; keep "
        f"nothing outside of the instance, in a variable of the module or the class: {advice}"
    )
