"""What figures show, as numbers: panels of lines and the Pareto frontier. Draws nothing.

Which figures a study wants is a tuple of names (``Results.draw``), each one of

bytes, steps, seconds, joules     accuracy against what was spent until then: a panel a method
bytes:log, steps:log and so on    the same over a logarithmic axis
frontier                          final accuracy against training bytes, all rows in one
frontier:NAME                     the same against what a probe found, as tables call it
heatmap                           accuracy and bytes over the two settings with the most values
heatmap:x=X,y=Y                   the same over these two; others have a map for each combination;
                                  X and Y may stand with a multiplication sign between them, too
ridge, ridge:x=X,y=Y              a heat map with lines of equal products and the best on each
ratio                             final accuracy against the measured share of bytes
setting:NAME                      the same against a setting in numbers

Without any, those that suit are drawn, see `wanted`.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from splitlab.core.contract.errors import ConfigError, Notice, unknown_name
from splitlab.core.contract.settings import shown
from splitlab.core.report.axes import OF_THE_METHOD
from splitlab.core.report.by_setting import RATIO, SETTING, x_axis
from splitlab.core.report.heat_maps import HEATMAP, RIDGE, maps, suits
from splitlab.core.report.reference import context_of
from splitlab.core.report.results import Axis, Point, Results, Row
from splitlab.core.report.statistics import Mean

__all__ = [
    "FIGURES",
    "Line",
    "Mark",
    "Panel",
    "check_name",
    "drawable",
    "found_of",
    "frontier",
    "is_still",
    "panels",
    "spent",
    "wanted",
]

_SPENT: Mapping[str, Callable[[Point], float | None]] = {
    "bytes": lambda point: point.training_bytes,
    "steps": lambda point: point.step,
    "seconds": lambda point: point.seconds,
    "joules": lambda point: point.joules,
}
"""What a curve may be drawn against; None where it was not measured."""

FIGURES = (
    *(*_SPENT, *(f"{name}:log" for name in _SPENT)),
    *("frontier", HEATMAP, RIDGE, RATIO),
)
_WITH_SETTINGS = (HEATMAP, RIDGE, SETTING)

_FRONTIER = "frontier"

_LINES_OF_A_PANEL = 7


def spent(kind: str) -> str:
    """Return what a figure's curves are drawn against: ``bytes`` of ``bytes:log``."""
    return kind.partition(":")[0]


def is_still(kind: str) -> bool:
    """Return whether a page shows the figure as a picture, and has no script that draws it."""
    return spent(kind) in (RIDGE, RATIO, SETTING) or kind.startswith(f"{_FRONTIER}:")


def wanted(results: Results) -> tuple[str, ...]:
    """Return the figures to draw: those that were asked for, or those that suit.

    Raises:
        ConfigError: there is no such figure, or the results have not what it needs.
    """
    for kind in results.draw:
        _check(kind, results)
    if results.draw:
        return tuple(dict.fromkeys(results.draw))
    grid = suits(results)
    return (*(("heatmap",) if grid else ()), "bytes", "bytes:log", "frontier")


def drawable(results: Results) -> Results:
    """Return the results without those figures for which they have not what it takes.

    Every one that is left out is told in a `Notice`: a study names its figures before anybody knows
    what it will be reduced to, and what will be measured.
    """
    kept = []
    for kind in results.draw:
        try:
            _check(kind, results)
        except ConfigError as error:
            warnings.warn(f"the figure {kind} is left out: {error}", Notice, stacklevel=2)
        else:
            kept.append(kind)
    return replace(results, draw=tuple(kept))


def check_name(kind: str) -> None:
    """Raise `ConfigError` if no figure is called so, whatever the results."""
    if kind not in FIGURES and spent(kind) not in (*_WITH_SETTINGS, _FRONTIER):
        more = [f"{HEATMAP}:x=X,y=Y", f"{RIDGE}:x=X,y=Y", f"{SETTING}:NAME", f"{_FRONTIER}:NAME"]
        raise unknown_name("figure", kind, [*FIGURES, *more])


