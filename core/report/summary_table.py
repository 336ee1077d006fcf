"""The table of a report: means of every row of runs, for people and in full precision."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from splitlab.core.report.reference import reference_of, references
from splitlab.core.report.results import Results, Row
from splitlab.core.report.statistics import LEVEL, Difference, Mean, compare, holm

__all__ = [
    "LEGEND",
    "Cells",
    "SummaryRow",
    "byte_unit",
    "cells",
    "gathered",
    "markdown",
    "summarise",
    "table_csv",
    "table_markdown",
]

_BY_CHANCE = " by chance"


@dataclass(frozen=True)
class SummaryRow:
    """Means over the finished runs of a row, None where there are none.

    Attributes:
        row: that is summarised.
        accuracy: on the test images; through the stack where a plugin acts in evaluation.
        uncompressed: the same without the stack; None where no plugin acts in evaluation.
        best: accuracy of the best evaluation, of runs that kept it: on `best_samples`.
        best_samples: how many images that is told by, of runs where it is not all of them.
        bytes_up: training bytes that the client sent, as they crossed the link.
        bytes_down: the same of the server.
        nominal: ratio that the papers would charge.
        measured: bytes of both directions over those of the uncompressed float32 tensors.
        client_seconds: of the training steps; so are the next two.
        server_seconds: see there.
        link_seconds: see there.
        epochs: that were trained.
        steps: that were trained.
        found: numbers that probes ended with, by the probe's label and their name.
        is_reference: whether others are tested against it.
        difference: of its accuracy to its reference's; None where there is none.
        p: p-value of that difference after Holm's correction over all rows.
        leads: whether its accuracy is printed in bold, see `LEGEND`.
        states: how many of its runs are in which state.
        note: failures with their reasons, what is missing, the row's remark.
    """

    row: Row
    accuracy: Mean | None
    uncompressed: Mean | None
    best: Mean | None
    best_samples: frozenset[int]
    bytes_up: float | None
    bytes_down: float | None
    nominal: float | None
    measured: float | None
    client_seconds: float | None
    server_seconds: float | None
    link_seconds: float | None
    epochs: float | None
    steps: float | None
    found: Mapping[str, Mean]
    is_reference: bool
    difference: Difference | None
    p: float | None
    leads: bool
    states: Mapping[str, int]
    note: str


def summarise(results: Results) -> tuple[SummaryRow, ...]:
    """Summarise and test all rows, in their order.

    Raises:
        ConfigError: the reference is not among them.
    """
    referred = references(results)
    differences = [_difference(row, reference_of(results, row)) for row in results.rows]
    ps = holm([each.p if each else None for each in differences])
    leading = _leading(results.rows)
    return tuple(
        _summary(row, row in referred, difference, p, leads)
        for row, difference, p, leads in zip(results.rows, differences, ps, leading, strict=True)
    )


def _summary(
    row: Row, is_reference: bool, difference: Difference | None, p: float | None, leads: bool
) -> SummaryRow:
    summaries = [run.summary for run in row.runs if run.summary is not None]

    def mean(key: str) -> float | None:
        return statistics.fmean(getattr(s, key) for s in summaries) if summaries else None

    def spread(key: str) -> Mean | None:
        values = [v for v in (getattr(s, key, None) for s in summaries) if v is not None]
        return Mean.of(values) if values else None

    return SummaryRow(
        row=row,
        accuracy=spread("accuracy"),
        uncompressed=spread("accuracy_uncompressed"),
        best=spread("best_accuracy"),
        best_samples=frozenset(run.best_samples for run in row.finished if run.best_samples),
        bytes_up=mean("bytes_up"),
        bytes_down=mean("bytes_down"),
        nominal=mean("ratio_nominal"),
        measured=mean("ratio_measured"),
        client_seconds=mean("client_seconds"),
        server_seconds=mean("server_seconds"),
        link_seconds=mean("link_seconds"),
        epochs=mean("epochs"),
        steps=mean("steps"),
        found=row.found,
        is_reference=is_reference,
        difference=difference,
        p=p,
        leads=leads,
        states=Counter(run.state for run in row.runs),
        note="; ".join(_notes(row)),
    )


def _accuracies(row: Row) -> dict[int, float]:
    return {run.seed: run.summary.accuracy for run in row.runs if run.summary is not None}


def _difference(row: Row, reference: Row | None) -> Difference | None:
    if reference is None or not row.finished or not reference.finished:
        return None
    return compare(_accuracies(row), _accuracies(reference))


def _leading(rows: Sequence[Row]) -> list[bool]:
    """Tell which rows have the best mean or cannot be told from it; none if that is all of them."""
    samples = [_accuracies(row) for row in rows]
    means = [statistics.fmean(each.values()) if each else None for each in samples]
    known = [mean for mean in means if mean is not None]
    if not known:
        return [False] * len(rows)
    best = means.index(max(known))
    tests = [
        compare(sample, samples[best]).p if sample and i != best else None
        for i, sample in enumerate(samples)
    ]
    corrected = holm(tests)
    if not any(p is not None and p < LEVEL for p in corrected):
        return [False] * len(rows)
    return [i == best or (p is not None and p >= LEVEL) for i, p in enumerate(corrected)]


def gathered(notes: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield what is told of rows, each note once, with the names of the rows that have it."""
    names: dict[str, list[str]] = {}
    for name, note in notes:
        if note:
            names.setdefault(note, []).append(name)
    for note, found in names.items():
        more = f" and {len(found) - 2} more rows" if len(found) > 3 else ""
        yield "; ".join(found[:2] if more else found) + more, note


