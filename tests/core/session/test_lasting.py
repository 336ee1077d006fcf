"""A session outlives its connection: what was not heard is said again, and nothing twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from splitlab.core import Kind, Message, NetworkError, ProtocolError


def test_what_is_said_has_numbers_and_is_kept_until_the_other_end_speaks(ends: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    for number in (2, 3, 4):
        client.send(Message(Kind.ACTIVATION, number), 1.0)
        assert ends.server.receive(1.0).number == number
        assert [message.number for message in client._kept] == [number]
        ends.answer(number)
        assert client.receive(1.0).number == number
        assert client._kept == []
    assert ends.dialled == 0


def test_what_comes_twice_is_heard_once_and_counted(ends: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    client.send(Message(Kind.ACTIVATION), 1.0)
    for number in (1, 2):
        ends.answer(number)
    assert client.receive(1.0).number == 2
    assert client.ledger.counts["control"]["down"]["again"] > 0
    assert ends.dialled == 0


def test_signs_of_life_are_heard_over_but_not_for_ever(ends: Any) -> None:
    client, _ = ends.client(timeout=0.1, patience=0.1), ends.shake_hands()
    client.send(Message(Kind.ACTIVATION), 1.0)
    for _ in range(3):
        ends.beat()
    ends.answer(2)
    assert client.receive(1.0).number == 2
    assert client.ledger.total("down", "control") > 0
    over = threading.Event()

    def alive() -> None:
        while not over.wait(0.002):
            ends.beat()

    client.send(Message(Kind.ACTIVATION, 1), 1.0)
    beating = threading.Thread(target=alive)
    beating.start()
    try:
        with pytest.raises(ProtocolError, match=r"nothing new for 1.1 s, .* larger --timeout"):
            client.receive(0.1)
    finally:
        over.set()
        beating.join()


def test_an_end_that_computes_gives_signs_of_life(ends: Any) -> None:
    client, _ = ends.client(timeout=0.04), ends.shake_hands()
    beat = ends.server.receive(2.0)
    assert (beat.kind, beat.meta, beat.number) == (Kind.CONTROL, {"do": "beat"}, 0)
    assert not beat.training
    client.close()


def test_an_end_that_waits_gives_none(ends: Any) -> None:
    client, _ = ends.client(timeout=0.04, patience=0.0), ends.shake_hands()
    with client._calls, pytest.raises(NetworkError, match="sent nothing"):
        ends.server.receive(0.1)


def test_an_error_and_a_goodbye_are_said_once(ends: Any) -> None:
    client, _ = ends.client(), ends.shake_hands()
    ends.cut()
    for message in (
        Message(Kind.ERROR, meta={"error": "no"}),
        Message(Kind.CONTROL, meta={"do": "bye"}),
    ):
        with pytest.raises(NetworkError, match="closed the connection"):
            client.send(message, 1.0)
    assert ends.dialled == 0
