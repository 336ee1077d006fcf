"""Zstd: whatever is about to leave is compressed without loss.

Zstandard, RFC 8878, by the library ``zstandard``.

1. The bytes of every tensor are put in order of weight: first the lowest byte of every number, then
   the next one, and so on (``shuffle``). Sign and exponent of neighbouring numbers resemble each
   other; apart from the noise of the mantissas they become short.
2. Each tensor is compressed on its own, so that payload, side information and targets are still
   counted apart, and replaced by a string of bytes. What would not become smaller, with its note in
   the header, travels as it is.

Up and down: all tensors of the message, of any role, and predictions, too. How many bytes is left
depends on the data: about 85% of float32 noise, less of what has structure, nearly all of codes
that a quantizer packed. There is no ratio to be met. Gradient: natural, as nothing changes. It acts
on evaluation batches as on any others.

The receiver unpacks what was declared and not one byte more: a string whose own header promises
another length is refused before memory is taken, and so is a message that would grow beyond the
largest one that its peers may send. On a GPU the bytes pass through the CPU.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
import zstandard

from splitlab.core import Message, Peer, ProtocolError, Traits, hookimpl
from splitlab.plugins.common.settings import refusal

__all__ = ["Zstd"]

_HIGHEST_LEVEL = 22
_MOST_DIMENSIONS = 8
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their size in bytes."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    )
}


class Zstd:
    """Compress all tensors of every message without loss.

    Args:
        level: how hard Zstandard tries, 1 to 22. On floating point higher ones take much longer and
            save next to nothing.
        shuffle: whether bytes of the same weight are put side by side first.
    """

    def __init__(self, *, level: int = 1, shuffle: bool = True) -> None:
        if not 1 <= level <= _HIGHEST_LEVEL:
            raise refusal("level", level, f"1 to {_HIGHEST_LEVEL}", "for example level=3")
        self._level = level
        self._shuffle = shuffle

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Note how large a message may become."""
        # As much room as a frame of a run has: four times the batch, and something small.
        self._most_bytes = 4 * 4 * peer.batch_size * peer.tokens * peer.width + 2**20

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace tensors by compressed bytes."""
        # A compressor may serve one thread at a time, and several runs may share a process.
        compressor = zstandard.ZstdCompressor(level=self._level)
        note = {}
        for name in message:
            tensor = message[name]
            form = [str(tensor.dtype).removeprefix("torch."), *tensor.shape]
            octets = _to_bytes(tensor, self._shuffle)
            compressed = compressor.compress(octets.numpy().data)
            if len(compressed) + len(json.dumps({name: form})) < tensor.nbytes:
                note[name] = form
                data = torch.frombuffer(bytearray(compressed), dtype=torch.uint8)
                message.put(name, data.to(tensor.device), message.role(name))
        if note:
            message.push("zstd", note)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Put the tensors back."""
        note = message.pop("zstd")
        if note is None:
            return
        forms = _read_note(note, message)
        sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in forms.items()}
        if sum(sizes.values()) > self._most_bytes:
            raise ProtocolError(
                f"plugin 'zstd': a message would grow to {sum(sizes.values())} bytes; allowed: "
                f"{self._most_bytes}"
            )
        for name, (dtype, shape) in forms.items():
            data = message[name]
            octets = _decompress(name, data, sizes[name])
            tensor = _from_bytes(octets, dtype, self._shuffle).view(shape)
            message.put(name, tensor.to(data.device), message.role(name))

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return 1 for both directions: nothing is promised."""
        return 1.0, 1.0

    @hookimpl
    def traits(self) -> Traits:
        """Takes any tensors, leaves strings of bytes; lossless, in evaluation as well."""
        return Traits(
            needs={"plain"},
            changes={"plain"},
            evaluation=True,
            waits="the bytes are compressed on the CPU",
        )


def _to_bytes(tensor: torch.Tensor, shuffle: bool) -> torch.Tensor:
    """Return the bytes of the tensor, (n,) uint8, on the CPU."""
    flat = tensor.detach().contiguous().view(-1)
    size = flat.dtype.itemsize
    if not shuffle or size == 1:
        return flat.view(torch.uint8).cpu()
    words = flat.view(_WORDS[size])
    octets = torch.empty(size, len(words), dtype=torch.uint8, device=flat.device)
    for weight in range(size):
        octets[weight] = words >> 8 * weight  # a conversion to uint8 keeps the lowest byte
    return octets.view(-1).cpu()


def _from_bytes(octets: torch.Tensor, dtype: torch.dtype, shuffle: bool) -> torch.Tensor:
    """Undo `_to_bytes`."""
    size = dtype.itemsize
    if not shuffle or size == 1:
        return octets.view(dtype)
    planes = octets.view(size, -1)
    words = planes[0].to(_WORDS[size])
    for weight in range(1, size):
        words |= planes[weight].to(words.dtype) << 8 * weight
    return words.view(dtype)


def _read_note(note: Any, message: Message) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of every tensor that the note names."""
    forms = {}
    for name, form in note.items() if isinstance(note, dict) else ():
        dtype, shape = (form[0], form[1:]) if isinstance(form, list) and form else (None, [None])
        sizes = len(shape) <= _MOST_DIMENSIONS and all(type(n) is int and n > 0 for n in shape)
        if str(dtype) not in _DTYPES or not sizes:
            raise ProtocolError(
                f"plugin 'zstd': the note of {name!r} should hold dtype and shape, and holds "
                f"{str(form)[:100]}"
            )
        if name not in message or message[name].dtype != torch.uint8 or message[name].ndim != 1:
            raise ProtocolError(f"plugin 'zstd': no string of bytes {name!r} arrived")
        forms[name] = _DTYPES[str(dtype)], tuple(shape)
    if not forms:
        raise ProtocolError(f"plugin 'zstd': the note {str(note)[:100]} names no tensors")
    return forms


def _decompress(name: str, data: torch.Tensor, size: int) -> torch.Tensor:
    """Return so many bytes, (size,) uint8."""
    compressed = data.cpu().numpy().tobytes()
    try:
        # The library allocates what a frame's header promises, whatever one asks for.
        if zstandard.get_frame_parameters(compressed).content_size == size:
            octets = zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
            if len(octets) == size:
                return torch.frombuffer(bytearray(octets), dtype=torch.uint8)
        reason = f"it does not hold {size} bytes"
    except zstandard.ZstdError as error:
        reason = str(error)
    raise ProtocolError(f"plugin 'zstd': {name!r} cannot be unpacked: {reason}")
