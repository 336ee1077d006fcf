"""What the tests of both directions share: a message to bytes, and a stream of bytes read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.wire.decode import Reader
from splitlab.core.wire.encode import encode


def to_bytes(message: Message) -> bytes:
    """Send the message, as links do."""
    frame = encode(message)
    raw = b"".join(frame.buffers())
    assert len(raw) == frame.nbytes
    message.sent(frame.nbytes)
    return raw


def read(raw: bytes, chunk: int = 2**30, limits: Limits | None = None) -> Iterator[Message]:
    """Feed a stream to a reader, at most ``chunk`` bytes at a time."""
    reader = Reader(limits or Limits())
    while raw:
        buffer = reader.buffer()
        assert not buffer.readonly
        count = min(len(buffer), len(raw), chunk)
        assert count > 0
        buffer[:count], raw = raw[:count], raw[count:]
        message = reader.advance(count)
        while message is not None:
            yield message
            message = reader.take()


def facts(message: Message) -> list[Any]:
    """Everything that must survive; NaN is written out, so that it equals itself."""
    parts = [
        (
            name,
            message.role(name),
            message[name].dtype,
            message[name].shape,
            message[name].contiguous().view(-1).view(torch.uint8).tolist(),
        )
        for name in message
    ]
    flags = (message.kind, message.step, message.training, message.stacked, message.elapsed_ns)
    said = json.dumps(message.meta), json.dumps(message.notes)
    return [flags, said, message.frame_bytes, parts]


def example() -> Message:
    message = Message(Kind.GRADIENT, step=513, stacked=False, meta={"loss": math.nan})
    message.elapsed_ns = 1_000_000
    message.put("ids", torch.tensor([7, 8], dtype=torch.uint8), Role.SIDE)
    message.put("gradient", torch.tensor([[1.0], [-2.0]]), Role.PAYLOAD)
    return message


class Wire:
    """The functions above, in one place for the tests."""

    to_bytes = staticmethod(to_bytes)
    read = staticmethod(read)
    facts = staticmethod(facts)
    example = staticmethod(example)


@pytest.fixture(scope="session")
def wire() -> Wire:
    """Return them."""
    return Wire()
