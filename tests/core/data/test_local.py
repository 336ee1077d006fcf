"""Local folders: every layout that is accepted, and how the others are answered."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.local import _FORMS, _find_parquet, read_local
from splitlab.core.data.words import FORMS


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
    assert "no training and no test part; --test-share 0.2" in answer(tmp_path / "flat")


def test_an_unreadable_folder(
    load: Any, refusal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", deny)
    assert "Permission denied" in refusal(lambda: load(tmp_path))


def test_a_part_is_missing(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "a", "train.parquet", [0, 1])
    message = refusal(lambda: load(tmp_path / "a"))
    assert "has no test part, but train; --test-split NAME" in message
    assert "--test-share 0.2" in message
    assert "has no 'holdout' part" in refusal(lambda: load(tmp_path / "a", test_split="holdout"))
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


@pytest.mark.parametrize("place", ["train", "default/train", "data/train", "plain_text/train"])
def test_parquet_in_a_folder_a_part(files: Any, load: Any, tmp_path: Path, place: str) -> None:
    files.write_parquet(tmp_path / place, "0000.parquet", [0, 1])
    files.write_parquet(tmp_path / place, "0001.parquet", [2])
    files.write_parquet((tmp_path / place).parent / "test", "0000.parquet", [1])
    data = load(tmp_path)
    assert next(data.train.batches(9)).targets.tolist() == [0, 1, 2]
    assert next(data.test.batches(9)).targets.tolist() == [1]


@pytest.mark.parametrize("name", ["all.parquet", "."])
def test_one_parquet_file(files: Any, load: Any, refusal: Any, tmp_path: Path, name: str) -> None:
    files.write_parquet(tmp_path, "all.parquet", [0, 1] * 5)
    data = load(tmp_path / name, test_share=0.2)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert next(data.test.batches(9)).targets.tolist() in ([0, 1], [1, 0])
    assert "--test-share 0.2 divides what there is" in refusal(lambda: load(tmp_path / name))


def test_a_bad_row_of_a_divided_file_keeps_its_number(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    images = [files.png(files.noise(0))] * 10
    for row in (3, 7):
        images[row] = b"bad"
    files.write_parquet(tmp_path, "all.parquet", [0] * 10, images=images)
    message = refusal(lambda: load(tmp_path, test_share=0.2))
    assert "(the whole), row 3:" in message or "(the whole), row 7:" in message


def test_a_share_is_of_the_training_part(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    files.write_image_folder(tmp_path / "a")
    data = load(tmp_path / "a", test_share=0.34)
    assert (len(data.train), len(data.test)) == (4, 2)
    assert data.notices == (
        f"{tmp_path / 'a'}: the part test is not used; --test-split test tests on it",
    )
    files.write_parquet(tmp_path / "b", "test.parquet", [0, 1])
    message = refusal(lambda: load(tmp_path / "b", test_share=0.5))
    assert "has no training part, but test;" in message


def test_the_part_to_test_on(files: Any, load: Any, tmp_path: Path) -> None:
    files.write_image_folder(tmp_path, test="val")
    files.write_image_folder(tmp_path / "more", test="hold [out]")
    (tmp_path / "more" / "hold [out]").rename(tmp_path / "hold [out]")
    data = load(tmp_path, test_split="hold [out]")
    assert len(data.test) == 4
    assert data.notices == (
        f"{tmp_path}: the part val is not used; --test-split val tests on it",
        f"{tmp_path}: left out what is no part: more/",
    )
    files.write_parquet(tmp_path / "p", "train.parquet", [0, 1])
    files.write_parquet(tmp_path / "p", "odd[1]-0.parquet", [1])
    files.write_parquet(tmp_path / "p", "test.parquet", [0, 1])
    assert len(load(tmp_path / "p", test_split="odd[1]").test) == 1
    files.write_idx_folder(tmp_path / "i")
    for what in ("images-idx3", "labels-idx1"):
        old = tmp_path / "i" / f"t10k-{what}-ubyte"
        old.rename(old.with_name(f"other-{what}-ubyte"))
    assert len(load(tmp_path / "i", test_split="other").test) == 10


def test_a_label_column_where_there_are_none(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    files.write_image_folder(tmp_path / "a")
    files.write_idx_folder(tmp_path / "b")
    for name, words in (("a", "image folders have no columns"), ("b", "IDX files have no columns")):
        message = refusal(lambda name=name: load(tmp_path / name, label_column="kind"))  # type: ignore[misc]
        assert f"--label-column kind: {words}" in message


def test_what_lies_beside_does_no_harm(files: Any, load: Any, tmp_path: Path) -> None:
    files.write_image_folder(tmp_path)
    files.write_image_folder(tmp_path / "other", test="x")
    for name in ("registry.toml", "data.zip", "train/metadata.csv", "test/cat/metadata.jsonl"):
        (tmp_path / name).write_text("[datasets.other]\nthis = 'is of another project'\n")
    files.write_parquet(tmp_path, "embeddings.parquet", [0, 1])
    np.savez(tmp_path / "means.npz", mean=np.zeros(3))
    data = load(tmp_path)
    assert (len(data.train), len(data.test), data.train.classes) == (6, 4, ("cat", "dog"))
    assert data.notices == (
        f"{tmp_path}: Parquet files are there, too, and are not used; image folders are",
        f"{tmp_path}: left out what is no part: other/",
        f"{tmp_path} (training part): left out 1 file that is no image (.csv)",
        f"{tmp_path} (test part): left out 1 file that is no image (.jsonl)",
    )


@pytest.mark.parametrize("name", ["a::b", "$HOME", "${HOME}", "~", "~nobody", "[a]*?", "été 火"])
def test_odd_names_of_folders(
    files: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files.write_image_folder(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(load(Path(name)).train) == len(load(tmp_path / name).train) == 6


def test_home(files: Any, load: Any, refusal: Any, tmp_path: Path, monkeypatch: Any) -> None:
    files.write_image_folder(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert len(load("~/pets").train) == 6
    assert os.strerror(errno.ENOENT) in refusal(lambda: load("~nobody-of-this-name/pets"))


def test_a_part_is_called_by_its_name_and_is_not_the_training_part(
    files: Any, tmp_path: Path
) -> None:
    files.write_image_folder(tmp_path)
    for name in (str(tmp_path / "test"), "../x", ".."):
        with pytest.raises(ConfigError, match="without a path"):
            read_local(tmp_path, test_split=name)
    with pytest.raises(ConfigError, match="--test-split train is the part to train on"):
        read_local(tmp_path, test_split="train")


def test_another_form_beside_the_one_that_is_read_is_told(files: Any, tmp_path: Path) -> None:
    files.write_image_folder(tmp_path)
    (tmp_path / "more.parquet").touch()
    _, notices = read_local(tmp_path)
    assert notices == [
        f"{tmp_path}: Parquet files are there, too, and are not used; image folders are"
    ]


def test_parquet_files_of_another_part_are_not_taken(tmp_path: Path) -> None:
    for name in ("train", "train-00000-of-00001", "train_extra", "training-meta", "tests_old"):
        (tmp_path / f"{name}.parquet").touch()
    names = sorted(path.name for path in tmp_path.iterdir())
    parts = _find_parquet(tmp_path, names, ("train", "training", "test"))
    found = {part: [file.stem for file in files] for part, files in parts.items()}
    assert found == {
        "train": ["train-00000-of-00001", "train", "train_extra"],
        "training": ["training-meta"],
    }


def test_what_lies_beside_the_parts_is_named(files: Any, load: Any, tmp_path: Path) -> None:
    for name in ("train", "test", "unsupervised", "tests_old"):
        files.write_parquet(tmp_path, f"{name}.parquet", [0, 1])
    told = f"{tmp_path}: left out what is no part: tests_old.parquet, unsupervised.parquet"
    assert load(tmp_path).notices == (told,)


def test_forms_are_called_alike_everywhere() -> None:
    assert [name for name, _ in FORMS][:-1] == [*_FORMS]