def _notes(row: Row) -> Iterator[str]:
    reasons: dict[tuple[str, str], list[int]] = {}
    for run in row.runs:
        if run.summary is None:
            reasons.setdefault((run.state, run.error), []).append(run.seed)
    for (state, reason), seeds in reasons.items():
        left_out = " and not in the means" if state == "diverged" else ""
        told = f": {reason}" if reason else ""
        yield f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {state}{left_out}{told}"
    if row.remark:
        yield row.remark


# For people.


@dataclass(frozen=True)
class Cells:
    """A header and rows of texts, the bytes in one unit for all rows.

    Attributes:
        header: names of the columns.
        rows: as many texts each.
        bold: numbers of the rows whose accuracy is printed in bold.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[int]

    @property
    def words(self) -> tuple[int, ...]:
        """Numbers of the columns that hold words, not numbers."""
        return tuple(i for i, name in enumerate(self.header) if name in ("row", "note"))


def byte_unit(counts: Sequence[float]) -> tuple[str, float]:
    """Return the decimal unit in which to write these bytes, and how many bytes it has."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
    return next((unit for unit in units if max(counts, default=0.0) >= unit[1]), units[-1])


def cells(rows: Sequence[SummaryRow]) -> Cells:
    """Write out all rows; an optional column in which nothing stands is left out."""
    unit, size = byte_unit([n for r in rows for n in (r.bytes_up, r.bytes_down) if n is not None])
    tests = {r.difference.test for r in rows if r.difference and r.difference.test}
    p = f"p {min(tests)}" if len(tests) == 1 else "p"
    best = _best_header(rows)
    columns: dict[str, Callable[[SummaryRow], str]] = {
        "row": lambda r: r.row.title,
        "accuracy": lambda r: _mean(r.accuracy) if r.accuracy else _without_a_run(r.states),
        "n": lambda r: _count(r),
        p: lambda r: _p_value(r, len(tests) > 1),
        "uncompressed": lambda r: _mean(r.uncompressed),
        best: lambda r: _mean(r.best),
        f"up {unit}": lambda r: _number(r.bytes_up, "#.4g", size),
        f"down {unit}": lambda r: _number(r.bytes_down, "#.4g", size),
        "nominal": lambda r: _number(r.nominal, ".4f"),
        "measured": lambda r: _number(r.measured, ".4f"),
        **{name: partial(_found, name) for name in _found_names(rows)},
        "client s": lambda r: _number(r.client_seconds, ".1f"),
        "server s": lambda r: _number(r.server_seconds, ".1f"),
        "link s": lambda r: _number(r.link_seconds, ".1f"),
        "epochs": lambda r: _number(r.epochs, ".2f"),
        "steps": lambda r: _number(r.steps, ",.0f"),
        "note": lambda r: r.note,
    }
    filled = {
        p: any(r.is_reference for r in rows),
        "uncompressed": any(r.uncompressed for r in rows),
        best: any(r.best for r in rows),
        "note": any(r.note for r in rows),
    }
    columns = {name: text for name, text in columns.items() if filled.get(name, True)}
    return Cells(
        tuple(columns),
        tuple(tuple(text(row) for text in columns.values()) for row in rows),
        frozenset(i for i, row in enumerate(rows) if row.leads),
    )


def _best_header(rows: Sequence[SummaryRow]) -> str:
    """Return what the best accuracy is called: that of a part of the images is another measure."""
    told = {n for row in rows if row.best for n in row.best_samples}
    if len(told) > 1:
        return "best, on --eval-samples"
    return f"best, on {min(told):,} samples" if told else "best"


def _found_names(rows: Iterable[SummaryRow]) -> list[str]:
    """Return what probes found of any row; a number by chance stands with the one that it is of."""
    names = dict.fromkeys(name for row in rows for name in row.found)
    return [name for name in names if name.removesuffix(_BY_CHANCE) not in names.keys() - {name}]


