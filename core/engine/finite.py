"""What is not finite is found here, without waiting for the device: a verdict is a tensor, too."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

__all__ = ["all_finite", "each_finite"]


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return whether all numbers of a tensor are finite, as a boolean tensor without dimensions."""
    return each_finite([tensor])[0]


def each_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the same of each of many tensors of one device, one or more, at once."""
    numbers = [_with_arithmetic(tensor.detach()) for tensor in tensors]
    if numbers[0].device.type == "cpu":
        ends = [end for each in numbers for end in each.aminmax()]
        return torch.stack(ends).isfinite().view(-1, 2).all(1)
    # A kernel for all of a dtype, where two for each tensor would take longer to start than to run.
    # The largest magnitude, unlike a sum of squares, does not overflow.
    widest = functools.reduce(torch.promote_types, (each.dtype for each in numbers))
    largest = dict.fromkeys(range(len(numbers)), numbers[0])
    for dtype in {each.dtype for each in numbers}:
        alike = [i for i, each in enumerate(numbers) if each.dtype is dtype]
        norms = torch._foreach_norm([numbers[i] for i in alike], math.inf)
        largest |= {i: norm.to(widest) for i, norm in zip(alike, norms, strict=True)}
    return torch.stack([*largest.values()]).isfinite()


def _with_arithmetic(values: torch.Tensor) -> torch.Tensor:
    """Return numbers that torch can compare: it has hardly any arithmetic for 8 bits."""
    if not values.numel():
        return values.new_zeros((), dtype=torch.float32)
    return values.float() if values.dtype.itemsize == 1 else values
