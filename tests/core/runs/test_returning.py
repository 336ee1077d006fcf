"""Who comes to a server that has its client: that client, on another connection, or others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch

from splitlab.core import Diverged, Kind, Message, NetworkError
from splitlab.core.runs.returning import Returning
from splitlab.core.session.awaiting import Superseded
from splitlab.core.session.protocol import PROTOCOL
from splitlab.transports.tcp import Tcp, TcpLink, TcpListener

CPU = torch.device("cpu")
SOON = 5.0
OWN, OTHER = "0" * 32, "1" * 32


class Session:
    """The link of the session that a server holds."""

    def __init__(self) -> None:
        self.session = OWN
        self.heard = 3
        self.away = False
        self.severed = threading.Event()

    def sever(self) -> None:
        self.severed.set()


class Served:
    """A server that has its client, and connections to it."""

    def __init__(self, listener: TcpListener) -> None:
        self.listener = listener
        self.address = listener.address
        self.away: list[str] = []
        self.link: Any = Session()
        self.returning = Returning(listener.hear, 1.0, self.away.append)
        self.returning.begin(self.link, "run")

    def says(self, kind: Kind = Kind.HELLO, **meta: Any) -> TcpLink:
        link = Tcp().connect(self.address, device=CPU, timeout=SOON)
        message = Message(kind, meta=meta)
        message.number = 1
        link.send(message, SOON)
        return link

    def returns(self, attempt: int, heard: int = 3, session: str = OWN) -> TcpLink:
        return self.says(protocol=PROTOCOL, session=session, heard=heard, attempt=attempt)


@pytest.fixture
def served() -> Iterator[Served]:
    """Return one."""
    with closing(Tcp().listen("tcp://127.0.0.1:0", device=CPU)) as listener:
        made = Served(listener)
        yield made
        made.returning.end(listener.close)


def test_its_client_takes_the_place_of_its_old_connection(served: Served) -> None:
    with closing(served.returns(1, heard=7)) as client:
        back = served.returning.wait(SOON)
        assert back is not None
        assert back.heard == 7
        assert served.link.severed.wait(SOON)
        with closing(back.link):
            back.link.send(Message(Kind.HELLO), SOON)
            assert client.receive(SOON).kind is Kind.HELLO
    assert served.returning.wait(0.0) is None
    assert served.away == []


def test_a_connection_that_comes_late_takes_nobodys_place(served: Served) -> None:
    with closing(served.returns(2)), closing(served.returns(3)):
        deadline = time.monotonic() + SOON
        while served.returning._attempt < 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with closing(served.returns(1)) as late, pytest.raises(NetworkError, match="closed"):
            late.receive(SOON)
        back = served.returning.wait(SOON)
        assert back is not None
        back.link.close()


def test_a_run_that_begins_anew_is_heard_when_its_old_connection_is_lost(served: Served) -> None:
    marks = {"run": "run", "seed": "0", "plan": "0"}
    with closing(served.says(marks=marks, session=OTHER)) as early:
        assert "try again when it is gone" in early.receive(SOON).meta["error"]
    served.link.away = True
    with closing(Tcp().connect(served.address, device=CPU, timeout=SOON)) as uncounted:
        uncounted.send(Message(Kind.HELLO, meta={"marks": marks, "session": OTHER}), SOON)
        assert "it takes one only" in uncounted.receive(SOON).meta["error"]
    with closing(served.says(marks=marks, session=OTHER)):
        with pytest.raises(Superseded) as caught:
            served.returning.wait(SOON)
        with closing(caught.value.link) as link:
            assert link.receive(SOON).meta == {"marks": marks, "session": OTHER}
            link.sever()
            with pytest.raises(NetworkError):
                link.receive(SOON)
    assert not served.link.severed.is_set()


@pytest.mark.parametrize("heard", [1, 2])
def test_a_first_hello_is_answered_again_unless_it_is_late(served: Served, heard: int) -> None:
    served.link.heard = heard
    with closing(served.says(marks={"run": "run"}, session=OWN)) as link:
        if heard > 1:
            with pytest.raises(NetworkError, match="closed"):
                link.receive(SOON)
            assert served.returning.wait(0.0) is None
        else:
            back = served.returning.wait(SOON)
            assert back is not None
            assert back.heard == 0
            back.link.close()
            with closing(served.returns(1)):  # the first that counts
                back = served.returning.wait(SOON)
                assert back is not None
                back.link.close()
    assert served.link.severed.is_set() is (heard == 1)


def test_between_two_sessions_whoever_comes_may_begin_the_next(served: Served) -> None:
    served.returning.pause()
    assert served.returning.next(0.0) is None
    with closing(served.says(marks={"run": "another"})):
        came = served.returning.next(SOON)
        assert came is not None
        with closing(came) as link:
            assert link.receive(SOON).meta == {"marks": {"run": "another"}}
    with closing(served.returns(1)) as link:
        assert "does not have that session" in link.receive(SOON).meta["error"]


STRANGERS: dict[str, tuple[Kind, dict[str, Any], str]] = {
    "another run": (Kind.HELLO, {"marks": {"run": "another"}}, "has its client; it takes one only"),
    "no marks": (Kind.HELLO, {"marks": 3}, "has its client; it takes one only"),
    "no HELLO": (Kind.ACTIVATION, {}, "has its client; it takes one only"),
    "another session": (
        Kind.HELLO,
        {"session": OTHER, "heard": 1, "attempt": 1},
        "does not have that session, or has it no more",
    ),
    "no session": (
        Kind.HELLO,
        {"session": 1, "heard": 1, "attempt": 1},
        "does not have that session, or has it no more",
    ),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_others_are_told_and_turned_away(served: Served, who: str) -> None:
    kind, meta, told = STRANGERS[who]
    with closing(served.says(kind, **meta)) as link:
        answer = link.receive(SOON)
        assert answer.kind is Kind.ERROR
        assert told in answer.meta["error"]
        with pytest.raises(NetworkError):  # it is closed
            link.receive(SOON)
    assert len(served.away) == 1
    assert told in served.away[0]
    assert not served.link.severed.is_set()


def test_nothing_that_is_told_of_strangers_ends_it(served: Served) -> None:
    def full(line: str) -> None:
        raise OSError("no space left")

    served.returning._away = full
    for _ in range(2):
        with closing(served.says(marks=3)) as link:
            assert "takes one only" in link.receive(SOON).meta["error"]
        with closing(Tcp().connect(served.address, device=CPU, timeout=SOON)):
            pass
    with closing(served.returns(1)):
        back = served.returning.wait(SOON)
        assert back is not None
        back.link.close()


def test_who_waits_when_it_ends_is_told_why(served: Served) -> None:
    served.link.away = True
    with closing(served.returns(1)) as client, closing(served.says(marks={"run": "run"})) as anew:
        deadline = time.monotonic() + SOON
        while not (served.returning._back and served.returning._anew):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        served.returning.end(served.listener.close, Diverged("the loss is nan"))
        for link in (client, anew):
            assert link.receive(SOON).meta["error"] == "the loss is nan"
        for link in (client, anew):
            with pytest.raises(NetworkError):
                link.receive(SOON)
