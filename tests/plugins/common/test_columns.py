"""Columns as codes: bounds, bytes, and columns that are left out.

Shapes: R rows, Q columns, K of them chosen.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ProtocolError
from splitlab.plugins.common.bits import packed_bytes
from splitlab.plugins.common.columns import WIDEST, coded_bytes, decode_columns, encode_columns


@settings(max_examples=25, deadline=None)
@given(R=st.integers(1, 30), Q=st.integers(1, 12), seed=st.integers(0, 99), same=st.booleans())
def test_what_comes_back(R: int, Q: int, seed: int, same: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(R, Q, generator=draw) * torch.rand(Q, generator=draw).mul(9).exp()
    chosen = torch.rand(Q, generator=draw) < (1.0 if same else 0.6)
    columns = chosen.nonzero().view(-1)
    bits = torch.randint(0, WIDEST + 1, (len(columns),), generator=draw)
    if same:
        bits[:] = bits[0]
    low, high = values.amin(0)[columns], values.amax(0)[columns]

    packed = encode_columns(values, columns, low, high, bits)
    assert packed.dtype == torch.uint8
    counts = torch.bincount(bits, minlength=WIDEST + 1).tolist()
    size = sum(packed_bytes(R * count, width) for width, count in enumerate(counts) if width)
    assert len(packed) == size == coded_bytes(bits, R)

    back = decode_columns(packed, (R, Q), columns, low, high, bits)
    assert back.shape == (R, Q)
    assert not back[:, ~chosen].any()
    coded = bits > 0
    step = (high - low)[coded] / (2.0 ** bits[coded] - 1)
    error = (back - values)[:, columns[coded]].abs()
    assert (error <= step / 2 + 1e-5 * values.abs().max()).all()
    assert torch.equal(back[:, columns[~coded]], low[~coded].expand(R, -1))


def test_order_on_the_wire_is_by_width_then_by_row() -> None:
    values = torch.tensor([[0.0, 15.0, 1.0], [1.0, 1.0, 0.0]])
    low, high = torch.zeros(3), torch.tensor([1.0, 15.0, 1.0])
    packed = encode_columns(values, torch.arange(3), low, high, torch.tensor([1, 4, 1]))
    assert packed.tolist() == [0b0110, 0x1F]  # rows (0, 1), (1, 0), then 15, 1


def test_no_column_at_all() -> None:
    none, empty = torch.empty(0, dtype=torch.int64), torch.empty(0)
    packed = encode_columns(torch.ones(3, 4), none, empty, empty, none)
    assert packed.shape == (0,)
    assert not decode_columns(packed, (3, 4), none, empty, empty, none).any()


def test_a_string_that_is_too_short() -> None:
    one = torch.ones(1)
    columns, bits = torch.arange(1), torch.tensor([8])
    with pytest.raises(ProtocolError, match="codes of 8 bits"):
        decode_columns(torch.zeros(2, dtype=torch.uint8), (3, 1), columns, one, one, bits)
