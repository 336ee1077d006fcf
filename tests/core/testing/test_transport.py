"""The checks of transports find what is wrong with each of these links."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Message, NetworkError, ProtocolError
from splitlab.core.testing import TRANSPORT_CHECKS, check_transport
from splitlab.core.testing import tiny as tiny_module
from splitlab.core.testing import transport as kit
from splitlab.transports.inprocess import InProcess, PairLink
from splitlab.transports.tcp import Tcp, TcpLink, TcpListener


class Inside(InProcess):
    """Both ends in one process; the links are of a class that is wrong."""

    link: type[PairLink] = PairLink

    def pair(self, serve: Callable[[], object] | None = None) -> tuple[PairLink, PairLink]:
        ends = super().pair(serve)
        for end in ends:
            end.__class__ = self.link
        return ends


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


class AnswersLast(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            while self._serve and self._outbox:
                self._serve()
            self._inbox._frames.reverse()
            return super().receive(timeout)


class HidesErrors(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            try:
                return super().receive(timeout)
            except ConfigError:
                raise NetworkError("something went wrong") from None


class Everywhere(Tcp):
    default_address = "tcp://0.0.0.0:0"


class SaysLittle(Tcp):
    def listen(self, address: str, *, device: torch.device) -> TcpListener:
        try:
            return super().listen(address, device=device)
        except NetworkError:
            raise NetworkError("it does not work") from None


class RaisesItsOwn(Tcp):
    def listen(self, address: str, *, device: torch.device) -> TcpListener:
        listener = super().listen(address, device=device)
        accept = listener.accept

        def fail(timeout: float) -> TcpLink:
            try:
                return accept(timeout)
            except NetworkError as error:
                raise TimeoutError(str(error)) from error

        listener.accept = fail  # type: ignore[method-assign]
        return listener


class TriesOnce(Tcp):
    def connect(self, address: str, *, device: torch.device, timeout: float) -> TcpLink:
        return super().connect(address, device=device, timeout=min(timeout, 0.01))


class AcceptsOnce(Tcp):
    def listen(self, address: str, *, device: torch.device) -> TcpListener:
        listener = super().listen(address, device=device)
        accept = listener.accept

        def once(timeout: float) -> TcpLink:
            link = accept(timeout)
            listener.close()
            return link

        listener.accept = once  # type: ignore[method-assign]
        return listener


class LetsThrough(Tcp):
    def connect(self, address: str, *, device: torch.device, timeout: float) -> TcpLink:
        if not address.startswith("tcp://"):
            raise ValueError(address)
        return super().connect(address, device=device, timeout=timeout)


WRONG = [
    (Miscounts, "T1", "send returns"),
    (Loses, "T1", "tensor 'targets', 3 of 3 elements"),
    (Reverses, "T2", "20 messages arrive in the order"),
    (SharesMemory, "T3", "the sender's own memory"),
    (GivesUp, "T4", "less than its deadline"),
    (Dawdles, "T5", "at most 0.8 s"),
    (NoticesLate, "T6", "noticing that the peer closed takes"),
    (ClosesOnce, "T7", "closed already"),
    (TakesAnything, "T8", "are allowed raises nothing; it must raise ProtocolError"),
    (BlamesNobody, "T9", "it must raise ProtocolError"),
    (Everywhere, "T10", "tcp://0.0.0.0:0, which is not loopback"),
    (SaysLittle, "T11", "does not name tcp://127.0.0.1"),
    (RaisesItsOwn, "T12", "accepting nobody raises TimeoutError"),
    (TriesOnce, "T13", "less than its deadline"),
    (TriesOnce, "T14", "gives up: no server at"),
    (AcceptsOnce, "T15", "this listener is closed"),
    (LetsThrough, "T16", "connecting to '127.0.0.1:80' raises ValueError"),
    (SaysLittle, "T17", "does not name no.such.host.invalid"),
    (AnswersLast, "T18", "arrive in the order [1, 2, 0]"),
    (NoticesLate, "T19", "a receive of 0.2 s takes"),
    (HidesErrors, "T20", "a server's own error raises NetworkError"),
]


@pytest.mark.parametrize(
    ("transport", "check", "reason"), WRONG, ids=[f"{c}-{t.__name__}" for t, c, _ in WRONG]
)
def test_what_is_wrong_is_found_with_its_reason(
    transport: Any, check: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "SOON", 2.0)
    monkeypatch.setattr(tiny_module, "SOON", 2.0)
    monkeypatch.setattr(kit, "_LATE", 0.8)
    report = check_transport(transport, only=[check])
    assert report.subject == transport.__name__
    assert report.failed() == [check], str(report)
    assert reason in report.rows[0].reason, str(report)


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in WRONG} == {check.id for check in TRANSPORT_CHECKS}


def test_what_does_not_apply_is_skipped_with_a_reason() -> None:
    inside = check_transport("inprocess", only=["T10"]).rows[0]
    assert (inside.outcome, inside.reason) == ("skipped", "both ends are made in one process")
    outside = check_transport(Tcp, only=["T18"]).rows[0]
    assert (outside.outcome, outside.reason) == (
        "skipped",
        "its ends are made by listening and connecting",
    )

    class Missing(Tcp):
        def unavailable(self) -> Any:
            return "it needs a cable"

    assert check_transport(Missing, only=["T1"]).rows[0].reason == "it needs a cable"


def test_an_unknown_name_or_check_is_the_users_fault() -> None:
    with pytest.raises(ConfigError, match="unknown transport 'tpc'"):
        check_transport("tpc")
    with pytest.raises(ConfigError, match="unknown check 'T99'"):
        check_transport("tcp", only=["T99"])
