"""The wire format: a `Message` becomes one frame and back. This text is its specification.

All numbers are little-endian. A frame is a prefix of 32 bytes and a body::

    offset  size  field
    0       4     magic, the ASCII letters SPLT
    4       2     version of this format: 1
    6       1     kind, a number of `splitlab.core.contract.message.Kind`
    7       1     flags: bit 0 training, bit 1 stacked; the other bits are 0
    8       8     step
    16      8     elapsed_ns, the sender's computing time; fixed width, so that timing never
                  changes a count of bytes
    24      8     B, length of the body
    32      8     H, length of the header
    40      H     header: JSON in UTF-8
    40 + H  ...   tensors, up to byte 32 + B

The body (from byte 32) is laid out as safetensors lays out a file, so that a captured body opens
with any safetensors reader. The header is an object with one member per tensor, in the order in
which the message holds them, padded with spaces so that the tensors begin at a multiple of 8::

    "ROLE/NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}

ROLE is a value of `splitlab.core.contract.message.Role`; a NAME occurs once, whatever its role. The shape is
row-major, offsets count from byte 40 + H. Tensors lie without gap by descending item size, those
of equal item size in the order of the header: then every tensor is aligned in the one allocation
that receives them all. The receiver computes this layout from dtypes and shapes and refuses any
other, which excludes overlaps, gaps and trailing bytes at once.

A message's metadata are the member ``__metadata__``, absent if there are none: an object of strings
by name, as safetensors wants it, each of which is a JSON document. These documents, and only these,
may use the words NaN, Infinity and -Infinity that `json` writes, because a loss may be any of them;
tuples arrive as lists. No object may repeat a key.

dtypes are safetensors' F64 F32 F16 BF16, F8_E4M3 F8_E5M2 (and their FNUZ forms), I64 I32 I16 I8,
U64 U32 U16 U8. There is no BOOL: it would spend a byte on a bit, and bytes other than 0 and 1 make
undefined booleans; pack the bits. There is no complex type either: send ``torch.view_as_real``.
Shapes may be empty (one number) and may hold zeros (no bytes).

Limits are checked before memory is taken or work is done for what they bound:

    frame_bytes    the largest frame; what a peer can make this one allocate
    header_bytes   the largest header; what a peer can make this one parse
    tensors        tensors in a frame; each costs an object
    dimensions     dimensions of a tensor; torch's own arithmetic on shapes stays far from overflow,
                   also because no shape, its zeros taken as ones, may exceed frame_bytes
    name_length    characters of a name, at least one, all printable: a name fits into an error line

Whatever a peer sends, the outcome is a `Message` or a `ProtocolError` of one line. What cannot be
sent is a `PluginError`: a message is built by the engine and by plugins.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from splitlab.core.contract.errors import PluginError, ProtocolError
from splitlab.core.contract.message import Kind, Message, Role

__all__ = [
    "DEFAULT_LIMITS",
    "OPENING_BYTES",
    "Frame",
    "Header",
    "Limits",
    "Opening",
    "Reader",
    "assemble",
    "decode",
    "encode",
    "flat",
    "parse_header",
    "parse_opening",
]

MAGIC: Final = b"SPLT"
VERSION: Final = 1
_OPENING: Final = struct.Struct("<4sHBBQQQQ")
_PREFIX_BYTES: Final = 32
OPENING_BYTES: Final = _OPENING.size
"""Prefix and header length: the part of a frame whose size is known in advance."""

_TRAINING, _STACKED = 1, 2

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
}
_UNKNOWN_TO_NUMPY: Final = {
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_KINDS: Final = {kind.value: kind for kind in Kind}
_ROLES: Final = {role.value: role for role in Role}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an incoming frame may declare; see the module's docstring."""

    frame_bytes: int = 2**31
    header_bytes: int = 2**20
    tensors: int = 1024
    dimensions: int = 8
    name_length: int = 128


DEFAULT_LIMITS: Final = Limits()

_Raw = bytes | bytearray | memoryview


class Slot(NamedTuple):
    """One tensor's place in the data of a frame."""

    role: Role
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def in_memory(self, memory: bytearray | memoryview) -> torch.Tensor:
        """Return the tensor of this place as a view of the data in CPU memory."""
        if self.begin == self.end:
            return torch.empty(self.shape, dtype=self.dtype)
        count = (self.end - self.begin) // self.dtype.itemsize
        vector = torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.begin)
        # view(shape) tries more signatures than view(*shape), and takes twice as long.
        return vector.view(*self.shape) if self.shape else vector[0]

    def in_tensor(self, data: torch.Tensor) -> torch.Tensor:
        """Return the tensor of this place as a view of the data (flat, uint8, on any device)."""
        return data[self.begin : self.end].view(self.dtype).view(self.shape)


