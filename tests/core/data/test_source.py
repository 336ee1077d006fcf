"""How a source names its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from splitlab.core.data.source import Source


def test_a_sample_is_named_by_its_file_or_else_by_its_row(files: Any, tmp_path: Path) -> None:
    source = Source("here (train)", torch.zeros(9), None, lambda rows: [None] * len(rows))
    path = str(tmp_path / "x.png")
    assert source.place(3, {"bytes": None, "path": path}) == path
    # A file inside a Parquet table has a path too, which leads nowhere.
    for encoded in ({"bytes": b"x", "path": path}, files.noise(0), None):
        assert source.place(3, encoded) == "here (train), row 3"
