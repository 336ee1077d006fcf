"""Codes of few bits: a uniform quantizer's two maps, and dense packing into bytes.

Shapes are the caller's; nothing here knows a message. Packing works on eight codes or fewer at a
time, side by side in one integer, and on pieces that stay in a core's cache. It reads integers as
bytes and relies on little-endian machines, as the frames do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch

from splitlab.core import ProtocolError
from splitlab.plugins.common.exchange import working_dtype

__all__ = [
    "MOST_BITS",
    "level_bytes",
    "pack",
    "pack_levels",
    "packed_bytes",
    "uniform_codes",
    "uniform_values",
    "unpack",
    "unpack_levels",
    "word",
]

MOST_BITS = 24
"""The widest code that `pack` takes."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their size in bytes."""

_PIECE = 2**17
"""Codes packed at a time on a CPU, by each thread; divisible by 8."""


def packed_bytes(count: int, bits: int) -> int:
    """Return the length of the string that `pack` makes of so many codes."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the codes as a dense string of bits, (⌈count · bits / 8⌉,) uint8.

    Code i takes the bits i·bits to (i + 1)·bits - 1 of the string, its lowest bit first; bit j of
    the string is bit j mod 8 of byte j // 8. The last byte is filled with zeros.

    Args:
        codes: any shape and integer type, all in [0, 2**bits), which is not checked; up to 8 bits
            uint8 or bool is the quickest, beyond 8 bits int32. 8 bits are returned as they are.
        bits: 1 to 24.
    """
    codes = codes.reshape(-1).to(torch.uint8 if bits <= 8 else torch.int32)
    if bits == 8:
        return codes
    packed = codes.new_empty(packed_bytes(codes.numel(), bits), dtype=torch.uint8)
    encode, _ = _maps(bits)
    for here, there in _pieces(codes.numel(), bits, codes.device):
        encode(codes[here], bits, packed[there])
    return packed


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the ``count`` codes that `pack` packed, (count,) uint8, int32 beyond 8 bits.

    Raises:
        ProtocolError: it is not a string of the length that `pack` gives so many codes.
    """
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise ProtocolError(
            f"{count} codes of {bits} bits are {packed_bytes(count, bits)} bytes; what arrived is "
            f"{packed.dtype} of shape {[*packed.shape]}"
        )
    if bits == 8:
        return packed
    codes = packed.new_empty(count, dtype=torch.uint8 if bits < 8 else torch.int32)
    _, decode = _maps(bits)
    for here, there in _pieces(count, bits, packed.device):
        decode(packed[there], bits, codes[here])
    return codes


@functools.cache
def word(levels: int) -> tuple[int, int]:
    """Return how many codes `pack_levels` makes one number of, and how many bits that has.

    The fewest bits for a code with which the number has at most 24.
    """
    most = max(1, int(MOST_BITS / math.log2(levels)))
    words = [(n, (levels**n - 1).bit_length()) for n in range(1, most + 1)]
    return min(words, key=lambda word: (word[1] / word[0], word[0]))


def level_bytes(count: int, levels: int) -> int:
    """Return the length of the string that `pack_levels` makes of so many codes."""
    each, bits = word(levels)
    return packed_bytes(-(-count // each), bits)


def pack_levels(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """Return codes in [0, levels) as a dense string of bits, (`level_bytes`,) uint8.

    Where the levels are no power of two, several codes are the digits of one number, the first one
    the lowest: log2(levels) bits each and a few hundredths. The last number is filled with zeros.

    Args:
        codes: any shape and integer type.
        levels: 2 to 2**24.
    """
    each, bits = word(levels)
    if each == 1:
        return pack(codes, bits)
    digits = torch.nn.functional.pad(codes.reshape(-1).int(), (0, -codes.numel() % each))
    place = levels ** torch.arange(each, dtype=torch.int32, device=codes.device)
    return pack((digits.view(-1, each) * place).sum(dim=1, dtype=torch.int32), bits)


def unpack_levels(packed: torch.Tensor, levels: int, count: int) -> torch.Tensor:
    """Return the ``count`` codes that `pack_levels` packed, (count,); an integer type.

    Codes of bits that nobody packed may be `levels` or more.

    Raises:
        ProtocolError: it is not a string of the length that `pack_levels` gives so many codes.
    """
    each, bits = word(levels)
    words = unpack(packed, bits, -(-count // each))
    if each == 1:
        return words
    place = levels ** torch.arange(each, dtype=torch.int32, device=packed.device)
    return (words.int()[:, None] // place % levels).flatten()[:count]


Map = Callable[[torch.Tensor, int, torch.Tensor], None]
"""Writes what it makes of its first argument into its last."""


def _maps(bits: int) -> tuple[Map, Map]:
    """Return how codes of so many bits become bytes, and how bytes become codes."""
    if bits in (1, 2, 4):
        return _join_in_bytes, _part_bytes
    return (_join, _part) if bits < 8 else (_to_bytes, _from_bytes)


def _pieces(count: int, bits: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield which codes and which bytes of the string belong together."""
    piece = _PIECE * torch.get_num_threads() if device.type == "cpu" else max(8, count + -count % 8)
    for start in range(0, count, piece):
        stop = min(start + piece, count)
        yield slice(start, stop), slice(start * bits // 8, packed_bytes(stop, bits))


def _words(codes: torch.Tensor, group: int) -> torch.Tensor:
    """Return uint8 codes side by side in integers of ``group`` bytes, filled up with zeros."""
    words = codes.new_empty(-(-codes.numel() // group), dtype=_WORDS[group])
    octets = words.view(torch.uint8)
    octets[: codes.numel()] = codes
    octets[codes.numel() :] = 0
    return words


def _lanes(ones: int, first: int, lane: int, size: int) -> int:
    """Return an integer of ``size`` bits with so many ones in every lane, from ``first`` on."""
    return sum(((1 << ones) - 1) << start for start in range(first, size, lane))


def _join_in_bytes(codes: torch.Tensor, bits: int, packed: torch.Tensor) -> None:
    """Pack uint8 codes of which a byte holds 8, 4 or 2, with one multiplication.

    Code i has to move from bit 8·i to bit bits·i. Of the copies that this factor makes, those
    that it moves there end in the highest byte, and no two copies overlap.
    """
    group = 8 // bits
    words = _words(codes, group)
    words *= sum(1 << (8 * group - 8 - i * (8 - bits)) for i in range(group))
    words >>= 8 * group - 8
    packed.copy_(words)


def _part_bytes(packed: torch.Tensor, bits: int, codes: torch.Tensor) -> None:
    """Undo `_join_in_bytes`: halves of what a lane holds move apart, then their halves."""
    group = 8 // bits
    words = packed.to(_WORDS[group])
    if bits == 1:
        words *= 0x0101010101010101
        words &= 0x8040201008040201 - 2**64  # bit i of the i-th of eight copies, signed
        torch.clamp(words.view(torch.uint8)[: codes.numel()], max=1, out=codes)
        return
    copy = torch.empty_like(words)
    lane = 4 * group
    while lane >= 8:
        ones = lane // 8 * bits
        torch.bitwise_left_shift(words, lane - ones, out=copy)
        words |= copy  # the mask leaves one half of either
        words &= _lanes(ones, 0, lane, 8 * group)
        lane //= 2
    codes.copy_(words.view(torch.uint8)[: codes.numel()])


def _join(codes: torch.Tensor, bits: int, packed: torch.Tensor) -> None:
    """Pack uint8 codes of 3, 5, 6 or 7 bits: neighbours move together, then pairs, then fours."""
    group = _group(bits)
    words = _words(codes, group)
    upper = torch.empty_like(words)
    lane = 8
    while lane < 8 * group:
        ones = lane // 8 * bits
        torch.bitwise_and(words, _lanes(ones, lane, 2 * lane, 8 * group), out=upper)
        words ^= upper
        upper >>= lane - ones
        words |= upper
        lane *= 2
    octets = words.view(torch.uint8).view(-1, group)[:, : group * bits // 8]
    packed.copy_(octets.reshape(-1)[: packed.numel()])


def _part(packed: torch.Tensor, bits: int, codes: torch.Tensor) -> None:
    """Undo `_join`."""
    group = _group(bits)
    octets = group * bits // 8
    words = packed.new_zeros(-(-codes.numel() // group), dtype=_WORDS[group])
    padded = torch.nn.functional.pad(packed, (0, -packed.numel() % octets))
    words.view(torch.uint8).view(-1, group)[:, :octets] = padded.view(-1, octets)
    upper = torch.empty_like(words)
    lane = 4 * group
    while lane >= 8:
        ones = lane // 8 * bits
        torch.bitwise_and(words, _lanes(ones, ones, 2 * lane, 8 * group), out=upper)
        words ^= upper
        upper <<= lane - ones
        words |= upper
        lane //= 2
    codes.copy_(words.view(torch.uint8)[: codes.numel()])


def _group(bits: int) -> int:
    """Return how many codes of 3, 5, 6 or 7 bits fill whole bytes."""
    return 4 if bits == 6 else 8


def _to_bytes(codes: torch.Tensor, bits: int, packed: torch.Tensor) -> None:
    """Pack int32 codes of more than 8 bits: eight codes are as many bytes as a code has bits."""
    if bits == 16:
        packed.copy_(codes.to(torch.int16).view(torch.uint8))
        return
    narrow = codes.to(torch.int16 if bits < 16 else torch.int32)
    code_n8 = torch.nn.functional.pad(narrow, (0, -codes.numel() % 8)).view(-1, 8)
    code_8n = [column.contiguous() for column in code_n8.unbind(1)]
    columns = []
    for j in range(bits):
        i, skipped = divmod(8 * j, bits)
        column = code_8n[i] >> skipped
        if bits - skipped < 8:
            column |= code_8n[i + 1] << (bits - skipped)
        columns.append(column)
    _put_columns(columns, packed)


def _from_bytes(packed: torch.Tensor, bits: int, codes: torch.Tensor) -> None:
    """Undo `_to_bytes`."""
    if bits == 16:
        # The string may begin at an odd address.
        codes.copy_(packed.clone().view(torch.int16))
        codes &= 0xFFFF
        return
    octets = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    byte_bn = [column.to(torch.int16 if bits < 16 else torch.int32) for column in octets.unbind(1)]
    columns = []
    for i in range(8):
        j, skipped = divmod(i * bits, 8)
        column = byte_bn[j] >> skipped
        for shift in range(8 - skipped, bits, 8):
            j += 1
            column |= byte_bn[j] << shift
        columns.append(column.bitwise_and_((1 << bits) - 1))
    _put_columns(columns, codes)


def _put_columns(columns: list[torch.Tensor], target: torch.Tensor) -> None:
    """Write the columns side by side, row by row, as far as the target reaches."""
    size = (len(columns[0]), len(columns))
    whole = target.numel() == size[0] * size[1]
    rows = target.view(size) if whole else target.new_empty(size)
    for j, column in enumerate(columns):
        rows[:, j] = column
    if not whole:
        target.copy_(rows.view(-1)[: target.numel()])


def uniform_codes(
    values: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    levels: int | torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the code of a level for every value: ``levels`` equally spaced ones from low to high.

    Computed in float32, float64 for float64 values. The code of a NaN is 0, as is that of any value
    whose ``low`` or ``high`` is not finite.

    Args:
        values: floating point, any shape.
        low: floating point, broadcasts to the values.
        high: broadcasts to the values; where it equals low the code is 0.
        levels: 2 to 65536, for all values or as a tensor that broadcasts to them. Codes are uint8
            if no value has more than 256 levels, else int32.
        generator: on the values' device; with it a value goes to one of its two neighbours at
            random, so that the mean is the value, without it to the nearest.
    """
    work = working_dtype(values.dtype)
    if isinstance(levels, int):
        top, narrow = torch.full((), levels - 1, dtype=work, device=values.device), levels <= 256
    else:
        top, narrow = levels.to(work) - 1, int(levels.max()) <= 256
    low, high = low.to(work), high.to(work)
    step = torch.where(high > low, (high - low) / top, torch.inf)
    codes = torch.empty_like(values, dtype=torch.uint8 if narrow else torch.int32)
    for rows in _row_pieces(values):
        steps = torch.sub(values[rows].to(work), _at(low, rows, values))
        steps /= _at(step, rows, values)
        if generator is None:
            steps.round_()
        else:
            steps += torch.rand(steps.shape, dtype=work, device=steps.device, generator=generator)
            steps.floor_()
        steps.nan_to_num_(nan=0.0).clamp_(min=0)
        # Not straight to uint8: that conversion takes longer than all the rest.
        codes[rows] = torch.minimum(steps, _at(top, rows, values), out=steps).to(torch.int32)
    return codes


def uniform_values(
    codes: torch.Tensor, low: torch.Tensor, high: torch.Tensor, levels: int | torch.Tensor
) -> torch.Tensor:
    """Return the levels that the codes of `uniform_codes` name, float32, float64 if low is."""
    work = working_dtype(low.dtype)
    low, high = low.to(work), high.to(work)
    return codes.to(work).mul_((high - low) / (levels - 1)).add_(low)


def _row_pieces(values: torch.Tensor) -> Iterator[slice]:
    """Yield slices of the first dimension, on a CPU as many rows at a time as its cache holds."""
    rows = len(values)
    if values.device.type == "cpu" and rows:
        rows = max(1, _PIECE * torch.get_num_threads() // 2 // max(1, values[0].numel()))
    for start in range(0, len(values), max(1, rows)):
        yield slice(start, start + rows)


def _at(limits: torch.Tensor, rows: slice, values: torch.Tensor) -> torch.Tensor:
    """Return what belongs to these rows of the values; limits broadcast to the values."""
    own = limits.ndim == values.ndim and limits.shape[0] == values.shape[0] > 1
    return limits[rows] if own else limits
