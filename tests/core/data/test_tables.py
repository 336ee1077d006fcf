"""Parquet, image folders and the hub: which columns, what is kept, and how failures are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.data.entry import dataset_entry


def test_parquet_with_text_labels(files: Any, load: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path, "train.parquet", ["dog", "cat"], columns=("img", "class"))
    files.write_parquet(tmp_path, "test.parquet", ["cat", "dog"], columns=("img", "class"))
    data = load(tmp_path)
    assert data.train.classes == ("cat", "dog")
    assert next(data.train.batches(2)).targets.tolist() == [1, 0]


def test_parquet_columns_are_found_by_their_type(files: Any, load: Any, tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(
            tmp_path, name, [0, 1], columns=("photo", "kind"), class_names=["a", "b"]
        )
    assert load(tmp_path).train.classes == ("a", "b")


def test_parquet_columns_of_a_named_data_set(files: Any, load: Any, tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        path = files.write_parquet(tmp_path, name, [7, 99], columns=("img", "fine_label"))
        table = pq.read_table(path)
        pq.write_table(table.append_column("label", pa.array([0, 1])), path)
    data = load(tmp_path, "cifar100")
    assert next(data.test.batches(2)).targets.tolist() == [7, 99]


def test_large_parquet_is_not_held_in_memory(
    files: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr("splitlab.core.data.tables.PARQUET_LIMIT", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path / "images", name, [0, 1])
    assert len(load(tmp_path / "images").train) == 2
    assert list((tmp_path / "cache").rglob("*.arrow"))


def test_nothing_is_written_or_said(
    files: Any,
    load: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import datasets

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    files.write_image_folder(tmp_path / "images")
    files.write_parquet(tmp_path / "parquet", "train.parquet", [0, 1])
    files.write_parquet(tmp_path / "parquet", "test.parquet", [0, 1])
    files.write_idx_folder(tmp_path / "idx")
    before = sorted(tmp_path.rglob("*"))
    for name in ("images", "parquet", "idx"):
        load(tmp_path / name)
    load(None, "fashion-mnist-mini")
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("good", [True, False])
def test_the_manner_of_datasets_is_put_back(
    files: Any,
    load: Any,
    refusal: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    good: bool,
) -> None:
    import datasets

    # The environment of whoever runs this may have fixed the bars, so they are only imitated.
    bars = [True]
    monkeypatch.setattr(datasets, "are_progress_bars_disabled", lambda: not bars[-1])
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: bars.append(False))
    monkeypatch.setattr(datasets, "enable_progress_bars", lambda: bars.append(True))
    files.write_parquet(tmp_path, "test.parquet", [0, 1])
    path = files.write_parquet(tmp_path, "train.parquet", [0, 1])
    if not good:
        path.write_bytes(b"bad")
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.ERROR)
    try:
        load(tmp_path) if good else refusal(lambda: load(tmp_path))
        assert datasets.logging.get_verbosity() == datasets.logging.ERROR
    finally:
        datasets.logging.set_verbosity(before)
    assert bars == [True, *[False, True] * (2 if good else 1)]


@pytest.mark.parametrize(
    "name", [name for name, table in catalogue()["datasets"].items() if "hub" in table]
)
def test_the_request(
    files: Any, load: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    entry = dataset_entry(name)
    labels = list(range(entry.classes))
    image = {"bytes": files.png(files.noise(0)), "path": None}
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


def test_out_of_reach(load: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: object, **__: object) -> object:
        raise ConnectionError("Couldn't reach 'uoft-cs/cifar10' on the Hub\nmany lines\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal(lambda: load(None, "cifar10"))
    assert "uoft-cs/cifar10 cannot be loaded from the Hugging Face hub" in message
    assert "Couldn't reach" in message
    assert "--dataset cifar10 --data-dir FOLDER" in message


def test_a_label_is_missing(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path, "train.parquet", [0, None])
    files.write_parquet(tmp_path, "test.parquet", [0])
    assert "row 1: column label is empty" in refusal(lambda: load(tmp_path))


def test_no_column_fits(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "a", "train.parquet", [0.5, 1.5])
    files.write_parquet(tmp_path / "a", "test.parquet", [0.5])
    message = refusal(lambda: load(tmp_path / "a"))
    assert "no label column among image, label" in message
    for name in ("train.parquet", "test.parquet"):
        (tmp_path / "b").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "b" / name)
    assert "no image column" in refusal(lambda: load(tmp_path / "b"))


def test_class_folders_without_images(load: Any, refusal: Any, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
    assert "(training part) cannot be read" in refusal(lambda: load(tmp_path))


def test_broken_parquet(
    files: Any, load: Any, refusal: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = files.write_parquet(tmp_path, "test.parquet", [0, 1])
    (tmp_path / "train.parquet").write_bytes(good.read_bytes()[:-20])
    assert "(training part) cannot be read" in refusal(lambda: load(tmp_path))
    assert capfd.readouterr() == ("", "")
