"""The embedded data set: how its images are drawn and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from splitlab.core.data.load import load_data


def test_the_subset_is_drawn_in_equal_shares(script: Any) -> None:
    maker = script("make_fashion_mnist_mini")
    labels = torch.arange(1_000) % 10
    drawn = maker.balanced_subset(labels, 100)
    assert labels[drawn].bincount().tolist() == [10] * 10
    assert torch.equal(drawn, drawn.unique())
    assert torch.equal(drawn, maker.balanced_subset(labels, 100))


def test_a_made_table_reads_back_pixel_by_pixel(script: Any, tmp_path: Path) -> None:
    maker = script("make_fashion_mnist_mini")
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    )
    index = torch.tensor([3, 5, 19])
    for name in ("train.parquet", "test.parquet"):
        table = maker.make_table(images, torch.arange(20) % 10, index)
        pq.write_table(table, tmp_path / name)
    split = load_data("fashion-mnist-mini", tmp_path, image_size=28, channels=1, seed=0).train
    batch = next(split.batches(3))
    # Normalising and back errs by a few 2**-24 of 255, far below the half that rounding forgives.
    pixels = (batch.images * 0.3530 + 0.2860).mul(255).round().to(torch.uint8)
    assert torch.equal(pixels[:, 0], images[index])
    assert batch.targets.tolist() == [3, 5, 9]
    assert split.classes == maker.CLASSES
