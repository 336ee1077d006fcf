"""Final accuracy against training bytes: all rows in one picture, the Pareto frontier marked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from splitlab.core.report.draw_curves import COLOURS, GREY, MARKERS
from splitlab.core.report.figures import Mark
from splitlab.core.report.summary_table import byte_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

__all__ = ["draw_frontier"]

_DISTANCES = (6, 10, 16, 24, 34, 46)  # points from a mark to its label
_DIRECTIONS = 16


def draw_frontier(marks: Sequence[Mark]) -> Figure:
    """Draw the means with their intervals, and the name of every row on the frontier.

    Args:
        marks: of `splitlab.core.report.figures.frontier`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.9, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(mark.row.method for mark in marks))
    for i, method in enumerate(methods):
        _scatter(axes, i, method, [mark for mark in marks if mark.row.method == method])
    leading = sorted((mark for mark in marks if mark.leads), key=lambda mark: (mark.x, mark.y))
    axes.plot(
        *([mark.x for mark in leading], [mark.y for mark in leading]),
        drawstyle="steps-post",
        color="#333333",
        linewidth=0.9,
        zorder=2,
        label="Pareto frontier",
    )
    _scale(axes, marks)
    axes.set_ylabel("test accuracy")
    if marks:
        figure.legend(loc="outside right upper", frameon=False, handlelength=1.4)
        figure.canvas.draw()  # the layout is made now, and labels are placed in it
        figure.set_layout_engine("none")
        _place_labels(figure, axes, marks, leading)
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


def _scale(axes: Axes, marks: Sequence[Mark]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    counts = [mark.x for mark in marks]
    unit, size = byte_unit(counts)
    if counts and min(counts) > 0 and max(counts) > 5 * min(counts):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / size:g}"))
    axes.margins(0.08, 0.1)
    several = any(mark.half is not None for mark in marks)
    told = "; mean and 95 % interval over the seeds" if several else ""
    axes.set_xlabel(f"training bytes over the link, both directions ({unit}){told}")


def _place_labels(
    figure: Figure, axes: Axes, marks: Sequence[Mark], leading: Sequence[Mark]
) -> None:
    """Write the names of the leading rows where they cover neither marks nor each other."""
    taken = [_extent(axes, figure.dpi, mark) for mark in marks]
    taken += _steps(axes, leading)
    for mark in leading:
        best = min(
            itertools.product(_DISTANCES, range(_DIRECTIONS)),
            key=lambda place: _cost(figure, axes, mark, place, taken),
        )
        label = _label(axes, mark, best)
        taken.append(label.get_window_extent())
    figure.canvas.draw()


def _label(axes: Axes, mark: Mark, place: tuple[int, int]):  # type: ignore[no-untyped-def]
    distance, direction = place
    angle = 2 * math.pi * direction / _DIRECTIONS
    dx, dy = distance * math.cos(angle), distance * math.sin(angle)
    return axes.annotate(
        mark.row.title,
        (mark.x, mark.y),
        xytext=(dx, dy),
        textcoords="offset points",
        ha="left" if dx > 1 else "right" if dx < -1 else "center",
        va="bottom" if dy > 1 else "top" if dy < -1 else "center",
        fontsize=6.5,
        arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#555555", "shrinkB": 3}
        if distance > _DISTANCES[1]
        else None,
        zorder=6,
    )


def _cost(
    figure: Figure, axes: Axes, mark: Mark, place: tuple[int, int], taken: Sequence[Bbox]
) -> float:
    """Return how much a label covers there, in square pixels; a far one costs a little, too."""
    label = _label(axes, mark, place)
    box = label.get_window_extent()
    label.remove()
    covered = sum(_overlap(box, other) for other in taken)
    outside = box.width * box.height - _overlap(box, axes.get_window_extent())
    return covered + 4 * outside + place[0] * 0.5


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
