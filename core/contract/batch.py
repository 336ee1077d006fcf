"""Some samples of a data set, as the client takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Some samples of a split.

    Attributes:
        images: (B, C, S, S) float32, normalised.
        targets: (B,) int64 class ids, or class probabilities (B, C) float32 of mixed samples.
        sample_ids: (B,) int64, position of each sample in its split, the same in every epoch.
    """

    images: torch.Tensor
    targets: torch.Tensor
    sample_ids: torch.Tensor
