"""What is not finite is found."""

from __future__ import annotations

import math

import pytest
import torch

from splitlab.core.engine.finite import all_finite, all_of_them_finite

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_is_enough(bad: float, dtype: torch.dtype) -> None:
    for size in (1, 7, 1000):
        fine = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
        fine[0] = -fine[0]
        assert all_finite(fine)
        assert all_of_them_finite([fine.clone(), fine], CPU)
        fine[-1] = bad
        assert not all_finite(fine)
        assert not all_of_them_finite([torch.ones(3, dtype=dtype), fine], CPU)


def test_nothing_is_finite() -> None:
    assert all_finite(torch.empty(0))
    assert all_of_them_finite([], CPU)
    assert not all_finite(torch.tensor([math.nan]).to(torch.float8_e5m2))
