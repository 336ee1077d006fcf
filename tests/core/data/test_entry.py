"""What registry.toml says of the data sets, and that asking costs little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.data.entry import class_count, dataset_entry, dataset_rows


def test_entries_are_complete() -> None:
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
        assert all(file.is_file() for file in entry.files.values())


def test_a_known_name() -> None:
    entry = dataset_entry("cifar10")
    assert entry.name == "cifar10"
    assert (entry.hub, entry.image, entry.label) == ("uoft-cs/cifar10", "img", "label")
    assert entry.classes == class_count("cifar10") == 10


def test_unknown_names_are_answered_with_the_nearest_and_the_way_out(refusal: Any) -> None:
    for look_up in (dataset_entry, class_count):
        message = refusal(lambda look_up=look_up: look_up("cifar1000"))
        assert "unknown data set 'cifar1000' (did you mean 'cifar100'?)" in message
        assert "flowers102" in message
        assert "--data-dir" in message
    assert "unknown data set" in refusal(lambda: class_count("mnist"))


def test_class_counts_need_neither_torch_nor_datasets() -> None:
    program = (
        "import sys; from splitlab.core.data.entry import class_count\n"
        "assert class_count('cifar100') == 100\n"
        "assert not {'torch', 'datasets', 'torchvision', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert class_count("fashion-mnist-mini") == 10


# Data sets of the user's own.


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in an empty folder; return where the user's own registry would be."""
    monkeypatch.delenv("SPLITLAB_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "registry.toml"


def table(**changes: str | None) -> str:
    """Return a table that can be used, but for the changes; None leaves a key out."""
    keys: dict[str, str | None] = {
        "hub": "'me/photos'",
        "image": "'img'",
        "label": "'class'",
        "mean": "[0.5]",
        "std": "[0.25]",
        "classes": "3",
    }
    lines = [f"{key} = {value}" for key, value in (keys | changes).items() if value is not None]
    return "\n".join(["[datasets.photos]", *lines, ""])


def test_a_data_set_of_ones_own_needs_no_more_than_this(own: Path) -> None:
    own.write_text(table())
    entry = dataset_entry("photos")
    assert (entry.hub, entry.image, entry.label) == ("me/photos", "img", "class")
    assert (entry.train, entry.test, entry.config, entry.files) == ("train", "test", None, {})
    assert (entry.mean, entry.std, class_count("photos")) == ([0.5], [0.25], 3)
    assert (entry.summary, entry.licence) == ("", "not stated")
    own.write_text(table(summary="'mine'", config="'large'", test="'validation'", mean="[1]"))
    entry = dataset_entry("photos")
    assert (entry.summary, entry.config, entry.test) == ("mine", "large", "validation")


def test_files_are_where_the_registry_that_names_them_says(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text(table(hub=None, files="{ train = 'sub/a.parquet', test = '/data/b.parquet' }"))
    (own.parent / "elsewhere").mkdir()
    monkeypatch.chdir(own.parent / "elsewhere")
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    assert dataset_entry("photos").files == {
        "train": own.parent / "sub/a.parquet",
        "test": Path("/data/b.parquet"),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clases": "3"}, "unknown key 'clases' (did you mean 'classes'?); known: classes, config"),
        ({"name": "'x'"}, "unknown key 'name'"),
        ({"target": "'a:B'"}, "unknown key 'target'"),
        ({"classes": None}, "needs the key 'classes'; write image, label, mean, std, classes"),
        ({"image": None}, "needs the key 'image'"),
        ({"hub": None}, "needs either the key 'hub' or the key 'files'"),
        ({"files": "{ train = 'a', test = 'b' }"}, "needs either the key 'hub' or the key 'fil"),
        ({"hub": None, "files": "{ train = 'a' }"}, "write { train = 'FILE', test = 'FILE' }"),
        ({"hub": None, "files": "{ train = 'a', test = 1 }"}, "write { train = 'FILE', test"),
        ({"hub": None, "files": "'a'"}, "has files = 'a'; write { train"),
        ({"hub": "3"}, "has hub = 3; write a text"),
        ({"image": "['a']"}, "has image = ['a']; write a text"),
        ({"classes": "0"}, "has classes = 0; write how many there are, 1 or more"),
        ({"classes": "true"}, "has classes = True; write how many"),
        ({"classes": "'3'"}, "has classes = '3'; write how many"),
        ({"mean": "0.5"}, "has mean = 0.5; write one list of numbers, one for each channel"),
        ({"mean": "[]"}, "has mean = []; write one list"),
        ({"mean": "[nan]"}, "has mean = [nan]; write one list"),
        ({"mean": "['a']"}, "has mean = ['a']; write one list"),
        ({"std": "[0.0]"}, "has std = [0.0]; write one list of numbers more than 0"),
        ({"std": "[0.2, 0.2]"}, "has a mean and a std of different lengths"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_and_spoils_no_other(
    own: Path, changes: dict[str, str | None], words: str, refusal: Any
) -> None:
    own.write_text(table(**changes))
    message = refusal(lambda: dataset_entry("photos"))
    assert message.startswith(f"data set 'photos' (from {own}) ")
    assert words in message
    problems = {row["name"]: row["problem"] for row in dataset_rows()}
    assert problems.pop("photos") == message
    assert set(problems.values()) == {None}


def test_what_the_catalogue_refuses_is_refused_here(own: Path, refusal: Any) -> None:
    own.write_text(table().replace("photos", "cifar10") + table(summary="3"))
    assert "two data sets are called 'cifar10'" in refusal(lambda: dataset_entry("cifar10"))
    assert "summary of [datasets.photos] must be a text" in refusal(lambda: dataset_entry("photos"))
    problems = {row["name"]: row["problem"] for row in dataset_rows()}
    assert {name for name, problem in problems.items() if problem} == {"cifar10", "photos"}


def test_rows_are_the_tables_and_where_they_stand(own: Path) -> None:
    own.write_text(table(summary="'mine'"))
    rows = {row["name"]: row for row in dataset_rows()}
    assert rows.keys() == catalogue()["datasets"].keys() | {"photos"}
    assert (rows["photos"]["summary"], rows["photos"]["source"]) == ("mine", str(own))
    for name, shipped in catalogue()["datasets"].items():
        assert rows[name] == {**shipped, "name": name, "source": "splitlab", "problem": None}
