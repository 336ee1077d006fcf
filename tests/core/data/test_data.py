"""Data: what is loaded, in which order, with which pixels, and how bad input is answered."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splitlab.core.data import data as data_module
from splitlab.core.data.data import Data, Split, class_count, load_data, read_idx
from splitlab.core.data.entry import dataset_entry
from splitlab.core.contract.errors import ConfigError
from splitlab.core.catalogue.registry import ROOT, catalogue

ASSETS = ROOT / "core" / "assets"


def load(folder: Path | None, dataset: str | None = None, **settings: object) -> Data:
    return load_data(dataset, folder, **({"image_size": 8, "channels": 3, "seed": 0} | settings))


def noise(seed: int, *, size: int = 8, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "L": 1}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def png(image: Image.Image, folder: Path) -> bytes:
    path = folder / "scratch.png"
    image.save(path)
    content = path.read_bytes()
    path.unlink()
    return content


def write_parquet(
    folder: Path,
    name: str,
    labels: Sequence[object],
    *,
    columns: tuple[str, str] = ("image", "label"),
    images: Sequence[bytes | None] | None = None,
    class_names: Sequence[str] | None = None,
    size: int = 8,
    mode: str = "RGB",
) -> Path:
    """Write Parquet as any tool would, or with the metadata of `datasets` if classes are named."""
    folder.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = [png(noise(row, size=size, mode=mode), folder) for row in range(len(labels))]
    table = pa.table(
        {
            columns[0]: pa.array(
                [{"bytes": image, "path": None} for image in images],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            ),
            columns[1]: pa.array(labels),
        }
    )
    if class_names is not None:
        features = {
            columns[0]: {"_type": "Image"},
            columns[1]: {"_type": "ClassLabel", "names": class_names},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path = folder / name
    pq.write_table(table, path)
    return path


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([values.ndim])
    header += b"".join(size.to_bytes(4, "big") for size in values.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(header + values.tobytes())


def write_idx_folder(folder: Path, *, suffix: str = "", classes: int = 10) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    images = {}
    for seed, (prefix, count) in enumerate((("train", 20), ("t10k", 10))):
        rng = np.random.default_rng(seed)
        images[prefix] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images[prefix])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return images


def write_image_folder(folder: Path, *, test: str = "test", size: int = 8) -> None:
    for part, count in (("train", 3), (test, 2)):
        for class_name in ("cat", "dog"):
            place = folder / part / class_name
            place.mkdir(parents=True)
            for number in range(count):
                noise(number, size=size).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def mini() -> Data:
    return load_data("fashion-mnist-mini", None, image_size=28, channels=1, seed=0)


@pytest.fixture(autouse=True)
def _leave_no_trace() -> object:
    """No test of this file may change global random state or leave a thread behind."""
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    threads = set(threading.enumerate())
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))
    assert set(threading.enumerate()) == threads


def script(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ASSETS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestEmbedded:
    def test_sizes_classes_and_balance(self, mini: Data) -> None:
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

    def test_pretraining_saw_no_image_of_the_subset(self) -> None:
        left = script("make_vit_mini_weights").pretraining_indices()
        subset = pq.read_table(ASSETS / "fashion_mnist_mini-train.parquet")["index"].to_pylist()
        assert len(set(subset)) == 6_000
        assert len(left) == 54_000
        assert sorted([*left.tolist(), *subset]) == list(range(60_000))

    def test_the_subset_is_drawn_in_equal_shares(self) -> None:
        maker = script("make_fashion_mnist_mini")
        labels = torch.arange(1_000) % 10
        drawn = maker.balanced_subset(labels, 100)
        assert labels[drawn].bincount().tolist() == [10] * 10
        assert torch.equal(drawn, drawn.unique())
        assert torch.equal(drawn, maker.balanced_subset(labels, 100))

    def test_a_made_table_reads_back_pixel_by_pixel(self, tmp_path: Path) -> None:
        maker = script("make_fashion_mnist_mini")
        images = torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
        )
        index = torch.tensor([3, 5, 19])
        for name in ("train.parquet", "test.parquet"):
            table = maker.make_table(images, torch.arange(20) % 10, index)
            pq.write_table(table, tmp_path / name)
        split = load(tmp_path, "fashion-mnist-mini", image_size=28, channels=1).train
        batch = next(split.batches(3))
        assert torch.equal((batch.images * 0.3530 + 0.2860).mul(255).round()[:, 0], images[index])
        assert batch.targets.tolist() == [3, 5, 9]
        assert split.classes == maker.CLASSES

    def test_the_weights_were_made_with_the_catalogues_normalisation(self) -> None:
        maker, entry = script("make_vit_mini_weights"), dataset_entry("fashion-mnist-mini")
        assert (entry.mean, entry.std) == ([maker.MEAN], [maker.STD])

    def test_the_weights_fit_a_timm_model_but_for_its_head(self) -> None:
        from safetensors import safe_open

        with safe_open(ASSETS / "vit_mini.safetensors", "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert "rotation" in file.metadata()["training"]
        with torch.random.fork_rng():
            model = script("make_vit_mini_weights").build_model()
        left = model.load_state_dict(weights, strict=False)
        assert set(left.missing_keys) == {"head.weight", "head.bias"}
        assert not left.unexpected_keys
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        assert all(weight.isfinite().all() for weight in weights.values())


class TestOrder:
    @given(
        epoch=st.integers(0, 5),
        skip=st.integers(0, 12),
        size=st.integers(7, 900),
        mix=st.booleans(),
    )
    @settings(max_examples=25, deadline=None)
    def test_skip_equals_slicing_and_every_sample_comes_once(
        self, mini: Data, epoch: int, skip: int, size: int, mix: bool
    ) -> None:
        whole = list(mini.test.batches(size, epoch=epoch, shuffle=mix))
        ids = torch.cat([batch.sample_ids for batch in whole])
        assert torch.equal(ids.sort().values, torch.arange(1_000))
        assert all(len(batch.targets) == size for batch in whole[:-1])
        rest = list(mini.test.batches(size, epoch=epoch, skip=skip, shuffle=mix))
        assert len(rest) == len(whole[skip:])
        for ours, theirs in zip(rest, whole[skip:], strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.targets, theirs.targets)
            assert torch.equal(ours.sample_ids, theirs.sample_ids)

    def test_seed_and_epoch_decide_the_order_and_nothing_else(self, tmp_path: Path) -> None:
        write_idx_folder(tmp_path)

        def order(seed: int, epoch: int, part: str = "train") -> list[int]:
            split: Split = getattr(load(tmp_path, seed=seed), part)
            return next(split.batches(20, epoch=epoch, shuffle=True)).sample_ids.tolist()

        first = order(0, 0)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            assert order(0, 0) == first
        assert order(0, 1) != first
        assert order(1, 0) != first
        assert order(0, 0, "test") != [row for row in first if row < 10]
        assert first != list(range(20))

    def test_sample_ids_name_the_same_images_in_every_epoch(self, mini: Data) -> None:
        plain = next(mini.test.batches(1_000))
        mixed = next(mini.test.batches(1_000, epoch=3, shuffle=True))
        assert torch.equal(plain.images[mixed.sample_ids], mixed.images)
        assert torch.equal(plain.targets[mixed.sample_ids], mixed.targets)

    @pytest.mark.parametrize(("size", "skip"), [(0, 0), (-1, 0), (5, -1)])
    def test_impossible_sizes_are_refused_at_once(self, mini: Data, size: int, skip: int) -> None:
        with pytest.raises(ConfigError, match="at least"):
            mini.test.batches(size, skip=skip)


class TestPixels:
    def test_grey_becomes_colour_and_back_with_its_normalisation(self, tmp_path: Path) -> None:
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [0, 1], mode="L")
        grey = next(load(tmp_path, channels=1).test.batches(2)).images
        colour = next(load(tmp_path, channels=3).test.batches(2)).images
        assert (grey.shape, colour.shape) == ((2, 1, 8, 8), (2, 3, 8, 8))
        pixels = torch.stack([torch.from_numpy(np.array(noise(row, mode="L"))) for row in (0, 1)])
        torch.testing.assert_close(grey[:, 0], pixels / 255 / 0.5 - 1)
        torch.testing.assert_close(colour[:, 2], (pixels / 255 - 0.406) / 0.225)

    def test_a_named_sets_normalisation_is_averaged_or_repeated(self, tmp_path: Path) -> None:
        black = png(Image.new("L", (8, 8)), tmp_path)
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [0], images=[black])
        averaged = load(tmp_path, "cifar10", channels=1)
        value = next(averaged.test.batches(1)).images.unique()
        mean, std = (0.4914 + 0.4822 + 0.4465) / 3, (0.2470 + 0.2435 + 0.2616) / 3
        torch.testing.assert_close(value, torch.tensor([-mean / std]))
        repeated = load(tmp_path, "fashion-mnist", channels=3)
        value = next(repeated.test.batches(1)).images.unique()
        torch.testing.assert_close(value, torch.tensor([-0.2860 / 0.3530]))

    def test_images_are_resized_only_where_their_size_differs(self, tmp_path: Path) -> None:
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [0], size=16)
        for size in (16, 8, 24):
            image = noise(0, size=16)
            if size != 16:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            got = next(load(tmp_path, image_size=size).test.batches(1)).images[0]
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in data_module.NORMALISATION[3])
            want = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
            torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("workers", [0, 3])
    def test_decoding_when_needed_gives_the_same_batches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [*range(5)] * 9)
        kept = load(tmp_path, workers=workers)
        monkeypatch.setattr(data_module, "DECODED_LIMIT", 0)
        lazy = load(tmp_path, workers=workers)
        pairs = zip(
            kept.train.batches(4, epoch=2, skip=1, shuffle=True),
            lazy.train.batches(4, epoch=2, skip=1, shuffle=True),
            strict=True,
        )
        for ours, theirs in pairs:
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.sample_ids, theirs.sample_ids)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_skipped_images_are_not_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        monkeypatch.setattr(data_module, "DECODED_LIMIT", 0)
        good = png(noise(0), tmp_path)
        write_parquet(tmp_path, "train.parquet", [0, 1, 0, 1], images=[b"bad", b"bad", good, good])
        write_parquet(tmp_path, "test.parquet", [0, 1])
        split = load(tmp_path, workers=workers).train
        assert [batch.sample_ids.tolist() for batch in split.batches(2, skip=1)] == [[2, 3]]
        with pytest.raises(ConfigError, match="row 0: not a readable image"):
            next(split.batches(2))

    def test_leaving_an_epoch_early_leaves_no_thread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(data_module, "DECODED_LIMIT", 0)
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [0, 1] * 20)
        for batch in load(tmp_path, workers=2).train.batches(2):
            assert len(batch.targets) == 2
            break

    def test_progress_is_told(self, tmp_path: Path) -> None:
        for name, count in (("train.parquet", 4), ("test.parquet", 2)):
            write_parquet(tmp_path, name, [0, 1] * (count // 2))
        told: list[tuple[str, int, int]] = []
        load(tmp_path, progress=lambda *news: told.append(news))
        assert told == [("train", 4, 4), ("test", 2, 2)]


class TestAugmentation:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [0, 1] * 8, size=12)
        return tmp_path

    def test_seed_epoch_and_sample_decide_and_nothing_else(self, folder: Path) -> None:
        def images(seed: int, epoch: int, **how: object) -> torch.Tensor:
            split = load(folder, augment="paper", seed=seed, **how).train
            batches = list(split.batches(4, epoch=epoch, shuffle=True))
            order = torch.cat([batch.sample_ids for batch in batches])
            return torch.cat([batch.images for batch in batches])[order.argsort()]

        first = images(0, 0)
        assert first.shape == (16, 3, 8, 8)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            assert torch.equal(images(0, 0), first)
        assert torch.equal(images(0, 0, workers=3), first)
        for other in (images(1, 0), images(0, 1)):
            changed = (other != first).flatten(1).any(1)
            assert changed.sum() >= 15

    def test_a_resumed_run_sees_the_same_images(self, folder: Path) -> None:
        split = load(folder, augment="paper").train
        whole = list(split.batches(5, epoch=4, shuffle=True))
        for skip in range(5):
            rest = list(split.batches(5, epoch=4, skip=skip, shuffle=True))
            for ours, theirs in zip(rest, whole[skip:], strict=True):
                assert torch.equal(ours.images, theirs.images)

    def test_only_training_is_augmented(self, folder: Path) -> None:
        plain, augmented = load(folder), load(folder, augment="paper")
        pairs = zip(plain.test.batches(16), augmented.test.batches(16), strict=True)
        assert all(torch.equal(ours.images, theirs.images) for ours, theirs in pairs)
        ours, theirs = next(plain.train.batches(16)), next(augmented.train.batches(16))
        assert (ours.images != theirs.images).flatten(1).any(1).sum() >= 15

    def test_grey_images_too(self, mini: Data) -> None:
        data = load_data(
            "fashion-mnist-mini", None, image_size=32, channels=1, seed=0, augment="paper"
        )
        assert next(data.train.batches(200, shuffle=True)).images.shape == (200, 1, 32, 32)


class TestFolders:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_idx(self, tmp_path: Path, suffix: str) -> None:
        images = write_idx_folder(tmp_path / "clothes", suffix=suffix)
        data = load(tmp_path / "clothes", channels=1)
        assert (data.name, len(data.train), len(data.test)) == ("clothes", 20, 10)
        assert data.test.classes == tuple("0123456789")
        batch = next(data.test.batches(10))
        assert batch.targets.tolist() == list(range(10))
        torch.testing.assert_close(
            batch.images[:, 0], torch.from_numpy(images["t10k"]) / 255 / 0.5 - 1
        )

    def test_idx_under_the_name_of_a_data_set(self, tmp_path: Path) -> None:
        write_idx_folder(tmp_path, classes=3)
        named = load(tmp_path, "fashion-mnist", channels=1)
        assert named.name == "fashion-mnist"
        assert len(named.train.classes) == 10
        assert len(load(tmp_path, channels=1).train.classes) == 3
        low = next(named.train.batches(20)).images.min()
        assert low == pytest.approx(-0.2860 / 0.3530, abs=0.02)

    @pytest.mark.parametrize("place", [".", "data", "a[b] *"])
    def test_parquet_here_or_in_data(self, tmp_path: Path, place: str) -> None:
        write_parquet(tmp_path / place, "train-00000-of-00002.parquet", [0, 1])
        write_parquet(tmp_path / place, "train-00001-of-00002.parquet", [2, 3, 4])
        write_parquet(tmp_path / place, "validation-00000-of-00001.parquet", [4, 0])
        data = load(tmp_path if place == "data" else tmp_path / place)
        assert next(data.train.batches(9)).targets.tolist() == [0, 1, 2, 3, 4]
        assert next(data.test.batches(9)).targets.tolist() == [4, 0]
        assert data.train.classes == ("0", "1", "2", "3", "4")

    def test_parquet_with_text_labels(self, tmp_path: Path) -> None:
        write_parquet(tmp_path, "train.parquet", ["dog", "cat"], columns=("img", "class"))
        write_parquet(tmp_path, "test.parquet", ["cat", "dog"], columns=("img", "class"))
        data = load(tmp_path)
        assert data.train.classes == ("cat", "dog")
        assert next(data.train.batches(2)).targets.tolist() == [1, 0]

    def test_parquet_columns_are_found_by_their_type(self, tmp_path: Path) -> None:
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [0, 1], columns=("photo", "kind"), class_names=["a", "b"])
        assert load(tmp_path).train.classes == ("a", "b")

    def test_parquet_columns_of_a_named_data_set(self, tmp_path: Path) -> None:
        for name in ("train.parquet", "test.parquet"):
            path = write_parquet(tmp_path, name, [7, 99], columns=("img", "fine_label"))
            table = pq.read_table(path)
            pq.write_table(table.append_column("label", pa.array([0, 1])), path)
        data = load(tmp_path, "cifar100")
        assert next(data.test.batches(2)).targets.tolist() == [7, 99]

    def test_large_parquet_is_not_held_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        monkeypatch.setattr(data_module, "PARQUET_LIMIT", 0)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path / "images", name, [0, 1])
        assert len(load(tmp_path / "images").train) == 2
        assert list((tmp_path / "cache").rglob("*.arrow"))

    @pytest.mark.parametrize("test", ["test", "val", "validation"])
    def test_image_folders(self, tmp_path: Path, test: str) -> None:
        write_image_folder(tmp_path / "pets [1]", test=test)
        (tmp_path / "pets [1]" / "train" / "notes.txt").write_text("not an image")
        data = load(tmp_path / "pets [1]")
        assert data.train.classes == ("cat", "dog")
        assert next(data.train.batches(9)).targets.tolist() == [0, 0, 0, 1, 1, 1]
        assert next(data.test.batches(9)).targets.tolist() == [0, 0, 1, 1]
        assert not torch.equal(*next(data.train.batches(2)).images)

    def test_image_folders_are_read_again_when_a_batch_needs_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_image_folder(tmp_path)
        kept = load(tmp_path)
        monkeypatch.setattr(data_module, "DECODED_LIMIT", 0)
        lazy = load(tmp_path, workers=2)
        for ours, theirs in zip(kept.test.batches(3), lazy.test.batches(3), strict=True):
            assert torch.equal(ours.images, theirs.images)

    def test_photographs_are_turned_upright(self, tmp_path: Path) -> None:
        write_image_folder(tmp_path)
        exif = Image.Exif()
        exif[0x0112] = 3  # orientation: upside down
        noise(0).rotate(180).save(tmp_path / "test" / "cat" / "0.png", exif=exif)
        data = load(tmp_path)
        first, second = next(data.train.batches(1)).images, next(data.test.batches(1)).images
        assert torch.equal(first, second)

    def test_nothing_is_written_or_said(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        import datasets

        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        write_image_folder(tmp_path / "images")
        write_parquet(tmp_path / "parquet", "train.parquet", [0, 1])
        write_parquet(tmp_path / "parquet", "test.parquet", [0, 1])
        write_idx_folder(tmp_path / "idx")
        before = sorted(tmp_path.rglob("*"))
        for name in ("images", "parquet", "idx"):
            load(tmp_path / name)
        load(None, "fashion-mnist-mini")
        assert sorted(tmp_path.rglob("*")) == before
        assert capfd.readouterr() == ("", "")
        assert not datasets.are_progress_bars_disabled()


class TestHub:
    @pytest.mark.parametrize(
        "name", [name for name, table in catalogue()["datasets"].items() if "hub" in table]
    )
    def test_the_request(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        entry = dataset_entry(name)
        labels = list(range(entry.classes))
        image = {"bytes": png(noise(0), tmp_path), "path": None}
        features = datasets.Features(
            {
                entry.image: datasets.Image(),
                "coarse_label": datasets.ClassLabel(num_classes=2),
                entry.label: datasets.ClassLabel(num_classes=entry.classes),
            }
        )
        columns = {
            entry.image: [image] * len(labels),
            "coarse_label": [0] * len(labels),
            entry.label: labels,
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        asked: list[tuple[object, ...]] = []

        def load_dataset(path: str, config: str | None, *, split: str) -> object:
            asked.append((path, config, split))
            return table

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        data = load(None, name)
        assert asked == [(entry.hub, entry.config, part) for part in (entry.train, entry.test)]
        assert data.name == name
        assert next(data.test.batches(200)).targets.tolist() == labels

    def test_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        def load_dataset(*_: object, **__: object) -> object:
            raise ConnectionError("Couldn't reach 'uoft-cs/cifar10' on the Hub\nmany lines\nmore")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        message = refusal(lambda: load(None, "cifar10"))
        assert "uoft-cs/cifar10 cannot be loaded from the Hugging Face hub" in message
        assert "Couldn't reach" in message
        assert "--dataset cifar10 --data-dir FOLDER" in message


class TestCatalogue:
    def test_entries_are_complete(self) -> None:
        names = set(catalogue()["datasets"])
        assert names >= {"fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "food101"}
        assert names >= {"imagenette", "flowers102"}
        for name in names:
            entry = dataset_entry(name)
            assert bool(entry.hub) != bool(entry.files)
            assert len(entry.mean) == len(entry.std) in (1, 3)
            assert all(0 < value < 1 for value in (*entry.mean, *entry.std))
            assert entry.summary
            assert entry.licence
            assert all((ROOT / file).is_file() for file in entry.files.values())

    def test_class_counts_need_neither_torch_nor_datasets(self) -> None:
        program = (
            "import sys; from splitlab.core.data.entry import class_count\n"
            "assert class_count('cifar100') == 100\n"
            "assert not {'torch', 'datasets', 'torchvision', 'PIL'} & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        assert class_count("fashion-mnist-mini") == 10


def refusal(action: Callable[[], object]) -> str:
    """Run what must fail with a ConfigError of one line, and return that line."""
    with pytest.raises(ConfigError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestRefusals:
    def test_unknown_names(self) -> None:
        message = refusal(lambda: load(None, "cifar1000"))
        assert "unknown data set 'cifar1000'" in message
        assert "did you mean 'cifar100'" in message
        assert "flowers102" in message
        assert "did you mean 'paper'" in refusal(lambda: load(None, "cifar10", augment="papper"))
        assert "unknown data set" in refusal(lambda: class_count("mnist"))

    def test_neither_name_nor_folder(self) -> None:
        assert "--data-dir" in refusal(lambda: load(None))

    def test_channels(self) -> None:
        assert "4 channels" in refusal(lambda: load(None, "fashion-mnist-mini", channels=4))

    def test_folders_that_are_not_data(self, tmp_path: Path) -> None:
        def answer(folder: Path) -> str:
            message = refusal(lambda: load(folder))
            assert "IDX files" in message
            assert "Parquet files" in message
            assert "image folders" in message
            assert str(folder) in message
            return message

        assert "No such file" in answer(tmp_path / "absent")
        (tmp_path / "file").write_text("x")
        assert "Not a directory" in answer(tmp_path / "file")
        (tmp_path / "empty").mkdir()
        assert "is empty" in answer(tmp_path / "empty")
        (tmp_path / "other").mkdir()
        for number in range(12):
            (tmp_path / "other" / f"{number:02}.csv").write_text("x")
        assert "07.csv and 4 more" in answer(tmp_path / "other")
        (tmp_path / "flat" / "train").mkdir(parents=True)
        noise(0).save(tmp_path / "flat" / "train" / "0.png")
        assert "holds train;" in answer(tmp_path / "flat")

    def test_an_unreadable_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(_: Path) -> object:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", deny)
        assert "Permission denied" in refusal(lambda: load(tmp_path))

    def test_a_part_is_missing(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a", "train.parquet", [0, 1])
        assert "has no test part" in refusal(lambda: load(tmp_path / "a"))
        write_parquet(tmp_path / "b", "test.parquet", [0, 1])
        assert "has no training part" in refusal(lambda: load(tmp_path / "b"))
        write_image_folder(tmp_path / "c", test="holdout")
        assert "has no test part" in refusal(lambda: load(tmp_path / "c"))
        write_idx_folder(tmp_path / "d")
        (tmp_path / "d" / "t10k-labels-idx1-ubyte").unlink()
        assert "has no t10k-labels-idx1-ubyte" in refusal(lambda: load(tmp_path / "d"))

    def test_classes_differ(self, tmp_path: Path) -> None:
        write_image_folder(tmp_path / "a")
        (tmp_path / "a" / "test" / "dog").rename(tmp_path / "a" / "test" / "wolf")
        message = refusal(lambda: load(tmp_path / "a"))
        assert "different classes: only one of them has dog, wolf" in message
        write_parquet(tmp_path / "b", "train.parquet", [0, 1], class_names=["x", "y"])
        write_parquet(tmp_path / "b", "test.parquet", [0, 1], class_names=["y", "x"])
        assert "the order is not the same" in refusal(lambda: load(tmp_path / "b"))

    def test_not_the_named_data_set(self, tmp_path: Path) -> None:
        write_image_folder(tmp_path)
        assert "has 2 classes, food101 has 101" in refusal(lambda: load(tmp_path, "food101"))

    @pytest.mark.parametrize("label", [10, -1, 2**40])
    def test_labels_outside_the_classes(self, tmp_path: Path, label: int) -> None:
        write_parquet(tmp_path, "train.parquet", [0, 1, label])
        write_parquet(tmp_path, "test.parquet", [0, 1])
        message = refusal(lambda: load(tmp_path, "cifar10"))
        assert f"row 2: label {label} is outside the 10 classes, 0 to 9" in message

    @pytest.mark.parametrize("label", [5, -1])
    def test_test_labels_that_training_lacks(self, tmp_path: Path, label: int) -> None:
        write_parquet(tmp_path, "train.parquet", [0, 1, 2])
        write_parquet(tmp_path, "test.parquet", [0, label])
        assert f"row 1: label {label} is outside" in refusal(lambda: load(tmp_path))

    def test_absurd_labels_take_no_memory(self, tmp_path: Path) -> None:
        write_parquet(tmp_path, "train.parquet", [0, 2**62])
        write_parquet(tmp_path, "test.parquet", [0])
        assert "outside the 100000 classes" in refusal(lambda: load(tmp_path))

    def test_a_label_is_missing(self, tmp_path: Path) -> None:
        write_parquet(tmp_path, "train.parquet", [0, None])
        write_parquet(tmp_path, "test.parquet", [0])
        assert "row 1: column label is empty" in refusal(lambda: load(tmp_path))

    def test_no_column_fits(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a", "train.parquet", [0.5, 1.5])
        write_parquet(tmp_path / "a", "test.parquet", [0.5])
        message = refusal(lambda: load(tmp_path / "a"))
        assert "no label column among image, label" in message
        for name in ("train.parquet", "test.parquet"):
            (tmp_path / "b").mkdir(exist_ok=True)
            pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "b" / name)
        assert "no image column" in refusal(lambda: load(tmp_path / "b"))

    def test_no_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        def load_dataset(*_: object, **__: object) -> object:
            features = {"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
            return datasets.Dataset.from_dict(
                {"img": [], "label": []}, features=datasets.Features(features)
            )

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert "cifar10 (train) holds no images" in refusal(lambda: load(None, "cifar10"))

    def test_class_folders_without_images(self, tmp_path: Path) -> None:
        for part in ("train", "test"):
            (tmp_path / part / "cat").mkdir(parents=True)
        assert "(training part) cannot be read" in refusal(lambda: load(tmp_path))

    def test_broken_parquet(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        good = write_parquet(tmp_path, "test.parquet", [0, 1])
        (tmp_path / "train.parquet").write_bytes(good.read_bytes()[:-20])
        assert "(training part) cannot be read" in refusal(lambda: load(tmp_path))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("workers", [0, 2])
    def test_broken_images_are_named(self, tmp_path: Path, workers: int) -> None:
        write_image_folder(tmp_path / "a")
        broken = tmp_path / "a" / "train" / "dog" / "1.png"
        broken.write_bytes(broken.read_bytes()[:100])
        message = refusal(lambda: load(tmp_path / "a", workers=workers))
        assert message.startswith(f"{broken}: not a readable image")
        good = png(noise(0), tmp_path)
        write_parquet(tmp_path / "b", "train.parquet", [0, 1, 1], images=[good, None, good])
        write_parquet(tmp_path / "b", "test.parquet", [0, 1])
        message = refusal(lambda: load(tmp_path / "b", workers=workers))
        assert "(training part), row 1: not a readable image" in message

    def test_deep_colour_is_refused_instead_of_clipped(self, tmp_path: Path) -> None:
        deep = png(Image.new("I;16", (8, 8), 40_000), tmp_path)
        for name in ("train.parquet", "test.parquet"):
            write_parquet(tmp_path, name, [0], images=[deep])
        assert "mode I;16, not 8 bits per channel" in refusal(lambda: load(tmp_path))


class TestIdxRefusals:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_idx_folder(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize("declared", [21, 2**31])
    def test_shorter_than_declared(self, tmp_path: Path, suffix: str, declared: int) -> None:
        path = tmp_path / f"train-images-idx3-ubyte{suffix}"
        write_idx(path, np.zeros((20, 8, 8), np.uint8))
        opener = gzip.open if suffix else open
        with opener(path, "rb") as file:
            content = bytearray(file.read())
        content[4:8] = declared.to_bytes(4, "big")
        with opener(path, "wb") as file:
            file.write(content)
        message = refusal(lambda: read_idx(path))
        assert f"declares {declared} x 8 x 8 = {declared * 64:,} bytes" in message
        assert "the file holds 1,280" in message

    def test_longer_than_declared(self, folder: Path) -> None:
        path = folder / "train-labels-idx1-ubyte"
        path.write_bytes(path.read_bytes() + b"x")
        assert "holds more than 20" in refusal(lambda: load(folder))

    def test_cut_gzip(self, tmp_path: Path) -> None:
        path = tmp_path / "train-images-idx3-ubyte.gz"
        write_idx(path, np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:-50])
        assert "cannot be read" in refusal(lambda: read_idx(path))
        path.write_bytes(b"not gzip")
        assert "cannot be read" in refusal(lambda: read_idx(path))

    @pytest.mark.parametrize(
        "content", [b"", b"\0\0", b"\x89PNG", b"\0\0\x0d\x03" + bytes(12), b"\0\0\x08\x03\0\0"]
    )
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(content)
        assert "not an IDX file of bytes" in refusal(lambda: read_idx(path))

    def test_nothing_inside(self, tmp_path: Path) -> None:
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(b"\0\0\x08\x03" + bytes(12))
        assert "0 x 0 x 0" in refusal(lambda: read_idx(path))

    def test_images_and_labels_do_not_match(self, folder: Path) -> None:
        write_idx(folder / "train-labels-idx1-ubyte", np.zeros(19, np.uint8))
        assert "20 images, but 19 labels" in refusal(lambda: load(folder))

    def test_files_are_mixed_up(self, folder: Path) -> None:
        write_idx(folder / "train-labels-idx1-ubyte", np.zeros((20, 8, 8), np.uint8))
        assert "3 dimensions, labels have 1" in refusal(lambda: load(folder))

    def test_a_label_outside_the_named_data_set(self, folder: Path) -> None:
        write_idx(folder / "t10k-labels-idx1-ubyte", np.full(10, 10, np.uint8))
        message = refusal(lambda: load(folder, "fashion-mnist", channels=1))
        assert "(t10k-*), row 0: label 10 is outside the 10 classes" in message
