"""Where two rows of messages differ."""

from __future__ import annotations

from typing import Any

import torch

from splitlab.core import Kind, Message, Role
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.wire.encode import encode


def test_where_two_rows_of_messages_differ_is_said_in_words() -> None:
    def row(**changes: Any) -> list[Seen]:
        facts = {"step": 3, "loss": float("nan"), "name": "activations", "value": 1.0} | changes
        message = Message(Kind.GRADIENT, facts["step"], meta={"loss": facts["loss"]})
        value = torch.tensor([float("nan"), facts["value"]], dtype=facts.get("dtype"))
        message.put(facts["name"], value, facts.get("role", Role.PAYLOAD))
        message.push("x", facts.get("note"))
        message.sent(encode(message).nbytes)
        return [Seen.of(message)]

    assert difference(row(), row()) is None
    assert difference(row(), row(value=2.0)) == (
        "GRADIENT of step 4: tensor 'activations', 2 of 2 elements"
    )
    assert "tensors ['activations'] and ['x']" in str(difference(row(), row(name="x")))
    assert "torch.float32 [2] and torch.float64 [2]" in str(
        difference(row(), row(dtype=torch.float64))
    )
    assert "metadata" in str(difference(row(), row(loss=1.0)))
    assert "notes" in str(difference(row(note=1), row(note=2)))
    assert "tensors" in str(difference(row(), row(role=Role.SIDE)))
    assert "flags" in str(difference(row(), row(step=4)))
    assert difference(row(), row() * 2) == "1 messages and 2"
