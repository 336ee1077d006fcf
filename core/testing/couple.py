"""A client and a server that are watched: every message carried as bytes, every hook noted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.cut import Cut
from splitlab.core.contract.hooks import hookimpl
from splitlab.core.contract.message import Message
from splitlab.core.contract.settings import Bound
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.links import Carry
from splitlab.core.testing.seen import Seen
from splitlab.core.testing.tiny import Tiny

__all__ = ["Couple", "Event"]


@dataclass(frozen=True, eq=False)
class Event:
    """One hook of the whole stack, before and after it ran.

    ``backward`` stands for a hook: then ``after`` holds the gradient that reached the client part.
    """

    role: str
    hook: str
    step: int
    training: bool
    before: Seen
    after: Seen


Change = Callable[[Cut], None]


class Couple:
    """A client and a server, every message carried as bytes, every hook watched.

    Args:
        tiny: makes the peers.
        plugins: the stack.
        carry: takes messages to the other peer; real frames, without a link, by default.
        enter: changes the client's cut before the stack sees it.
        watching: more observers, by the role of the peer that they watch.
        settings: of `Tiny.pair`.

    Attributes:
        client: the client.
        server: the server.
        arrived: every message as it arrived, before any hook changed it.
        events: every data hook that ran.
    """

    def __init__(
        self,
        tiny: Tiny,
        plugins: Sequence[Bound],
        *,
        carry: Carry | None = None,
        enter: Change | None = None,
        watching: Mapping[str, Sequence[object]] | None = None,
        **settings: Any,
    ) -> None:
        self.arrived: list[Seen] = []
        self.events: list[Event] = []
        self._dtype: torch.dtype = settings.get("dtype", torch.float32)
        self._carry = carry or (lambda message, upward: tiny.travel(message))
        more = watching or {}
        self._cuts: dict[str, Cut] = {}
        near = [_Watch("client", self.events, enter, self._cuts), *more.get("client", ())]
        far = [_Watch("server", self.events, None, self._cuts), *more.get("server", ())]
        self.client = tiny.client(plugins, observers=near, **settings)
        self.server = tiny.server(plugins, observers=far, **settings)

    def train(self, batch: Batch, step: int) -> float:
        """Run a training step; returns the loss. What is wrong with it is raised here, not late."""
        loss = hold(self.client.train(self._as_wanted(batch), step), self._ask).loss
        for worker in (self.client, self.server):
            worker.settle()
        return loss

    def own_losses(self) -> float:
        """Return the sum of what plugins added to the losses of the last step, at both peers."""
        return sum(loss.item() for cut in self._cuts.values() for loss in cut.losses.values())

    def evaluate(
        self, batch: Batch, number: int, *, stacked: bool = True
    ) -> tuple[torch.Tensor, float]:
        """Evaluate a batch; returns class ids and the summed loss."""
        query = self.client.query(self._as_wanted(batch), number, stacked=stacked)
        answer = hold(query, self._ask)
        return answer.ids, answer.loss_sum

    def seen(self, role: str, hook: str, *, training: bool = True) -> list[Event]:
        """Return the events of a hook at one peer, in order."""
        return [
            event
            for event in self.events
            if (event.role, event.hook, event.training) == (role, hook, training)
        ]

    def _as_wanted(self, batch: Batch) -> Batch:
        return Batch(batch.images.to(self._dtype), batch.targets, batch.sample_ids)

    def _ask(self, message: Message) -> Message:
        answer = self.server.handle(self._cross(message, upward=True))
        return self._cross(answer, upward=False)

    def _cross(self, message: Message, *, upward: bool) -> Message:
        arrived = self._carry(message, upward)
        self.arrived.append(Seen.of(arrived))
        return arrived


class _Watch:
    """An observer of one peer: notes what every data hook found and what it left."""

    def __init__(
        self, role: str, events: list[Event], change: Change | None, cuts: dict[str, Cut]
    ) -> None:
        self._role = role
        self._cuts = cuts
        self._events = events
        self._change = change

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, object, object]:
        if self._change:
            self._change(cut)
        if cut.activations.requires_grad:
            note = functools.partial(self._backward, cut, Seen.of(cut))
            cut.activations.register_hook(note)  # type: ignore[no-untyped-call]
        return (yield from self._around("after_client_forward", cut))

    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Generator[None, object, object]:
        return (yield from self._around("before_send", message))

    @hookimpl(wrapper=True)
    def after_receive(self, message: Message) -> Generator[None, object, object]:
        return (yield from self._around("after_receive", message))

    @hookimpl(wrapper=True)
    def before_server_forward(self, cut: Cut) -> Generator[None, object, object]:
        return (yield from self._around("before_server_forward", cut))

    @hookimpl(wrapper=True)
    def gradient_return(self, cut: Cut) -> Generator[None, object, object]:
        return (yield from self._around("gradient_return", cut))

    def _around(self, hook: str, subject: Cut | Message) -> Generator[None, object, object]:
        before = Seen.of(subject)
        if isinstance(subject, Cut):
            self._cuts[self._role] = subject
        try:
            return (yield)
        finally:  # also when a plugin failed: what it left says why
            event = Event(
                self._role, hook, subject.step, subject.training, before, Seen.of(subject)
            )
            self._events.append(event)

    def _backward(self, cut: Cut, before: Seen, gradient: torch.Tensor) -> None:
        after = Seen(before.what, {"gradient": gradient.detach().clone()}, {}, {})
        self._events.append(Event(self._role, "backward", cut.step, True, before, after))
