"""Mixup: a batch becomes a mixture of itself and of itself reversed, images and targets alike.

H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, as ``timm.data.Mixup``
does it in its mode ``batch``, which also takes an odd number of samples here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.seeding import derive_seed

__all__ = ["mixup"]


def mixup(batch: Batch, alpha: float, *, classes: int, seed: int, step: int) -> Batch:
    """Return the batch mixed, with class probabilities (B, C) float32 as targets.

    Args:
        batch: of class ids.
        alpha: the share of a sample in its mixture is drawn from Beta(alpha, alpha), one a batch;
            0 mixes nothing and returns the batch as it is.
        classes: C.
        seed: of the run.
        step: which decides the draw, with the seed; nothing else does.
    """
    if not alpha:
        return batch
    share = float(np.random.default_rng(derive_seed(seed, "mixup", step)).beta(alpha, alpha))
    images = batch.images * share + batch.images.flip(0) * (1 - share)
    ids = F.one_hot(batch.targets, classes).to(torch.float32)
    return Batch(images, ids * share + ids.flip(0) * (1 - share), batch.sample_ids)
