"""What is not finite is found here, without waiting for the device: a verdict is a tensor, too."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

__all__ = ["all_finite", "all_of_them_finite"]


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return whether all numbers of a tensor are finite, as a boolean tensor without dimensions."""
    values = tensor.detach()
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    if values.dtype.itemsize == 1:  # torch has hardly any arithmetic for 8 bits
        values = values.float()
    low, high = values.aminmax()
    return low.isfinite() & high.isfinite()


def all_of_them_finite(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the same for many tensors of one device at once."""
    some = [tensor for tensor in tensors if tensor.numel()]
    # The largest magnitude, unlike a sum of squares, does not overflow.
    return torch.nn.utils.get_total_norm(some, math.inf).to(device).isfinite()
