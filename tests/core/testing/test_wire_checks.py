"""Plugins that send what they must not, or get it elsewhere: each fails one check."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from right import SMALL, Cast

from splitlab.core import Kind, Message, Role, Traits, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, check_plugin, links, wire_checks


class Boasts(Cast):
    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return 0.5, 0.0


class Smuggles(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            message.push("smuggles", message["activations"].flatten()[:99].tolist())

    @hookimpl
    def after_receive(self, message: Message) -> None:
        message.pop("smuggles")

    @hookimpl
    def traits(self) -> Traits:
        return Traits(waits="the numbers become notes")


class SharesItsClass(Cast):
    seen: dict[str, torch.Tensor] = {}  # noqa: RUF012 (that is what is wrong)

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            self.seen["activations"] = message["activations"].clone()
        Cast.before_send(self, message)


_SEEN: list[torch.Tensor] = []


class SharesItsModule(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            _SEEN[:] = [message["activations"]]
        Cast.before_send(self, message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        Cast.after_receive(self, message)
        if message.kind is Kind.ACTIVATION and message.training:
            message.put("activations", _SEEN[0].clone(), Role.PAYLOAD)


class LooksAtThreads(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        message.put("threads", torch.tensor(threading.active_count()), Role.SIDE)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        message.take("threads")

    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True)


WRONG = [
    (Boasts, "bytes-are-real", "failed in nominal_ratio: it returns (0.5, 0.0)"),
    (Smuggles, "bytes-are-real", "put numbers into a tensor of Role.SIDE"),
    (
        SharesItsClass,
        "frames-are-enough",
        "SharesItsClass.seen is one object for client and server",
    ),
    (
        SharesItsModule,
        "frames-are-enough",
        "a fresh server in another process cannot go by the frames alone",
    ),
    (LooksAtThreads, "same-over-every-link", "over inprocess the run is another"),
]


@pytest.mark.parametrize(
    ("plugin", "check", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG]
)
def test_what_is_wrong_fails_one_check_with_its_reason(
    plugin: type, check: str, reason: str, fails_alone: Callable[[type, str, str], None]
) -> None:
    fails_alone(plugin, check, reason)


def test_every_check_finds_something() -> None:
    here = {c.name for c in PLUGIN_CHECKS if c.run.__module__ == wire_checks.__name__}
    assert {check for _, check, _ in WRONG} == here


def test_bytes_far_from_nominal_are_odd_and_no_failure() -> None:
    [row] = check_plugin("adc-batch-merge:ratio=0.01", only=["bytes-are-real"]).rows
    assert row.outcome == "warning"
    assert "up 0.200 (nominal 0.01)" in row.reason
    assert "far more than nominal" in row.reason


def test_without_a_link_that_works_that_check_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "working_transports", list)
    [row] = check_plugin(Cast, only=["same-over-every-link"], tiny=SMALL).rows
    assert (row.outcome, row.reason[:23]) == ("skipped", "no transport works here")
