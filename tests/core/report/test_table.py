"""Tables of runs: means and spreads, units, and what is left out."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from splitlab.core.report.table import Row, Spread, Table, comma_separated
from splitlab.core.runs.records import Summary


def summary(**changes: Any) -> Summary:
    known: dict[str, Any] = {
        "accuracy": 0.5,
        "loss": 1.0,
        "steps": 2000,
        "epochs": 1.5,
        "seconds": 9.0,
        "client_seconds": 1.0,
        "server_seconds": 2.0,
        "link_seconds": 3.0,
        "bytes_up": 2_000_000,
        "bytes_down": 1_000_000,
        "ratio_nominal": 0.1,
        "ratio_measured": 0.11,
        "stack": ("a",),
        "transport": "t",
        "model": "m",
        "dataset": "d",
        "cut": 3,
        "seed": 0,
    }
    return Summary(**known | changes)


def test_a_spread_is_mean_and_sample_deviation() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)
    assert Spread.of([0.25]) == Spread(0.25, None)
    assert str(Spread(0.5, 0.0125)) == "0.5000 ± 0.0125"
    assert str(Spread(0.5, None)) == "0.5000 ± —"


def test_a_row_is_the_mean_of_its_finished_runs() -> None:
    row = Row.of("a", [summary(accuracy=0.5), summary(accuracy=0.7, bytes_up=4_000_000)], 3, "note")
    assert row.accuracy is not None
    assert (row.accuracy.mean, row.accuracy.std) == pytest.approx((0.6, 0.02**0.5))
    assert (row.bytes_up, row.bytes_down, row.measured) == (3e6, 1e6, pytest.approx(0.11))
    assert (row.finished, row.runs, row.note) == (2, 3, "note")
    assert row.uncompressed is None
    both = Row.of("a", [summary(accuracy_uncompressed=0.75), summary()], 2)
    assert both.uncompressed == Spread(0.75, None)


def test_without_a_finished_run_there_is_nothing_to_mean() -> None:
    row = Row.of("a", [], 3, "failed: x")
    assert row.accuracy is row.bytes_up is row.epochs is None
    [cells] = Table.of([row]).rows
    named = dict(zip(Table.of([row]).header, cells, strict=True))
    assert named["accuracy"] == named["up B"] == named["steps"] == "—"
    assert (named["runs"], named["note"]) == ("0/3", "failed: x")


@pytest.mark.parametrize(
    ("largest", "unit", "up"),
    [
        (999, "B", "999"),
        (1000, "kB", "1"),
        (2_500_000, "MB", "2.5"),
        (12_345_678_901, "GB", "12.35"),
    ],
)
def test_bytes_are_in_one_unit_for_all_rows(largest: int, unit: str, up: str) -> None:
    rows = [Row.of("a", [summary(bytes_up=largest, bytes_down=1)], 1), Row.of("b", [], 1)]
    table = Table.of(rows)
    assert table.header[2:4] == (f"up {unit}", f"down {unit}")
    assert table.rows[0][2] == up


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    plain = Table.of([Row.of("a", [summary()], 1)])
    assert plain.header == (
        *("stack", "accuracy", "up MB", "down MB", "nominal", "measured"),
        *("client s", "server s", "link s", "epochs", "steps", "runs"),
    )
    assert plain.rows == (
        (
            "a",
            "0.5000 ± —",
            "2",
            "1",
            "0.1000",
            "0.1100",
            "1.0",
            "2.0",
            "3.0",
            "1.50",
            "2,000",
            "1/1",
        ),
    )
    rows = [Row.of("a", [summary(accuracy_uncompressed=0.5)], 1), Row.of("b", [], 1, "gone")]
    assert {"uncompressed", "note"} <= set(Table.of(rows).header)
    assert Table.of([]).rows == ()


def test_a_file_for_machines_has_every_digit() -> None:
    third = 1 / 3
    rows = [
        Row.of("a, with a comma", [summary(accuracy=third), summary(accuracy=third)], 2),
        Row.of("b", [], 2, "failed"),
    ]
    first, second = csv.DictReader(io.StringIO(comma_separated(rows)))
    assert first["stack"] == "a, with a comma"
    assert float(first["accuracy_mean"]) == third
    assert float(first["accuracy_std"]) == 0
    assert float(first["bytes_up"]) == 2e6
    assert (second["accuracy_mean"], second["bytes_up"], second["note"]) == ("", "", "failed")
