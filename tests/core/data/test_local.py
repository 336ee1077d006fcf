"""Local folders: every layout that is accepted, and how the others are answered."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(files: Any, load: Any, tmp_path: Path, suffix: str) -> None:
    images = files.write_idx_folder(tmp_path / "clothes", suffix=suffix)
    data = load(tmp_path / "clothes", channels=1)
    assert (data.name, len(data.train), len(data.test)) == ("clothes", 20, 10)
    assert data.test.classes == tuple("0123456789")
    batch = next(data.test.batches(10))
    assert batch.targets.tolist() == list(range(10))
    torch.testing.assert_close(batch.images[:, 0], torch.from_numpy(images["t10k"]) / 255 / 0.5 - 1)


@pytest.mark.parametrize("place", [".", "data", "a[b] *"])
def test_parquet_here_or_in_data(files: Any, load: Any, tmp_path: Path, place: str) -> None:
    files.write_parquet(tmp_path / place, "train-00000-of-00002.parquet", [0, 1])
    files.write_parquet(tmp_path / place, "train-00001-of-00002.parquet", [2, 3, 4])
    files.write_parquet(tmp_path / place, "validation-00000-of-00001.parquet", [4, 0])
    data = load(tmp_path if place == "data" else tmp_path / place)
    assert next(data.train.batches(9)).targets.tolist() == [0, 1, 2, 3, 4]
    assert next(data.test.batches(9)).targets.tolist() == [4, 0]
    assert data.train.classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_image_folders(files: Any, load: Any, tmp_path: Path, test: str) -> None:
    files.write_image_folder(tmp_path / "pets [1]", test=test)
    (tmp_path / "pets [1]" / "train" / "notes.txt").write_text("not an image")
    data = load(tmp_path / "pets [1]")
    assert data.train.classes == ("cat", "dog")
    assert next(data.train.batches(9)).targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert next(data.test.batches(9)).targets.tolist() == [0, 0, 1, 1]
    assert not torch.equal(*next(data.train.batches(2)).images)


def test_folders_that_are_not_data(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    def answer(folder: Path) -> str:
        message = refusal(lambda: load(folder))
        assert "IDX files" in message
        assert "Parquet files" in message
        assert "image folders" in message
        assert str(folder) in message
        return message

    assert os.strerror(errno.ENOENT) in answer(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    assert os.strerror(errno.ENOTDIR) in answer(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "is empty" in answer(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    for number in range(12):
        (tmp_path / "other" / f"{number:02}.csv").write_text("x")
    assert "07.csv and 4 more" in answer(tmp_path / "other")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    files.noise(0).save(tmp_path / "flat" / "train" / "0.png")
    assert "holds train;" in answer(tmp_path / "flat")


def test_an_unreadable_folder(
    load: Any, refusal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", deny)
    assert "Permission denied" in refusal(lambda: load(tmp_path))


def test_a_part_is_missing(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "a", "train.parquet", [0, 1])
    assert "has no test part" in refusal(lambda: load(tmp_path / "a"))
    files.write_parquet(tmp_path / "b", "test.parquet", [0, 1])
    assert "has no training part" in refusal(lambda: load(tmp_path / "b"))
    files.write_image_folder(tmp_path / "c", test="holdout")
    assert "has no test part" in refusal(lambda: load(tmp_path / "c"))
    files.write_idx_folder(tmp_path / "d")
    (tmp_path / "d" / "t10k-labels-idx1-ubyte").unlink()
    assert "has no t10k-labels-idx1-ubyte" in refusal(lambda: load(tmp_path / "d"))


def test_images_and_labels_do_not_match(
    files: Any, load: Any, refusal: Any, idx_folder: Path
) -> None:
    files.write_idx(idx_folder / "train-labels-idx1-ubyte", np.zeros(19, np.uint8))
    assert "20 images, but 19 labels" in refusal(lambda: load(idx_folder))


def test_files_are_mixed_up(files: Any, load: Any, refusal: Any, idx_folder: Path) -> None:
    files.write_idx(idx_folder / "train-labels-idx1-ubyte", np.zeros((20, 8, 8), np.uint8))
    assert "3 dimensions, labels have 1" in refusal(lambda: load(idx_folder))
