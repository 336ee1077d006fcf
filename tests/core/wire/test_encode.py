"""A message becomes a frame: its bytes, what is copied for it, and what cannot be sent."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch

from splitlab.core.contract.errors import PluginError
from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.wire.checksum import PIECE_BYTES, WHOLE_BYTES
from splitlab.core.wire.encode import encode


def test_the_bytes_of_one_frame(wire: Any) -> None:
    header = (
        b'{"__metadata__":{"loss":"NaN"},'
        b'"side/ids":{"dtype":"U8","shape":[2],"data_offsets":[8,10]},'
        b'"payload/gradient":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}       '
    )
    assert len(header) == 168
    assert (
        wire.to_bytes(wire.example())
        == (
            b"SPLT\x03\x00\x03\x01"
            b"\x01\x02\0\0\0\0\0\0"  # step
            b"\0\0\0\0\0\0\0\0"  # number
            b"\x40\x42\x0f\0\0\0\0\0"  # elapsed_ns
            b"\x74\x02\xb1\x71\xc7\x1c\x9c\x88"  # checksum of the header
            b"\xba\0\0\0\0\0\0\0"  # 186 = 8 + 168 + 10
            b"\x08\x54\x1b\xe7\x93\xf7\xfb\x22"  # checksum of the opening
            b"\xa8\0\0\0\0\0\0\0" + header + b"\0\0\x80\x3f\0\0\0\xc0" + b"\x07\x08"  # 168
            b"\x0e\x6f\x05\x61\x1f\xd4\x21\xee"  # checksum of the tensors
        )
    )


def test_encoding_changes_nothing_of_the_message(wire: Any) -> None:
    message = wire.example()
    before = wire.facts(message)
    assert encode(message) == encode(message)
    assert wire.facts(message) == before
    assert message.frame_bytes == 0
    message.put("x", torch.zeros(1), Role.SIDE)


def test_tensors_are_sent_from_where_they_lie() -> None:
    tensor = torch.zeros(1000)
    message = Message(Kind.ACTIVATION)
    message.put("x", tensor, Role.PAYLOAD)
    _, buffer, _ = encode(message).buffers()
    tensor[0] = 1.0
    assert bytes(buffer[:4]) == struct.pack("<f", 1.0)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3).t(),
        torch.arange(6)[::2],
        torch.arange(3).expand(4, 3),
        torch.arange(6).view(2, 3)[:1, 1::2],
        torch.tensor([1 + 2j, 3 + 4j]).conj().imag,
    ],
    ids=["transposed", "strided", "expanded", "one of many", "negated"],
)
def test_any_view_arrives_by_value(wire: Any, tensor: torch.Tensor) -> None:
    message = Message(Kind.ACTIVATION)
    message.put("x", tensor, Role.PAYLOAD)
    [arrived] = wire.read(wire.to_bytes(message))
    assert torch.equal(arrived["x"], tensor)


def test_a_sent_message_is_frozen_and_a_received_one_is_not(wire: Any) -> None:
    message = wire.example()
    [arrived] = wire.read(wire.to_bytes(message))
    with pytest.raises(PluginError, match="sent already"):
        message.put("x", torch.zeros(1), Role.SIDE)
    arrived.put("x", torch.zeros(1), Role.SIDE)


# What cannot be sent.


def of(tensor: torch.Tensor, name: str = "x") -> Message:
    message = Message(Kind.ACTIVATION)
    message.put(name, tensor, Role.PAYLOAD)
    return message


def noted(plugin: str, note: Any) -> Message:
    message = Message(Kind.CONTROL)
    message.push(plugin, note)
    return message


def many(count: int) -> Message:
    message = Message(Kind.ACTIVATION)
    for index in range(count):
        message.put(str(index), torch.zeros(0), Role.SIDE)
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (of(torch.tensor([True])), r"'x' is torch.bool; allowed: F64, F32"),
        (of(torch.zeros(1, dtype=torch.complex64)), r"'x' is torch.complex64"),
        (of(torch.zeros(1, device="meta")), r"'x' is not dense"),
        (of(torch.eye(2).to_sparse()), r"'x' is not dense"),
        (of(torch.zeros(1), "x" * 129), r"tensor name of 129 characters; allowed: 1 to 128"),
        (of(torch.zeros(1), ""), r"tensor name of 0 characters"),
        (of(torch.zeros(1), "a\nb"), r"cannot be printed"),
        (of(torch.zeros(1), "\ud800"), r"cannot be printed"),
        (of(torch.zeros([1] * 9)), r"9 dimensions; allowed: 8"),
        (of(torch.zeros(0, 2**40)), r"a dimension outside 0 to 2147483648"),
        (of(torch.zeros(0, 2**20, 2**20)), r"exceeds 2147483648 bytes"),
        (of(torch.zeros(1).expand(2**29, 2)), r"exceeds 2147483648 bytes"),
        (many(1025), r"1025 tensors; allowed: 1024"),
        (Message(Kind.CONTROL, step=2**64), r"cannot send this CONTROL message"),
        (Message(Kind.CONTROL, step=-1), r"cannot send this CONTROL message"),
        (Message(Kind.CONTROL, meta={"do": torch.zeros(1)}), r"metadata 'do' is not a JSON value"),
        (
            Message(Kind.CONTROL, meta={"mine": 1}),
            r"'mine' is no word of agreement, attempt",
        ),
        (Message(Kind.CONTROL, meta={"error": "x" * 2**20}), r"a header of \d+ bytes; allowed"),
        (noted("t", torch.zeros(1)), r"metadata 't' is not a JSON value"),
        (noted("\n", 1), r"cannot be printed"),
        (noted("x" * 129, 1), r"metadata name of 129 characters; allowed: 1 to 128"),
        (noted("text", "x" * 2**20), r"a header of \d+ bytes; allowed"),
    ],
)
def test_what_the_format_cannot_carry_is_refused(message: Message, reason: str) -> None:
    with pytest.raises(PluginError, match=reason) as caught:
        encode(message)
    assert len(str(caught.value).splitlines()) == 1


def test_a_frame_that_is_too_large_is_refused_before_it_is_sent() -> None:
    message = of(torch.zeros(1000, dtype=torch.uint8))
    size = encode(message).nbytes
    with pytest.raises(PluginError, match=f"a frame of {size} bytes; allowed: {size - 1}"):
        encode(message, Limits(frame_bytes=size - 1))


def test_a_cyclic_metadata_value_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    for message in (Message(Kind.CONTROL, meta={"error": cycle}), noted("cycle", cycle)):
        with pytest.raises(PluginError, match="not a JSON value"):
            encode(message)


@pytest.mark.parametrize("size", [0, 10, WHOLE_BYTES, WHOLE_BYTES + 1, 3 * PIECE_BYTES + 5])
def test_in_pieces_a_frame_is_the_same(size: int) -> None:
    message = of(torch.arange(size).to(torch.uint8))
    message.put("y", torch.zeros(3), Role.SIDE)
    frame = encode(message)
    whole = b"".join(frame.buffers())
    assert b"".join(part for parts in frame.pieces() for part in parts) == whole
    assert len(whole) == frame.nbytes == len(frame.head) + size + 12 + 8
    assert frame.data_bytes == size + 12
