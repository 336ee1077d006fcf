"""Tables of runs: means and spreads over seeds, for people and in full precision."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from splitlab.core.runs.records import Summary

__all__ = ["LEGEND", "Row", "Spread", "Table", "comma_separated"]


@dataclass(frozen=True)
class Spread:
    """Mean of some runs, and their sample standard deviation; None of a single run."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {'—' if self.std is None else f'{self.std:.4f}'}"


@dataclass(frozen=True)
class Row:
    """One stack in the table: means over its finished runs, None where there are none.

    Attributes:
        title: of the contender.
        accuracy: on the test images; through the stack where a plugin acts in evaluation.
        uncompressed: the same without the stack; None where no plugin acts in evaluation.
        bytes_up: training bytes that the client sent, as they crossed the link.
        bytes_down: the same of the server.
        nominal: ratio that the papers would charge.
        measured: bytes of both directions over those of the uncompressed float32 tensors.
        client_seconds: of the training steps; so are the next two.
        server_seconds: see there.
        link_seconds: see there.
        epochs: that were trained.
        steps: that were trained.
        finished: how many runs are.
        runs: how many there are to be.
        note: failures with their reasons, what is missing, the contender's remark.
        diverged: how many runs did; they are in no mean.
    """

    title: str
    accuracy: Spread | None
    uncompressed: Spread | None
    bytes_up: float | None
    bytes_down: float | None
    nominal: float | None
    measured: float | None
    client_seconds: float | None
    server_seconds: float | None
    link_seconds: float | None
    epochs: float | None
    steps: float | None
    finished: int
    runs: int
    note: str
    diverged: int = 0

    @classmethod
    def of(
        cls,
        title: str,
        summaries: Sequence[Summary],
        runs: int,
        note: str = "",
        diverged: int = 0,
    ) -> Row:
        """Summarise the finished ones of so many runs."""

        def mean(key: str) -> float | None:
            return statistics.fmean(getattr(s, key) for s in summaries) if summaries else None

        def spread(key: str) -> Spread | None:
            values = [v for v in (getattr(s, key) for s in summaries) if v is not None]
            return Spread.of(values) if values else None

        return cls(
            title=title,
            accuracy=spread("accuracy"),
            uncompressed=spread("accuracy_uncompressed"),
            bytes_up=mean("bytes_up"),
            bytes_down=mean("bytes_down"),
            nominal=mean("ratio_nominal"),
            measured=mean("ratio_measured"),
            client_seconds=mean("client_seconds"),
            server_seconds=mean("server_seconds"),
            link_seconds=mean("link_seconds"),
            epochs=mean("epochs"),
            steps=mean("steps"),
            finished=len(summaries),
            runs=runs,
            note=note,
            diverged=diverged,
        )


@dataclass(frozen=True)
class Table:
    """A header and rows of cells, the bytes in one unit for all rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Table:
        """Write out all rows; an optional column in which nothing stands is left out."""
        largest = max((max(r.bytes_up or 0, r.bytes_down or 0) for r in rows), default=0)
        units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
        unit, size = next((u for u in units if largest >= u[1]), units[-1])
        columns: dict[str, Callable[[Row], str]] = {
            "stack": lambda row: row.title,
            "accuracy": lambda row: (
                "diverged" if row.diverged and not row.finished else _cell(row.accuracy)
            ),
            "uncompressed": lambda row: _cell(row.uncompressed),
            f"up {unit}": lambda row: _cell(row.bytes_up, ".4g", size),
            f"down {unit}": lambda row: _cell(row.bytes_down, ".4g", size),
            "nominal": lambda row: _cell(row.nominal, ".4f"),
            "measured": lambda row: _cell(row.measured, ".4f"),
            "client s": lambda row: _cell(row.client_seconds, ".1f"),
            "server s": lambda row: _cell(row.server_seconds, ".1f"),
            "link s": lambda row: _cell(row.link_seconds, ".1f"),
            "epochs": lambda row: _cell(row.epochs, ".2f"),
            "steps": lambda row: _cell(row.steps, ",.0f"),
            "runs": lambda row: f"{row.finished}/{row.runs}",
            "note": lambda row: row.note,
        }
        if not any(row.uncompressed for row in rows):
            del columns["uncompressed"]
        if not any(row.note for row in rows):
            del columns["note"]
        return cls(
            tuple(columns), tuple(tuple(text(row) for text in columns.values()) for row in rows)
        )


def _cell(value: Spread | float | None, form: str = "", unit: float = 1.0) -> str:
    if value is None:
        return "—"
    return str(value) if isinstance(value, Spread) else format(value / unit, form)


LEGEND = """\
- accuracy: on the test images, mean ± sample standard deviation over the seeds; through the stack
  where a plugin acts in evaluation. uncompressed: the same model evaluated without the stack.
- up, down: training bytes that crossed the link, headers and labels included.
- nominal: the ratio that the methods' papers would charge. measured: up and down over the
  uncompressed float32 activations and gradients of the same samples.
- client s, server s, link s: seconds of the training steps.
- runs: finished of those wanted; every mean is over the finished ones, and one that diverged
  (a loss, gradient or evaluation that is no finite number) is not among them.
"""


def comma_separated(rows: Sequence[Row]) -> str:
    """Return the rows as a CSV file in full precision."""
    columns = [spec.name for spec in dataclasses.fields(Row)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    spreads = ("accuracy", "uncompressed")
    names = [(f"{n}_mean", f"{n}_std") if n in spreads else (n,) for n in columns]
    writer.writerow(["stack", *itertools.chain.from_iterable(names[1:])])
    for row in rows:
        cells: list[Any] = []
        for name in columns:
            value = getattr(row, name)
            if name in spreads:
                cells += [value.mean, value.std] if value else [None, None]
            else:
                cells.append(value)
        writer.writerow(cells)
    return text.getvalue()