_Description = tuple[Role, str, torch.dtype, tuple[int, ...]]


def _layout(tensors: Sequence[_Description], limits: Limits) -> tuple[list[Slot], int]:
    """Return the places of the tensors and the bytes they take, or raise `ValueError`."""
    if len(tensors) > limits.tensors:
        raise ValueError(f"{len(tensors)} tensors; allowed: {limits.tensors}")
    sizes = [_size(*tensor, limits) for tensor in tensors]
    begins = [0] * len(tensors)
    total = 0
    for index in sorted(range(len(tensors)), key=lambda index: -tensors[index][2].itemsize):
        begins[index] = total
        total += sizes[index]
    slots = [
        Slot(*tensor, begin, begin + size)
        for tensor, begin, size in zip(tensors, begins, sizes, strict=True)
    ]
    return slots, total


def _size(role: Role, name: str, dtype: torch.dtype, shape: tuple[int, ...], limits: Limits) -> int:
    _check_name("tensor", name, limits)
    if len(shape) > limits.dimensions:
        raise ValueError(
            f"tensor {name!r} has {len(shape)} dimensions; allowed: {limits.dimensions}"
        )
    size = extent = dtype.itemsize
    for length in shape:
        if not 0 <= length <= limits.frame_bytes:
            raise ValueError(
                f"tensor {name!r} has a dimension outside 0 to {limits.frame_bytes} (frame_bytes)"
            )
        size *= length
        extent *= length or 1
    if extent > limits.frame_bytes:
        raise ValueError(
            f"tensor {name!r} of shape {[*shape]} exceeds {limits.frame_bytes} bytes (frame_bytes)"
        )
    return size


def _check_name(what: str, name: str, limits: Limits) -> None:
    if not 0 < len(name) <= limits.name_length:
        raise ValueError(
            f"a {what} name of {len(name)} characters; allowed: 1 to {limits.name_length}"
        )
    if not name.isprintable():
        raise ValueError(f"{what} name {name!r} has characters that cannot be printed")


# Sending.

_write_json = json.JSONEncoder(separators=(",", ":")).encode


class Frame(NamedTuple):
    """An encoded message, in pieces that lie where they lay.

    Attributes:
        head: opening and header.
        tensors: contiguous, on the devices where they are, in the order of the layout; those
            without bytes are left out.
        nbytes: length of the whole frame.
    """

    head: bytes
    tensors: list[torch.Tensor]
    nbytes: int

    def buffers(self) -> list[memoryview]:
        """Return head and tensors in CPU memory; tensors that are there already are not copied."""
        return [memoryview(self.head), *map(_view, self.tensors)]


