"""Parquet of a named data set is read without `datasets`, and as `datasets` would read it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from splitlab.core.data import tables
from splitlab.core.data.entry import dataset_entry
from splitlab.core.data.parquet import contents, read_known

ENTRY = replace(dataset_entry("cifar10"), image="img", label="label")


def test_what_ships_is_read_as_datasets_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataset_entry("fashion-mnist-mini")
    monkeypatch.setattr(tables, "read_known", lambda *arguments: None)
    for part in ("train", "test"):
        known = read_known([entry.files[part]], "it", entry)
        judged = tables.read_parquet([entry.files[part]], "it", entry)
        assert known is not None
        assert torch.equal(known.labels, judged.labels)
        assert (known.origin, known.classes) == (judged.origin, judged.classes)
        assert known.contents == judged.contents != ""
        assert known.read([5, 999, 0, 0]) == judged.read([5, 999, 0, 0])


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_rows_of_several_files_follow_each_other(
    names: list[str] | None, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it fails
    columns = {"columns": ("img", "label"), "class_names": names}
    made = [
        files.write_parquet(tmp_path, "a.parquet", [0, 1, 1], **columns),
        files.write_parquet(tmp_path, "b.parquet", [1, 0], **columns),
    ]
    source = tables.read_parquet(made, "it", ENTRY)
    assert source.labels.tolist() == [0, 1, 1, 1, 0]
    assert source.classes == (tuple(names) if names else None)
    first, again = source.read([3, 0])
    assert first["bytes"] == again["bytes"] == files.png(files.noise(0))


USUAL = pa.struct({"bytes": pa.binary(), "path": pa.string()})
IMAGE = pa.array([{"bytes": b"x", "path": None}] * 2, USUAL)


@pytest.mark.parametrize(
    "columns",
    [
        {"label": [0, 1]},
        {"img": IMAGE},
        {"img": IMAGE, "label": [0, None]},
        {"img": IMAGE, "label": ["a", "b"]},
        {"img": IMAGE, "label": [0.0, 1.0]},
        {"img": [b"x", b"y"], "label": [0, 1]},
        {"img": IMAGE.field(0), "label": [0, 1]},
        {"image": IMAGE, "label": [0, 1]},
    ],
)
def test_the_unusual_is_left_to_datasets(columns: dict[str, Any], tmp_path: Path) -> None:
    usual = pa.table({"img": IMAGE, "label": [0, 1]})
    pq.write_table(usual, tmp_path / "a.parquet")
    assert read_known([tmp_path / "a.parquet"], "it", ENTRY) is not None
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_known([tmp_path / "a.parquet"], "it", ENTRY) is None


def test_what_cannot_be_read_is_left_to_datasets(files: Any, tmp_path: Path) -> None:
    good = files.write_parquet(tmp_path, "a.parquet", [0, 1], columns=("img", "label"))
    (tmp_path / "bad.parquet").write_bytes(good.read_bytes()[:-20])
    for other in ("bad.parquet", "absent.parquet"):
        assert read_known([good, tmp_path / other], "it", ENTRY) is None
    table = pq.read_table(good)
    for text in (b"[", b"[]", b'{"info": null}', b'{"info": {"features": {"label": {}}}}'):
        pq.write_table(table.replace_schema_metadata({b"huggingface": text}), good)
        assert read_known([good], "it", ENTRY) is None


def test_the_digest_does_not_depend_on_chunks() -> None:
    rows = [{"bytes": b"x" * n, "path": f"a/{n}.png"} for n in range(4)]
    whole, other = pa.chunked_array([rows], USUAL), pa.chunked_array([rows[:1], rows[1:]], USUAL)
    assert contents(whole) == contents(other) == contents(pa.chunked_array([rows * 2])[:4])
    assert contents(whole) != contents(whole[:3])
    assert contents(pa.chunked_array([[b"ab", None]])) != contents(pa.chunked_array([[b"a", None]]))


def test_a_label_that_no_class_can_be(files: Any, refusal: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    labels = pa.array([0, 2**64 - 1], pa.uint64())
    pq.write_table(pa.table({"img": IMAGE, "label": labels}), path)
    assert "row 1: column label holds" in refusal(lambda: read_known([path], "it", ENTRY))
