"""What is not finite: marked rows, and a refusal that says so."""

from __future__ import annotations

import math

import pytest
import torch

from splitlab.core import Diverged, Kind, Message
from splitlab.plugins.common.finite import check_finite, faults, marked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_fault_is_of_its_row_and_of_no_finite_number(dtype: torch.dtype) -> None:
    rows = torch.full((5, 3, 2), torch.finfo(dtype).max, dtype=dtype)
    assert not faults(rows).any(), "the sum of the largest numbers would be infinite"
    rows[1, 2, 1], rows[3, 0, 0], rows[4, 1, 1] = math.nan, math.inf, -math.inf
    assert faults(rows).isnan().tolist() == [False, True, False, True, True]
    assert not faults(rows.requires_grad_()).requires_grad


def test_marked_rows_are_nan_and_the_others_the_same_bits() -> None:
    kept = torch.tensor([[[-0.0, 1.0]], [[2.0, 3.0]]], requires_grad=True)
    found = marked(kept, torch.tensor([0.0, math.nan]))
    assert torch.equal(found[0].view(torch.int32), kept[0].view(torch.int32)), "-0 stays -0"
    assert found[1].isnan().all()
    (gradient,) = torch.autograd.grad(found, kept, torch.ones_like(found))
    assert gradient.tolist() == [[[1, 1]], [[0, 0]]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_refusal_names_step_plugin_and_values(value: float) -> None:
    values = torch.zeros(3, 4, requires_grad=True)
    message = Message(Kind.ACTIVATION, 6)
    check_finite(values, message, "some", "the activations")
    with pytest.raises(Diverged, match=r"step 7: plugin 'some': the activations .* not finite"):
        check_finite(
            values.detach().index_fill(0, torch.tensor([1]), value),
            message,
            "some",
            "the activations",
        )
