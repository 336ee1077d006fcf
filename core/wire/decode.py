"""A frame becomes a message.

Three pure functions for transports that know where each part of a frame ends (`parse_opening`,
`parse_header`, `assemble`), `decode` for a whole frame, and a `Reader` for a stream, whose tensors
arrive in CPU memory or where a `Landing` puts them.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch

from splitlab.core.contract.errors import DamagedError, ProtocolError, when
from splitlab.core.contract.link import DEFAULT_LIMITS, Limits
from splitlab.core.contract.message import WORDS, Kind, Message
from splitlab.core.wire.checksum import SUM_BYTES, Sum, packed, sum_of
from splitlab.core.wire.layout import (
    DTYPES,
    KINDS,
    MAGIC,
    OPENING,
    OPENING_BYTES,
    OWN_SUM,
    PREFIX_BYTES,
    ROLES,
    STACKED,
    TRAINING,
    VERSION,
    Description,
    Slot,
    check_name,
    layout,
)

__all__ = [
    "Header",
    "InMemory",
    "Landing",
    "Opening",
    "Reader",
    "assemble",
    "check_tensors",
    "decode",
    "parse_header",
    "parse_opening",
]

_Raw = bytes | bytearray | memoryview
_AHEAD_BYTES: Final = 4096
_NAME: Final = MAGIC + struct.pack("<H", VERSION)
"""What a frame of ours begins with."""
_NAMED: Final = len(_NAME)


class Opening(NamedTuple):
    """The first `OPENING_BYTES` of a frame, checked against the limits."""

    kind: Kind
    training: bool
    stacked: bool
    step: int
    number: int
    elapsed_ns: int
    header_sum: int
    header_bytes: int
    data_bytes: int

    @property
    def frame_bytes(self) -> int:
        """Length of the whole frame."""
        return OPENING_BYTES + self.header_bytes + self.data_bytes + SUM_BYTES


class Header(NamedTuple):
    """The metadata, still as text, and the places of the tensors, in the order of the message."""

    meta: dict[str, str]
    slots: tuple[Slot, ...]


def parse_opening(raw: _Raw, limits: Limits) -> Opening:
    """Read the first `OPENING_BYTES` of a frame, or raise `ProtocolError`."""
    magic, version, kind, flags, step, number, elapsed_ns, *lengths = OPENING.unpack(raw)
    header_sum, body_bytes, own_sum, header_bytes = lengths
    rest = raw[_NAMED : OWN_SUM.start]
    whole = own_sum == sum_of([_NAME, rest, raw[OWN_SUM.stop :]])
    if not whole:
        _check_magic(magic)
    if version != VERSION and not whole:
        raise ProtocolError(
            f"the other end speaks version {version} of the wire format, this side version "
            f"{VERSION}; install the same splitlab on both sides"
        )
    if not whole or raw[:_NAMED] != _NAME:
        raise _damaged("opening")
    if kind not in KINDS:
        raise ProtocolError(f"malformed frame: unknown kind {kind}; known: {[*KINDS]}")
    if flags & ~(TRAINING | STACKED):
        raise ProtocolError(f"malformed frame: unknown flags {flags:#04x}; known: bits 0 and 1")
    frame_bytes = PREFIX_BYTES + body_bytes + SUM_BYTES
    if frame_bytes > limits.frame_bytes:
        raise ProtocolError(
            f"the other end's frame has {frame_bytes} bytes; "
            f"allowed on this link: {limits.frame_bytes} (frame_bytes)"
        )
    if header_bytes > limits.header_bytes:
        raise ProtocolError(
            f"the other end's frame has a header of {header_bytes} bytes; "
            f"allowed: {limits.header_bytes} (header_bytes)"
        )
    data_bytes = PREFIX_BYTES + body_bytes - OPENING_BYTES - header_bytes
    if header_bytes == 0 or data_bytes < 0:
        raise ProtocolError(
            f"malformed frame: a header of {header_bytes} bytes in a body of {body_bytes}"
        )
    return Opening(
        KINDS[kind],
        bool(flags & TRAINING),
        bool(flags & STACKED),
        step,
        number,
        elapsed_ns,
        header_sum,
        header_bytes,
        data_bytes,
    )


def _check_magic(begun: bytes) -> None:
    if not MAGIC.startswith(begun):
        raise DamagedError(
            f"the other end does not speak splitlab's wire format: its frame begins with "
            f"{begun!r}, not {MAGIC!r}"
        )


def parse_header(raw: _Raw, opening: Opening, limits: Limits) -> Header:
    """Read the header of the frame, or raise `ProtocolError`."""
    if sum_of([raw]) != opening.header_sum:
        raise _damaged("header", opening)
    read = _read_small_header if len(raw) <= _SMALL_BYTES else _read_header
    try:
        return read(bytes(raw), opening.data_bytes, limits)
    except ValueError as error:
        raise ProtocolError(f"malformed frame: {error}") from None
    except RecursionError:
        raise ProtocolError("malformed frame: its JSON is nested too deeply") from None


def check_tensors(opening: Opening, found: int, arrived: _Raw) -> None:
    """Raise `ProtocolError` unless the checksum of the tensors is the one behind them."""
    if packed(found) != arrived:
        raise _damaged("tensors", opening)


def _damaged(what: str, opening: Opening | None = None) -> DamagedError:
    whose = (
        "" if opening is None else f" of {opening.kind.name} {when(opening.step, opening.training)}"
    )
    return DamagedError(
        f"the other end's frame{whose} was damaged on its way: the {what} and the checksum differ; "
        "look at the network, and at what passes frames on"
    )


def assemble(opening: Opening, header: Header, tensors: Iterable[torch.Tensor]) -> Message:
    """Return the message; its tensors are given in the order of the header's slots."""
    try:
        values = {name: _read_value(text) for name, text in header.meta.items()}
    except ValueError as error:
        raise ProtocolError(f"malformed frame: metadata: {error}") from None
    except RecursionError:
        raise ProtocolError("malformed frame: its metadata are nested too deeply") from None
    message = Message(
        opening.kind, opening.step, training=opening.training, stacked=opening.stacked
    )
    for name, value in values.items():
        if isinstance(value, list) is (name in WORDS):
            raise ProtocolError(
                f"malformed frame: metadata {name!r} is neither a plugin's notes nor a word that "
                "the peers know"
            )
        if isinstance(value, list):
            message.notes[name.removesuffix(":")] = value
        else:
            message.meta[name] = value
    message.number = opening.number
    message.elapsed_ns = opening.elapsed_ns
    message.frame_bytes = opening.frame_bytes
    for slot, tensor in zip(header.slots, tensors, strict=True):
        message.put(slot.name, tensor, slot.role)
    return message


