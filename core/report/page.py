"""The page of a report: one HTML file with figures and a table, which works offline.

The table, its legend and what all runs have in common are in the HTML; ``page.html`` draws the
figures from numbers that stand in it as JSON, and lets the table sort, filter and open. Texts of
users reach the page escaped, or as text nodes.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitlab import __version__
from splitlab.core.contract.jsonable import json_text
from splitlab.core.contract.settings import shown
from splitlab.core.report.figures import Line, frontier, maps, panels, wanted
from splitlab.core.report.reference import context_of
from splitlab.core.report.results import Results, RunResult
from splitlab.core.report.summary_table import LEGEND, SummaryRow, cells, summarise
from splitlab.core.runs.disk import write_whole

__all__ = ["page", "write_page"]

_TEMPLATE = Path(__file__).with_name("page.html")
_SPENT = ("bytes", "seconds", "joules")


def write_page(results: Results, path: Path) -> None:
    """Write the page of these results.

    Raises:
        DiskError: it cannot be written.
    """
    write_whole(path, page(results))


def page(results: Results) -> str:
    """Return the page of these results."""
    rows = summarise(results)
    text = _TEMPLATE.read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(results.name),
        "SUMMARY": _paragraph(results.summary),
        "PAPER": _paragraph(f"Reproduces: {results.paper}" if results.paper else ""),
        "FACTS": _facts(results),
        "COMMAND": _command(results.command),
        "TABLE": _table(results, rows),
        "LEGEND": _legend(),
        "VERSION": html.escape(__version__),
        "DATA": _script_json(_data(results, rows)),
    }
    for name, part in parts.items():  # the data come last: what is in them is no marker
        text = text.replace(f"<!--{name}-->", part)
    return text


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _facts(results: Results) -> str:
    seeds = ", ".join(map(str, results.seeds))
    facts = [*results.common, *([("seeds", seeds)] if seeds else [])]
    items = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{"".join(items)}</dl>' if facts else ""


def _command(command: str) -> str:
    if not command:
        return ""
    return (
        f'<div class="command"><code id="command">{html.escape(command)}</code>'
        '<button type="button" id="copy" hidden>Copy</button></div>'
    )


def _table(results: Results, rows: Sequence[SummaryRow]) -> str:
    """Return the table as the terminal has it, with what it is to be sorted by."""
    table = cells(rows)
    head = "".join(
        f'<th scope="col"{"" if i in table.words else " class=number"}>{html.escape(name)}</th>'
        for i, name in enumerate(table.header)
    )
    body = []
    for number, texts in enumerate(table.rows):
        line = []
        for i, (name, text) in enumerate(zip(table.header, texts, strict=True)):
            inner = html.escape(text)
            if name == "accuracy" and number in table.bold:
                inner = f"<strong>{inner}</strong>"
            if name == "row":
                line.append(f'<th scope="row">{inner}</th>')
            else:
                line.append(f"<td{'' if i in table.words else ' class=number'}>{inner}</td>")
        body.append(f'<tr data-row="{number}">{"".join(line)}</tr>')
    return (
        f'<table id="rows"><caption>{len(rows)} rows; accuracy is mean ± half the 95 % interval '
        f"over seeds</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _legend() -> str:
    items = " ".join(LEGEND.split()).removeprefix("- ").split(" - ")
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


# What the page draws.


def _data(results: Results, rows: Sequence[SummaryRow]) -> dict[str, Any]:
    numbers = {id(row.row): i for i, row in enumerate(rows)}
    known = {name for name in _SPENT if name == "bytes" or _is_known(results, name)}
    marks = [
        {"row": numbers[id(m.row)], "x": m.x, "y": m.y, "half": m.half, "leads": m.leads}
        for m in frontier(results)
    ]
    return {
        "axes": [axis.name for axis in results.axes],
        "reference": results.reference,
        "rows": [_row(results, row) for row in rows],
        "panels": {
            name: [
                {
                    "title": panel.title,
                    "lines": [_line(line, numbers) for line in panel.lines],
                    "context": [_line(line, numbers) for line in panel.context],
                }
                for panel in panels(results, name)
            ]
            for name in _SPENT
            if name in known
        },
        "marks": marks,
        "maps": _maps(results, numbers),
    }


def _is_known(results: Results, name: str) -> bool:
    return any(
        getattr(point, name) is not None
        for row in results.rows
        for run in row.runs
        for point in run.points
    )


def _row(results: Results, row: SummaryRow) -> dict[str, Any]:
    sent = (row.bytes_up, row.bytes_down)
    context = context_of(results, row.row)
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
        "context": context.title if context else None,
        "runs": [_run(run) for run in row.row.runs],
    }


def _sort_keys(row: SummaryRow) -> Iterator[tuple[str, float | None]]:
    """Yield what columns of numbers are sorted by, by the beginning of their names."""
    means = {"accuracy": row.accuracy, "uncompressed": row.uncompressed, "best": row.best}
    yield from ((name, value.mean if value else None) for name, value in means.items())
    yield "n", len(row.row.finished)
    yield "p", row.p
    yield "up", row.bytes_up
    yield "down", row.bytes_down
    for name in ("nominal", "measured", "epochs", "steps"):
        yield name, getattr(row, name)
    for name in ("client", "server", "link"):
        yield name, getattr(row, f"{name}_seconds")


def _run(run: RunResult) -> dict[str, Any]:
    summary = run.summary
    return {
        "seed": run.seed,
        "state": run.state,
        "error": run.error,
        "accuracy": summary.accuracy if summary else None,
        "up": summary.bytes_up if summary else None,
        "down": summary.bytes_down if summary else None,
        "folder": str(run.folder),
    }


def _line(line: Line, numbers: Mapping[int, int]) -> dict[str, Any]:
    return {
        "row": numbers[id(line.row)],
        "label": line.label,
        "x": line.x,
        "y": line.y,
        "low": line.low,
        "high": line.high,
        "n": line.n,
        "missing": line.missing,
    }


def _maps(results: Results, numbers: Mapping[int, int]) -> dict[str, Any] | None:
    """Return the first heat maps that are to be drawn, if any are."""
    kind = next((kind for kind in wanted(results) if kind.startswith("heatmap")), None)
    if kind is None:
        return None
    found = maps(results, kind)
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
    }


def _script_json(data: Any) -> str:
    """Return JSON that ends no script element, whatever texts are in it."""
    text = json_text(_rounded(data))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _rounded(value: Any) -> Any:
    """Return a value with numbers of seven digits, of which no pixel shows more."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
