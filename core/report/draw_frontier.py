"""Final accuracy against bytes or what a probe found: all rows, the Pareto frontier marked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from splitlab.core.report.draw_curves import COLOURS, GREY, MARKERS, within_shares
from splitlab.core.report.figures import Mark
from splitlab.core.report.summary_table import byte_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

__all__ = ["draw_frontier"]

_DISTANCES = (6, 10, 16, 24, 34, 46)  # points from a mark to its label
_DIRECTIONS = 16
_LEGEND = 2.2  # inches of the width that it may take
_LETTERS = 120
"""Where the names of the frontier have more, marks have numbers, and the names stand below."""


def draw_frontier(marks: Sequence[Mark], found: str = "") -> Figure:
    """Draw the means with their intervals, and the name of every row on the frontier.

    Args:
        marks: of `splitlab.core.report.figures.frontier`.
        found: what of a probe they are against; empty for bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    leading = sorted((mark for mark in marks if mark.leads), key=lambda mark: (mark.x, mark.y))
    names = [mark.row.title for mark in leading]
    told = [f"{i + 1}  {name}" for i, name in enumerate(names)]
    if sum(map(len, names)) <= _LETTERS:
        told = []
    figure = Figure(figsize=(6.9, 3.3 + 0.13 * len(told)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(mark.row.method for mark in marks))
    for i, method in enumerate(methods):
        _scatter(axes, i, method, [mark for mark in marks if mark.row.method == method])
    axes.plot(
        *([mark.x for mark in leading], [mark.y for mark in leading]),
        drawstyle="steps-post",
        color="#333333",
        linewidth=0.9,
        zorder=2,
        label="Pareto frontier",
    )
    _scale(axes, marks, found)
    within_shares(axes)
    axes.set_ylabel("test accuracy")
    if marks:
        legend = figure.legend(loc="outside right upper", frameon=False, handlelength=1.4)
        if told:
            figure.supxlabel("\n".join(told), x=0.07, ha="left", fontsize=6.5, linespacing=1.3)
            names = [str(i + 1) for i in range(len(names))]
        figure.canvas.draw()
        size = legend.get_window_extent()
        tall, wide = size.height / figure.dpi, size.width / figure.dpi
        if tall > figure.get_figheight():  # so many methods
            figure.set_figheight(tall + 0.1)
        if wide > _LEGEND:  # such long names: the axes need their width for the words below them
            figure.set_figwidth(figure.get_figwidth() + wide - _LEGEND)
        figure.canvas.draw()  # the layout is made now, and labels are placed in it
        figure.set_layout_engine("none")
        _place_labels(figure, axes, marks, [*zip(leading, names, strict=True)])
    return figure


def _scatter(axes: Axes, i: int, method: str, marks: Sequence[Mark]) -> None:
    colour = GREY if method == "none" else COLOURS[i % len(COLOURS)]
    axes.errorbar(
        [mark.x for mark in marks],
        [mark.y for mark in marks],
        [mark.half or 0.0 for mark in marks],
        linestyle="",
        color=colour,
        marker=MARKERS[i % len(MARKERS)],
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.4,
        elinewidth=0.7,
        label=method,
        zorder=3,
    )
    leading = [mark for mark in marks if mark.leads]
    axes.plot(
        *([mark.x for mark in leading], [mark.y for mark in leading]),
        linestyle="",
        color=colour,
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        markeredgecolor="black",
        markeredgewidth=0.8,
        zorder=4,
    )


def _scale(axes: Axes, marks: Sequence[Mark], found: str) -> None:
    several = any(mark.half is not None for mark in marks)
    told = "; mean and 95 % interval over the seeds" if several else ""
    if found:
        axes.margins(0.1, 0.1)
        axes.set_xlabel(f"{found}{told}")
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    counts = [mark.x for mark in marks]
    unit, size = byte_unit(counts)
    if counts and min(counts) > 0 and max(counts) > 5 * min(counts):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / size:g}"))
    axes.margins(0.1, 0.1)
    axes.set_xlabel(f"training bytes over the link, both directions ({unit}){told}")


