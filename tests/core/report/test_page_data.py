"""What a page draws is what the figures hold, in plain numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.figures import frontier, panels
from splitlab.core.report.page_data import page_data
from splitlab.core.report.results import Point, Results, RunResult
from splitlab.core.report.summary_table import summarise


def data_of(results: Results) -> dict[str, Any]:
    return page_data(results, summarise(results))


def test_lines_marks_and_cells_name_their_rows(cut_by_ratio: Results) -> None:
    found = data_of(cut_by_ratio)
    titles = [row["title"] for row in found["rows"]]
    assert titles == [row.title for row in cut_by_ratio.rows]
    for kind in ("bytes", "steps", "seconds"):
        drawn = panels(cut_by_ratio, kind)
        for panel, wanted in zip(found["panels"][kind], drawn, strict=True):
            assert panel["title"] == wanted.title
            for part in ("lines", "context"):
                names = [titles[line["row"]] for line in panel[part]]
                assert names == [line.row.title for line in getattr(wanted, part)]
            for line, of in zip(panel["lines"], wanted.lines, strict=True):
                assert line["x"] == pytest.approx(of.x, rel=1e-6)
                assert line["high"] == pytest.approx(of.high, rel=1e-6)
                assert line["steps"] == [*of.steps]
    assert [titles[m["row"]] for m in found["marks"] if m["leads"]] == [
        m.row.title for m in frontier(cut_by_ratio) if m.leads
    ]
    (shown,) = found["maps"]
    assert shown["y"] == {"name": "cut", "values": ["1", "2", "3"]}
    assert sorted(titles[cell[2]] for cell in shown["maps"][0]["cells"]) == sorted(
        title for title in titles if title.startswith("adc")
    )


def test_of_every_run_its_evaluations_are_there(make: Any) -> None:
    lost = RunResult(
        Path("runs/7"),
        7,
        "diverged",
        "the loss is nan",
        None,
        (Point(0, 0.1, 2.3, 0), Point(5, math.nan, math.nan, 900)),
    )
    results = make.results([make.row("a", [], runs=(make.finished(3, 0.7, points=2), lost))])
    first, second = data_of(results)["rows"][0]["runs"]
    assert (first["seed"], first["state"], first["folder"]) == (3, "finished", "runs/seed-3")
    assert first["accuracy"] == first["y"][-1] == 0.7
    assert first["x"]["steps"] == [0, 100, 200]
    assert len(first["x"]["bytes"]) == len(first["x"]["seconds"]) == 3
    assert first["up"] + first["down"] == pytest.approx(first["x"]["bytes"][-1], abs=1)
    assert second["accuracy"] is None
    assert second["error"] == "the loss is nan"
    assert second["x"]["bytes"] == [0, 900]
    assert math.isnan(second["y"][1])


def test_what_nobody_measured_is_no_choice(make: Any) -> None:
    rows = [make.row("a", [], runs=(make.finished(0, 0.5, points=2),))]
    assert [*data_of(make.results(rows))["panels"]] == ["bytes", "steps", "seconds"]
    with_joules = [make.row("a", [], runs=(make.finished(0, 0.5, points=2, joules=True),))]
    assert [*data_of(make.results(with_joules))["panels"]][-1] == "joules"


def test_curves_begin_with_what_the_study_names(cut_by_ratio: Results) -> None:
    assert data_of(cut_by_ratio)["start"] == {"kind": "bytes", "log": True}
    asked = replace(cut_by_ratio, draw=("heatmap:x=cut,y=ratio", "seconds", "bytes:log"))
    found = data_of(asked)
    assert found["start"] == {"kind": "seconds", "log": False}
    assert [shown["x"]["name"] for shown in found["maps"]] == ["cut"]
    with pytest.raises(ConfigError, match="joules"):
        data_of(replace(cut_by_ratio, draw=("joules",)))


def test_values_of_a_filter_are_those_of_the_rows(cut_by_ratio: Results) -> None:
    found = data_of(cut_by_ratio)
    for i, axis in enumerate(found["axes"]):
        assert {row["settings"][i] for row in found["rows"]} == set(axis["values"])
    assert found["axes"][1] == {"name": "ratio", "values": ["0.05", "0.1", "0.2", "none"]}


def test_numbers_have_seven_digits(make: Any) -> None:
    results = make.results([make.row("a", [1 / 3, 2 / 3, 0.1])])
    assert data_of(results)["rows"][0]["accuracy"] == 0.3666667