def _view(tensor: torch.Tensor) -> memoryview:
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if tensor.dtype in _UNKNOWN_TO_NUMPY:
        tensor = flat(tensor)
    return tensor.numpy().data.cast("B")


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a contiguous tensor as a flat tensor of uint8 that shares its memory."""
    # Not view(-1): that keeps the odd stride of a single element, which no other dtype may view.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def encode(message: Message, limits: Limits = DEFAULT_LIMITS) -> Frame:
    """Freeze the message, set its ``frame_bytes`` and return its frame.

    Raises:
        PluginError: the format cannot carry it (dtype, name, metadata, size).
    """
    try:
        plan = _plan(tuple([_describe(message, name) for name in message]), limits)
        header = _write_header(message.meta, plan.members, limits)
        nbytes = OPENING_BYTES + len(header) + plan.data_bytes
        if nbytes > limits.frame_bytes:
            raise ValueError(f"a frame of {nbytes} bytes; allowed: {limits.frame_bytes}")
        opening = _OPENING.pack(
            MAGIC,
            VERSION,
            message.kind,
            _TRAINING * message.training | _STACKED * message.stacked,
            message.step,
            message.elapsed_ns,
            nbytes - _PREFIX_BYTES,
            len(header),
        )
    except (ValueError, struct.error) as error:
        raise PluginError(f"cannot send this {message.kind.name} message: {error}") from None
    tensors = [_contiguous(message[name]) for name in plan.order]
    message.freeze()
    message.frame_bytes = nbytes
    return Frame(opening + header, tensors, nbytes)


def _describe(message: Message, name: str) -> _Description:
    tensor = message[name]
    if tensor.dtype not in _CODES:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}; allowed: {', '.join(_DTYPES)}")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise ValueError(f"tensor {name!r} is not dense ({tensor.layout}, {tensor.device})")
    return message.role(name), name, tensor.dtype, tuple(tensor.shape)


class _Plan(NamedTuple):
    """What encoding computes from roles, names, dtypes and shapes alone.

    Attributes:
        members: the tensors' members of the header's JSON object.
        order: names in the order of the layout, tensors without bytes left out.
        data_bytes: length of all tensors together.
    """

    members: str
    order: tuple[str, ...]
    data_bytes: int


@functools.lru_cache(maxsize=64)  # step after step looks the same
def _plan(tensors: tuple[_Description, ...], limits: Limits) -> _Plan:
    slots, data_bytes = _layout(tensors, limits)
    members = {
        f"{slot.role}/{slot.name}": {
            "dtype": _CODES[slot.dtype],
            "shape": slot.shape,
            "data_offsets": (slot.begin, slot.end),
        }
        for slot in slots
    }
    full = sorted((slot.begin, slot.name) for slot in slots if slot.end > slot.begin)
    return _Plan(_write_json(members)[1:-1], tuple(name for _, name in full), data_bytes)


def _write_header(meta: dict[str, Any], members: str, limits: Limits) -> bytes:
    text = members
    if meta:
        metadata = {}
        for name, value in meta.items():
            _check_name("metadata", name, limits)
            try:
                metadata[name] = _write_json(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"metadata {name!r} is not a JSON value: {error}") from None
        text = f'"__metadata__":{_write_json(metadata)}{"," if members else ""}{members}'
    raw = f"{{{text}}}".encode()
    if len(raw) > limits.header_bytes - 7:
        raise ValueError(
            f"a header of {len(raw)} bytes; allowed: {limits.header_bytes} with padding"
        )
    return raw + b" " * (-len(raw) % 8)


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    # The imaginary part of a conjugated tensor is a view whose memory holds the opposite sign.
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


# Receiving: three pure functions, for transports that know where each part ends.


class Opening(NamedTuple):
    """The first `OPENING_BYTES` of a frame, checked against the limits."""

    kind: Kind
    training: bool
    stacked: bool
    step: int
    elapsed_ns: int
    header_bytes: int
    data_bytes: int


class Header(NamedTuple):
    """The metadata, still as text, and the places of the tensors, in the order of the message."""

    meta: dict[str, str]
    slots: tuple[Slot, ...]


def parse_opening(raw: _Raw, limits: Limits) -> Opening:
    """Read the first `OPENING_BYTES` of a frame, or raise `ProtocolError`."""
    magic, version, kind, flags, step, elapsed_ns, body_bytes, header_bytes = _OPENING.unpack(raw)
    if magic != MAGIC:
        raise ProtocolError(
            f"the peer does not speak splitlab's wire format: its frame begins with {magic!r}, "
            f"not {MAGIC!r}"
        )
    if version != VERSION:
        raise ProtocolError(
            f"the peer speaks version {version} of the wire format, this side version {VERSION}; "
            "install the same splitlab on both sides"
        )
    if kind not in _KINDS:
        raise ProtocolError(f"malformed frame: unknown kind {kind}; known: {[*_KINDS]}")
    if flags & ~(_TRAINING | _STACKED):
        raise ProtocolError(f"malformed frame: unknown flags {flags:#04x}; known: bits 0 and 1")
    if _PREFIX_BYTES + body_bytes > limits.frame_bytes:
        raise ProtocolError(
            f"the peer's frame has {_PREFIX_BYTES + body_bytes} bytes; "
            f"allowed on this link: {limits.frame_bytes} (frame_bytes)"
        )
    if header_bytes > limits.header_bytes:
        raise ProtocolError(
            f"the peer's frame has a header of {header_bytes} bytes; "
            f"allowed: {limits.header_bytes} (header_bytes)"
        )
    data_bytes = _PREFIX_BYTES + body_bytes - OPENING_BYTES - header_bytes
    if header_bytes == 0 or data_bytes < 0:
        raise ProtocolError(
            f"malformed frame: a header of {header_bytes} bytes in a body of {body_bytes}"
        )
    return Opening(
        _KINDS[kind],
        bool(flags & _TRAINING),
        bool(flags & _STACKED),
        step,
        elapsed_ns,
        header_bytes,
        data_bytes,
    )


def parse_header(raw: _Raw, opening: Opening, limits: Limits) -> Header:
    """Read the header of the frame, or raise `ProtocolError`."""
    read = _read_small_header if len(raw) <= _SMALL_BYTES else _read_header
    try:
        return read(bytes(raw), opening.data_bytes, limits)
    except ValueError as error:
        raise ProtocolError(f"malformed frame: {error}") from None
    except RecursionError:
        raise ProtocolError("malformed frame: its JSON is nested too deeply") from None


def assemble(opening: Opening, header: Header, tensors: Iterable[torch.Tensor]) -> Message:
    """Return the message; its tensors are given in the order of the header's slots."""
    try:
        meta = {name: _read_value(text) for name, text in header.meta.items()}
    except ValueError as error:
        raise ProtocolError(f"malformed frame: metadata: {error}") from None
    except RecursionError:
        raise ProtocolError("malformed frame: its metadata are nested too deeply") from None
    message = Message(
        opening.kind, opening.step, training=opening.training, stacked=opening.stacked, meta=meta
    )
    message.elapsed_ns = opening.elapsed_ns
    message.frame_bytes = OPENING_BYTES + opening.header_bytes + opening.data_bytes
    for slot, tensor in zip(header.slots, tensors, strict=True):
        message.put(slot.name, tensor, slot.role)
    return message


