"""Plugins that break on inputs a training seldom sees: each fails one check."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest
import torch
from right import SMALL, Cast, Remembers

from splitlab.core import Cut, Kind, Message, Peer, Role, Traits, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, check_plugin, edge_checks


class Divides:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = cut.activations / cut.activations.std()


class WantsTwo(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.kind is Kind.ACTIVATION:
            assert len(message["activations"]) > 1
        Cast.before_send(self, message)


class NeedsMore(Remembers):
    @hookimpl
    def setup(self, peer: Peer) -> None:
        self._k = int(20 * self._ratio)

    def __init__(self, *, ratio: float = 0.5) -> None:
        super().__init__(ratio=ratio)
        self._ratio = ratio

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations * (self._k / self._k)


class LoopsForever(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        # As long as a test may wait for it, not for ever.
        end = time.monotonic() + 3.0
        while not message[message.names(Role.PAYLOAD)[0]].isfinite().all():
            if time.monotonic() > end:
                raise RuntimeError("the test waits no longer")
        Cast.before_send(self, message)


class CrashesOnNaN(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message["activations"].isnan().any():
            raise IndexError("index 3 is out of bounds")
        Cast.before_send(self, message)

    @hookimpl
    def traits(self) -> Traits:
        return dataclasses.replace(Cast.traits(self), waits="it looks for what is no number")


class Decomposes:
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            torch.linalg.qr(message["activations"])


class Widens(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training:
            message.push("cast", message.names(Role.PAYLOAD)[0])


WRONG = [
    (
        Divides,
        "survives-edge-inputs",
        "with zeros everywhere: after_client_forward at the client leaves",
    ),
    (
        WantsTwo,
        "survives-edge-inputs",
        "with a single sample: plugin 'WantsTwo' failed in before_send",
    ),
    (
        NeedsMore,
        "survives-edge-inputs",
        "with ratio=0.01: plugin 'NeedsMore' failed in after_client_forward",
    ),
    (
        CrashesOnNaN,
        "survives-edge-inputs",
        "with a value that is not a number: plugin 'CrashesOnNaN' failed",
    ),
    (Decomposes, "takes-half-precision", "with bfloat16 activations"),
    (Widens, "takes-half-precision", "activations arrived as torch.float32"),
]


@pytest.mark.parametrize(
    ("plugin", "check", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG]
)
def test_what_is_wrong_fails_one_check_with_its_reason(
    plugin: type, check: str, reason: str, fails_alone: Callable[[type, str, str], None]
) -> None:
    fails_alone(plugin, check, reason)


def test_every_check_finds_something() -> None:
    here = {c.name for c in PLUGIN_CHECKS if c.run.__module__ == edge_checks.__name__}
    assert {check for _, check, _ in WRONG} == here


def test_a_loop_without_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_checks, "_PATIENCE", 1.5)
    report = check_plugin(LoopsForever, only=["survives-edge-inputs"], tiny=SMALL)
    assert report.failed() == ["survives-edge-inputs"]
    assert "with a value that is not a number it does not end in 1.5 s" in report.rows[0].reason


def test_the_smallest_ratio_is_searched_and_tried() -> None:
    [row] = check_plugin(Remembers, only=["survives-edge-inputs"], tiny=SMALL).rows
    assert row.reason == "smallest ratio taken: 0.01"