def _place_labels(
    figure: Figure, axes: Axes, marks: Sequence[Mark], names: Sequence[tuple[Mark, str]]
) -> None:
    """Write the names of the leading rows where they cover neither marks nor each other."""
    taken = [_extent(axes, figure.dpi, mark) for mark in marks]
    taken += _steps(axes, [mark for mark, _ in names])
    inside = axes.get_window_extent()
    for mark, name in names:
        label = axes.annotate(
            name, (mark.x, mark.y), (0, 0), textcoords="offset points", fontsize=6.5
        )
        size = label.get_window_extent()
        label.remove()
        at = [*axes.transData.transform((mark.x, mark.y))]
        boxes = {
            (distance, direction): _box(at, size, _offset(distance, direction), figure.dpi)
            for distance in _DISTANCES
            for direction in range(_DIRECTIONS)
        }
        place = min(boxes, key=lambda each: _cost(boxes[each], each[0], taken, inside))
        taken.append(boxes[place])
        _write(axes, mark, name, place)


def _offset(distance: int, direction: int) -> tuple[float, float]:
    """Return how far a label stands to the right and above its mark, in points."""
    angle = 2 * math.pi * direction / _DIRECTIONS
    return distance * math.cos(angle), distance * math.sin(angle)


def _box(at: Sequence[float], size: Bbox, offset: tuple[float, float], dpi: float) -> Bbox:
    """Return the rectangle of a label of this size there, in pixels: away from its mark."""
    from matplotlib.transforms import Bbox

    x, y = (place + dpi / 72 * away for place, away in zip(at, offset, strict=True))
    x -= {-1: size.width, 0: size.width / 2, 1: 0.0}[_side(offset[0])]
    y -= {-1: size.height, 0: size.height / 2, 1: 0.0}[_side(offset[1])]
    return Bbox.from_bounds(x, y, size.width, size.height)


def _side(away: float) -> int:
    return 0 if abs(away) < 1 else 1 if away > 0 else -1


def _cost(box: Bbox, distance: int, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Return how much a label covers there, in square pixels; a far one costs a little, too."""
    covered = sum(_overlap(box, other) for other in taken)
    outside = box.width * box.height - _overlap(box, inside)
    return covered + 4 * outside + distance * 2


def _write(axes: Axes, mark: Mark, name: str, place: tuple[int, int]) -> None:
    offset = _offset(*place)
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": "#555555", "shrinkB": 3}
    axes.annotate(
        name,
        (mark.x, mark.y),
        xytext=offset,
        textcoords="offset points",
        ha={-1: "right", 0: "center", 1: "left"}[_side(offset[0])],
        va={-1: "top", 0: "center", 1: "bottom"}[_side(offset[1])],
        fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
        arrowprops=line if place[0] > _DISTANCES[1] else None,
        zorder=6,
    )


def _extent(axes: Axes, dpi: float, mark: Mark) -> Bbox:
    """Return the rectangle of a mark and its interval, in pixels."""
    from matplotlib.transforms import Bbox

    half, radius = mark.half or 0.0, 4 * dpi / 72
    (x, low), (_, high) = axes.transData.transform(
        [(mark.x, mark.y - half), (mark.x, mark.y + half)]
    )
    return Bbox([[x - radius, min(low, high) - radius], [x + radius, max(low, high) + radius]])


def _steps(axes: Axes, leading: Sequence[Mark]) -> list[Bbox]:
    """Return the frontier's line as thin rectangles, in pixels."""
    from matplotlib.transforms import Bbox

    places = axes.transData.transform([(mark.x, mark.y) for mark in leading])
    found = []
    for (x, y), (right, top) in itertools.pairwise(places):
        found.append(Bbox([[x, y - 2], [right, y + 2]]))
        found.append(Bbox([[right - 2, y], [right + 2, top]]))
    return found


def _overlap(one: Bbox, other: Bbox) -> float:
    from matplotlib.transforms import Bbox

    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)
