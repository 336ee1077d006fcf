"""What is not finite is found here, without waiting for the device: a verdict is a tensor, too."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

__all__ = ["all_finite", "each_finite"]

_PLAIN = {torch.float32, torch.float64, torch.float16, torch.bfloat16}


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return whether all numbers of a tensor are finite, as a boolean tensor without dimensions."""
    return each_finite([tensor])[0]


@torch.no_grad()
def each_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the same of each of many tensors of one device, one or more, at once."""
    numbers = [
        each if each.numel() and each.dtype in _PLAIN else _with_arithmetic(each)
        for each in tensors
    ]
    if numbers[0].device.type == "cpu":
        ends = [end for each in numbers for end in each.aminmax()]
        return torch.stack(ends).isfinite().view(-1, 2).all(1)
    return torch.stack(_largest(numbers)) < math.inf  # NaN is not less


def _largest(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the largest magnitude of each, in one dtype.

    A kernel for all of a dtype, where one for each tensor would take longer to start than to run.
    Magnitudes, unlike sums of squares, do not overflow.
    """
    places: dict[torch.dtype, list[int]] = {}
    for i, each in enumerate(tensors):
        places.setdefault(each.dtype, []).append(i)
    widest = functools.reduce(torch.promote_types, places)
    found = [*tensors]
    for dtype, alike in places.items():
        norms = torch._foreach_norm([tensors[i] for i in alike], math.inf)
        for i, norm in zip(alike, norms, strict=True):
            found[i] = norm if dtype is widest else norm.to(widest)
    return found


def _with_arithmetic(values: torch.Tensor) -> torch.Tensor:
    """Return numbers that torch can compare; it has hardly any arithmetic for 8 bits."""
    if not values.numel():
        return values.new_zeros((), dtype=torch.float32)
    if values.is_complex():
        return torch.view_as_real(values.resolve_conj())
    return values.float() if values.dtype.itemsize == 1 else values
