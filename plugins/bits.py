"""Codes of few bits: a uniform quantizer's two maps, and dense packing into bytes.

Shapes are the caller's; nothing here knows a message.
"""

from __future__ import annotations

import torch

__all__ = ["pack", "uniform_codes", "uniform_values", "unpack"]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the codes as a dense string of bits, (⌈count · bits / 8⌉,) uint8.

    Code i takes the bits i·bits to (i + 1)·bits - 1 of the string, its lowest bit first; bit j of
    the string is bit j mod 8 of byte j // 8. The last byte is filled with zeros.

    Args:
        codes: any shape, in [0, 2**bits); uint8, or int32 beyond 8 bits.
        bits: 1 to 16.
    """
    flat = codes.reshape(-1).to(torch.int32)
    steps = torch.arange(bits, dtype=torch.int32, device=flat.device)
    stream = ((flat[:, None] >> steps) & 1).reshape(-1)
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
    weights = 1 << torch.arange(8, dtype=torch.int32, device=flat.device)
    return (stream * weights).sum(1).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first ``count`` codes that `pack` packed, (count,) uint8, int32 beyond 8 bits.

    Raises:
        ProtocolError: the string has not the length that `pack` gives so many codes.
    """
    steps = torch.arange(8, dtype=torch.int32, device=packed.device)
    stream = ((packed.to(torch.int32)[:, None] >> steps) & 1).reshape(-1)[: count * bits]
    weights = 1 << torch.arange(bits, dtype=torch.int32, device=packed.device)
    codes = (stream.view(count, bits) * weights).sum(1)
    return codes.to(torch.uint8 if bits <= 8 else torch.int32)


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
