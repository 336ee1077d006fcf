"""What the scripts of a page draw and tell, as plain numbers and texts.

Lines, marks and cells name their row by its number. Numbers have seven digits, of which no pixel
shows more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from splitlab.core.contract.settings import shown
from splitlab.core.report.figures import Line, frontier, panels, spent, wanted
from splitlab.core.report.heat_maps import HEATMAP, Maps, maps
from splitlab.core.report.results import Results, RunResult
from splitlab.core.report.summary_table import SummaryRow

__all__ = ["page_data"]

_ALWAYS = ("bytes", "steps")
_WHERE_KNOWN = ("seconds", "joules")


def page_data(results: Results, rows: Sequence[SummaryRow]) -> dict[str, Any]:
    """Return all that a page shows of results but its head; numbers may be not finite.

    Args:
        results: what the page is of.
        rows: of `splitlab.core.report.summary_table.summarise`.

    Raises:
        ConfigError: the results have not what a figure needs.
    """
    numbers = {id(row.row): i for i, row in enumerate(rows)}
    kinds = [*_ALWAYS, *(name for name in _WHERE_KNOWN if _is_known(results, name))]
    figures = wanted(results)
    found: dict[str, Any] = {
        "axes": [
            {"name": axis.name, "values": [*dict.fromkeys(map(shown, axis.values))]}
            for axis in results.axes
        ],
        "start": _start(figures, kinds, bool(results.draw)),
        "rows": [_row(results, row, kinds) for row in rows],
        "panels": {kind: _panels(results, kind, numbers) for kind in kinds},
        "marks": [
            {"row": numbers[id(m.row)], "x": m.x, "y": m.y, "half": m.half, "leads": m.leads}
            for m in frontier(results)
        ],
        "maps": [_maps(maps(results, kind), numbers) for kind in figures if spent(kind) == HEATMAP],
    }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _is_known(results: Results, name: str) -> bool:
    return any(
        getattr(point, name) is not None
        for row in results.rows
        for run in row.runs
        for point in run.points
    )


def _start(figures: Sequence[str], kinds: Sequence[str], asked: bool) -> dict[str, Any]:
    """Return against what curves are drawn at first: what the study names, or bytes."""
    first = next((each for each in figures if asked and spent(each) in kinds), "bytes:log")
    return {"kind": spent(first), "log": first.endswith(":log")}


def _row(results: Results, row: SummaryRow, kinds: Sequence[str]) -> dict[str, Any]:
    sent = (row.bytes_up, row.bytes_down)
    return {
        "title": row.row.title,
        "method": row.row.method,
        "settings": [shown(row.row.settings.get(axis.name)) for axis in results.axes],
        "accuracy": row.accuracy and row.accuracy.mean,
        "half": row.accuracy and row.accuracy.half,
        "n": len(row.row.finished),
        "of": len(row.row.runs),
        "bytes": None if None in sent else sum(filter(None, sent)),
        "sort": dict(_sort_keys(row)),
        "runs": [_run(run, kinds) for run in row.row.runs],
    }


def _sort_keys(row: SummaryRow) -> Iterator[tuple[str, float | None]]:
    """Yield what columns of numbers are sorted by, by their names or the beginning of these."""
    means = {"accuracy": row.accuracy, "uncompressed": row.uncompressed, "best": row.best}
    yield from ((name, value.mean if value else None) for name, value in means.items())
    yield "n", len(row.row.finished)
    yield "p", row.p
    yield from ((name, value.mean) for name, value in row.found.items())
    yield "up", row.bytes_up
    yield "down", row.bytes_down
    for name in ("nominal", "measured", "epochs", "steps"):
        yield name, getattr(row, name)
    for name in ("client", "server", "link"):
        yield name, getattr(row, f"{name}_seconds")


def _run(run: RunResult, kinds: Sequence[str]) -> dict[str, Any]:
    summary = run.summary
    columns = {"bytes": "training_bytes", "steps": "step"}
    return {
        "seed": run.seed,
        "state": run.state,
        "error": run.error,
        "accuracy": summary.accuracy if summary else None,
        "up": summary.bytes_up if summary else None,
        "down": summary.bytes_down if summary else None,
        "folder": str(run.folder),
        "y": [point.accuracy for point in run.points],
        "x": {kind: [getattr(p, columns.get(kind, kind)) for p in run.points] for kind in kinds},
    }


def _panels(results: Results, kind: str, numbers: Mapping[int, int]) -> list[dict[str, Any]]:
    return [
        {
            "title": panel.title,
            "lines": [_line(line, numbers) for line in panel.lines],
            "context": [_line(line, numbers) for line in panel.context],
        }
        for panel in panels(results, kind)
    ]


def _line(line: Line, numbers: Mapping[int, int]) -> dict[str, Any]:
    return {
        "row": numbers[id(line.row)],
        "label": line.label,
        "x": line.x,
        "y": line.y,
        "low": line.low,
        "high": line.high,
        "steps": line.steps,
        "n": line.n,
        "missing": line.missing,
    }


def _maps(found: Maps, numbers: Mapping[int, int]) -> dict[str, Any]:
    return {
        "x": {"name": found.x.name, "values": [*map(shown, found.x.values)]},
        "y": {"name": found.y.name, "values": [*map(shown, found.y.values)]},
        "maps": [
            {
                "title": each.title,
                "cells": [[*place, numbers[id(c.row)]] for place, c in each.cells.items()],
            }
            for each in found.maps
        ],
        "beside": [numbers[id(row)] for row in found.beside],
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