def _check(kind: str, results: Results) -> None:
    check_name(kind)
    if spent(kind) in (HEATMAP, RIDGE):
        maps(results, kind)
    elif spent(kind) in (RATIO, SETTING):
        x_axis(results, kind)
    elif spent(kind) == _FRONTIER:
        _check_found(kind, results)
    elif not any(_SPENT[spent(kind)](point) is not None for point in _points(results)):
        raise ConfigError(f"no run recorded its {spent(kind)}; draw accuracy against bytes instead")


def _check_found(kind: str, results: Results) -> None:
    names = list(dict.fromkeys(name for row in results.rows for name in row.found))
    if kind != _FRONTIER and found_of(kind) not in names:
        known = f"probes found: {', '.join(names)}" if names else "no probe found numbers"
        raise ConfigError(f"no run has {found_of(kind)!r}; {known}")


def _points(results: Results) -> Iterable[Point]:
    return (point for row in results.rows for run in row.runs for point in run.points)


# Curves.


@dataclass(frozen=True)
class Line:
    """One row as a curve.

    Attributes:
        row: that is shown; None of a line that tells only what is missing.
        label: the settings in which it differs from the panel's other lines.
        x: what was spent until each point, as a mean over the runs.
        y: mean accuracy there.
        low: lower end of the band; equal to y where there is one run.
        high: upper end.
        steps: of training until each point, as a mean over the runs.
        n: how many runs it is of.
        missing: how many runs of the row are not in it, and why; empty if all are.
    """

    row: Row
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    steps: tuple[float, ...]
    n: int
    missing: str


@dataclass(frozen=True)
class Panel:
    """The rows of one method, and what they are measured against.

    Attributes:
        title: the method, with settings that all its lines have and other panels have not.
        lines: of its rows.
        context: to be shown behind them; none for the panel of the reference itself.
    """

    title: str
    lines: tuple[Line, ...]
    context: tuple[Line, ...]


def panels(results: Results, kind: str) -> tuple[Panel, ...]:
    """Return the panels of curves against what a figure's name says.

    A line goes through the means at the steps that all finished runs of its row evaluated, and ends
    in the mean of their last evaluations. What was spent is averaged, too: it may differ by seed.
    """
    measure = _measure(kind)
    groups: dict[str, list[Row]] = {}
    behind = {id(each) for row in results.rows if (each := context_of(results, row)) is not None}
    for row in results.rows:
        if id(row) not in behind:  # it is in all other panels
            groups.setdefault(row.method, []).append(row)
    if not groups:
        groups = {"": list(results.rows)}
    found = []
    for method, rows in groups.items():
        for title, part in _parts(method, rows, results.axes):
            context = {id(c): c for row in part if (c := context_of(results, row)) is not None}
            names = _differing(part, results.axes)
            found.append(
                Panel(
                    title,
                    tuple(_line(row, measure, _label(row, names)) for row in part),
                    tuple(_line(row, measure, row.title) for row in context.values()),
                )
            )
    return tuple(found)


def _measure(kind: str) -> Callable[[Point], float | None]:
    """Return what is read off a point; of nothing spent a logarithmic axis has no place."""
    measure = _SPENT[spent(kind)]
    return (lambda point: measure(point) or None) if kind.endswith(":log") else measure


def _parts(
    title: str, rows: Sequence[Row], axes: Sequence[Axis]
) -> Iterable[tuple[str, Sequence[Row]]]:
    """Divide the rows of a method until a panel can be read, by the setting of fewest values."""
    names = _differing(rows, axes)
    if len(rows) <= _LINES_OF_A_PANEL or len(names) < 2:
        yield title, rows
        return
    name = min(names, key=lambda each: len({str(row.settings.get(each)) for row in rows}))
    for value in dict.fromkeys(row.settings.get(name) for row in rows):
        part = [row for row in rows if row.settings.get(name) == value]
        yield from _parts(f"{title}, {name} {shown(value)}", part, axes)


