"""The client makes another connection, and both ends say what the other one has not heard."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest

from splitlab.core import DamagedError, Kind, Message, NetworkError, ProtocolError, RefusedError
from splitlab.core.contract.link import Limits
from splitlab.core.session.protocol import HELLO_BYTES, PROTOCOL


@pytest.mark.parametrize("heard", [1, 2])
@pytest.mark.parametrize("while_it", ["sends", "receives"])
def test_a_message_is_said_again_unless_it_was_heard(ends: Any, heard: int, while_it: str) -> None:
    client, _ = ends.client(), ends.shake_hands()
    client.limits = Limits(frame_bytes=10**6)
    asked = Message(Kind.ACTIVATION)
    ends.greets(heard=heard)
    if while_it == "sends":
        ends.cut()
        client.send(asked, 1.0)
    else:
        client.send(asked, 1.0)
        ends.cut()
        ends.upcoming[0].answers = [2]
    if while_it == "sends":
        ends.answer(2)
    assert client.receive(1.0).number == 2
    hello = ends.server.receive(1.0)
    assert hello.meta == {
        "protocol": PROTOCOL,
        "session": ends.session,
        "heard": 1,
        "attempt": 1,
    }
    if heard < 2:
        assert ends.server.receive(1.0).number == 2
    assert (ends.dialled, client.inside.limits.frame_bytes) == (1, 10**6)
    again = client.ledger.counts["control"]["up"].get("again", 0)
    whole = while_it == "receives" and heard < 2  # else the session counts it, which sent it
    assert again == (asked.frame_bytes if whole else 0)
    assert re.match(r"lost the connection \(.*\); trying again for 9 s", ends.said[0])
    assert ends.said[1].startswith("connected again after ")


def test_a_new_connection_takes_small_frames_until_both_know_each_other(ends: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    client.limits = Limits(frame_bytes=10**6)
    seen: list[int] = []
    ends.greets(heard=2, limits=seen)
    ends.cut()
    client.send(Message(Kind.ACTIVATION), 1.0)
    assert seen == [HELLO_BYTES]


@pytest.mark.parametrize("fault", ["damaged", "gap"])
def test_what_is_damaged_or_missing_is_asked_for_again(ends: Any, fault: str) -> None:
    client, _ = ends.client(), ends.shake_hands()
    client.send(Message(Kind.ACTIVATION), 1.0)
    if fault == "gap":
        ends.answer(3)
    else:
        ends.raises(DamagedError("the header and the checksum differ"))
    ends.greets(heard=2, answers=[2])
    assert client.receive(1.0).number == 2
    assert ends.dialled == 1


def test_it_tries_until_its_patience_ends_and_says_both_errors(ends: Any) -> None:
    client, _ = ends.client(patience=0.3), ends.shake_hands()
    ends.cut()
    began = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        client.send(Message(Kind.ACTIVATION), 1.0)
    assert 0.3 <= time.monotonic() - began < 3
    assert re.fullmatch(
        "the server in this process: the other end closed the connection; there was no other "
        "connection in 0.3 s: nobody there",
        str(caught.value),
    )
    assert ends.dialled > 1


def test_faults_without_progress_share_one_patience(ends: Any) -> None:
    client, _ = ends.client(patience=0.3), ends.shake_hands()
    client.send(Message(Kind.ACTIVATION), 1.0)
    ends.cut()
    for _ in range(100_000):
        ends.greets(heard=2, closes=True)
    began = time.monotonic()
    with pytest.raises(NetworkError, match=r"there was no other connection in 0.3 s"):
        client.receive(1.0)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("how", ["no patience", "nobody there", "the server does not wait"])
def test_without_hope_it_ends_at_once(ends: Any, how: str) -> None:
    patience, waits = (0.0 if how == "no patience" else 9.0), 9.0
    if how == "the server does not wait":
        waits = 0.0
    client = ends.client(patience=patience, hopeless=lambda: how == "nobody there")
    ends.shake_hands(waits=waits)
    ends.cut()
    with pytest.raises(NetworkError, match=r"closed the connection$"):
        client.send(Message(Kind.ACTIVATION), 1.0)
    assert (ends.dialled, ends.said) == (0, [])


def test_who_is_to_stop_tries_once(ends: Any) -> None:
    client, _ = ends.client(stopping=lambda: True), ends.shake_hands()
    ends.cut()
    with pytest.raises(NetworkError, match="nobody there"):
        client.send(Message(Kind.ACTIVATION), 1.0)
    assert ends.dialled == 1


def test_signs_of_life_are_progress(ends: Any) -> None:
    client, _ = ends.client(timeout=0.1, patience=0.2), ends.shake_hands()
    client.send(Message(Kind.ACTIVATION), 1.0)
    ends.cut()
    ends.greets(heard=2)

    def lives_and_is_lost_again() -> None:
        deadline = time.monotonic() + 5
        while not ends.said[1:] and time.monotonic() < deadline:
            time.sleep(0.005)
        for _ in range(6):
            time.sleep(0.05)
            ends.beat()
        ends.greets(heard=2, answers=[2])
        ends.cut()

    other = threading.Thread(target=lives_and_is_lost_again)
    other.start()
    try:
        assert client.receive(0.1).number == 2
    finally:
        other.join()
    assert ends.dialled == 2


def test_a_server_that_lives_and_leaves_for_ever_is_left(ends: Any) -> None:
    client, _ = ends.client(timeout=0.02, patience=0.2), ends.shake_hands()
    client.send(Message(Kind.ACTIVATION), 1.0)
    for _ in range(10_000):
        ends.greets(heard=2, beats=1, closes=True)
    ends.cut()
    began = time.monotonic()
    with pytest.raises((NetworkError, ProtocolError)):
        client.receive(0.02)
    assert time.monotonic() - began < 3
    assert ends.dialled < 30, ends.dialled  # it takes its time


def test_a_refusal_is_final_when_it_comes_again_and_again(ends: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    for _ in range(9):
        ends.greets(raises=RefusedError("another secret"))
    ends.cut()
    with pytest.raises(RefusedError, match="another secret"):
        client.send(Message(Kind.ACTIVATION), 1.0)
    assert ends.dialled == 3


def test_a_server_that_lost_the_session_ends_it(ends: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    ends.greets(error={"error": "no such session"})
    ends.cut()
    with pytest.raises(ProtocolError, match="the server ended the run: no such session"):
        client.send(Message(Kind.ACTIVATION), 1.0)


@pytest.mark.parametrize("heard", [-1, 0, 9, None, "2", True])
def test_a_count_that_cannot_be_ends_the_session(ends: Any, heard: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    ends.greets(heard=heard)
    ends.cut()
    with pytest.raises(ProtocolError, match="answered a HELLO with"):
        client.send(Message(Kind.ACTIVATION), 1.0)


def test_a_hello_of_a_return_that_was_damaged_is_said_again(ends: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    ends.greets(error={"error": "the opening differs", "damaged": True})
    ends.greets(heard=2)
    ends.cut()
    client.send(Message(Kind.ACTIVATION), 1.0)
    assert ends.server.receive(1.0).meta["attempt"] == 2
    before = ends.servers[-2]
    assert before.receive(1.0).meta["attempt"] == 1
    with pytest.raises(NetworkError, match="closed"):  # nothing stays behind
        before.receive(1.0)


# Before the server has answered.


@pytest.mark.parametrize("fault", ["lost", "damaged there", "damaged here"])
def test_a_first_hello_is_said_again_as_it_is(ends: Any, fault: str) -> None:
    client = ends.client()
    client.send(ends.hello(), 1.0)
    if fault == "lost":
        ends.cut()
    elif fault == "damaged here":
        ends.raises(DamagedError("the header and the checksum differ"))
    else:
        ends.server.send(Message(Kind.ERROR, meta={"error": "it", "damaged": True}), 1.0)
    ends.greets(answers=[1])
    assert client.receive(1.0).number == 1
    said = ends.server.receive(1.0)
    assert (said.number, said.meta) == (1, ends.hello().meta)
    assert len(ends.said) == 1  # nobody knows yet whether there is a server


def test_who_speaks_something_else_is_no_server(ends: Any) -> None:
    client = ends.client()
    client.send(ends.hello(), 1.0)
    ends.raises(DamagedError("does not speak splitlab's wire format"))
    for _ in range(9):
        ends.greets(raises=DamagedError("does not speak splitlab's wire format"))
    with pytest.raises(DamagedError, match="does not speak splitlab"):
        client.receive(1.0)
    assert ends.dialled <= 5


def test_who_says_nothing_is_asked_twice(ends: Any) -> None:
    client = ends.client()
    client.send(ends.hello(), 1.0)
    for _ in range(9):
        ends.greets()
    with pytest.raises(NetworkError, match="sent nothing"):
        client.receive(0.02)
    assert ends.dialled == 1
