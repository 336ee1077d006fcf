"""The columns of a matrix as uniform codes, each column with a range and a width of its own.

The codes of all columns of one width lie together, row by row, the narrowest width first: so many
columns are packed at once, and the loop is over widths. Width 0 sends no code: such a column
arrives as its lower end everywhere.

Shapes: R rows, Q columns of the matrix, K of them chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from splitlab.plugins.common.bits import pack, packed_bytes, uniform_codes, uniform_values, unpack

__all__ = ["WIDEST", "coded_bytes", "decode_columns", "encode_columns"]

WIDEST = 16
"""Most bits of a code: more than a float32 range can tell apart would be a waste."""


def coded_bytes(bits_K: torch.Tensor, rows: int) -> int:
    """Return how many bytes `encode_columns` makes: Σ over widths w of ⌈R · K_w · w / 8⌉."""
    counts = torch.bincount(bits_K).tolist()
    return sum(packed_bytes(rows * count, width) for width, count in enumerate(counts) if width)


def encode_columns(
    values_RQ: torch.Tensor,
    columns_K: torch.Tensor,
    low_K: torch.Tensor,
    high_K: torch.Tensor,
    bits_K: torch.Tensor,
) -> torch.Tensor:
    """Return the codes of the chosen columns, packed, (`coded_bytes`,) uint8.

    Args:
        values_RQ: floating point, finite.
        columns_K: which columns, int64, each once, rising.
        low_K: the first level of each, float32; what lies below gets its code.
        high_K: the last level.
        bits_K: width of each, 0 to 16, int64 on the CPU.
    """
    strings = []
    for width, members in _by_width(bits_K, values_RQ.device):
        if not width:
            continue
        values = _pick(values_RQ, columns_K[members])
        strings.append(
            pack(uniform_codes(values, low_K[members], high_K[members], 2**width), width)
        )
    return torch.cat(strings) if strings else values_RQ.new_empty(0, dtype=torch.uint8)


def decode_columns(
    packed: torch.Tensor,
    shape: tuple[int, int],
    columns_K: torch.Tensor,
    low_K: torch.Tensor,
    high_K: torch.Tensor,
    bits_K: torch.Tensor,
) -> torch.Tensor:
    """Undo `encode_columns`; returns (R, Q) float32, zero in columns that were not chosen.

    Args:
        packed: of exactly `coded_bytes`; the caller checks that.
        shape: R and Q.
        columns_K: as they were encoded; so are the next three.
        low_K: see there.
        high_K: see there.
        bits_K: see there.
    """
    R, Q = shape
    values_RQ = None if len(columns_K) == Q else packed.new_zeros(shape, dtype=torch.float32)
    start = 0
    for width, members in _by_width(bits_K, packed.device):
        columns, low = columns_K[members], low_K[members]
        if width:
            stop = start + packed_bytes(R * len(columns), width)
            codes = unpack(packed[start:stop], width, R * len(columns)).view(R, -1)
            values = uniform_values(codes, low, high_K[members], 2**width)
            start = stop
        else:
            values = low.expand(R, -1)
        if len(columns) == Q:
            return values.contiguous()
        if values_RQ is None:
            values_RQ = values.new_empty(shape)
        values_RQ.index_copy_(1, columns, values)
    assert values_RQ is not None
    return values_RQ


def _by_width(bits_K: torch.Tensor, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield every width that occurs, and which columns have it."""
    for width in torch.unique(bits_K).tolist():
        yield width, (bits_K == width).nonzero().view(-1).to(device)


def _pick(values_RQ: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return values_RQ if len(columns) == values_RQ.shape[1] else values_RQ.index_select(1, columns)