def _found(name: str, row: SummaryRow) -> str:
    value, chance = row.found.get(name), row.found.get(f"{name}{_BY_CHANCE}")
    if value is None:
        return "—"
    return f"{value.mean:#.3g}" + (f" ({chance.mean:#.3g})" if chance else "")


def _mean(value: Mean | None) -> str:
    if value is None:
        return "—"
    return f"{value.mean:.4f} ± {'—' if value.half is None else f'{value.half:.4f}'}"


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "—" if value is None else format(value / unit, form).rstrip(".")


def _without_a_run(states: Mapping[str, int]) -> str:
    return "diverged" if states.get("diverged") else "—"


def _count(row: SummaryRow) -> str:
    finished, wanted = row.states.get("finished", 0), sum(row.states.values())
    return str(finished) if finished == wanted else f"{finished}/{wanted}"


def _p_value(row: SummaryRow, named: bool) -> str:
    if row.is_reference:
        return "reference"
    if row.p is None or row.difference is None:
        return "—"
    told = "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
    return f"{told} {row.difference.test}" if named else told


LEGEND = """\
- accuracy: on the test images, at the end of training: mean over the seeds ± half the width of the
  95 % interval of the mean (Student's t; — of a single run); through the stack where a plugin acts
  in evaluation. uncompressed: the same model evaluated without the stack. best: at the evaluation
  that was best, of runs that kept it; on the images of --eval-samples alone, where that was given.
- n: the finished runs, which every mean is over; k/n are k finished of n wanted. A run that
  diverged (a loss, gradient or evaluation that is no finite number) is in no mean.
- p: two-sided p-value of the accuracy's difference to the reference, after Holm's correction over
  all rows: paired by seed where both have the same seeds (paired), else Welch's test (Welch);
  — where no test can tell: fewer than two runs, or nothing varies.
- bold: the best mean, and those that cannot be told from it (the same tests against the best row,
  Holm-corrected, p ≥ 0.05). Nothing is bold where no row can be told from the best.
- up, down: training bytes that crossed the link, headers and labels included.
- nominal: the ratio that the methods' papers would charge. measured: up and down over the
  uncompressed float32 activations and gradients of the same samples.
- what a probe found at the end of the runs has its name in front: the mean, and by chance in
  brackets. The probe's page says what it is.
- client s, server s, link s: seconds of the training steps.
"""


def markdown(results: Results) -> str:
    """Return the table for people, with what all runs have in common and the legend."""
    common = ", ".join(f"{name} {value}" for name, value in results.common)
    head = [f"{text}\n" for text in (results.summary, common) if text]
    return "\n".join([*head, table_markdown(summarise(results)), "", LEGEND])


def table_markdown(rows: Sequence[SummaryRow]) -> str:
    """Return the table of these rows alone."""
    table = cells(rows)
    rule = ["---" if i in table.words else "---:" for i in range(len(table.header))]
    lines = [table.header, rule, *(_in_bold(table, i) for i in range(len(table.rows)))]
    escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {line} |" for line in escaped)


def _in_bold(table: Cells, i: int) -> tuple[str, ...]:
    if i not in table.bold:
        return table.rows[i]
    return tuple(
        f"**{text}**" if name == "accuracy" else text
        for name, text in zip(table.header, table.rows[i], strict=True)
    )


# For machines.

_STATES = ("finished", "running", "interrupted", "failed", "diverged", "missing")
_MEANS = ("accuracy", "uncompressed", "best")
_NUMBERS = (
    *("bytes_up", "bytes_down", "nominal", "measured", "client_seconds", "server_seconds"),
    *("link_seconds", "epochs", "steps"),
)


def table_csv(results: Results) -> str:
    """Return the table as a CSV file in full precision; a column for every axis, too."""
    text = io.StringIO()
    records = [_record(results, row) for row in summarise(results)]
    writer = csv.DictWriter(text, [*records[0]] if records else ["row"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(results: Results, row: SummaryRow) -> dict[str, Any]:
    found: dict[str, Any] = {"row": row.row.title, "method": row.row.method}
    found |= {axis.name: row.row.settings.get(axis.name) for axis in results.axes}
    for name in _MEANS:
        value: Mean | None = getattr(row, name)
        for part in ("mean", "std", "half", "n"):
            found[f"{name}_{part}"] = getattr(value, part) if value else None
    found |= {name: getattr(row, name) for name in _NUMBERS}
    difference = row.difference
    for name in dict.fromkeys(name for each in results.rows for name in each.found):
        number = row.found.get(name)
        found |= {name: number.mean if number else None}
    return found | {
        "is_reference": row.is_reference,
        "difference": difference.mean if difference else None,
        "test": difference.test if difference else None,
        "p": difference.p if difference else None,
        "p_holm": row.p,
        "bold": row.leads,
        **{state: row.states.get(state, 0) for state in _STATES},
        "note": row.note,
    }
