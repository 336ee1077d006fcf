"""Checks of what a step may depend on: neither chance nor evaluations, and saved state only."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from splitlab.core.testing.couple import Event
from splitlab.core.testing.seen import Seen, difference, same
from splitlab.core.testing.subject import REPEATS, SAVED, TURNS, State, Subject

__all__ = [
    "evaluation_as_declared",
    "repeats_itself",
    "state_difference",
    "state_of",
    "state_survives_resume",
]


def repeats_itself(s: Subject) -> str | None:
    """Two runs of one seed are the same bits, whatever the global random state."""
    if s.base.disturbed:
        s.charged(REPEATS)
        raise s.failed(
            f"it draws from the global random state of {' and '.join(s.base.disturbed)}, which "
            "changes the runs of others; draw from peer.generator(purpose, step)"
        )
    s.working()
    if s.irregular:
        raise s.failed(
            f"two runs of one seed differ, first in {s.irregular}; draw from peer.generator("
            "purpose, step) only, and let nothing depend on time, order of sets or addresses"
        )
    return None


def evaluation_as_declared(s: Subject) -> str | None:
    """An evaluation changes no state, and the stack acts in it as its traits say."""
    couple = s.second
    before = [state_of(couple.client), state_of(couple.server)]
    batch = s.tiny.batch(9)
    start = len(couple.events)
    ids, loss = couple.evaluate(batch, 0)
    stacked, hooks = couple.arrived[-2:], couple.events[start:]
    plain_ids, plain_loss = couple.evaluate(batch, 0, stacked=False)
    plain = couple.arrived[-2:]
    for role, old, new in zip(
        ("client", "server"),
        before,
        [state_of(couple.client), state_of(couple.server)],
        strict=True,
    ):
        if changed := state_difference(old, new):
            raise s.failed(
                f"evaluating changes the state of the {role} ({changed}), so that training depends "
                "on how often one evaluates; change state only where message.training or "
                "cut.training is True"
            )
    found = difference([_unflagged(m) for m in stacked], [_unflagged(m) for m in plain])
    acts = bool(found) or loss != plain_loss or not torch.equal(ids, plain_ids)
    if acts and not s.traits.evaluation:
        hook = next((e.hook for e in hooks if _acted(e)), "a hook")
        raise s.failed(
            f"traits() says that it leaves evaluation alone, but it acts: {found or 'the loss'} "
            f"differs from an evaluation without the stack (in {hook}); return there unless "
            "message.training or cut.training, or declare evaluation=True"
        )
    trains = any(_acted(event) for event in s.working().events if event.training)
    if s.traits.evaluation and trains and not acts:
        raise s.failed(
            "traits() says evaluation=True, but an evaluation is the same bytes and predictions "
            "as without the stack; declare evaluation=False"
        )
    return "acts in evaluation" if acts else "leaves evaluation alone"


def _acted(event: Event) -> bool:
    """Return whether the stack changed anything in this hook."""
    return bool(difference([event.before], [event.after])) and event.hook != "backward"


def _unflagged(message: Seen) -> Seen:
    facts = {k: v for k, v in message.facts.items() if k != "flags"}
    return dataclasses.replace(message, facts=facts)


def state_of(worker: Any) -> dict[str, Any]:
    """Return a copy of what a checkpoint would hold of a peer, by key."""
    tensors, values = worker.state()
    return {k: t.detach().clone() for k, t in tensors.items()} | dict(values)


def state_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return the key, in words, under which two states first differ; None if they are equal."""
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            equal = same(a, b)
        else:
            equal = repr(a) == repr(b)  # NaN does not equal itself, but reads the same
        if not equal:
            return " / ".join(json.loads(key))
    return None


def state_survives_resume(s: Subject) -> str | None:
    """A run that is resumed from saved state goes on as if it had not ended."""
    couple, states = s.repeating(), s.base.states
    if isinstance(states, Exception):
        raise states
    expected = couple.arrived[2 * SAVED :]
    advice = "return it from state_dict and take it back in load_state_dict"
    if not s.traits.stateful:
        advice = f"{advice}, and declare stateful=True in traits()"
    again = s.couple()
    for role, state in states.items():
        _load(getattr(again, role), *state)
    s.run(again, TURNS[SAVED:])
    if found := difference(expected, again.arrived):
        raise s.failed(
            f"a resumed run is another, first in {found}; something that it keeps from earlier "
            f"steps is not saved: {advice}"
        )
    if s.traits.stateful:
        return "stateful"
    if found := _depends_on_earlier_steps(s, states, expected):
        raise s.failed(f"traits() says that it keeps no state, but {found}: {advice}")
    return "stateless"


def _depends_on_earlier_steps(
    s: Subject, states: dict[str, State], expected: list[Seen]
) -> str | None:
    """Return how a run goes otherwise where the plugins forgot all, and only they."""
    forgetful = s.couple()
    for role, state in states.items():
        worker = getattr(forgetful, role)
        tensors, values = (_forget(a, b) for a, b in zip(state, worker.state(), strict=True))
        _load(worker, tensors, values)
    s.run(forgetful, TURNS[SAVED:])
    if found := difference(expected, forgetful.arrived):
        return f"a step depends on earlier ones ({found})"
    client = forgetful.client
    twice = [Seen.of(next(client.train(s.tiny.batch(), 0))) for _ in range(2)]
    if found := difference(twice[:1], twice[1:]):
        return f"encoding one batch twice differs ({found})"
    return None


def _load(worker: Any, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    # Clones: an optimizer goes on with the very tensors that it is given.
    worker.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values)


def _forget(trained: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the trained model with plugins as they are when new."""

    def own(key: str) -> bool:
        return json.loads(key)[0] in ("plugins", "modules")

    kept = {key: value for key, value in trained.items() if not own(key)}
    return kept | {key: value for key, value in new.items() if own(key)}
