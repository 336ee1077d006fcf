"""What came of many runs, as tables, figures and pages see it: rows of runs that differ by seed.

A study makes it of its plan and its run folders (`splitlab.core.studies`), `splitlab report` of any
run folders (`splitlab.core.report.collect`). Everything that draws, prints or exports takes it, and
nothing else.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitlab.core.report.published import Published
from splitlab.core.report.statistics import Mean
from splitlab.core.runs.records import Summary

__all__ = ["Axis", "Point", "Results", "Row", "RunResult"]


@dataclass(frozen=True)
class Point:
    """One evaluation of a run.

    Attributes:
        step: training steps done before it; 0 is before the first.
        accuracy: on the test images, 0 to 1; through the stack where a plugin acts in evaluation.
        loss: mean over the images.
        training_bytes: bytes of training until then that crossed the link, both directions.
        seconds: of the training steps until then (client, server and link); None if not recorded.
        joules: of the client until then; None if nobody measured it.
        samples: how many images it was made on; None in older records: all.
    """

    step: int
    accuracy: float
    loss: float
    training_bytes: int
    seconds: float | None = None
    joules: float | None = None
    samples: int | None = None


@dataclass(frozen=True)
class RunResult:
    """What came of one run.

    Attributes:
        folder: of the run.
        seed: of the run.
        state: ``finished``, ``running``, ``interrupted``, ``failed``, ``diverged``, or ``missing``
            for one that is to be and was not started.
        error: why it failed or diverged.
        summary: what it ended with; None unless it is finished.
        points: its evaluations, in their order; also of a run that did not finish.
        found: numbers that probes ended with, by the probe's label and their name.
    """

    folder: Path
    seed: int
    state: str
    error: str = ""
    summary: Summary | None = None
    points: tuple[Point, ...] = ()
    found: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def best_samples(self) -> int | None:
        """How many images the best evaluation is told by; None if it is all of them."""
        seen = {point.samples for point in self.points if point.samples is not None}
        return min(seen) if len(seen) > 1 else None


@dataclass(frozen=True)
class Axis:
    """A setting in which rows differ.

    Attributes:
        name: an option (``cut``, ``batch-size``), ``stack``, or a plugin's setting (``adc.ratio``).
        values: all that rows have, in the order of the study; numbers, texts or None for rows that
            have no such setting.
    """

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        title: what tables call it: no two rows have the same.
        method: its plugins without the settings that are axes: rows of one method are one panel of
            a figure. ``none`` for an empty stack.
        settings: its value on every axis, by the axis's name.
        runs: by seed, in the order of the seeds.
        remark: what a reader of the row should know; most often empty.
    """

    title: str
    method: str
    settings: Mapping[str, Any]
    runs: tuple[RunResult, ...]
    remark: str = ""

    @property
    def finished(self) -> tuple[RunResult, ...]:
        """The runs that every mean is over."""
        return tuple(run for run in self.runs if run.summary is not None)

    @property
    def accuracy(self) -> Mean | None:
        """At the end of the finished runs; None if none is."""
        values = [run.summary.accuracy for run in self.runs if run.summary is not None]
        return Mean.of(values) if values else None

    @property
    def found(self) -> dict[str, Mean]:
        """What probes of the finished runs ended with, by name, over those that have it."""
        names = dict.fromkeys(name for run in self.finished for name in run.found)
        return {
            name: Mean.of([run.found[name] for run in self.finished if name in run.found])
            for name in names
        }

    @property
    def bytes(self) -> float | None:
        """Training bytes in both directions, as a mean over the finished runs; None if none is."""
        sent = [run.summary for run in self.runs if run.summary is not None]
        return statistics.fmean(each.bytes_up + each.bytes_down for each in sent) if sent else None


@dataclass(frozen=True)
class Results:
    """Rows, and what is to be known of all of them.

    Attributes:
        name: of the study, or of what was asked for.
        summary: one sentence on what it is about; may be empty.
        paper: the figure or table of a paper that it reproduces; may be empty.
        common: what all runs have in common, name and value, in the order to be shown.
        command: what makes it again, as typed in a shell; may be empty.
        axes: in what the rows differ.
        rows: in the order of the study.
        seeds: of the runs.
        draw: which figures: see `splitlab.core.report.figures`.
        reference: title of the row that the others are tested against, or method of the rows, see
            `splitlab.core.report.reference`; None for no test.
        published: what others published of the same regime.
    """

    name: str
    summary: str
    paper: str
    common: tuple[tuple[str, str], ...]
    command: str
    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    draw: tuple[str, ...] = ()
    reference: str | None = None
    published: Published = dataclasses.field(default_factory=Published)
