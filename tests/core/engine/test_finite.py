"""What is not finite is found."""

from __future__ import annotations

import math

import pytest
import torch

from splitlab.core.engine import finite
from splitlab.core.engine.finite import all_finite, each_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_is_enough(bad: float, dtype: torch.dtype) -> None:
    for size in (1, 7, 1000):
        fine = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
        fine[0] = -fine[0]
        assert all_finite(fine)
        assert each_finite([fine.clone(), fine]).tolist() == [True, True]
        fine[-1] = bad
        assert not all_finite(fine)
        assert each_finite([torch.ones(3, dtype=dtype), fine]).tolist() == [True, False]


def test_either_part_of_a_complex_number_counts() -> None:
    fine = torch.tensor([1 - 2j, 3 + 4j])
    assert each_finite([fine, fine.conj(), fine * complex(0, math.inf)]).tolist() == [
        *(True, True, False),
    ]


def test_nothing_is_finite() -> None:
    assert all_finite(torch.empty(0))
    assert not all_finite(torch.tensor([math.nan]).to(torch.float8_e5m2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_kernel_for_all_finds_it_as_well(dtype: torch.dtype) -> None:
    fine = torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype)
    bad = [torch.tensor([0.0, number], dtype=dtype) for number in (math.nan, math.inf, -math.inf)]
    mixed = [fine, *bad, torch.ones(3), torch.tensor(math.inf).double()]
    assert [float(x) < math.inf for x in finite._largest(mixed)] == [
        *(True, False, False, False),
        *(True, False),
    ]


def test_kinds_of_numbers_may_be_mixed() -> None:
    mixed = [torch.ones(2, 3), torch.tensor([math.inf]).double(), torch.ones(1).bfloat16()]
    assert each_finite(mixed).tolist() == [True, False, True]
