"""The server waits for its client, takes the new connection, and says what was not heard."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from splitlab.core import DamagedError, Kind, Message, NetworkError
from splitlab.core.session.awaiting import Returned, Superseded, returns_to
from splitlab.core.session.protocol import PROTOCOL


@pytest.mark.parametrize("heard", [1, 2])
def test_an_answer_is_said_again_unless_it_was_heard(doors: Any, heard: int) -> None:
    server = doors.server()
    doors.ask(server, 2)
    answer = Message(Kind.GRADIENT, meta={"loss": 1.0})
    if heard < 2:
        doors.cut()
        doors.comes(heard)
        server.send(answer, 1.0)
    else:
        server.send(answer, 1.0)
        doors.cut()
        doors.comes(heard)
    doors.send(Message(Kind.ACTIVATION, 1), 3)
    assert server.receive(1.0).number == 3
    hello = doors.client.receive(1.0)
    assert hello.meta == {"protocol": PROTOCOL, "heard": 2}
    if heard < 2:
        assert doors.client.receive(1.0).number == 2
    with pytest.raises(NetworkError, match="sent nothing"):
        doors.client.receive(0.01)
    assert re.match(r"lost the connection \(.*\); its client has 9 s to return", doors.said[0])
    assert doors.said[1].startswith("the client is back after ")


def test_a_connection_that_is_lost_once_more_is_waited_for_once_more(doors: Any) -> None:
    server = doors.server()
    doors.ask(server, 2)
    server.send(Message(Kind.GRADIENT), 1.0)
    doors.cut()
    doors.comes(2, closed=True)
    doors.comes(2)
    doors.send(Message(Kind.ACTIVATION, 1), 3)
    assert server.receive(1.0).number == 3


def test_a_client_that_says_what_cannot_be_is_not_the_one(doors: Any) -> None:
    server = doors.server()
    doors.ask(server, 2)
    server.send(Message(Kind.GRADIENT), 1.0)
    doors.cut()
    doors.comes(0)  # it has heard the answer to its HELLO, or it would not be here
    doors.comes(3)
    doors.comes(2)
    doors.send(Message(Kind.ACTIVATION, 1), 3)
    assert server.receive(1.0).number == 3


def test_a_first_hello_that_comes_again_is_answered_as_it_was(doors: Any) -> None:
    server = doors.server()
    doors.cut()
    doors.comes(0)
    doors.send(Message(Kind.ACTIVATION), 2)
    assert server.receive(1.0).number == 2
    answer = doors.client.receive(1.0)
    assert (answer.kind, answer.number) == (Kind.HELLO, 1)


def test_it_waits_as_long_as_its_patience(doors: Any) -> None:
    server = doors.server(patience=0.3)
    doors.cut()
    began = time.monotonic()
    with pytest.raises(NetworkError, match=r"the other end .*; its client did not return in 0.3 s"):
        server.receive(1.0)
    assert 0.3 <= time.monotonic() - began < 3


@pytest.mark.parametrize("how", ["cannot come", "no patience"])
def test_without_hope_it_ends_at_once(doors: Any, how: str) -> None:
    patience = 0.0 if how == "no patience" else 9.0
    server = doors.server(patience=patience, hopeless=lambda: how == "cannot come")
    doors.cut()
    began = time.monotonic()
    with pytest.raises(NetworkError, match=r"closed the connection$"):
        server.receive(1.0)
    assert time.monotonic() - began < 1


def test_who_is_to_stop_waits_for_a_moment(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitlab.core.session.awaiting._A_MOMENT", 0.5)
    server = doors.server(stopping=lambda: True)
    doors.cut()
    began = time.monotonic()
    with pytest.raises(NetworkError, match=r"closed the connection$"):
        server.receive(1.0)
    assert 0.5 < time.monotonic() - began < 3


def test_a_client_that_comes_back_while_it_computes_is_given_signs_of_life(doors: Any) -> None:
    server = doors.server()
    doors.ask(server, 2)
    doors.cut()
    doors.comes(1)
    server._beat()  # finds out
    assert doors.client.receive(1.0).meta == {"protocol": PROTOCOL, "heard": 2}
    server._beat()
    assert doors.client.receive(1.0).meta == {"do": "beat"}
    server.send(Message(Kind.GRADIENT), 1.0)
    assert doors.client.receive(1.0).number == 2


def test_a_client_that_came_back_once_more_has_the_newer_connection(doors: Any) -> None:
    server = doors.server()
    doors.ask(server, 2)
    server.send(Message(Kind.GRADIENT), 1.0)
    doors.cut()
    for _ in range(2):
        doors.comes(2)
    doors.send(Message(Kind.ACTIVATION, 1), 3)
    assert server.receive(9.0).number == 3  # without waiting at the one before
    assert len(doors.said) == 2


def test_a_client_that_begins_anew_takes_the_place_of_its_session(doors: Any) -> None:
    server = doors.server()
    doors.cut()
    doors.returns.append(Superseded(doors.other()))
    with pytest.raises(Superseded, match="the client began its run anew"):
        server.receive(1.0)


def test_before_the_handshake_is_over_nobody_is_waited_for(doors: Any) -> None:
    server = doors.server(greeted=False)
    doors.cut()
    with pytest.raises(NetworkError, match=r"closed the connection$"):
        server.receive(1.0)


def test_a_client_that_counts_nothing_is_not_waited_for(doors: Any) -> None:
    server = doors.server(counts=False)
    doors.send(Message(Kind.ACTIVATION), 0)
    assert server.receive(1.0).number == 0
    server.send(sent := Message(Kind.GRADIENT), 1.0)
    assert sent.number == 0
    doors.cut()
    with pytest.raises(NetworkError, match=r"closed the connection$"):
        server.receive(1.0)


def test_severing_it_ends_its_connection(doors: Any) -> None:
    server = doors.server(patience=0.0)
    server.sever()
    with pytest.raises((NetworkError, DamagedError)):
        server.receive(1.0)


@pytest.mark.parametrize(
    ("meta", "session"),
    [
        ({"session": "s", "heard": 1, "attempt": 1}, "s"),
        ({"session": "s"}, None),
        ({"session": 3, "heard": 1, "attempt": 1}, ""),
        ({"session": "s", "heard": -1, "attempt": 1}, ""),
        ({"session": "s", "heard": 1}, ""),
    ],
)
def test_a_hello_says_which_session_it_goes_on_with(meta: dict[str, Any], session: Any) -> None:
    assert returns_to(Message(Kind.HELLO, meta=meta)) == session
    assert returns_to(Message(Kind.CONTROL, meta=meta)) is None
    assert Returned.__dataclass_fields__.keys() == {"link", "heard"}
