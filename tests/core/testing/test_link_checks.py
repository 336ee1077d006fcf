"""The checks of links find what is wrong with each of these."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from right import Inside

from splitlab.core import Message, ProtocolError
from splitlab.core.testing import LINK_CHECKS, check_transport
from splitlab.transports.inprocess import InProcess, PairLink


class Miscounts(Inside):
    class link(PairLink):  # noqa: N801
        def send(self, message: Message, timeout: float) -> int:
            return super().send(message, timeout) - 8


class Loses(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            message = super().receive(timeout)
            if "targets" in message:
                message.put("targets", message["targets"] + 1, message.role("targets"))
            return message


class Reverses(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            time.sleep(0.01)
            self._inbox._frames.reverse()
            return super().receive(timeout)


class SharesMemory(Inside):
    sent: tuple[torch.Tensor, ...] = ()

    class link(PairLink):  # noqa: N801
        def send(self, message: Message, timeout: float) -> int:
            SharesMemory.sent = tuple(message[name] for name in message)
            return super().send(message, timeout)

        def receive(self, timeout: float) -> Message:
            message = super().receive(timeout)
            for name, tensor in zip(message, SharesMemory.sent, strict=True):
                message.put(name, tensor, message.role(name))
            return message


class GivesUp(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            return super().receive(0.0)


class Dawdles(Inside):
    class link(PairLink):  # noqa: N801
        def send(self, message: Message, timeout: float) -> int:
            time.sleep(1.0)
            return super().send(message, timeout)


class NoticesLate(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            time.sleep(1.0)
            return super().receive(timeout)


class ClosesOnce(Inside):
    class link(PairLink):  # noqa: N801
        def close(self) -> None:
            if self._inbox.closed and self._outbox.closed:
                raise RuntimeError("closed already")
            super().close()


class TakesAnything(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            self.limits = type(self.limits)()
            return super().receive(timeout)


class BlamesNobody(Inside):
    __module__ = InProcess.__module__

    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            try:
                return super().receive(timeout)
            except ProtocolError as error:
                raise ValueError(str(error)) from error


class CallsNobody(Inside):
    class link(PairLink):  # noqa: N801
        remote = property(lambda self: "", lambda self, name: None)


WRONG = [
    (Miscounts, "every-kind-arrives", "send returns"),
    (Loses, "every-kind-arrives", "tensor 'targets', 3 of 3 elements"),
    (Reverses, "arrives-in-order", "20 messages arrive in the order"),
    (SharesMemory, "arrives-in-own-memory", "the sender's own memory"),
    (GivesUp, "silence-ends-in-time", "less than its deadline"),
    (Dawdles, "unread-send-ends-in-time", "at most 0.8 s"),
    (NoticesLate, "closing-is-noticed", "noticing that the other end closed takes"),
    (ClosesOnce, "closed-link-says-so", "closed already"),
    (TakesAnything, "limits-hold", "are allowed raises nothing; it must raise ProtocolError"),
    (BlamesNobody, "garbage-is-refused", "it must raise ProtocolError"),
    (CallsNobody, "names-the-other-end", "the client's end calls the other ''"),
]


@pytest.mark.parametrize(
    ("transport", "check", "reason"), WRONG, ids=[f"{c}-{t.__name__}" for t, c, _ in WRONG]
)
def test_what_is_wrong_is_found_with_its_reason(
    transport: Any, check: str, reason: str, hurry: None
) -> None:
    report = check_transport(transport, only=[check])
    assert report.subject == transport.__name__
    assert report.failed() == [check], str(report)
    assert reason in report.rows[0].reason, str(report)


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in WRONG} == {check.name for check in LINK_CHECKS}
