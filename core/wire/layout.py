"""Dtypes, roles and places of the tensors of a frame: what both directions compute alike.

The specification of the format is the docstring of `splitlab.core.wire`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import WORDS, Kind, Role

__all__ = [
    "OPENING_BYTES",
    "PREFIX_BYTES",
    "Description",
    "Slot",
    "check_name",
    "flat",
    "layout",
    "note_key",
]

MAGIC: Final = b"SPLT"
VERSION: Final = 3
OPENING: Final = struct.Struct("<4sHBBQQQQQQQ")
PREFIX_BYTES: Final = 56
OPENING_BYTES: Final = OPENING.size
"""Prefix and header length: the part of a frame whose size is known in advance."""
OWN_SUM: Final = slice(48, 56)
"""Where the opening's own checksum lies, of the bytes on both sides of it."""

TRAINING, STACKED = 1, 2

DTYPES: Final = {
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
UNKNOWN_TO_NUMPY: Final = {
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
}
CODES: Final = {dtype: code for code, dtype in DTYPES.items()}
KINDS: Final = {kind.value: kind for kind in Kind}
ROLES: Final = {role.value: role for role in Role}


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
        if len(self.shape) == 1:
            return vector
        # view(shape) tries more signatures than view(*shape), and takes twice as long.
        return vector.view(*self.shape) if self.shape else vector[0]

    def in_tensor(self, data: torch.Tensor) -> torch.Tensor:
        """Return the tensor of this place as a view of the data (flat, uint8, on any device)."""
        # data: as those in CPU memory, tensors of a frame are views of none of the others for
        # autograd, which would take a change of one in place for a change of all.
        return data[self.begin : self.end].view(self.dtype).view(self.shape).data


Description = tuple[Role, str, torch.dtype, tuple[int, ...]]


def layout(tensors: Sequence[Description], limits: Limits) -> tuple[list[Slot], int]:
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
    check_name("tensor", name, limits)
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


def check_name(what: str, name: str, limits: Limits) -> None:
    """Raise `ValueError` for a name that is too long for an error line, or cannot be printed."""
    if not 0 < len(name) <= limits.name_length:
        raise ValueError(
            f"a {what} name of {len(name)} characters; allowed: 1 to {limits.name_length}"
        )
    if not name.isprintable():
        raise ValueError(f"{what} name {name!r} has characters that cannot be printed")


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a contiguous tensor as a flat tensor of uint8 that shares its memory."""
    # Not view(-1): that keeps the odd stride of a single element, which no other dtype may view.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def note_key(plugin: str) -> str:
    """Return under which name of the metadata the notes of a plugin travel."""
    return f"{plugin}:" if plugin in WORDS or plugin.endswith(":") else plugin
