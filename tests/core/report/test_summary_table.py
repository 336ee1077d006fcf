"""Tables of rows: means and intervals, tests against a reference, what is bold, what is not."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.long import run_records
from splitlab.core.report.results import Results, Row
from splitlab.core.report.summary_table import (
    LEGEND,
    byte_unit,
    cells,
    markdown,
    summarise,
    table_csv,
)

GOOD = [0.80, 0.81, 0.82]
BAD = [0.50, 0.52, 0.51]
SAME = [0.805, 0.801, 0.823]  # as good as GOOD, but for noise


def named(results: Results) -> list[dict[str, str]]:
    table = cells(summarise(results))
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_a_row_is_the_mean_of_its_finished_runs(make: Any) -> None:
    runs = (
        make.finished(0, 0.5, accuracy_uncompressed=0.75),
        make.finished(1, 0.7),
        make.lost(2, "failed", "the server is gone"),
    )
    [row] = summarise(make.results([Row("a", "a", {}, runs, "a remark")]))
    assert row.accuracy is not None
    assert row.uncompressed is not None
    assert (row.accuracy.mean, row.accuracy.n) == (pytest.approx(0.6), 2)
    assert (row.uncompressed.mean, row.uncompressed.half) == (0.75, None)
    assert row.bytes_up == (runs[0].summary.bytes_up + runs[1].summary.bytes_up) / 2
    assert row.states == {"finished": 2, "failed": 1}
    assert row.note == "seed 2 failed: the server is gone; a remark"
    assert (row.difference, row.p, row.leads) == (None, None, False)


def test_a_best_that_is_told_by_a_part_of_the_images_says_so(make: Any) -> None:
    def row(title: str, *samples: int) -> Row:
        run = make.finished(0, 0.5, points=len(samples) - 1, best_accuracy=0.75)
        points = [replace(p, samples=n) for p, n in zip(run.points, samples, strict=True)]
        return Row(title, title, {}, (replace(run, points=tuple(points)),))

    def header(*rows: Row) -> str:
        return next(name for name in named(make.results(rows))[0] if name.startswith("best"))

    assert header(row("a", 200, 200, 2000), row("b", 200, 2000)) == "best, on 200 samples"
    assert header(row("a", 200, 2000), row("b", 1500, 2000)) == "best, on --eval-samples"
    assert header(row("a", 2000, 2000)) == "best"


def test_without_a_finished_run_there_is_nothing_to_mean(make: Any) -> None:
    runs = (make.lost(0, "diverged", "nan"), make.lost(1, "diverged", "nan"))
    [row] = named(make.results([Row("a", "a", {}, runs)]))
    assert (row["accuracy"], row["up B"], row["steps"], row["n"]) == ("diverged", "—", "—", "0/2")
    assert row["note"] == "seeds 0, 1 diverged and not in the means: nan"
    [row] = named(make.results([Row("a", "a", {}, (make.lost(0, "missing"),))]))
    assert (row["accuracy"], row["note"]) == ("—", "seed 0 missing")


def test_every_row_is_tested_against_the_reference(make: Any) -> None:
    rows = [make.row("none", GOOD), make.row("bad", BAD), make.row("same", SAME)]
    none, bad, same = summarise(make.results(rows, reference="none"))
    assert (none.is_reference, none.difference, none.p) == (True, None, None)
    assert bad.difference is not None
    assert bad.difference.mean == pytest.approx(-0.3)
    assert bad.difference.test == "paired"
    assert bad.difference.p is not None
    assert bad.p == pytest.approx(2 * bad.difference.p)  # the smaller of two
    assert same.p is not None
    assert same.p > 0.05
    shown = named(make.results(rows, reference="none"))
    assert [row["p paired"] for row in shown] == ["reference", "<0.001", f"{same.p:.3f}"]


def test_tests_of_two_kinds_are_told_apart(make: Any) -> None:
    rows = [make.row("none", GOOD), make.row("a", SAME), make.row("b", {7: 0.1, 8: 0.11, 9: 0.10})]
    shown = named(make.results(rows, reference="none"))
    assert shown[1]["p"].endswith(" paired")
    assert shown[2]["p"] == "<0.001 Welch"


def test_bold_are_the_best_and_who_cannot_be_told_from_it(make: Any) -> None:
    rows = [make.row("bad", BAD), make.row("same", SAME), make.row("good", GOOD)]
    once = make.row("once", [0.79])  # of a single run nothing is known
    found = summarise(make.results([*rows, once]))
    assert [row.leads for row in found] == [False, True, True, False]
    assert "**0.8100 ±" in markdown(make.results(rows))
    assert "**0.5" not in markdown(make.results(rows))


def test_inside_the_noise_nothing_is_bold(make: Any) -> None:
    rows = [make.row("same", SAME), make.row("good", GOOD)]
    assert [row.leads for row in summarise(make.results(rows))] == [False, False]
    assert "**" not in markdown(make.results(rows))
    assert not any(row.leads for row in summarise(make.results([make.row("one", GOOD)])))


def test_a_reference_that_is_not_there(make: Any) -> None:
    with pytest.raises(ConfigError, match="no row is called 'nne'"):
        summarise(make.results([make.row("none", GOOD)], reference="nne"))


@pytest.mark.parametrize(
    ("largest", "unit"), [(999, "B"), (1000, "kB"), (2_500_000, "MB"), (12_345_678_901, "GB")]
)
def test_bytes_are_in_one_unit_for_all_rows(largest: int, unit: str) -> None:
    assert byte_unit([1, largest])[0] == unit


def test_columns_in_which_nothing_stands_are_left_out(make: Any) -> None:
    table = cells(summarise(make.results([make.row("a", [0.5])])))
    assert table.header == (
        *("row", "accuracy", "n", "up MB", "down MB", "nominal", "measured"),
        *("client s", "server s", "link s", "epochs", "steps"),
    )
    assert table.rows[0][:3] == ("a", "0.5000 ± —", "1")
    assert table.words == (0,)
    assert cells(()).rows == ()


def test_what_a_probe_found_has_a_column_and_chance_stands_in_it(make: Any) -> None:
    row, other = make.row("a", [0.5, 0.7]), make.row("b", [0.6])
    numbers = [{"leak ssim": 0.25, "leak ssim by chance": 0.125}, {"leak ssim": 0.5}]
    runs = tuple(replace(run, found=own) for run, own in zip(row.runs, numbers, strict=True))
    results = make.results([replace(row, runs=runs), other])
    table = cells(summarise(results))
    at = table.header.index("leak ssim")
    assert "leak ssim by chance" not in table.header
    assert [texts[at] for texts in table.rows] == ["0.375 (0.125)", "—"]
    first, second = csv.DictReader(io.StringIO(table_csv(results)))
    assert (first["leak ssim"], first["leak ssim by chance"]) == ("0.375", "0.125")
    assert second["leak ssim"] == ""
    one, two, three = run_records(results)
    assert (one["leak ssim"], two["leak ssim by chance"], three["leak ssim"]) == (0.25, None, None)


def test_a_table_for_people_tells_what_its_numbers_are(methods: Results) -> None:
    text = markdown(methods)
    assert text.startswith("Methods that nobody has.\n\ndata fashion-mnist-mini, model vit-mini\n")
    assert text.endswith(LEGEND)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(methods.rows)
    assert len({line.count("|") for line in lines}) == 1


def test_a_file_for_machines_has_every_digit(make: Any) -> None:
    third = 1 / 3
    rows = [
        make.row("a, with a comma", [third, third, 0.5], settings={"ratio": 0.1}),
        Row("b", "b", {"ratio": None}, (make.lost(0, "failed", "gone"),)),
    ]
    axes = [make.axis("ratio", (0.1, None))]
    text = table_csv(make.results(rows, axes, "a, with a comma"))
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["row"], first["ratio"], second["ratio"]) == ("a, with a comma", "0.1", "")
    assert float(first["accuracy_mean"]) == pytest.approx((2 * third + 0.5) / 3, abs=1e-16)
    assert (first["accuracy_n"], first["is_reference"], first["bold"]) == ("3", "True", "False")
    assert (second["accuracy_mean"], second["failed"], second["note"]) == (
        *("", "1"),
        "seed 0 failed: gone",
    )
    assert table_csv(make.results([])) == "row\n"
