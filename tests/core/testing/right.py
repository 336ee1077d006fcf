"""What is right; the tests beside make it wrong, and see that the kit finds out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from splitlab.core import ConfigError, Cut, Kind, Message, Role, Traits, hookimpl
from splitlab.core.testing import Tiny
from splitlab.transports.inprocess import InProcess, PairLink

SMALL = Tiny(image=8, patch=4, width=8, depth=1, samples=4)
"""N = 5 tokens; enough for what does not look at them."""


class Shift:
    """A differentiable map on the graph: every sample by its own place, and back."""

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = 2 * cut.activations

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = cut.activations.tanh() + cut.activations / 4


class Commits(Shift):
    """A loss of its own at each peer."""

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.add_loss("size", 0.1 * cut.activations.square().mean())
        Shift.after_client_forward(self, cut)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        Shift.before_server_forward(self, cut)
        cut.add_loss("spread", 0.1 * cut.activations.mean().square())


class Cast:
    """Detached tensors in both directions: bfloat16 on the wire."""

    @hookimpl
    def before_send(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            if message.training and message[name].dtype == torch.float32:
                message.put(name, message[name].bfloat16(), Role.PAYLOAD)
                message.push("cast", name)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if name := message.pop("cast"):
            message.put(name, message[name].float(), Role.PAYLOAD)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return 0.5, 0.5

    @hookimpl
    def traits(self) -> Traits:
        return Traits(needs={"numbers"}, gradient="straight-through")


class Remembers(Cast):
    """Keeps state: sends what changed since the last step, and saves what the receiver has."""

    def __init__(self, *, ratio: float = 0.5) -> None:
        if ratio < 0.01:
            raise ConfigError(f"ratio={ratio} is refused; allowed: 0.01 to 1; take 0.01")
        self._sum = torch.zeros(())

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.kind is Kind.ACTIVATION:
            self._sum = self._sum + 1
            message.put("remembers.sum", self._sum.clone(), Role.SIDE)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if "remembers.sum" in message:
            message.take("remembers.sum")

    @hookimpl
    def traits(self) -> Traits:
        return Traits(stateful=True)

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        return {"sum": self._sum}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum = state["sum"]


class Corrects(Cast):
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        assert cut.gradient is not None
        cut.gradient = cut.gradient + 0.01 * cut.activations.detach()

    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="corrected")


class Inside(InProcess):
    """Both ends in one process; the links are of a class that is wrong."""

    link: type[PairLink] = PairLink

    def pair(self, serve: Callable[[], object] | None = None) -> tuple[PairLink, PairLink]:
        ends = super().pair(serve)
        for end in ends:
            end.__class__ = self.link
        return ends
