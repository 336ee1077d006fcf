"""Settings in which rows differ: their values, and those that go together as in a study's zip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from splitlab.core.contract.settings import shown
from splitlab.core.report.results import Axis, Row

__all__ = ["OF_THE_METHOD", "has_both", "numeric_of", "ordered", "together", "values_of", "zipped"]

OF_THE_METHOD = "stack"
"""The axis that tells methods apart."""


def zipped(name: str, others: Iterable[Axis], rows: Sequence[Row]) -> list[Axis]:
    """Return the other axes whose values go together with that axis's, one with one, as zipped."""
    found = []
    for other in others:
        pairs = {(row.settings[name], row.settings.get(other.name)) for row in rows}
        sides = [len({pair[i] for pair in pairs}) for i in (0, 1)]
        if len(pairs) > 1 and sides == [len(pairs)] * 2:
            found.append(other)
    return found


def together(axis: Axis, along: Sequence[Axis], rows: Iterable[Row]) -> Axis:
    """Return the axis with the names and values of those that go with it."""
    if not along:
        return axis
    of = {row.settings[axis.name]: row.settings for row in rows}
    names = [axis.name, *(each.name for each in along)]
    values = (", ".join(shown(of[value].get(name)) for name in names) for value in axis.values)
    return Axis(", ".join(names), tuple(values))


def values_of(axis: Axis) -> list[Any]:
    """Return its values; None stands for rows without such a setting."""
    return [value for value in axis.values if value is not None]


def has_both(row: Row, x: Axis, y: Axis) -> bool:
    """Return whether a row has a place in a map of these."""
    return None not in (row.settings.get(x.name), row.settings.get(y.name))


def ordered(axis: Axis, rows: Iterable[Row]) -> Axis:
    """Return the axis with the values that these rows have; numbers go up."""
    used = [row.settings[axis.name] for row in rows]
    values = [value for value in axis.values if value in used]
    return Axis(axis.name, tuple(sorted(values) if _is_numeric(values) else values))


def _is_numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def numeric_of(axes: Iterable[Axis]) -> list[Axis]:
    """Return the axes of at least two numbers; what is None there has no such setting."""
    return [a for a in axes if len(values_of(a)) > 1 and _is_numeric(values_of(a))]
