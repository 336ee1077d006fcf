"""Arrays in memory: which .npz files are read, how, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitlab.core.data.arrays import find_npz_parts, read_npz_part

GREY = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
LABELS = np.array([0, 1, 0, 1])


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def read(tmp_path: Path, images: Any, labels: Any) -> Any:
    path = save(tmp_path / "x.npz", x_train=images, y_train=labels)
    return read_npz_part(*find_npz_parts(path)["train"], "here")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x_train x_test", "y_train y_test"),
        ("X_train X_test", "y_train y_test"),
        ("train_images test_images", "train_labels test_labels"),
        ("train_x test_x", "train_y test_y"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_names(load: Any, tmp_path: Path, images: str, labels: str, compressed: bool) -> None:
    arrays = {name: GREY for name in images.split()}
    arrays |= {name: LABELS[:, None] for name in labels.split()}  # as MedMNIST has them
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    for place in (tmp_path, tmp_path / "x.npz"):
        data = load(place, image_size=6)
        assert (len(data.train), len(data.test), data.train.classes) == (4, 4, ("0", "1"))
        assert next(data.test.batches(4)).targets.tolist() == [0, 1, 0, 1]


def test_validation_arrays_and_arrays_without_parts(load: Any, tmp_path: Path) -> None:
    parts = {
        f"{p}_{w}": v for p in ("train", "val") for w, v in (("images", GREY), ("labels", LABELS))
    }
    save(tmp_path / "a.npz", **parts)
    assert len(load(tmp_path / "a.npz").test) == 4
    save(tmp_path / "b.npz", images=GREY, labels=LABELS)
    assert len(load(tmp_path / "b.npz", test_share=0.5).test) == 2


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 5, 1), (4, 1, 6, 5)])
def test_grey(tmp_path: Path, shape: tuple[int, ...]) -> None:
    [image] = read(tmp_path, GREY.reshape(shape), LABELS).read([2])
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), GREY[2])


def test_colour_behind_or_ahead(tmp_path: Path) -> None:
    colour = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)
    for images in (colour, np.moveaxis(colour, 3, 1)):
        [image] = read(tmp_path, images, LABELS).read([1])
        assert np.array_equal(np.asarray(image), colour[1])


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    deep = np.array([0, 128, 257, 32768, 65535, 257 * 7], np.uint16).reshape(1, 2, 3)
    [image] = read(tmp_path, deep, LABELS[:1]).read([0])
    assert np.asarray(image).flatten().tolist() == [0, 0, 1, 128, 255, 7]


def test_text_labels(tmp_path: Path) -> None:
    source = read(tmp_path, GREY, np.array(["b", "a", "b", "a"]))
    assert (source.classes, source.labels.tolist()) == (("a", "b"), [1, 0, 1, 0])
    assert source.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (GREY / 255, LABELS, "x_train is float64 of shape (4, 6, 5)"),
        (GREY.reshape(4, 30), LABELS, "x_train is uint8 of shape (4, 30)"),
        (GREY.reshape(4, 6, 5, 1).repeat(2, 3), LABELS, "shape (4, 6, 5, 2)"),
        (GREY, np.eye(4), "y_train is float64 of shape (4, 4)"),
        (GREY, LABELS[:3], "4 images, but 3 labels"),
        (GREY, LABELS + 0.5, "row 0: column y_train holds 0.5"),
        (GREY, np.array([b"a"] * 4), "y_train is |S1"),
    ],
)
def test_arrays_that_are_refused(
    refusal: Any, tmp_path: Path, images: Any, labels: Any, words: str
) -> None:
    assert words in refusal(lambda: read(tmp_path, images, labels))


def test_objects_are_not_unpickled(refusal: Any, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("it was unpickled",))

    message = refusal(lambda: read(tmp_path, GREY, np.array([Trap()] * 4, dtype=object)))
    assert "y_train cannot be read" in message


def test_damaged_archives(load: Any, refusal: Any, tmp_path: Path) -> None:
    good = save(tmp_path / "x.npz", x_train=GREY, y_train=LABELS, x_test=GREY, y_test=LABELS)
    whole = good.read_bytes()
    good.write_bytes(whole[:200])
    assert f"{good}: cannot be read" in refusal(lambda: load(tmp_path))
    with zipfile.ZipFile(good, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY broken")
    assert "x_train cannot be read" in refusal(lambda: load(tmp_path))
    save(tmp_path / "x.npz", a=GREY)
    assert "NumPy archives" in refusal(lambda: load(tmp_path))