def decode(head: bytes, data: bytearray, limits: Limits = DEFAULT_LIMITS) -> Message:
    """Return the message of a frame that is at hand.

    Args:
        head: opening and header.
        data: tensors, which those of the message view, and their checksum.
        limits: of the frame.
    """
    opening = parse_opening(head[:OPENING_BYTES], limits)
    header = parse_header(head[OPENING_BYTES:], opening, limits)
    raw = memoryview(data)
    check_tensors(opening, sum_of([raw[:-SUM_BYTES]]), raw[-SUM_BYTES:])
    return assemble(opening, header, [slot.in_memory(data) for slot in header.slots])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a JSON object repeats a key")
    return found


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} outside of a metadata value")


_read_json = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant).decode
_read_value = json.JSONDecoder(object_pairs_hook=_unique).decode


def _read_header(raw: bytes, data_bytes: int, limits: Limits) -> Header:
    text = raw.decode()
    if not text.startswith("{"):  # safetensors allows no white space here
        raise ValueError("its header is not a JSON object")
    document: dict[str, Any] = _read_json(text)
    meta = _check_meta(document.pop("__metadata__", {}), limits)
    tensors = [_read_entry(key, entry) for key, entry in document.items()]
    slots, total = layout(tensors, limits)
    for slot, entry in zip(slots, document.values(), strict=True):
        if entry["data_offsets"] != [slot.begin, slot.end]:
            raise ValueError(
                f"tensor {slot.name!r} does not lie at its place, [{slot.begin}, {slot.end}]"
            )
    if total != data_bytes:
        raise ValueError(f"its tensors take {total} bytes, the frame holds {data_bytes}")
    if len({slot.name for slot in slots}) != len(slots):
        raise ValueError("two tensors have the same name")
    return Header(meta, tuple(slots))


# Step after step looks the same; small, so that a peer cannot make this side hoard its headers.
_read_small_header = functools.lru_cache(maxsize=64)(_read_header)
_SMALL_BYTES: Final = 4096


def _check_meta(entries: Any, limits: Limits) -> dict[str, str]:
    if not isinstance(entries, dict):
        raise ValueError("__metadata__ is not a JSON object")
    for name, text in entries.items():
        check_name("metadata", name, limits)
        if not isinstance(text, str):
            raise ValueError(f"metadata {name!r} is not a string")
    return entries


