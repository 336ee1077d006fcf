"""Packed codes and uniform levels, against plain integers and plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ProtocolError
from splitlab.plugins.common.bits import (
    MOST_BITS,
    level_bytes,
    pack,
    pack_levels,
    packed_bytes,
    uniform_codes,
    uniform_values,
    unpack,
    unpack_levels,
    word,
)


def as_one_integer(codes: list[int], bits: int) -> list[int]:
    """The definition: code i stands at bit i·bits of one long little-endian integer."""
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    return list(number.to_bytes(packed_bytes(len(codes), bits), "little"))


# --- Packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (1, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0x01, 0x02]),
        (2, [1, 2, 3, 0, 3], [0x39, 0x03]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0xD1, 0x58, 0x1F]),
        (4, [1, 15, 2], [0xF1, 0x02]),
        (5, [31, 0, 1], [0x1F, 0x04]),
        (6, [63, 1, 2, 32], [0x7F, 0x20, 0x80]),
        (7, [127, 1], [0xFF, 0x00]),
        (8, [255, 3], [0xFF, 0x03]),
        (12, [0xABC, 0xDEF], [0xBC, 0xFA, 0xDE]),
        (16, [0xFFFE, 1], [0xFE, 0xFF, 0x01, 0x00]),
        (17, [0x1FFFF, 1], [0xFF, 0xFF, 0x03, 0x00, 0x00]),
        (24, [0xABCDEF], [0xEF, 0xCD, 0xAB]),
    ],
)
def test_exact_bytes(bits: int, codes: list[int], packed: list[int]) -> None:
    assert pack(torch.tensor(codes, dtype=torch.int32), bits).tolist() == packed
    assert unpack(torch.tensor(packed, dtype=torch.uint8), bits, len(codes)).tolist() == codes


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, MOST_BITS), count=st.integers(0, 70), seed=st.integers(0, 99))
def test_any_codes_there_and_back(bits: int, count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (count,), generator=draw, dtype=torch.int32)
    packed = pack(codes, bits)
    assert packed.tolist() == as_one_integer(codes.tolist(), bits)
    back = unpack(packed, bits, count)
    assert back.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert torch.equal(back.int(), codes)


@pytest.mark.parametrize("bits", range(1, MOST_BITS + 1))
def test_largest_codes_across_pieces(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitlab.plugins.common.bits._PIECE", 16)
    codes = torch.arange(2**bits - 61, 2**bits, dtype=torch.int32).clamp_(min=0)
    packed = pack(codes, bits)
    assert packed.tolist() == as_one_integer(codes.tolist(), bits)
    assert torch.equal(unpack(packed, bits, 61).int(), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 11, 16])
def test_any_shape_type_and_memory_layout(bits: int) -> None:
    codes = (torch.arange(7 * 6) % 2**bits).view(7, 6)
    expected = as_one_integer(codes.flatten().tolist(), bits)
    for variant in (codes, codes.int(), codes.to(torch.uint8), codes.T.contiguous().T):
        assert pack(variant, bits).tolist() == expected
    odd = torch.cat((torch.zeros(1, dtype=torch.uint8), codes.flatten().to(torch.uint8)))[1:]
    assert pack(odd, bits).tolist() == expected
    string = torch.tensor([0, *expected], dtype=torch.uint8)[1:]  # begins at an odd address
    assert torch.equal(unpack(string, bits, 42).long(), codes.flatten())
    if bits == 1:
        assert pack(codes.bool(), 1).tolist() == expected


@pytest.mark.parametrize("bits", [1, 3, 4, 8, 13, 16])
def test_string_of_another_length_is_refused(bits: int) -> None:
    packed = pack(torch.zeros(10, dtype=torch.int32), bits)
    for wrong in (packed[:-1], torch.cat((packed, packed[:1])), packed.int(), packed[None]):
        with pytest.raises(ProtocolError, match=f"10 codes of {bits} bits are {len(packed)} bytes"):
            unpack(wrong, bits, 10)


# --- Levels ---------------------------------------------------------------------------------------

X = torch.tensor([-1, -0.2, 0.1, 0.9, 2], dtype=torch.float64)
LOW, HIGH = X.amin(), X.amax()


@pytest.mark.parametrize(
    ("levels", "codes", "values"),
    [
        (2, [0, 0, 0, 1, 1], [-1, -1, -1, 2, 2]),
        (4, [0, 1, 1, 2, 3], [-1, 0, 0, 1, 2]),
        (16, [0, 4, 6, 9, 15], [-1, -0.2, 0.2, 0.8, 2]),
    ],
)
def test_nearest_levels(levels: int, codes: list[int], values: list[float]) -> None:
    found = uniform_codes(X, LOW, HIGH, levels)
    assert found.dtype == torch.uint8
    assert found.tolist() == codes
    torch.testing.assert_close(
        uniform_values(found, LOW, HIGH, levels), torch.tensor(values).double()
    )


def test_levels_of_every_column_their_own() -> None:
    levels = torch.tensor([2, 4, 16, 256, 65536])
    X_nD = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    low, high = X_nD.amin(0), X_nD.amax(0)
    codes = uniform_codes(X_nD, low, high, levels)
    values = uniform_values(codes, low, high, levels)
    assert codes.dtype == torch.int32
    assert torch.equal(codes.amax(0), levels.int() - 1)
    for j, count in enumerate(levels.tolist()):
        alone = uniform_codes(X_nD[:, j], low[j], high[j], count)
        assert torch.equal(codes[:, j], alone.int())
        assert torch.equal(values[:, j], uniform_values(alone, low[j], high[j], count))
    assert uniform_codes(X_nD[:, :4], low[:4], high[:4], levels[:4]).dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_error_is_at_most_half_a_step(dtype: torch.dtype) -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    for levels in (2, 5, 256, 257, 4096):
        low, high = values.amin(), values.amax()
        back = uniform_values(uniform_codes(values, low, high, levels), low, high, levels)
        assert back.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        step = (high.double() - low.double()) / (levels - 1)
        assert (back.double() - values.double()).abs().max() <= step / 2 * 1.001 + 1e-6


@pytest.mark.parametrize("levels", [2, 5, torch.tensor([[3], [9]])])
def test_rounding_at_random_is_right_on_average(levels: int | torch.Tensor) -> None:
    draw = torch.Generator().manual_seed(0)
    low, high = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[1.0], [3.0]])
    values = torch.linspace(-1, 1, 7).expand(4000, 2, 7)
    codes = uniform_codes(values, low, high, levels, draw)
    back = uniform_values(codes, low, high, levels)
    step = ((high - low) / (levels - 1)).expand(2, 7)
    assert ((back - values).abs() <= step * 1.0001).all()
    assert ((back.mean(0) - values[0]).abs() <= 3.5 * step / 2 / 4000**0.5 + 1e-6).all()
    assert torch.equal(back[:, :, [0, -1]][:, 0], values[:, 0, [0, -1]]), "low and high are levels"
    again = uniform_codes(values, low, high, levels, torch.Generator().manual_seed(0))
    assert torch.equal(again, codes)


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(4),
        torch.full((4,), -3.5),
        torch.tensor([1e-45, 0.0, 3e-45]),
        torch.tensor([1e38, -1.0, 0.5]),
        torch.tensor([7.0]),
        torch.full((2, 3), 1e-6),
    ],
)
@pytest.mark.parametrize("levels", [2, 16, 65536])
def test_extremes_come_back(values: torch.Tensor, levels: int) -> None:
    low, high = values.amin(), values.amax()
    codes = uniform_codes(values, low, high, levels)
    assert 0 <= int(codes.min()) <= int(codes.max()) < levels
    back = uniform_values(codes, low, high, levels)
    torch.testing.assert_close(back.amin(), low)
    torch.testing.assert_close(back.amax(), high)


def test_rows_in_pieces_and_no_rows_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    limits = [values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)]
    levels = torch.tensor([4, 5, 6])
    whole = uniform_codes(values, *limits, levels)
    monkeypatch.setattr("splitlab.plugins.common.bits._PIECE", 24)  # two rows
    assert torch.equal(uniform_codes(values, *limits, levels), whole)
    for empty in (values[:0], values[:, :0], values[..., :0]):
        assert uniform_codes(empty, LOW, HIGH, 4).shape == empty.shape


@pytest.mark.parametrize("levels", [4, 1024])
def test_what_is_not_finite_has_a_code(levels: int) -> None:
    values = torch.tensor([0.0, torch.nan, torch.inf, -torch.inf, 1.0])
    codes = uniform_codes(values, torch.tensor(0.0), torch.tensor(1.0), levels)
    assert codes.tolist() == [0, 0, levels - 1, 0, levels - 1]
    nan = torch.tensor(torch.nan)
    assert uniform_codes(values, nan, nan, levels).tolist() == [0] * 5


@pytest.mark.gpu
@pytest.mark.parametrize("bits", range(1, MOST_BITS + 1))
def test_gpu_agrees_with_the_cpu(bits: int) -> None:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(2**bits, (100_003,), generator=draw, dtype=torch.int32)
    packed = pack(codes.cuda(), bits)
    assert torch.equal(packed.cpu(), pack(codes, bits))
    assert torch.equal(unpack(packed, bits, len(codes)).cpu().int(), codes)


@settings(max_examples=25, deadline=None)
@given(levels=st.integers(2, 2**15), count=st.integers(0, 60), seed=st.integers(0, 9))
def test_codes_of_any_number_of_levels(levels: int, count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(levels, (count,), generator=draw)
    packed = pack_levels(codes, levels)
    assert packed.shape == (level_bytes(count, levels),)
    assert torch.equal(unpack_levels(packed, levels, count).long(), codes)
    each, bits = word(levels)
    assert levels**each <= 2**bits <= 2**24
    assert math.log2(levels) <= bits / each < math.log2(levels) + 1


def test_three_levels_in_bytes() -> None:
    """Five digits to the base of 3 are a byte."""
    assert pack_levels(torch.tensor([1, 2, 0, 0, 2, 1]), 3).tolist() == [1 + 2 * 3 + 2 * 81, 1]
    assert level_bytes(6, 3) == 2
    with pytest.raises(ProtocolError, match="2 codes of 8 bits are 2 bytes"):
        unpack_levels(torch.zeros(3, dtype=torch.uint8), 3, 6)