def _differing(rows: Sequence[Row], axes: Sequence[Axis]) -> list[str]:
    return [
        axis.name
        for axis in axes
        if axis.name != OF_THE_METHOD and len({str(r.settings.get(axis.name)) for r in rows}) > 1
    ]


def _label(row: Row, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {shown(row.settings.get(name))}" for name in names)


def _line(row: Row, measure: Callable[[Point], float | None], label: str) -> Line:
    logs = [
        log
        for run in row.finished
        if (
            log := {
                p.step: (x, p.accuracy, p.step)
                for p in run.points
                if (x := measure(p)) is not None and math.isfinite(p.accuracy)
            }
        )
    ]
    points = []
    if logs:
        common = sorted(set(logs[0]).intersection(*logs[1:]))
        points = [[log[step] for log in logs] for step in common]
        ends = [log[max(log)] for log in logs]
        if points[-1:] != [ends]:
            points.append(ends)
    bands = [_band([y for _, y, _ in point]) for point in points]
    return Line(
        row=row,
        label=label,
        x=tuple(statistics.fmean(x for x, _, _ in point) for point in points),
        y=tuple(statistics.fmean(y for _, y, _ in point) for point in points),
        low=tuple(low for low, _ in bands),
        high=tuple(high for _, high in bands),
        steps=tuple(statistics.fmean(step for _, _, step in point) for point in points),
        n=len(logs),
        missing=_missing(row, len(logs)),
    )


def _band(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean's 95 % interval; of two values, of which it says little, their range."""
    if len(values) < 3:
        return min(values), max(values)
    mean = Mean.of(values)
    return mean.mean - (mean.half or 0.0), mean.mean + (mean.half or 0.0)


def _missing(row: Row, shown_runs: int) -> str:
    wanted_runs = len(row.runs)
    if shown_runs == wanted_runs:
        return ""
    diverged = sum(run.state == "diverged" for run in row.runs)
    if diverged:
        return f"{diverged} of {wanted_runs} diverged"
    return f"{wanted_runs - shown_runs} of {wanted_runs} not shown"


# The frontier.


@dataclass(frozen=True)
class Mark:
    """One row in the scatter of accuracy against bytes.

    Attributes:
        row: that is shown.
        x: training bytes, both directions, or what a probe found, as a mean over the finished runs.
        y: mean accuracy.
        half: see `Mean`.
        leads: whether it is on the Pareto frontier: no other row has at least its accuracy for at
            most its bytes, or what was found.
    """

    row: Row
    x: float
    y: float
    half: float | None
    leads: bool


def found_of(kind: str) -> str:
    """Return the number of a probe that a frontier is against; empty for bytes."""
    return kind.partition(":")[2]


def frontier(results: Results, kind: str = _FRONTIER) -> tuple[Mark, ...]:
    """Return all rows with a finished run, and what the figure is against, in their order."""
    name = found_of(kind)
    known = [
        (row, sent, accuracy)
        for row in results.rows
        if (sent := _cost(row, name)) is not None and (accuracy := row.accuracy) is not None
    ]
    return tuple(
        Mark(row, x, accuracy.mean, accuracy.half, not _beaten(x, accuracy.mean, known))
        for row, x, accuracy in known
    )


def _cost(row: Row, name: str) -> float | None:
    """Return bytes, or the mean of what a probe found."""
    if not name:
        return row.bytes
    return row.found[name].mean if name in row.found else None


def _beaten(x: float, y: float, known: Iterable[tuple[Row, float, Mean]]) -> bool:
    return any(a <= x and b.mean >= y and (a, b.mean) != (x, y) for _, a, b in known)
