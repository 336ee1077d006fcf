"""How a source names its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core.data.source import Source


def test_a_sample_is_named_by_its_file_or_else_by_its_row(files: Any, tmp_path: Path) -> None:
    source = Source("here (train)", torch.zeros(9), None, lambda rows: [None] * len(rows))
    path = str(tmp_path / "x.png")
    assert source.place(3, {"bytes": None, "path": path}) == path
    # A file inside a Parquet table has a path too, which leads nowhere.
    for encoded in ({"bytes": b"x", "path": path}, files.noise(0), None):
        assert source.place(3, encoded) == "here (train), row 3"


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_division_is_of_every_class_and_leaves_nothing_out(share: float) -> None:
    labels = torch.tensor([7, 0, 7, 2**62, 7, 0] * 4 + [5])
    source = Source("here", labels, None, lambda rows: [{"bytes": b"%d" % row} for row in rows])
    parts = source.divide(share)
    rows = [part.numbers.tolist() for part in parts if part.numbers is not None]
    assert rows == [sorted(part) for part in rows]
    assert sorted(rows[0] + rows[1]) == [*range(25)]
    for part, numbers in zip(parts, rows, strict=True):
        assert part.labels.tolist() == labels[numbers].tolist()
        assert part.read([1, 0]) == [{"bytes": b"%d" % numbers[i]} for i in (1, 0)]
        assert part.place(1) == f"here, row {numbers[1]}"
    for label, count in ((7, 12), (0, 8), (2**62, 4)):
        assert (parts[1].labels == label).sum() == min(max(round(share * count), 1), count - 1)
    assert (parts[0].labels == 5).sum() == 1


def test_division_depends_on_the_labels_alone() -> None:
    source = Source("here", torch.tensor([0, 1] * 50), None, lambda rows: [None] * len(rows))
    first, again = (source.divide(0.2)[1].numbers for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.arange(20))  # not those that happen to stand first
