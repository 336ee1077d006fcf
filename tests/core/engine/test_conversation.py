"""The one loop that drives a conversation."""

from __future__ import annotations

from typing import Any

from splitlab.core import (
    Kind,
    Message,
)
from splitlab.core.engine.conversation import hold


def test_a_conversation_is_held_to_its_end(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair()
    sent = []

    def travel(message: Any) -> Any:
        sent.append(message.kind)
        return peers.ask(server)(message)

    trained = hold(client.train(tiny.batch(0, 5), 3), travel)
    assert (trained.step, trained.samples, trained.metrics) == (3, 5, {})
    assert isinstance(trained.loss, float)
    assert sent == [Kind.ACTIVATION]


def test_a_conversation_may_have_more_than_one_round() -> None:
    def count() -> Any:
        heard = []
        for step in range(3):
            answer = yield Message(Kind.CONTROL, step)
            heard.append(answer.step)
        return heard

    assert hold(count(), lambda message: Message(Kind.CONTROL, 10 * message.step)) == [0, 10, 20]
