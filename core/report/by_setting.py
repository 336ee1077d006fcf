"""Final accuracy against one setting, or against the share of bytes sent, as lines. Draws nothing.

``ratio``            against the bytes sent, over those of uncompressed training
``setting:NAME``     against a setting in numbers: ``setting:cut``, ``setting:batch-size``
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.contract.settings import shown
from splitlab.core.report.axes import OF_THE_METHOD, numeric_of
from splitlab.core.report.results import Axis, Results, Row

__all__ = ["RATIO", "SETTING", "Place", "Series", "series", "x_axis"]

RATIO = "ratio"
SETTING = "setting"


@dataclass(frozen=True)
class Place:
    """One row on a line.

    Attributes:
        row: that is shown.
        x: its setting, or the mean of the measured ratios of its finished runs.
        y: mean accuracy of these.
        half: see `Mean`.
    """

    row: Row
    x: float
    y: float
    half: float | None


@dataclass(frozen=True)
class Series:
    """Rows that differ in what they are drawn against alone.

    Attributes:
        label: what tells it from the other lines.
        method: of its rows.
        places: from left to right; rows without a finished run are not in it.
        level: a row that has no such setting, drawn as a level line; None otherwise.
        missing: how many of its rows have no finished run.
    """

    label: str
    method: str
    places: tuple[Place, ...]
    level: Place | None = None
    missing: int = 0


def x_axis(results: Results, kind: str) -> Axis | None:
    """Return the setting that a figure's name says; None for the measured ratio.

    Raises:
        ConfigError: the rows do not differ in a setting of that name, or it is not in numbers.
    """
    head, _, name = kind.partition(":")
    if head == RATIO:
        return None
    known = {axis.name: axis for axis in numeric_of(results.axes)}
    if name in known:
        return known[name]
    values = [value for axis in results.axes if axis.name == name for value in axis.values]
    if word := next((value for value in values if isinstance(value, str)), None):
        raise ConfigError(
            f"{kind}: among these rows there is {name}={word}, which is no number; leave such rows "
            "out, or draw another"
        )
    if not known:
        raise ConfigError(f"{kind}: these rows differ in no setting in numbers; draw another")
    raise unknown_name("setting in numbers", name, known)


def series(results: Results, kind: str) -> tuple[Series, ...]:
    """Return the lines of a figure, in the order of the rows."""
    axis = x_axis(results, kind)
    if axis is None:
        across = [each.name for each in results.axes if each.name.rpartition(".")[2] == RATIO]
    else:
        across = [axis.name]
    names = [a.name for a in results.axes if a.name not in (*across, OF_THE_METHOD)]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in results.rows:
        apart = [shown(row.settings.get(name)) for name in names]
        groups.setdefault((row.method, *apart), []).append(row)
    return tuple(_series(rows, names, axis) for rows in groups.values())


def _series(rows: Sequence[Row], names: Sequence[str], axis: Axis | None) -> Series:
    first = rows[0]
    told = [f"{n} {shown(v)}" for n in names if (v := first.settings.get(n)) is not None]
    label = ", ".join([first.method, *told])
    places, level = [], None
    for row in rows:
        accuracy = row.accuracy
        if accuracy is None:
            continue
        x = _ratio(row) if axis is None else row.settings.get(axis.name)
        place = Place(row, 0.0 if x is None else x, accuracy.mean, accuracy.half)
        if x is None:
            level = place
        else:
            places.append(place)
    missing = len(rows) - len(places) - (level is not None)
    places.sort(key=lambda place: place.x)
    return Series(label, first.method, tuple(places), level, missing)


def _ratio(row: Row) -> float:
    return statistics.fmean(
        run.summary.ratio_measured for run in row.finished if run.summary is not None
    )
