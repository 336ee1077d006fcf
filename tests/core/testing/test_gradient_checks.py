"""Plugins that return another gradient than they say: each fails one check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from right import Cast, Shift

from splitlab.core import Cut, Kind, Message, Peer, Role, Traits, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, gradient_checks


class Detaches:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = 2 * cut.activations.detach()


class Invents:
    @hookimpl
    def setup(self, peer: Peer) -> None:
        self._own = torch.nn.Parameter(torch.randn(5, 8))

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        cut.activations = self._own.expand(len(cut.targets), -1, -1)


class ScalesTheGradient(Shift):
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        assert cut.gradient is not None
        cut.gradient = 2 * cut.gradient


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: torch.Tensor) -> torch.Tensor:
        return X * X

    @staticmethod
    def backward(ctx: Any, G: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return G


class DerivesWrongly:
    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = _Backwards.apply(cut.activations)


class RoundsNaturally(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            if message.training and message.kind is Kind.ACTIVATION:
                message.put(name, (message[name] * 8).round() / 8, Role.PAYLOAD)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="natural")


class TurnsTheGradient(Cast):
    @hookimpl
    def after_receive(self, message: Message) -> None:
        Cast.after_receive(self, message)
        if message.kind is Kind.GRADIENT:
            message.put("gradient", -message["gradient"], Role.PAYLOAD)


class ChangesTheGradient:
    @hookimpl
    def after_receive(self, message: Message) -> None:
        if message.kind is Kind.GRADIENT:
            message.put("gradient", 2 * message["gradient"], Role.PAYLOAD)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="straight-through")


class CorrectsNothing(Cast):
    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="corrected")


WRONG = [
    (Detaches, "gradient-as-declared", "it cuts cut.activations off the autograd graph"),
    (Invents, "gradient-as-declared", "so there is no gradient to return"),
    (ScalesTheGradient, "gradient-as-declared", "the loss changes along a direction"),
    (DerivesWrongly, "gradient-as-declared", "the loss changes along a direction"),
    (RoundsNaturally, "gradient-as-declared", "along a direction by 0,"),
    (TurnsTheGradient, "gradient-as-declared", "points away from the one that the server sent"),
    (
        ChangesTheGradient,
        "gradient-as-declared",
        "crosses the link as it is, but after_receive changes it",
    ),
    (CorrectsNothing, "gradient-as-declared", "no gradient_return adds anything"),
]


@pytest.mark.parametrize(
    ("plugin", "check", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG]
)
def test_what_is_wrong_fails_one_check_with_its_reason(
    plugin: type, check: str, reason: str, fails_alone: Callable[[type, str, str], None]
) -> None:
    fails_alone(plugin, check, reason)


def test_every_check_finds_something() -> None:
    here = {c.name for c in PLUGIN_CHECKS if c.run.__module__ == gradient_checks.__name__}
    assert {check for _, check, _ in WRONG} == here
