"""Plugins that depend on chance, or on how often one evaluates: each fails one check."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from right import Cast, Remembers, Shift

from splitlab.core import Cut, Message, Peer, Role, Traits, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, state_checks


class DrawsAnywhere:
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training:
            message.put("draw", torch.rand(1), Role.SIDE)


class DrawsInSetup(Shift):
    @hookimpl
    def setup(self, peer: Peer) -> None:
        random.random()
        np.random.rand()


class LooksAtTheClock(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        Cast.before_send(self, message)
        message.put("clock", torch.tensor(time.perf_counter_ns()), Role.SIDE)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True, gradient="straight-through")


class ActsInEvaluation(Shift):
    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations.tanh() + cut.activations / 4


class ActsInTrainingOnly(Shift):
    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True)


class LearnsFromEvaluation(Remembers):
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if not cut.training:
            self._sum = self._sum + 1


WRONG = [
    (DrawsAnywhere, "repeats-itself", "it drew from global random state"),
    (DrawsInSetup, "repeats-itself", "random state of random and numpy"),
    (LooksAtTheClock, "repeats-itself", "ACTIVATION of step 1: tensor 'clock', 1 of 1 elements"),
    (ActsInEvaluation, "evaluation-as-declared", "differs from an evaluation without the stack"),
    (ActsInTrainingOnly, "evaluation-as-declared", "declare evaluation=False"),
    (
        LearnsFromEvaluation,
        "evaluation-as-declared",
        "the client (plugins / LearnsFromEvaluation / sum)",
    ),
]


@pytest.mark.parametrize(
    ("plugin", "check", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG]
)
def test_what_is_wrong_fails_one_check_with_its_reason(
    plugin: type, check: str, reason: str, fails_alone: Callable[[type, str, str], None]
) -> None:
    fails_alone(plugin, check, reason)


def test_every_check_finds_something() -> None:
    here = {c.name for c in PLUGIN_CHECKS if c.run.__module__ == state_checks.__name__}
    assert {check for _, check, _ in WRONG} == here
