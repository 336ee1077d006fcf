"""The checks of listening, connecting and pairing find what is wrong with each of these."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from right import Inside

from splitlab.core import ConfigError, Message, NetworkError
from splitlab.core.testing import check_transport
from splitlab.core.testing.connect_checks import CONNECT_CHECKS
from splitlab.transports.inprocess import PairLink
from splitlab.transports.tcp import Tcp, TcpLink, TcpListener


class Everywhere(Tcp):
    default_address = "tcp://0.0.0.0:0"

    def __init__(self) -> None:
        super().__init__(insecure=True)


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


class AnswersLast(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            while self._serve and self._outbox:
                self._serve()
            self._inbox._frames.reverse()
            return super().receive(timeout)


class NoticesLate(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            time.sleep(1.0)
            return super().receive(timeout)


class HidesErrors(Inside):
    class link(PairLink):  # noqa: N801
        def receive(self, timeout: float) -> Message:
            try:
                return super().receive(timeout)
            except ConfigError:
                raise NetworkError("something went wrong") from None


WRONG = [
    (Everywhere, "default-is-loopback", "tcp://0.0.0.0:0, which is not loopback"),
    (SaysLittle, "address-in-use-is-named", "does not name tcp://127.0.0.1"),
    (RaisesItsOwn, "accept-ends-in-time", "accepting nobody raises TimeoutError"),
    (TriesOnce, "connect-ends-in-time", "less than its deadline"),
    (TriesOnce, "client-may-come-first", "gives up: no server at"),
    (AcceptsOnce, "clients-come-in-turn", "this listener is closed"),
    (LetsThrough, "bad-address-is-refused", "connecting to '127.0.0.1:80' raises ValueError"),
    (SaysLittle, "unknown-host-is-named", "does not name no.such.host.invalid"),
    (AnswersLast, "server-takes-its-turns", "arrive in the order [1, 2, 0]"),
    (NoticesLate, "idle-server-ends-in-time", "a receive of 0.2 s takes"),
    (HidesErrors, "servers-error-arrives", "a server's own error raises NetworkError"),
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
    assert {check for _, check, _ in WRONG} == {check.name for check in CONNECT_CHECKS}
