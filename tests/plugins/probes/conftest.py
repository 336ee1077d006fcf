"""A folder of images that is as small as a run can be."""

from __future__ import annotations

import struct

import numpy as np
import pytest


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of IDX files: 16 training, 8 test images of 2 classes."""
    folder = tmp_path_factory.mktemp("idx")
    draws = np.random.default_rng(0)
    for prefix, count in (("train", 16), ("t10k", 8)):
        labels = np.arange(count, dtype=np.uint8) % 2
        images = draws.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{what}-ubyte").write_bytes(head + array.tobytes())
    return str(folder)
