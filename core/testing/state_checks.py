"""Checks of what a step may depend on: neither chance nor evaluations."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from splitlab.core.testing.couple import Event
from splitlab.core.testing.seen import Seen, difference, same
from splitlab.core.testing.subject import REPEATS, Subject

__all__ = [
    "evaluation_as_declared",
    "repeats_itself",
    "state_difference",
    "state_of",
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
