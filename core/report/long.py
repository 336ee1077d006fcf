"""Results in long form, as CSV files that any program reads: a row a run, a row an evaluation.

runs.csv          every run: its row's title and settings, its seed and state, what it ended with
evaluations.csv   every evaluation: the same of its run, then the step and what was measured
table.csv         the table of means and tests, see `splitlab.core.report.summary_table`

What is not known is an empty cell. A setting has one column, named like its axis.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from splitlab.core.report.results import Point, Results, Row, RunResult
from splitlab.core.report.summary_table import table_csv
from splitlab.core.runs.disk import write_whole, writing
from splitlab.core.runs.records import Summary

__all__ = ["evaluations_csv", "run_records", "runs_csv", "write_csv"]

_RUN = ("row", "method", "seed", "state", "error", "folder")
_SUMMARY = tuple(
    spec.name for spec in dataclasses.fields(Summary) if spec.name not in ("seed", "version")
)
_POINT = tuple(spec.name for spec in dataclasses.fields(Point))


def write_csv(results: Results, folder: Path) -> list[Path]:
    """Write all three files into a folder, which is made; returns their paths.

    Raises:
        ConfigError: they cannot be written, or the reference is not among the rows.
    """
    texts = {
        "table.csv": table_csv(results),
        "runs.csv": runs_csv(results),
        "evaluations.csv": evaluations_csv(results),
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def run_records(results: Results) -> list[dict[str, Any]]:
    """Return one record a run, also of one that did not finish: texts and numbers by column."""
    names = _run_columns(results)
    records = (
        {name: _plain(getattr(run.summary, name, None)) for name in _SUMMARY}
        | _run(row, run)
        | {"error": run.error, "folder": str(run.folder)}
        | {name: run.found.get(name) for name in _found(results)}
        | _settings(results, row)
        for row, run in _runs(results)
    )
    return [{name: record[name] for name in names} for record in records]


def runs_csv(results: Results) -> str:
    """Return `run_records` as the text of a CSV file."""
    return _text(_run_columns(results), run_records(results))


def evaluations_csv(results: Results) -> str:
    """Return every evaluation, also of runs that did not finish, as the text of a CSV file."""
    names = _columns(results, ("row", "method", "seed", "state"), _POINT)
    return _text(
        names,
        (
            {name: getattr(point, name) for name in _POINT}
            | _run(row, run)
            | _settings(results, row)
            for row, run in _runs(results)
            for point in run.points
        ),
    )


def _runs(results: Results) -> Iterator[tuple[Row, RunResult]]:
    return ((row, run) for row in results.rows for run in row.runs)


def _columns(results: Results, first: Sequence[str], last: Sequence[str]) -> list[str]:
    axes = [axis.name for axis in results.axes]
    return list(dict.fromkeys([*first[:2], *axes, *first[2:], *last]))


def _run_columns(results: Results) -> list[str]:
    return [*_columns(results, _RUN, _SUMMARY), *_found(results)]


def _found(results: Results) -> dict[str, None]:
    """Return the names of what probes found of any run, in their order."""
    return dict.fromkeys(name for _, run in _runs(results) for name in run.found)


def _run(row: Row, run: RunResult) -> dict[str, Any]:
    return {"row": row.title, "method": row.method, "seed": run.seed, "state": run.state}


def _settings(results: Results, row: Row) -> dict[str, Any]:
    return {axis.name: row.settings.get(axis.name) for axis in results.axes}


def _plain(value: Any) -> Any:
    return " + ".join(value) if isinstance(value, tuple) else value


def _text(names: Sequence[str], records: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
