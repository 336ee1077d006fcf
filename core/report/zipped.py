"""Settings whose values go together, one with one, as those of a study's zip: one side of a map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from splitlab.core.contract.settings import shown
from splitlab.core.report.results import Axis, Row

__all__ = ["together", "zipped"]


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
