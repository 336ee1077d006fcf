"""A message becomes a frame: `encode` changes nothing of it and copies no tensor."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

import torch

from splitlab.core.contract.errors import PluginError
from splitlab.core.contract.link import DEFAULT_LIMITS, Limits
from splitlab.core.contract.message import WORDS, Message
from splitlab.core.wire.checksum import PIECE_BYTES, SUM_BYTES, WHOLE_BYTES, Sum, packed, sum_of
from splitlab.core.wire.layout import (
    CODES,
    DTYPES,
    MAGIC,
    OPENING,
    OPENING_BYTES,
    OWN_SUM,
    PREFIX_BYTES,
    STACKED,
    TRAINING,
    UNKNOWN_TO_NUMPY,
    VERSION,
    Description,
    check_name,
    flat,
    layout,
    note_key,
)

__all__ = ["Frame", "encode"]

_write_json = json.JSONEncoder(separators=(",", ":")).encode


class Frame(NamedTuple):
    """An encoded message, in pieces that lie where they lay.

    Attributes:
        head: opening and header.
        tensors: contiguous, on the devices where they are, in the order of the layout; those
            without bytes are left out.
        nbytes: length of the whole frame, with the checksum of the tensors behind them.
    """

    head: bytes
    tensors: list[torch.Tensor]
    nbytes: int

    @property
    def data_bytes(self) -> int:
        """Length of all tensors."""
        return self.nbytes - len(self.head) - SUM_BYTES

    def buffers(self) -> list[memoryview]:
        """Return the frame in CPU memory; tensors that are there already are not copied."""
        views = [*map(_view, self.tensors)]
        return [memoryview(self.head), *views, memoryview(packed(sum_of(views)))]

    def pieces(self) -> Iterator[list[memoryview]]:
        """Yield the same in pieces, each of which is summed up when it is sent.

        To send it brings it into the cache, and whoever receives it has something to do meanwhile.
        """
        if self.data_bytes <= WHOLE_BYTES:
            yield self.buffers()
            return
        found, head = Sum(), [memoryview(self.head)]
        for view in map(_view, self.tensors):
            for begin in range(0, len(view), PIECE_BYTES):
                piece = view[begin : begin + PIECE_BYTES]
                yield [*head, piece]
                found.update(piece)
                head = []
        yield [memoryview(packed(found.intdigest()))]


def _view(tensor: torch.Tensor) -> memoryview:
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if tensor.dtype in UNKNOWN_TO_NUMPY:
        tensor = flat(tensor)
    return tensor.numpy().data.cast("B")


def encode(message: Message, limits: Limits = DEFAULT_LIMITS) -> Frame:
    """Return the frame of the message, which stays as it is.

    Raises:
        PluginError: the format cannot carry it (dtype, name, metadata, size).
    """
    try:
        plan = _plan(tuple([_describe(message, name) for name in message]), limits)
        said = message.meta or message.notes
        header = _write_header(message, plan.members, limits) if said else plan.header
        nbytes = OPENING_BYTES + len(header) + plan.data_bytes + SUM_BYTES
        if nbytes > limits.frame_bytes:
            raise ValueError(f"a frame of {nbytes} bytes; allowed: {limits.frame_bytes}")
        opening = OPENING.pack(
            MAGIC,
            VERSION,
            message.kind,
            TRAINING * message.training | STACKED * message.stacked,
            message.step,
            message.number,
            message.elapsed_ns,
            sum_of([header]),
            nbytes - PREFIX_BYTES - SUM_BYTES,
            0,
            len(header),
        )
        own = packed(sum_of([opening[: OWN_SUM.start], opening[OWN_SUM.stop :]]))
        opening = opening[: OWN_SUM.start] + own + opening[OWN_SUM.stop :]
    except (ValueError, struct.error) as error:
        raise PluginError(f"cannot send this {message.kind.name} message: {error}") from None
    tensors = [_contiguous(message[name]) for name in plan.order]
    return Frame(opening + header, tensors, nbytes)


def _describe(message: Message, name: str) -> Description:
    tensor = message[name]
    if tensor.dtype not in CODES:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}; allowed: {', '.join(DTYPES)}")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise ValueError(f"tensor {name!r} is not dense ({tensor.layout}, {tensor.device})")
    return message.role(name), name, tensor.dtype, tensor.shape


class _Plan(NamedTuple):
    """What encoding computes from roles, names, dtypes and shapes alone.

    Attributes:
        members: the tensors' members of the header's JSON object.
        header: the whole header of a message with nothing besides tensors.
        order: names in the order of the layout, tensors without bytes left out.
        data_bytes: length of all tensors together.
    """

    members: str
    header: bytes
    order: tuple[str, ...]
    data_bytes: int


@functools.lru_cache(maxsize=64)  # step after step looks the same
def _plan(tensors: tuple[Description, ...], limits: Limits) -> _Plan:
    slots, data_bytes = layout(tensors, limits)
    objects = {
        f"{slot.role}/{slot.name}": {
            "dtype": CODES[slot.dtype],
            "shape": slot.shape,
            "data_offsets": (slot.begin, slot.end),
        }
        for slot in slots
    }
    full = sorted((slot.begin, slot.name) for slot in slots if slot.end > slot.begin)
    members = _write_json(objects)[1:-1]
    header = _padded(members, limits)
    return _Plan(members, header, tuple(name for _, name in full), data_bytes)


def _write_header(message: Message, members: str, limits: Limits) -> bytes:
    for word in message.meta:
        if word not in WORDS:
            raise ValueError(f"metadata {word!r} is no word of {', '.join(WORDS)}")
    said = message.meta | {note_key(name): notes for name, notes in message.notes.items()}
    metadata = {}
    for name, value in said.items():
        check_name("metadata", name, limits)
        try:
            metadata[name] = _write_json(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"metadata {name!r} is not a JSON value: {error}") from None
    text = f'"__metadata__":{_write_json(metadata)}{"," if members else ""}{members}'
    return _padded(text, limits)


def _padded(text: str, limits: Limits) -> bytes:
    """Return the members of the header's JSON object as the header."""
    raw = f"{{{text}}}".encode()
    if len(raw) > limits.header_bytes - 7:
        raise ValueError(
            f"a header of {len(raw)} bytes; allowed: {limits.header_bytes} with padding"
        )
    return raw + b" " * (-len(raw) % 8)


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    # The imaginary part of a conjugated tensor is a view whose memory holds the opposite sign.
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()
