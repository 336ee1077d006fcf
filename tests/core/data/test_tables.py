"""Parquet, saved tables and the hub: which columns, what is kept, and how failures are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.data.entry import dataset_entry


def test_parquet_with_text_labels(files: Any, load: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path, "train.parquet", ["dog", "cat"], columns=("img", "class"))
    files.write_parquet(tmp_path, "test.parquet", ["cat", "dog"], columns=("img", "class"))
    data = load(tmp_path)
    assert data.train.classes == ("cat", "dog")
    assert next(data.train.batches(2)).targets.tolist() == [1, 0]


def test_the_image_column_is_found_by_its_type_and_the_labels_by_its_name(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(
            tmp_path, name, [0, 1], columns=("photo", "kind"), class_names=["a", "b"]
        )
    assert load(tmp_path, label_column="kind").train.classes == ("a", "b")
    message = refusal(lambda: load(tmp_path))
    assert "no label column among kind (int64), photo (struct<bytes" in message
    assert "--label-column" in message
    message = refusal(lambda: load(tmp_path, label_column="kindd"))
    assert "no column 'kindd' among kind (int64)" in message


LISTS = pa.array([[0], [1]])
BYTES = pa.array([b"a", b"b"])


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (pa.array([1.0, 0.0]), ("0", "1")),
        (pa.array([1.0, 0.0], pa.float32()), ("0", "1")),
        (pa.array([True, False]), ("0", "1")),
        (pa.array([1, 0], pa.uint64()), ("0", "1")),
        (pa.array(["b", "a"], pa.large_string()), ("a", "b")),
        (pa.array(["b", "a"]).dictionary_encode(), ("a", "b")),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
@pytest.mark.parametrize("name", ["label", "target"])
def test_label_types_that_are_taken(
    files: Any, load: Any, tmp_path: Path, label: Any, classes: tuple[str, ...], name: str
) -> None:
    for part in ("train.parquet", "test.parquet"):
        path = files.write_parquet(tmp_path, part, [5, 6], columns=("image", "id"))
        table = pq.read_table(path).append_column(name, label)
        pq.write_table(table.append_column("split", pa.array(["train", "train"])), path)
    data = load(tmp_path)
    assert data.train.classes == classes
    assert next(data.test.batches(2)).targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (LISTS, "the label column 'label' is of type list<"),
        (BYTES, "the label column 'label' is of type binary;"),
        (pa.array([{"a": 1}, {"a": 2}]), "the label column 'label' is of type struct<a: int64>"),
        (pa.array([0.5, 1.0]), "row 0: column label holds 0.5"),
        (pa.array([0, 2**64 - 1], pa.uint64()), "row 1: column label holds 18446744073709551615"),
        (pa.array([None, None]), "row 0: column label is empty"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_a_label_of_another_type_is_refused_and_no_other_column_taken(
    files: Any, load: Any, refusal: Any, tmp_path: Path, label: Any, words: str
) -> None:
    for part in ("train.parquet", "test.parquet"):
        path = files.write_parquet(tmp_path, part, ["x.png", "y.png"], columns=("image", "name"))
        pq.write_table(pq.read_table(path).append_column("label", label), path)
    message = refusal(lambda: load(tmp_path))
    assert words in message
    assert "--label-column" in message
    assert load(tmp_path, label_column="name").train.classes == ("x.png", "y.png")


def test_without_a_label_column_none_is_taken(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    for part in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, part, [10, 11], columns=("image", "id"))
    assert "no label column among id (int64), image" in refusal(lambda: load(tmp_path))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["image", "png"])
def test_raw_bytes_are_images(
    files: Any, load: Any, refusal: Any, tmp_path: Path, kind: Any, name: str
) -> None:
    images = [files.png(files.noise(row)) for row in range(3)]
    for part in ("train.parquet", "test.parquet"):
        table = pa.table({name: pa.array(images, kind), "label": [0, 1, 2]})
        pq.write_table(table, tmp_path / part)
    files.write_parquet(tmp_path / "b", "train.parquet", [0, 1, 2])
    files.write_parquet(tmp_path / "b", "test.parquet", [0, 1, 2])
    raw, structs = load(tmp_path), load(tmp_path / "b")
    assert torch.equal(*(next(data.train.batches(3)).images for data in (raw, structs)))
    pq.write_table(pa.table({name: pa.array([None], kind), "label": [0]}), tmp_path / part)
    assert "row 0: not a readable image (the image is missing)" in refusal(lambda: load(tmp_path))


def test_shards_of_different_width_are_one_table(files: Any, load: Any, tmp_path: Path) -> None:
    for number, kind in enumerate((pa.int32(), pa.int64())):
        path = files.write_parquet(tmp_path, f"train-{number}.parquet", [0, 1])
        table = pq.read_table(path)
        pq.write_table(table.set_column(1, "label", table["label"].cast(kind)), path)
    files.write_parquet(tmp_path, "test.parquet", [0, 1])
    assert next(load(tmp_path).train.batches(4)).targets.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("place", ["a::b", "$HOME", "~", "label=3", "été"])
def test_places_with_odd_names(files: Any, load: Any, tmp_path: Path, place: str) -> None:
    for part in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path / place, part, [0, 1])
    assert len(load(tmp_path / place).train) == 2


@pytest.mark.parametrize("place", ["saved", "a::b", "$HOME"])
def test_saved_tables(files: Any, load: Any, tmp_path: Path, place: str) -> None:
    import datasets

    image = {"bytes": files.png(files.noise(0)), "path": None}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    table = datasets.Dataset.from_dict(
        {"image": [image] * 6, "label": [0, 1, 0, 1, 1, 1]}, features=features
    )
    whole = datasets.DatasetDict({"train": table, "test": table.select([1, 2]), "extra": table})
    whole.save_to_disk(str(tmp_path / "saved"))
    table.save_to_disk(str(tmp_path / "single"), num_shards=2)
    (tmp_path / "saved").rename(tmp_path / place)
    data = load(tmp_path / place)
    assert (len(data.train), data.train.classes) == (6, ("x", "y"))
    assert next(data.test.batches(2)).targets.tolist() == [1, 0]
    assert len(load(tmp_path / place, test_split="extra").test) == 6
    assert len(load(tmp_path / "single", test_share=0.5).train) == 3


def test_a_damaged_saved_table(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("{")
    assert "dataset_dict.json: cannot be read" in refusal(lambda: load(tmp_path))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "(training part) cannot be read" in refusal(lambda: load(tmp_path))
    (tmp_path / "train").mkdir()
    state = '{"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}'
    (tmp_path / "train" / "state.json").write_text(state)
    assert "its rows are in another order" in refusal(lambda: load(tmp_path))


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
    monkeypatch.setattr("splitlab.core.data.tables.PARQUET_LIMIT", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
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
    files: Any, load: Any, hub: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    hub("")
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


def test_a_hub_that_fails(
    load: Any, refusal: Any, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    hub("")

    def load_dataset(*_: object, **__: object) -> object:
        raise ConnectionError("Couldn't reach 'uoft-cs/cifar10' on the Hub\nmany lines\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal(lambda: load(None, "cifar10"))
    assert "uoft-cs/cifar10 cannot be loaded from the Hugging Face hub" in message
    assert "Couldn't reach" in message
    assert "--dataset cifar10 --data-dir FOLDER" in message


def test_a_hub_out_of_reach_is_asked_once(
    load: Any, refusal: Any, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    asked: list[bool] = []
    original = datasets.load_dataset

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append(datasets.config.HF_HUB_OFFLINE)
        return original(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub("no route")
    message = refusal(lambda: load(None, "cifar10"))
    assert "cannot be reached: no route; it is not in the cache" in message
    assert "--dataset cifar10 --data-dir FOLDER" in message
    assert asked == [True]


def test_a_label_is_missing(files: Any, load: Any, refusal: Any, tmp_path: Path) -> None:
    files.write_parquet(tmp_path, "train.parquet", [0, None])
    files.write_parquet(tmp_path, "test.parquet", [0])
    assert "row 1: column label is empty" in refusal(lambda: load(tmp_path))


def test_no_column_holds_images(load: Any, refusal: Any, tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / name)
    message = refusal(lambda: load(tmp_path))
    assert "no image column among image (string), label (int64)" in message


def test_broken_parquet(
    files: Any, load: Any, refusal: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = files.write_parquet(tmp_path, "test.parquet", [0, 1])
    (tmp_path / "train.parquet").write_bytes(good.read_bytes()[:-20])
    assert "(training part) cannot be read" in refusal(lambda: load(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_a_link_that_leads_nowhere(load: Any, refusal: Any, tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert "(training part) cannot be read" in refusal(lambda: load(tmp_path))


def test_another_column_of_a_named_data_set_has_its_own_classes(
    files: Any, load: Any, tmp_path: Path
) -> None:
    for name in ("train.parquet", "test.parquet"):
        path = files.write_parquet(tmp_path, name, [7, 99], columns=("img", "fine_label"))
        table = pq.read_table(path)
        pq.write_table(table.append_column("coarse_label", pa.array([0, 1])), path)
    data = load(tmp_path, "cifar100", label_column="coarse_label")
    assert data.train.classes == ("0", "1")
    assert len(load(tmp_path, "cifar100", label_column="fine_label").train.classes) == 100
