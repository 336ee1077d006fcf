"""The client's side of a session: it speaks first, counts, times, and is told what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Kind, Message, NetworkError, ProtocolError, Role
from splitlab.core.contract.errors import Diverged
from splitlab.core.session.client import ClientSession
from splitlab.core.session.states import State
from splitlab.transports.inprocess import InProcess


def test_peers_that_agree_shake_hands_and_resume(talk: Any) -> None:
    table = talk.Table().open(run="my-run", step=40)
    assert table.resumed == [("my-run", 40, talk.MARKS)]
    assert table.told == []
    assert table.ledger.total("up") == table.ledger.total("up", "control") > 0
    assert table.ledger.total("down") == table.ledger.total("down", "control") > 0


def test_steps_are_counted_and_timed_apart_from_the_link(talk: Any) -> None:
    table = talk.Table().open()
    for step in range(3):
        assert table.client.exchange(talk.activation(step)).step == step
    table.client.exchange(talk.activation(0, training=False))
    assert table.server.steps == 3
    assert [message.training for message in table.echo.handled] == [True] * 3 + [False]
    assert 0.008 <= table.client.server_seconds < 5
    assert table.client.link_seconds > 0
    counts = table.ledger.counts
    assert counts["training"]["up"]["activation"] == 3 * 40
    assert counts["training"]["down"]["gradient"] == 3 * 40
    assert counts["evaluation"]["up"]["activation"] == 40
    assert counts["evaluation"]["down"]["prediction"] == 40


def test_the_client_asks_for_both(talk: Any) -> None:
    table = talk.Table().open(step=8)
    table.client.save(8)
    table.client.exchange(talk.activation(8))
    table.client.save(9, keep=[3, 8])
    table.client.finish(9)
    assert table.saved == [(8, []), (9, [3, 8])]


@pytest.mark.parametrize("request_", ["save", "finish"])
def test_an_answer_to_another_question_is_the_servers_error(talk: Any, request_: str) -> None:
    table = answering(talk, Message(Kind.CONTROL, meta={"did": "something"}))
    table.client._state = State.READY
    done = "saved" if request_ == "save" else "finished"
    with pytest.raises(ProtocolError, match=f"does not take: <Message CONTROL .*: CONTROL {done}"):
        getattr(table.client, request_)(1)


def test_an_answer_other_than_hello_ends_the_handshake(talk: Any) -> None:
    table = answering(talk, Message(Kind.CONTROL))
    with pytest.raises(ProtocolError, match=r"not take: <Message CONTROL .* is greeted: HELLO"):
        table.open()


def answering(talk: Any, answer: Message) -> Any:
    """Return a table whose server says this, whatever it is asked."""
    table = talk.Table()
    table._serve = lambda: table.server_end.send(answer, 1.0)  # type: ignore[method-assign,return-value]
    table.client_end, table.server_end = InProcess().pair(lambda: table._serve())
    table.client = ClientSession(table.client_end, table.ledger, 1.0)
    return table


# Errors.


def test_a_server_that_hangs_up_may_have_another_client(talk: Any) -> None:
    table = talk.Table(nested=False)
    table.server_end.close()
    with pytest.raises(NetworkError, match="before it answered; a server takes one client only"):
        table.open()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConfigError("bad\n\n  news"), "the server ended the run: bad news"),
        (ValueError("a bug"), "the server ended the run: ValueError: a bug"),
        (ValueError("x" * 5000), "the server ended the run: ValueError: xxx"),
    ],
)
def test_the_client_is_told_what_the_server_raised(talk: Any, error: Exception, words: str) -> None:
    table = talk.Table().open()
    table.echo.error = error
    with pytest.raises(ProtocolError) as caught:
        table.client.exchange(talk.activation())
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1100
    assert table.told == [error]


def test_the_client_is_told_when_the_server_cannot_resume_or_save(talk: Any) -> None:
    table = talk.Table()
    table.resume_error = ConfigError("no checkpoint of step 3")
    with pytest.raises(ProtocolError, match="the server ended the run: no checkpoint of step 3"):
        table.open(step=3)


def test_the_client_is_told_when_the_servers_answer_cannot_be_sent(talk: Any) -> None:
    table = talk.Table().open()

    def unsendable(message: Message) -> Message:
        answer = Message(Kind.GRADIENT, message.step)
        answer.put("gradient", torch.zeros(2, dtype=torch.complex64), Role.PAYLOAD)
        return answer

    table.echo.handle = unsendable  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match=r"the server ended the run: cannot send .*complex64"):
        table.client.exchange(talk.activation())


def test_silence_ends_a_turn_and_an_exchange_within_the_timeout(talk: Any) -> None:
    table = talk.Table(nested=False)
    table.server._timeout = table.client._timeout = 0.1
    table.client._state = State.READY
    waits: list[Callable[[], object]] = [
        table.server.turn,
        lambda: table.client.exchange(talk.activation()),
    ]
    for wait in waits:
        started = time.monotonic()
        with pytest.raises(NetworkError, match="sent nothing"):
            wait()
        assert time.monotonic() - started < 2


def test_a_divergence_of_one_peer_is_one_of_the_other(talk: Any) -> None:
    table = talk.Table().open()
    table.echo.error = Diverged("step 1: the loss is nan; check the model")
    with pytest.raises(Diverged, match=r"^step 1: the loss is nan; check the model$"):
        table.client.exchange(talk.activation())
    table = talk.Table(nested=False)
    table.client.fail(Diverged("step 1: the gradient of x is not finite"))
    with pytest.raises(Diverged, match="the gradient of x is not finite"):
        table.server.turn()
