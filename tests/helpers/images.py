"""Small images for the runs of tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def write_images(folder: Path, train: int, test: int, classes: int, *, easy: bool = False) -> str:
    """Write IDX files of noise and return the folder; easy ones are told apart at a glance."""
    draws = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % classes
        images = draws.integers(0, 60 if easy else 255, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[7 * label : 7 * label + 7] += 150 * easy
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{what}-ubyte").write_bytes(head + array.tobytes())
    return str(folder)
