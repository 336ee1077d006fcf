"""Heat maps as numbers: the rows of some results by two of their settings. Draws nothing.

Of two shares, such as of samples and of tokens, equal products send as much: a ``ridge`` is a heat
map that tells the best on each line of equal products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.contract.settings import shown
from splitlab.core.report.axes import (
    OF_THE_METHOD,
    has_both,
    numeric_of,
    ordered,
    together,
    values_of,
    zipped,
)
from splitlab.core.report.results import Axis, Results, Row
from splitlab.core.report.statistics import Mean

__all__ = ["HEATMAP", "RIDGE", "Cell", "Contour", "Map", "Maps", "contours", "maps", "suits"]

HEATMAP = "heatmap"
RIDGE = "ridge"
_EQUAL = 0.01
"""How much products may differ that are taken for one: ratios are written with few digits."""


@dataclass(frozen=True)
class Cell:
    """A row in a heat map: its means, None where no run of it is finished."""

    row: Row
    accuracy: Mean | None
    bytes: float | None


@dataclass(frozen=True)
class Map:
    """One heat map: the rows that have the same other settings.

    Attributes:
        title: those settings; empty if there are none.
        cells: by the numbers of their values on the axes x and y; rows that were not to be are not
            in it.
    """

    title: str
    cells: Mapping[tuple[int, int], Cell]


@dataclass(frozen=True)
class Maps:
    """All heat maps over two axes.

    Attributes:
        x: the axis from left to right.
        y: the axis from top to bottom.
        maps: at least one.
        beside: rows that have no value on one of the axes, such as what is uncompressed.
    """

    x: Axis
    y: Axis
    maps: tuple[Map, ...]
    beside: tuple[Row, ...]


@dataclass(frozen=True)
class Contour:
    """The cells of a map whose two settings have the same product.

    Attributes:
        product: of the first of them.
        places: two or more, from left to right.
        best: the one of the highest mean accuracy; None where no run is finished.
    """

    product: float
    places: tuple[tuple[int, int], ...]
    best: tuple[int, int] | None


def contours(maps: Maps, each: Map) -> tuple[Contour, ...]:
    """Return the lines of equal products of one of the maps, by rising product.

    Args:
        maps: over two axes of numbers.
        each: one of them.
    """
    found: list[tuple[float, list[tuple[int, int]]]] = []
    products = {(i, j): maps.x.values[i] * maps.y.values[j] for i, j in each.cells}
    for place, product in sorted(products.items(), key=lambda item: item[1]):
        if found and math.isclose(found[-1][0], product, rel_tol=_EQUAL):
            found[-1][1].append(place)
        else:
            found.append((product, [place]))
    return tuple(
        Contour(product, tuple(sorted(places)), _best(each, places))
        for product, places in found
        if len(places) > 1
    )


def _best(each: Map, places: list[tuple[int, int]]) -> tuple[int, int] | None:
    known = [(cell.mean, at) for at in places if (cell := each.cells[at].accuracy) is not None]
    return max(known)[1] if known else None


def maps(results: Results, kind: str = HEATMAP) -> Maps:
    """Return the heat maps that a figure's name says.

    Raises:
        ConfigError: the results have no such axes; or those of a ridge are no numbers.
    """
    x, y = _map_axes(results, kind)
    inside = [row for row in results.rows if has_both(row, x, y)]
    if not inside:
        raise ConfigError(f"{kind}: no row has both {x.name} and {y.name}; name two others")
    x, y = ordered(x, inside), ordered(y, inside)
    others = [axis for axis in results.axes if axis.name not in (x.name, y.name)]
    free = [axis for axis in others if axis.name != OF_THE_METHOD]
    along = {name: zipped(name, free, inside) for name in (x.name, y.name)}
    others = [axis for axis in others if not any(axis in each for each in along.values())]
    cells: dict[str, dict[tuple[int, int], Cell]] = {}
    for row in inside:
        title = ", ".join(
            shown(value) if axis.name == OF_THE_METHOD else f"{axis.name} {shown(value)}"
            for axis in others
            if (value := row.settings.get(axis.name)) is not None
        )
        at = (x.values.index(row.settings[x.name]), y.values.index(row.settings[y.name]))
        accuracy = row.accuracy
        cell = Cell(row, accuracy, row.bytes)
        cells.setdefault(title, {})[at] = cell
    beside = tuple(row for row in results.rows if not has_both(row, x, y))
    titled = len(cells) > 1
    found = tuple(Map(title if titled else "", each) for title, each in cells.items())
    x, y = (together(axis, along[axis.name], inside) for axis in (x, y))
    if kind.partition(":")[0] == RIDGE and len(numeric_of((x, y))) < 2:
        raise ConfigError(
            f"{kind}: {x.name} and {y.name} are not both numbers, which have products; "
            "draw a heatmap"
        )
    return Maps(x, y, found, beside)


def _map_axes(results: Results, kind: str) -> tuple[Axis, Axis]:
    text = kind.partition(":")[2]
    several = [axis for axis in results.axes if len(values_of(axis)) > 1]
    if len(several) < 2:
        raise ConfigError(
            f"{kind} needs two settings with two values each; these runs differ in "
            f"{' and '.join(axis.name for axis in results.axes) or 'nothing'}"
        )
    if not text:
        numeric = numeric_of(results.axes)
        numeric.sort(key=lambda axis: -len(values_of(axis)))
        first, *rest = [*numeric, *(axis for axis in several if axis not in numeric)]
        rows = [row for row in results.rows if row.settings.get(first.name) is not None]
        bound = zipped(first.name, rest, rows)
        second, *_ = [axis for axis in rest if axis not in bound] or rest
        more = sorted((first, second), key=lambda axis: -len(values_of(axis)))
        return more[0], more[1]
    names = _names(text)
    if len(names) != 2 or names[0] == names[1]:
        raise ConfigError(
            f"the figure {kind} names no two settings; write {kind.partition(':')[0]}:x=X,y=Y, "
            f"with two of {', '.join(axis.name for axis in several)}"
        )
    by_name = {axis.name: axis for axis in several}
    for each in names:
        if each not in by_name:
            raise unknown_name("setting", each, by_name)
    return by_name[names[0]], by_name[names[1]]


def _names(text: str) -> list[str]:
    """Return the axes of ``x=X,y=Y``, or of both with a multiplication sign between them."""
    if "×" in text:
        return text.split("×")
    pairs = dict(each.partition("=")[::2] for each in text.split(","))
    return [pairs[key] for key in ("x", "y") if key in pairs] if len(pairs) == 2 else []


def suits(results: Results) -> bool:
    """Return whether there are two settings in numbers that some row has both of."""
    return len(numeric_of(results.axes)) > 1 and any(
        has_both(row, *_map_axes(results, HEATMAP)) for row in results.rows
    )
