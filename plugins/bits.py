"""Codes of few bits: a uniform quantizer's two maps, and dense packing into bytes.

Shapes are the caller's; nothing here knows a message. Packing works on eight codes or fewer at a
time, side by side in one integer, and on pieces that stay in a core's cache. It reads integers as
bytes and relies on little-endian machines, as the frames do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from splitlab.core import ProtocolError

__all__ = ["MOST_BITS", "pack", "packed_bytes", "uniform_codes", "uniform_values", "unpack"]

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


Map = Callable[[torch.Tensor, int, torch.Tensor], None]
"""Writes what it makes of its first argument into its last."""


def _maps(bits: int) -> tuple[Map, Map]:
    """Return how codes of so many bits become bytes, and how bytes become codes."""
    if bits in (1, 2, 4):
        return _join_in_bytes, _part_bytes
    return (_join, _part) if bits < 8 else (_to_bytes, _from_bytes)


def _pieces(count: int, bits: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield which codes and which bytes of the string belong together."""
    piece = _PIECE * torch.get_num_threads() if device.type == "cpu" else count + -count % 8
    for start in range(0, count, piece):
        stop = min(start + piece, count)
        yield slice(start, stop), slice(start * bits // 8, packed_bytes(stop, bits))


def _words(codes: torch.Tensor, group: int) -> torch.Tensor:
    """Return uint8 codes side by side in integers of ``group`` bytes, the last filled with zeros."""
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
    column_8n = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).view(-1, 8).T.contiguous()
    byte_bn = packed.new_empty(bits, column_8n.shape[1])
    for j in range(bits):
        i, skipped = divmod(8 * j, bits)
        byte_n = column_8n[i] >> skipped
        if bits - skipped < 8:
            byte_n |= column_8n[i + 1] << (bits - skipped)
        byte_bn[j].copy_(byte_n)
    packed.copy_(byte_bn.T.reshape(-1)[: packed.numel()])


def _from_bytes(packed: torch.Tensor, bits: int, codes: torch.Tensor) -> None:
    """Undo `_to_bytes`."""
    if bits == 16:
        # The string may begin at an odd address.
        codes.copy_(packed.clone().view(torch.int16))
        codes &= 0xFFFF
        return
    byte_bn = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits).T
    byte_bn = byte_bn.to(torch.int32, memory_format=torch.contiguous_format)
    column_8n = codes.new_empty(8, byte_bn.shape[1])
    for i in range(8):
        j, skipped = divmod(i * bits, 8)
        torch.bitwise_right_shift(byte_bn[j], skipped, out=column_8n[i])
        for shift in range(8 - skipped, bits, 8):
            j += 1
            column_8n[i] |= byte_bn[j] << shift
        column_8n[i] &= (1 << bits) - 1
    codes.copy_(column_8n.T.reshape(-1)[: codes.numel()])


def uniform_codes(
    values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, levels: int
) -> torch.Tensor:
    """Return the nearest of ``levels`` equally spaced levels from low to high (both are levels).

    Args:
        values: floating point, any shape; computed in float32.
        low: broadcasts to the values.
        high: broadcasts to the values; where it equals low the code is 0.
        levels: 2 to 65536; codes are uint8 up to 256 levels, int32 beyond.
    """
    span = high.float() - low.float()
    scale = torch.where(span > 0, (levels - 1) / span, 0.0)
    codes = ((values.float() - low.float()) * scale).round_().clamp_(0, levels - 1)
    return codes.to(torch.uint8 if levels <= 256 else torch.int32)


def uniform_values(
    codes: torch.Tensor, low: torch.Tensor, high: torch.Tensor, levels: int
) -> torch.Tensor:
    """Return the levels that the codes of `uniform_codes` name, float32."""
    step = (high.float() - low.float()) / (levels - 1)
    return codes.float() * step + low.float()
