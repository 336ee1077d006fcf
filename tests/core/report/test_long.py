"""Results in long form are read by whoever reads CSV, with the types that the numbers have."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.long import evaluations_csv, runs_csv, write_csv
from splitlab.core.report.results import Results, Row


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_run_is_a_row(methods: Results) -> None:
    found = read(runs_csv(methods))
    runs = [(row, run) for row in methods.rows for run in row.runs]
    assert len(found) == len(runs)
    for line, (row, run) in zip(found, runs, strict=True):
        assert (line["row"], line["seed"], line["state"]) == (row.title, str(run.seed), run.state)
        assert line["accuracy"] == (str(run.summary.accuracy) if run.summary else "")
    assert {line["ratio"] for line in found} == {"", "0.05", "0.1", "0.2"}
    assert "step 41: the loss is nan" in {line["error"] for line in found}


def test_every_evaluation_is_a_row(cut_by_ratio: Results) -> None:
    found = read(evaluations_csv(cut_by_ratio))
    points = [p for row in cut_by_ratio.rows for run in row.runs for p in run.points]
    assert [float(line["accuracy"]) for line in found] == [p.accuracy for p in points]
    assert [int(line["training_bytes"]) for line in found] == [p.training_bytes for p in points]
    assert list(found[0])[:6] == ["row", "method", "stack", "ratio", "cut", "seed"]


def test_a_setting_has_one_column(make: Any) -> None:
    # A summary has its model and cut, too; what the rows are named by is what counts.
    row = Row("a, cut 2", "a", {"cut": 2}, (make.finished(0, 0.5),))
    [line] = read(runs_csv(make.results([row], [make.axis("cut", (2, 3))])))
    assert line["cut"] == "2"
    assert list(line).count("cut") == 1


def test_pandas_reads_them_with_their_types(tmp_path: Path, methods: Results) -> None:
    pandas = pytest.importorskip("pandas")
    written = write_csv(methods, tmp_path / "made" / "csv")
    assert [file.name for file in written] == ["table.csv", "runs.csv", "evaluations.csv"]
    table, runs, evaluations = (pandas.read_csv(file) for file in written)
    assert evaluations.dtypes[["step", "training_bytes", "seed"]].map(str).eq("int64").all()
    assert evaluations.dtypes[["accuracy", "loss", "seconds", "ratio"]].eq("float64").all()
    assert runs.dtypes[["accuracy", "bytes_up", "ratio"]].eq("float64").all()
    assert runs["row"].isna().sum() == 0
    means = runs.groupby("row", sort=False)["accuracy"].mean()
    assert means.to_numpy() == pytest.approx(table["accuracy_mean"].to_numpy(), nan_ok=True)
    assert table["is_reference"].dtype == bool
    ends = evaluations.sort_values("step").groupby(["row", "seed"])["accuracy"].last()
    assert ends["none", 0] == methods.rows[0].runs[0].points[-1].accuracy


def test_a_folder_that_cannot_be_made(tmp_path: Path, methods: Results) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_csv(methods, tmp_path / "file" / "csv")
