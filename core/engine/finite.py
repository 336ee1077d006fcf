"""What is not finite is found here, without waiting for the device: a verdict is a tensor, too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["all_finite", "each_finite"]


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return whether all numbers of a tensor are finite, as a boolean tensor without dimensions."""
    values = tensor.detach()
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    if values.dtype.itemsize == 1:  # torch has hardly any arithmetic for 8 bits
        values = values.float()
    low, high = values.aminmax()
    return low.isfinite() & high.isfinite()


def each_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the same of each of many tensors of one device, one or more, at once."""
    # The largest magnitude, unlike a sum of squares, does not overflow.
    norms = torch._foreach_norm([*tensors], math.inf)
    return torch.stack([*norms]).isfinite()
