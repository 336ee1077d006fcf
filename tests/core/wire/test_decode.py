"""A frame becomes a message: what went in comes out, byte for byte, and nothing else gets in."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core.contract.errors import DamagedError, ProtocolError
from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import WORDS, Kind, Message, Role
from splitlab.core.wire.checksum import SUM_BYTES
from splitlab.core.wire.decode import Reader, decode
from splitlab.core.wire.encode import encode
from splitlab.core.wire.layout import OPENING_BYTES, Slot

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
]


names = st.text(min_size=1, max_size=20).filter(str.isprintable)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


words = values.filter(lambda value: not isinstance(value, list))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype).view(shape)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    message = Message(
        draw(st.sampled_from(Kind)),
        draw(st.integers(0, 2**64 - 1)),
        training=draw(st.booleans()),
        stacked=draw(st.booleans()),
        meta=draw(st.dictionaries(st.sampled_from(WORDS), words, max_size=3)),
    )
    plugins = names | st.sampled_from(WORDS) | names.map("{}:".format)
    message.notes = draw(st.dictionaries(plugins, st.lists(values, max_size=3), max_size=3))
    message.elapsed_ns = draw(st.integers(0, 2**64 - 1))
    for name in draw(st.lists(names, max_size=5, unique=True)):
        message.put(name, draw(tensors()), draw(st.sampled_from(Role)))
    return message


@given(messages())
@settings(deadline=None, max_examples=150)
def test_a_message_survives_whole_and_byte_by_byte(wire: Any, message: Message) -> None:
    raw = wire.to_bytes(message)
    for chunk in (len(raw), 1):
        [arrived] = wire.read(raw, chunk)
        assert wire.facts(arrived) == wire.facts(message)


@given(messages(), messages(), st.integers(1, 300))
@settings(deadline=None, max_examples=50)
def test_glued_messages_come_apart(wire: Any, first: Message, second: Message, chunk: int) -> None:
    arrived = list(wire.read(wire.to_bytes(first) + wire.to_bytes(second), chunk))
    assert [wire.facts(message) for message in arrived] == [wire.facts(first), wire.facts(second)]


@given(st.lists(messages(), min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=50)
def test_a_stream_may_be_split_anywhere(
    wire: Any, sent: list[Message], draws: st.DataObject
) -> None:
    raw = b"".join(map(wire.to_bytes, sent))
    cuts = draws.draw(st.lists(st.integers(0, len(raw)), max_size=8).map(sorted))
    reader, arrived = Reader(), []
    for begin, end in itertools.pairwise([0, *cuts, len(raw)]):
        piece = raw[begin:end]
        while piece:
            buffer = reader.buffer()
            count = min(len(buffer), len(piece))
            buffer[:count], piece = piece[:count], piece[count:]
            message = reader.advance(count)
            while message is not None:
                arrived.append(message)
                message = reader.take()
    assert [wire.facts(message) for message in arrived] == [wire.facts(m) for m in sent]


def feed(reader: Reader, raw: bytes) -> Message | None:
    """Fill in what the buffer takes at once."""
    buffer = reader.buffer()
    assert len(buffer) >= len(raw)
    buffer[: len(raw)] = raw
    return reader.advance(len(raw))


def test_small_frames_are_read_at_once_and_taken_one_by_one(wire: Any) -> None:
    raw = wire.to_bytes(wire.example())
    reader = Reader()
    assert reader.take() is None
    first = feed(reader, raw * 3 + raw[:10])
    second, third = reader.take(), reader.take()
    assert first
    assert second
    assert third
    assert wire.facts(first) == wire.facts(second) == wire.facts(third)
    assert reader.take() is None
    last = feed(reader, raw[10:])
    assert last
    assert wire.facts(last) == wire.facts(first)
    for message in (first, second, third):
        message["gradient"].zero_()
    assert last["gradient"].tolist() == [[1.0], [-2.0]]


def test_limits_hold_for_the_next_frame_also_if_it_was_read_ahead(wire: Any) -> None:
    raw = wire.to_bytes(wire.example())
    reader = Reader(Limits(frame_bytes=len(raw)))
    assert feed(reader, raw * 2)
    reader.limits = Limits(frame_bytes=len(raw) - 1)
    with pytest.raises(ProtocolError, match=f"has {len(raw)} bytes; allowed on this link"):
        reader.take()


def test_large_tensors_are_received_straight_into_their_memory(wire: Any) -> None:
    sent = Message(Kind.ACTIVATION)
    sent.put("x", torch.arange(50_000, dtype=torch.uint8), Role.PAYLOAD)
    raw = wire.to_bytes(sent)
    reader = Reader()
    assert feed(reader, raw[:3000]) is None
    left = len(raw) - 3000
    buffer = reader.buffer()
    assert len(buffer) == left - SUM_BYTES, "all that is missing of them, and nothing beyond"
    assert feed(reader, raw[3000:-SUM_BYTES]) is None
    arrived = feed(reader, raw[-SUM_BYTES:])
    assert arrived
    buffer[-1] = 77
    assert arrived["x"][-1] == 77
    assert torch.equal(arrived["x"][:-1], sent["x"][:-1])


class Pieces:
    """A place in pieces of three bytes, put together when all have come."""

    def __init__(self, size: int) -> None:
        self.got = b""
        self.size = size

    def pieces(self) -> Iterator[memoryview]:
        room = memoryview(bytearray(3))
        while len(self.got) < self.size:
            piece = room[: self.size - len(self.got)]
            yield piece
            self.got += piece.tobytes()

    def tensor(self, slot: Slot) -> torch.Tensor:
        return slot.in_memory(bytearray(self.got))


@given(messages(), st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_tensors_arrive_where_the_caller_says(wire: Any, sent: Message, chunk: int) -> None:
    raw = wire.to_bytes(sent) * 2
    reader, arrived = Reader(land=Pieces), []
    for begin in range(0, len(raw), chunk):
        piece = raw[begin : begin + chunk]
        message = feed(reader, piece)
        while message is not None:
            arrived.append(wire.facts(message))
            message = reader.take()
    assert arrived == [wire.facts(sent)] * 2


def test_the_reader_keeps_nothing_of_a_message(wire: Any) -> None:
    places: list[weakref.ref[Pieces]] = []

    def land(size: int) -> Pieces:
        made = Pieces(size)
        places.append(weakref.ref(made))
        return made

    reader = Reader(land=land)
    assert feed(reader, wire.to_bytes(wire.example()))
    assert places[0]() is None


@given(messages())
@settings(deadline=None, max_examples=50)
def test_a_captured_body_opens_with_safetensors(wire: Any, message: Message) -> None:
    found = safetensors.torch.load(wire.to_bytes(message)[56:-8])
    assert found.keys() == {f"{message.role(name)}/{name}" for name in message}
    for name in message:
        tensor = found[f"{message.role(name)}/{name}"]
        assert tensor.dtype == message[name].dtype
        assert tensor.shape == message[name].shape
        assert torch.equal(
            tensor.view(-1).view(torch.uint8), message[name].view(-1).view(torch.uint8)
        )


def test_metadata_carry_what_a_loss_may_be(wire: Any) -> None:
    numbers = [math.inf, -math.inf, 0.1 + 0.2, 10**30]
    meta: dict[str, Any] = dict(
        zip(WORDS, [*numbers, None, True, "ü\ud800", {"": []}], strict=False)
    )
    notes: dict[str, list[Any]] = {
        "numbers": numbers,
        "others": [None, True, "ü\ud800"],
        "object": [{"": []}],
    }
    message = Message(Kind.CONTROL, meta=meta)
    for plugin, every in notes.items():
        for note in every:
            message.push(plugin, note)
    [arrived] = wire.read(wire.to_bytes(message))
    assert (arrived.meta, arrived.notes) == (meta, notes)


@pytest.mark.parametrize("plugin", [*WORDS, "a", "a:", "loss:", ":"])
def test_notes_of_a_plugin_that_is_called_like_a_word_are_no_word(wire: Any, plugin: str) -> None:
    message = Message(Kind.GRADIENT, meta={"loss": 0.5})
    message.push(plugin, 1)
    message.push(plugin, {"bits": 3})
    [arrived] = wire.read(wire.to_bytes(message))
    assert arrived.meta == {"loss": 0.5}
    assert arrived.notes == {plugin: [1, {"bits": 3}]}


def test_equal_headers_do_not_share_metadata(wire: Any) -> None:
    message = Message(Kind.CONTROL, meta={"agreement": {"list": [1]}})
    message.push("plugin", 1)
    raw = wire.to_bytes(message)
    [first], [second] = wire.read(raw), wire.read(raw)
    first.meta["agreement"]["list"].append(2)
    first.push("plugin", 2)
    assert second.meta == {"agreement": {"list": [1]}}
    assert second.notes == {"plugin": [1]}


def test_no_notes_are_no_note(wire: Any) -> None:
    [arrived] = wire.read(frame({"__metadata__": {"a": "[]"}}))
    assert arrived.pop("a") is None


def test_decode_takes_head_and_data_apart(wire: Any) -> None:
    message = wire.example()
    sent = encode(message)
    message.sent(sent.nbytes)
    arrived = decode(sent.head, bytearray().join(sent.buffers()[1:]))
    assert wire.facts(arrived) == wire.facts(message)


# What a hostile peer may send.


def opening(
    body: int,
    header: int,
    *,
    magic: bytes = b"SPLT",
    version: int = 3,
    kind: int = 2,
    flags: int = 3,
    text: bytes = b"",
) -> bytes:
    front = struct.pack("<4sHBBQQQQQ", magic, version, kind, flags, 0, 0, 0, checked(text), body)
    back = struct.pack("<Q", header)
    return front + struct.pack("<Q", checked(front + back)) + back


def checked(raw: bytes) -> int:
    return xxhash.xxh3_64_intdigest(raw)


def frame(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    head = opening(8 + len(text) + len(data), len(text), text=text) + text
    return head + data + struct.pack("<Q", checked(data))


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


FOUR = b"\0\0\0\0"


NESTED = b"[" * 100_000 + b"]" * 100_000  # how deep is too deep depends on the interpreter


HOSTILE = {
    "magic": (opening(10, 2, magic=b"HTTP"), r"does not speak splitlab's wire format.*b'HTTP'"),
    "version": (opening(10, 2, version=9), r"speaks version 9 of the wire format.*version 3"),
    "kind": (opening(10, 2, kind=77), r"unknown kind 77; known: \[1, 2"),
    "flags": (opening(10, 2, flags=4), r"unknown flags 0x04"),
    "huge body": (opening(2**63, 2), r"has 9223372036854775872 bytes; allowed on this link"),
    "body of 2**64 - 1": (opening(2**64 - 1, 2), r"allowed on this link: 2147483648"),
    "huge header": (opening(2**30, 2**29), r"a header of 536870912 bytes; allowed: 1048576"),
    "header beyond body": (opening(10, 100), r"a header of 100 bytes in a body of 10"),
    "no header": (opening(8, 0), r"a header of 0 bytes"),
    "no body": (opening(0, 2), r"a header of 2 bytes in a body of 0"),
    "not UTF-8": (frame(b'{"\xff": 1}'), r"utf-8"),
    "not JSON": (frame(b"{oops}"), r"malformed frame"),
    "not an object": (frame(b"[]"), r"not a JSON object"),
    "leading space": (frame(b" {}"), r"not a JSON object"),
    "two documents": (frame(b"{} {}"), r"Extra data"),
    "deep header": (frame(b'{"side/x":' + NESTED + b"}"), r"nested too deeply"),
    "deep metadata": (frame({"__metadata__": {"a": NESTED.decode()}}), r"nested too deeply"),
    "huge integer": (frame(b'{"side/x":' + b"9" * 5000 + b"}"), r"malformed frame"),
    "NaN": (frame(b'{"side/x":NaN}'), r"NaN outside of a metadata value"),
    "infinity": (frame(b'{"side/x":-Infinity}'), r"-Infinity outside of a metadata value"),
    "repeated key": (frame(b'{"side/x":1,"side/x":1}'), r"repeats a key"),
    "repeated key in metadata": (
        frame({"__metadata__": {"a": '{"b":1,"b":2}'}}),
        r"repeats a key",
    ),
    "metadata a list": (frame({"__metadata__": []}), r"__metadata__ is not a JSON object"),
    "metadata not strings": (frame({"__metadata__": {"a": 1}}), r"'a' is not a string"),
    "metadata not JSON": (frame({"__metadata__": {"a": "oops"}}), r"malformed frame: metadata"),
    "metadata name": (frame({"__metadata__": {"a" * 999: "1"}}), r"name of 999 characters"),
    "role": (frame({"secret/x": entry()}, FOUR), r"unknown role 'secret'; known: payload"),
    "no role": (frame({"x": entry()}, FOUR), r"unknown role 'x'"),
    "no name": (frame({"side/": entry()}, FOUR), r"name of 0 characters"),
    "unprintable name": (frame({"side/\u202e": entry()}, FOUR), r"cannot be printed"),
    "lone surrogate": (frame({"side/\ud800": entry()}, FOUR), r"cannot be printed"),
    "same name twice": (
        frame({"side/x": entry(), "payload/x": entry(offsets=[4, 8])}, FOUR * 2),
        r"two tensors have the same name",
    ),
    "entry a list": (frame({"side/x": [1]}, FOUR), r"entry is not an object of dtype"),
    "entry incomplete": (frame({"side/x": {"dtype": "U8"}}, FOUR), r"entry is not an object"),
    "entry with more": (frame({"side/x": entry(more=1)}, FOUR), r"entry is not an object"),
    "dtype": (frame({"side/x": entry("BOOL")}, FOUR), r"unknown dtype; known: F64"),
    "dtype a list": (frame({"side/x": entry(["U8"])}, FOUR), r"unknown dtype"),
    "shape a number": (frame({"side/x": entry(shape=4)}, FOUR), r"are not lists"),
    "shape of floats": (frame({"side/x": entry(shape=[4.0])}, FOUR), r"other than integers"),
    "shape of booleans": (
        frame({"side/x": entry(shape=[True], offsets=[0, 1])}, b"\0"),
        r"other than integers",
    ),
    "negative shape": (frame({"side/x": entry(shape=[-4])}, FOUR), r"a dimension outside 0"),
    "huge dimension": (frame({"side/x": entry(shape=[2**62])}, FOUR), r"a dimension outside 0"),
    "shape overflows": (
        frame({"side/x": entry(shape=[2**31, 2**31, 2**31])}, FOUR),
        r"exceeds 2147483648 bytes",
    ),
    "empty shape overflows": (
        frame({"side/x": entry(shape=[0, 2**31, 2**31, 2**31], offsets=[0, 0])}),
        r"exceeds 2147483648 bytes",
    ),
    "too many dimensions": (frame({"side/x": entry(shape=[1] * 9)}, FOUR), r"9 dimensions"),
    "offsets a string": (frame({"side/x": entry(offsets="04")}, FOUR), r"are not lists"),
    "offsets of floats": (frame({"side/x": entry(offsets=[0, 4.0])}, FOUR), r"than integers"),
    "one offset": (frame({"side/x": entry(offsets=[0])}, FOUR), r"not lie at its place"),
    "offsets beyond": (frame({"side/x": entry(offsets=[4, 8])}, FOUR), r"not lie at its place"),
    "overlap": (
        frame({"side/x": entry(), "side/y": entry(offsets=[2, 6])}, FOUR + b"\0\0"),
        r"'y' does not lie at its place, \[4, 8\]",
    ),
    "gap": (
        frame({"side/x": entry(), "side/y": entry(offsets=[8, 12])}, FOUR * 3),
        r"'y' does not lie at its place",
    ),
    "small item first": (
        frame({"side/x": entry(), "side/y": entry("F32", [1], [4, 8])}, FOUR * 2),
        r"'x' does not lie at its place, \[4, 8\]",
    ),
    "trailing bytes": (frame({"side/x": entry()}, FOUR * 2), r"take 4 bytes, the frame holds 8"),
    "missing bytes": (frame({"side/x": entry()}, FOUR[:3]), r"take 4 bytes, the frame holds 3"),
    "many tensors": (
        frame({f"side/{i}": entry(shape=[0], offsets=[0, 0]) for i in range(1025)}),
        r"1025 tensors; allowed: 1024",
    ),
    "far too many tensors": (
        frame({f"side/{i}": 0 for i in range(100_000)}),
        r"header of \d+ bytes; allowed: 1048576",
    ),
}


@pytest.mark.parametrize(("raw", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_is_a_protocol_error_of_one_line(
    wire: Any, raw: bytes, reason: str
) -> None:
    with pytest.raises(ProtocolError, match=reason) as caught:
        list(wire.read(raw))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "value"), [("a", '"x"'), ("a", "3"), ("a", "{}"), ("loss", "[1]")]
)
def test_what_is_neither_a_note_nor_a_word_is_refused(wire: Any, name: str, value: str) -> None:
    with pytest.raises(ProtocolError, match=f"metadata '{name}' is neither a plugin's notes nor"):
        [*wire.read(frame({"__metadata__": {name: value}}))]


def test_limits_are_those_of_the_reader(wire: Any) -> None:
    raw = wire.to_bytes(wire.example())
    assert list(wire.read(raw, limits=Limits(frame_bytes=len(raw))))
    for limits in (
        Limits(frame_bytes=len(raw) - 1),
        Limits(header_bytes=167),
        Limits(tensors=1),
        Limits(dimensions=1),
        Limits(name_length=7),
    ):
        with pytest.raises(ProtocolError, match="allowed"):
            list(wire.read(raw, limits=limits))


def test_a_declared_frame_costs_no_memory_until_it_comes() -> None:
    size = 2**30
    header = json.dumps({"side/x": entry(shape=[size], offsets=[0, size])}).encode()
    reader = Reader()
    before = resident_bytes()
    for part in (opening(8 + len(header) + size, len(header), text=header), header):
        reader.buffer()[: len(part)] = part
        assert reader.advance(len(part)) is None
    assert len(reader.buffer()) == size
    assert resident_bytes() - before < 2**24


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def damaged(wire: Any) -> bytes:
    message = wire.example()
    message.put("activations", torch.zeros(2, 3, 4, dtype=torch.float64), Role.PAYLOAD)
    message.put("targets", torch.arange(3), Role.TARGETS)
    return bytes(wire.to_bytes(message))


def test_every_flipped_bit_is_noticed_and_its_part_named(wire: Any) -> None:
    good = damaged(wire)
    [whole] = wire.read(good)
    header = len(good) - sum(whole[name].nbytes for name in whole) - SUM_BYTES
    parts = {"opening": range(OPENING_BYTES), "header": range(header), "tensors": range(len(good))}
    for position, bit in itertools.product(range(len(good)), range(8)):
        raw = bytearray(good)
        raw[position] ^= 1 << bit
        part = next(name for name, places in parts.items() if position in places)
        reason = f"damaged on its way: the {part} and the checksum differ"
        with pytest.raises(DamagedError, match=reason):
            list(wire.read(bytes(raw)))
    pieces = bytes(good[:-1]) + bytes([good[-1] ^ 1])
    with pytest.raises(ProtocolError, match=r"of GRADIENT step 514 was damaged .* the tensors and"):
        list(wire.read(pieces, 7))


def test_random_damage_is_noticed(wire: Any) -> None:
    draw = random.Random(0)
    good = damaged(wire)
    limits = Limits(frame_bytes=2**16)
    for _ in range(1000):
        raw = bytearray(good)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            # Mostly in the opening and the header, where there is something to break.
            position = draw.randrange(draw.choice((OPENING_BYTES, len(raw))))
            if draw.randrange(2):
                del raw[position]
            else:
                raw.insert(position, draw.randrange(256))
        with contextlib.suppress(ProtocolError):
            assert [wire.facts(m) for m in wire.read(bytes(raw), limits=limits)] in (
                [],
                [wire.facts(m) for m in wire.read(good)],
            )
