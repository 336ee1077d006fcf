"""Loading by name or folder: size, classes, normalisation, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from splitlab.core.data.load import Data


def test_sizes_classes_and_balance(mini: Data) -> None:
    assert mini.name == "fashion-mnist-mini"
    assert mini.train.classes == mini.test.classes
    assert mini.train.classes[0] == "T-shirt/top"
    for split, per_class in ((mini.train, 600), (mini.test, 100)):
        batch = next(split.batches(len(split)))
        assert batch.targets.bincount().tolist() == [per_class] * 10
        assert batch.images.shape == (per_class * 10, 1, 28, 28)
        assert (batch.images.dtype, batch.targets.dtype) == (torch.float32, torch.int64)
        assert abs(batch.images.mean().item()) < 0.05
        assert abs(batch.images.std().item() - 1) < 0.05


def test_grey_becomes_colour_and_back_with_its_normalisation(
    files: Any, load: Any, tmp_path: Path
) -> None:
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [0, 1], mode="L")
    grey = next(load(tmp_path, channels=1).test.batches(2)).images
    colour = next(load(tmp_path, channels=3).test.batches(2)).images
    assert (grey.shape, colour.shape) == ((2, 1, 8, 8), (2, 3, 8, 8))
    pixels = torch.stack([torch.from_numpy(np.array(files.noise(row, mode="L"))) for row in (0, 1)])
    torch.testing.assert_close(grey[:, 0], pixels / 255 / 0.5 - 1)
    torch.testing.assert_close(colour[:, 2], (pixels / 255 - 0.406) / 0.225)


def test_weights_say_how_a_folder_is_normalised_and_a_named_set_does_itself(
    load: Callable[..., Data], files: Any, tmp_path: Path
) -> None:
    files.write_image_folder(tmp_path)
    expected = (0.5, 0.25, 0.5), (0.5, 0.5, 0.25)
    plain = load(tmp_path)
    other = load(tmp_path, normalisation=expected)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in expected)
    usual, usually = (torch.tensor([*v]).view(1, 3, 1, 1) for v in (plain.mean, plain.std))
    one, two = (next(iter(data.train.batches(1))).images for data in (plain, other))
    torch.testing.assert_close(two * std + mean, one * usually + usual)
    assert (other.mean, other.std) == expected
    grey = load(tmp_path, channels=1, normalisation=expected)
    assert grey.mean == pytest.approx([1.25 / 3])
    named = load(None, "fashion-mnist-mini", normalisation=expected)
    assert named.mean == load(None, "fashion-mnist-mini").mean


def test_a_named_sets_normalisation_is_averaged_or_repeated(
    files: Any, load: Any, tmp_path: Path
) -> None:
    black = files.png(Image.new("L", (8, 8)))
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [0], images=[black])
    averaged = load(tmp_path, "cifar10", channels=1)
    images = next(averaged.test.batches(1)).images
    mean, std = (0.4914 + 0.4822 + 0.4465) / 3, (0.2470 + 0.2435 + 0.2616) / 3
    torch.testing.assert_close(images, torch.full((1, 1, 8, 8), -mean / std))
    repeated = load(tmp_path, "fashion-mnist", channels=3)
    images = next(repeated.test.batches(1)).images
    torch.testing.assert_close(images, torch.full((1, 3, 8, 8), -0.2860 / 0.3530))


def test_idx_under_the_name_of_a_data_set(files: Any, load: Any, tmp_path: Path) -> None:
    pixels = torch.from_numpy(files.write_idx_folder(tmp_path, classes=3)["train"])
    named = load(tmp_path, "fashion-mnist", channels=1)
    assert named.name == "fashion-mnist"
    assert len(named.train.classes) == 10
    assert len(load(tmp_path, channels=1).train.classes) == 3
    images = next(named.train.batches(20)).images
    torch.testing.assert_close(images[:, 0], (pixels / 255 - 0.2860) / 0.3530)


def test_progress_is_told(
    files: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("train.parquet", 4), ("test.parquet", 2)):
        files.write_parquet(tmp_path, name, [0, 1] * (count // 2))
    told: list[tuple[str, int, int]] = []
    load(tmp_path, loading=lambda *news: told.append(news))
    assert told == [("train", 4, 4), ("test", 2, 2)]
    told.clear()
    monkeypatch.setattr("splitlab.core.data.split.DECODED_AT_ONCE", 3)
    load(tmp_path, loading=lambda *news: told.append(news))
    assert told == [("train", 3, 4), ("train", 4, 4), ("test", 2, 2)]


def test_unknown_names(load: Any, refusal: Any) -> None:
    message = refusal(lambda: load(None, "cifar1000"))
    assert "unknown data set 'cifar1000'" in message
    assert "did you mean 'cifar100'" in message
    assert "flowers102" in message
    assert "did you mean 'paper'" in refusal(lambda: load(None, "cifar10", augment="papper"))


def test_neither_name_nor_folder(load: Any, refusal: Any) -> None:
    assert "--data-dir" in refusal(lambda: load(None))


def test_channels(load: Any, refusal: Any) -> None:
    assert "4 channels" in refusal(lambda: load(None, "fashion-mnist-mini", channels=4))


def test_a_class_that_training_lacks(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_image_folder(tmp_path / "a")
    (tmp_path / "a" / "test" / "dog").rename(tmp_path / "a" / "test" / "wolf")
    message = refusal(lambda: load(tmp_path / "a"))
    assert "(test part) has classes that" in message
    assert "(training part) lacks: wolf;" in message
    files.write_parquet(tmp_path / "b", "train.parquet", ["cat", "dog"])
    files.write_parquet(tmp_path / "b", "test.parquet", ["dog", "eel", "cat"])
    assert "lacks: eel;" in refusal(lambda: load(tmp_path / "b"))


def test_the_classes_are_the_training_parts(files: Any, load: Any, tmp_path: Path) -> None:
    files.write_image_folder(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "test" / "cat")
    data = load(tmp_path / "a")
    assert data.train.classes == data.test.classes == ("cat", "dog")
    assert next(data.test.batches(9)).targets.tolist() == [1, 1]
    files.write_parquet(tmp_path / "b", "train.parquet", [0, 1], class_names=["x", "y"])
    files.write_parquet(tmp_path / "b", "test.parquet", [0, 1, 1], class_names=["y", "x"])
    assert next(load(tmp_path / "b").test.batches(9)).targets.tolist() == [1, 0, 0]
    files.write_parquet(tmp_path / "c", "train.parquet", ["x", "y", "z"])
    files.write_parquet(tmp_path / "c", "test.parquet", ["z"])
    assert next(load(tmp_path / "c").test.batches(9)).targets.tolist() == [2]


def test_only_one_part_names_its_classes(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    files.write_parquet(tmp_path, "train.parquet", [0, 1], class_names=["x", "y"])
    files.write_parquet(tmp_path, "test.parquet", [0, 1])
    message = refusal(lambda: load(tmp_path))
    assert "(training part) names its classes" in message
    assert "(test part) numbers them" in message


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_share_of_the_training_part(
    files: Any, load: Any, refusal: Any, tmp_path: Path, share: float
) -> None:
    for name, count in (("a", 10), ("b", 20), ("c", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            files.noise(number).save(tmp_path / name / f"{number:02}.png")
    data, again = (load(tmp_path, test_share=share) for _ in range(2))
    train, test = next(data.train.batches(99)), next(data.test.batches(99))
    assert test.targets.bincount().tolist() == [10 * share, 20 * share]
    assert train.targets.bincount().tolist() == [10 - 10 * share, 20 - 20 * share, 1]
    assert torch.equal(next(again.test.batches(99)).images, test.images)
    assert data.fingerprint == again.fingerprint
    assert data.fingerprint == load(tmp_path, test_share=share, seed=1).fingerprint
    assert data.fingerprint != load(tmp_path, test_share=share / 2).fingerprint
    everything = {image.numpy().tobytes() for batch in (train, test) for image in batch.images}
    assert len(everything) == 20  # the images of a and c are b's first ones
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)
    assert "no class has two images" in refusal(lambda: load(tmp_path, test_share=share))


def test_another_part_or_a_share_of_a_named_data_set(
    files: Any, load: Any, refusal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[str] = []

    def load_dataset(*_: object, split: str) -> object:
        asked.append(split)
        image = {"bytes": files.png(files.noise(0)), "path": None}
        return datasets.Dataset.from_dict(
            {"img": [image] * 20, "label": [*range(10)] * 2},
            features=datasets.Features({"img": datasets.Image(), "label": datasets.Value("int8")}),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load(None, "cifar10", test_split="validation")
    assert asked == ["train", "validation"]
    asked.clear()
    assert len(load(None, "cifar10", test_share=0.5).test) == 10
    assert asked == ["train"]
    assert len(load(None, "fashion-mnist-mini", test_share=0.1, channels=1).train) == 5400
    message = refusal(lambda: load(None, "fashion-mnist-mini", test_split="val"))
    assert "--test-split val: data set fashion-mnist-mini has a file for train" in message


def test_not_the_named_data_set(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_image_folder(tmp_path)
    assert "has 2 classes, food101 has 101" in refusal(lambda: load(tmp_path, "food101"))


@pytest.mark.parametrize("label", [10, -1, 2**40])
def test_labels_outside_the_classes(
    files: Any, load: Any, refusal: Any, tmp_path: Path, label: int
) -> None:
    files.write_parquet(tmp_path, "train.parquet", [0, 1, label])
    files.write_parquet(tmp_path, "test.parquet", [0, 1])
    message = refusal(lambda: load(tmp_path, "cifar10"))
    assert f"row 2: label {label} is outside the 10 classes, 0 to 9" in message


@pytest.mark.parametrize("label", [5, -1])
def test_test_labels_that_training_lacks(
    files: Any, load: Any, refusal: Any, tmp_path: Path, label: int
) -> None:
    files.write_parquet(tmp_path, "train.parquet", [0, 1, 2])
    files.write_parquet(tmp_path, "test.parquet", [0, label])
    assert f"row 1: label {label} is outside" in refusal(lambda: load(tmp_path))


def test_absurd_labels_take_no_memory(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path, "train.parquet", [0, 2**62])
    files.write_parquet(tmp_path, "test.parquet", [0])
    assert "outside the 100000 classes" in refusal(lambda: load(tmp_path))


def test_a_label_outside_the_named_data_set(
    files: Any, load: Any, refusal: Any, idx_folder: Path
) -> None:
    files.write_idx(idx_folder / "t10k-labels-idx1-ubyte", np.full(10, 10, np.uint8))
    message = refusal(lambda: load(idx_folder, "fashion-mnist", channels=1))
    assert "(t10k-*), row 0: label 10 is outside the 10 classes" in message


def test_no_samples(load: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: object, **__: object) -> object:
        features = {"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
        return datasets.Dataset.from_dict(
            {"img": [], "label": []}, features=datasets.Features(features)
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "cifar10 (train) holds no images" in refusal(lambda: load(None, "cifar10"))


def test_the_fingerprint_tells_when_the_data_change(files: Any, load: Any, tmp_path: Path) -> None:
    def mark(name: str, **settings: Any) -> str:
        return str(load(tmp_path / name, **settings).fingerprint)

    for name in ("a", "moved", "larger", "renamed"):
        files.write_image_folder(tmp_path / name)
    first = mark("a")
    assert len(first) == 16
    assert mark("a", image_size=16, channels=1, seed=3) == first
    assert mark("moved") == first
    files.noise(0, size=9).save(tmp_path / "larger" / "train" / "cat" / "0.png")
    for part in ("train", "test"):
        (tmp_path / "renamed" / part / "dog").rename(tmp_path / "renamed" / part / "fox")
    assert len({first, mark("larger"), mark("renamed")}) == 3
    (tmp_path / "a" / "test" / "cat" / "0.png").unlink()
    assert mark("a") != first


def test_the_fingerprint_of_tables_and_arrays(files: Any, load: Any, tmp_path: Path) -> None:
    def parquet(name: str, labels: list[int], **settings: Any) -> str:
        files.write_parquet(tmp_path / name, "train.parquet", labels, **settings)
        files.write_parquet(tmp_path / name, "test.parquet", [0, 1])
        return str(load(tmp_path / name).fingerprint)

    assert parquet("a", [0, 1]) == parquet("b", [0, 1])
    assert len({parquet("c", labels) for labels in ([0, 1], [1, 0], [0, 1, 1])}) == 3
    assert parquet("d", [0, 1], size=9) != parquet("e", [0, 1])
    files.write_idx_folder(tmp_path / "idx")
    before = load(tmp_path / "idx").fingerprint
    assert load(tmp_path / "idx").fingerprint == before
    files.write_idx(tmp_path / "idx" / "train-images-idx3-ubyte", np.zeros((20, 8, 8), np.uint8))
    assert load(tmp_path / "idx").fingerprint != before
