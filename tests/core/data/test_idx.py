"""IDX files: what is declared is what is there, or the file is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitlab.core.data.idx import read_idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("declared", [21, 2**31])
def test_shorter_than_declared(
    files: Any, refusal: Any, tmp_path: Path, suffix: str, declared: int
) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    files.write_idx(path, np.zeros((20, 8, 8), np.uint8))
    opener = gzip.open if suffix else open
    with opener(path, "rb") as file:
        content = bytearray(file.read())
    content[4:8] = declared.to_bytes(4, "big")
    with opener(path, "wb") as file:
        file.write(content)
    message = refusal(lambda: read_idx(path))
    assert f"declares {declared} x 8 x 8 = {declared * 64:,} bytes" in message
    assert "the file holds 1,280" in message


def test_longer_than_declared(load: Any, refusal: Any, idx_folder: Path) -> None:
    path = idx_folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"x")
    assert "holds more than 20" in refusal(lambda: load(idx_folder))


def test_cut_gzip(files: Any, refusal: Any, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    files.write_idx(path, np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-50])
    assert "cannot be read" in refusal(lambda: read_idx(path))
    path.write_bytes(b"not gzip")
    assert "cannot be read" in refusal(lambda: read_idx(path))


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"\x89PNG", b"\0\0\x0d\x03" + bytes(12), b"\0\0\x08\x03\0\0"]
)
def test_something_else(refusal: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    assert "not an IDX file of bytes" in refusal(lambda: read_idx(path))


def test_nothing_inside(refusal: Any, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x03" + bytes(12))
    assert "0 x 0 x 0" in refusal(lambda: read_idx(path))