def decode(head: bytes, data: bytearray, limits: Limits = DEFAULT_LIMITS) -> Message:
    """Return the message of a frame whose head and data are at hand; its tensors view the data."""
    opening = parse_opening(head[:OPENING_BYTES], limits)
    header = parse_header(head[OPENING_BYTES:], opening, limits)
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
    slots, total = _layout(tensors, limits)
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
        _check_name("metadata", name, limits)
        if not isinstance(text, str):
            raise ValueError(f"metadata {name!r} is not a string")
    return entries


def _read_entry(key: str, entry: Any) -> _Description:
    prefix, _, name = key.partition("/")
    role = _ROLES.get(prefix)
    if role is None:
        raise ValueError(f"a tensor of unknown role {prefix[:32]!r}; known: {', '.join(_ROLES)}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a tensor's entry is not an object of dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"a tensor of unknown dtype; known: {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError("a tensor's shape or offsets are not lists")
    for number in shape + offsets:
        if type(number) is not int:  # a bool is an int, and 2.0 equals 2
            raise ValueError("a tensor's shape or offsets hold something other than integers")
    return role, name, _DTYPES[code], tuple(shape)


class Reader:
    """Turns a stream of bytes into messages: the caller fills `buffer` and says how far.

    The tensors are received into one allocation, taken when opening and header have been checked;
    the message's tensors are views of it. After a `ProtocolError` the stream has no meaning.

    Attributes:
        limits: apply from the next frame on.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._first = memoryview(bytearray(OPENING_BYTES))
        self._start()

    def _start(self) -> None:
        self._opening: Opening | None = None
        self._header: Header | None = None
        self._data = memoryview(b"")
        self._receive_into(self._first)

    def _receive_into(self, view: memoryview) -> None:
        self._view = view
        self._filled = 0

    def buffer(self) -> memoryview:
        """Return where the next bytes go: writable, never empty, never beyond this frame."""
        return self._view[self._filled :]

    def advance(self, count: int) -> Message | None:
        """Take note that the first ``count`` bytes of `buffer` were filled.

        Returns:
            the message, if they were its last.

        Raises:
            ProtocolError: the format does not allow what was filled in.
        """
        self._filled += count
        if self._filled < len(self._view):
            return None
        if self._opening is None:
            self._opening = parse_opening(self._view, self.limits)
            self._receive_into(memoryview(bytearray(self._opening.header_bytes)))
            return None
        if self._header is None:
            self._header = parse_header(self._view, self._opening, self.limits)
            self._data = _memory(self._opening.data_bytes)
            if self._opening.data_bytes:
                self._receive_into(self._data)
                return None
        tensors = [slot.in_memory(self._data) for slot in self._header.slots]
        message = assemble(self._opening, self._header, tensors)
        self._start()
        return message


def _memory(size: int) -> memoryview:
    # Unlike a bytearray it is not filled with zeros: memory pages are taken as the data come.
    try:
        return np.empty(size, np.uint8).data
    except MemoryError:
        raise ProtocolError(
            f"the peer's frame declares {size} bytes of tensors, more than can be allocated here"
        ) from None