def _read_entry(key: str, entry: Any) -> Description:
    prefix, _, name = key.partition("/")
    role = ROLES.get(prefix)
    if role is None:
        raise ValueError(f"a tensor of unknown role {prefix[:32]!r}; known: {', '.join(ROLES)}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a tensor's entry is not an object of dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"a tensor of unknown dtype; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError("a tensor's shape or offsets are not lists")
    for number in shape + offsets:
        if type(number) is not int:  # a bool is an int, and 2.0 equals 2
            raise ValueError("a tensor's shape or offsets hold something other than integers")
    return role, name, DTYPES[code], tuple(shape)


class Landing(Protocol):
    """Where the tensors of one frame arrive."""

    def pieces(self) -> Iterator[memoryview]:
        """Yield where the next bytes go, never empty; resumed when these are filled."""
        ...

    def tensor(self, slot: Slot) -> torch.Tensor:
        """Return the tensor of this place; asked for when all pieces are filled."""
        ...


class InMemory:
    """One allocation of CPU memory, filled in one piece (a `Landing`).

    Args:
        size: bytes of all tensors of the frame.
    """

    def __init__(self, size: int) -> None:
        # Unlike a bytearray it is not filled with zeros: memory pages are taken as the data come.
        try:
            self._data = np.empty(size, np.uint8).data
        except MemoryError:
            raise ProtocolError(
                f"the other end's frame declares {size} bytes of tensors, more than can be "
                "allocated here"
            ) from None

    def pieces(self) -> Iterator[memoryview]:
        """Yield the memory, if there is any."""
        if self._data:
            yield self._data

    def tensor(self, slot: Slot) -> torch.Tensor:
        """Return a view of the memory."""
        return slot.in_memory(self._data)


class Reader:
    """Turns a stream of bytes into messages: the caller fills `buffer` and says how far.

    Small parts of frames are read ahead, so that a small frame costs one call of the kernel; large
    ones are received straight into their memory. That is taken when opening and header have been
    checked. After a `ProtocolError` the stream has no meaning.

    Args:
        limits: as the attribute.
        land: makes the place where the tensors of a frame arrive, of so many bytes.

    Attributes:
        limits: apply from the next frame on, also if it was read ahead.
    """

    def __init__(
        self, limits: Limits = DEFAULT_LIMITS, land: Callable[[int], Landing] = InMemory
    ) -> None:
        self.limits = limits
        self._land = land
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))
        self._begin = self._end = 0  # of what was read ahead and belongs to no part yet
        self._straight = False
        self._found = 0
        self._start()

    def _start(self) -> None:
        self._opening: Opening | None = None
        self._header: Header | None = None
        self._landing: Landing | None = None
        self._pieces: Iterator[memoryview] = iter(())
        self._sum: Sum | None = None  # of the tensors, as far as they came
        self._receive_into(None)

    def _receive_into(self, part: memoryview | None) -> None:
        self._part = part
        self._filled = 0

    def _fill(self, part: memoryview, count: int) -> None:
        """Take note that so many bytes of the part have come, which the cache still has."""
        if self._sum is not None:
            self._sum.update(part[self._filled : self._filled + count])
        self._filled += count

    def buffer(self) -> memoryview:
        """Return where the next bytes go: writable, never empty, perhaps beyond this frame.

        Only if `take` has nothing: what it would return is overwritten.
        """
        part = self._part
        self._straight = part is not None and len(part) - self._filled >= _AHEAD_BYTES
        return part[self._filled :] if part is not None and self._straight else self._ahead

    def advance(self, count: int) -> Message | None:
        """Take note that the first ``count`` bytes of `buffer` were filled, and `take`."""
        if self._straight and self._part is not None:
            self._fill(self._part, count)
        else:
            self._begin, self._end = 0, count
        return self.take()

    def take(self) -> Message | None:
        """Return the next message, if all of it was filled in; what is left is for the next call.

        Raises:
            ProtocolError: the format does not allow what was filled in.
        """
        if self._opening is None:
            raw = self._next(OPENING_BYTES)
            if raw is None:
                if self._part is not None:  # who speaks something else need not say so much of it
                    _check_magic(bytes(self._part[: min(self._filled, len(MAGIC))]))
                return None
            self._opening = parse_opening(raw, self.limits)
        if self._header is None or self._landing is None:
            raw = self._next(self._opening.header_bytes)
            if raw is None:
                return None
            self._header = parse_header(raw, self._opening, self.limits)
            self._landing = self._land(self._opening.data_bytes)
            self._pieces = self._landing.pieces()
            self._sum = Sum()
            self._receive_into(next(self._pieces, None))
        while self._sum is not None and self._part is not None:
            if not self._complete(self._part):
                return None
            self._receive_into(next(self._pieces, None))
        if self._sum is not None:
            self._found, self._sum = self._sum.intdigest(), None
        raw = self._next(SUM_BYTES)
        if raw is None:
            return None
        check_tensors(self._opening, self._found, raw)
        tensors = [self._landing.tensor(slot) for slot in self._header.slots]
        message = assemble(self._opening, self._header, tensors)
        self._start()
        return message

    def _next(self, count: int) -> memoryview | None:
        """Return the next bytes of the frame when all are there; valid until `buffer` is called."""
        if self._part is None:
            at_hand = self._end - self._begin
            if at_hand >= count:
                self._begin += count
                return self._ahead[self._begin - count : self._begin]
            if not at_hand and count <= _AHEAD_BYTES:
                return None  # it may come whole
            self._receive_into(memoryview(bytearray(count)))
        part = self._part
        if part is None or not self._complete(part):
            return None
        self._receive_into(None)
        return part

    def _complete(self, part: memoryview) -> bool:
        """Give the part what was read ahead of it; return whether it has all its bytes."""
        count = min(len(part) - self._filled, self._end - self._begin)
        if count:
            ahead = self._ahead[self._begin : self._begin + count]
            part[self._filled : self._filled + count] = ahead
            self._fill(part, count)
            self._begin += count
        return self._filled == len(part)
