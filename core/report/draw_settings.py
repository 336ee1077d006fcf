"""Final accuracy against a setting or the share of bytes: a line a method; what was published."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from splitlab.core.report.by_setting import RATIO, Series
from splitlab.core.report.draw_curves import COLOURS, GREY, MARKERS, within_shares
from splitlab.core.report.published import Curve, Published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_settings"]

_WIDTH = 6.9
_TOGETHER = len(COLOURS)
"""Lines that can be told apart in one picture. Of more, each has a panel, the others behind it."""
_COLUMNS = 5
_OF_A_TITLE = 30
"""Letters of a line of a panel's title."""
_BEHIND = "#dadada"
_NOTE = 6.5
_LETTERS = 110
"""Of a line of the note below."""
_UNITS = {"snr": "dB"}
"""Of settings whose numbers have one."""


def draw_settings(lines: Sequence[Series], kind: str, published: Published) -> Figure:
    """Draw the means with their intervals, and dashed what others published.

    Args:
        lines: of `splitlab.core.report.by_setting.series`.
        kind: the figure's name.
        published: what to draw beside them; of ``ratio`` alone.
    """
    from matplotlib.figure import Figure

    beside = published if kind == RATIO else Published()
    own = [line for line in lines if _level(line) is None]
    apart = len(own) > _TOGETHER and not beside.curves
    columns, rows = (min(_COLUMNS, len(own)), math.ceil(len(own) / _COLUMNS)) if apart else (1, 1)
    figure = Figure(figsize=(_WIDTH, 1.3 * rows + 0.6 if apart else 3.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    if apart:
        for axes, line in zip(grid, own, strict=False):
            _panel(axes, line, lines)
        for axes in grid[len(own) :]:
            axes.set_axis_off()
    else:
        _together(grid[0], lines, beside)
        if grid[0].get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper", frameon=False, handlelength=2.2)
    _scale(grid[0], own if apart else lines, kind)
    within_shares(grid[0])
    for axes in grid[len(own) - columns if apart else 0 : len(own) if apart else 1]:
        axes.tick_params(labelbottom=True)  # the last of every column
    figure.supylabel("test accuracy")
    told = _told(lines, beside, apart)
    if apart:
        told = f"{_x_label(kind)}\n{told}"
    else:
        grid[0].set_xlabel(_x_label(kind))
    figure.supxlabel(told, fontsize=_NOTE)
    return figure


def _level(line: Series) -> float | None:
    """Return the accuracy of what others are measured against wherever they are on the axis."""
    alone = line.method == "none" and len(line.places) == 1
    place = line.places[0] if alone else line.level
    return None if place is None else place.y


def _together(axes: Axes, lines: Sequence[Series], beside: Published) -> None:
    """Draw all lines, and curves in the colours of their methods."""
    colours: dict[str, str] = {}
    for i, line in enumerate(lines):
        colours[line.label] = GREY if line.method == "none" else COLOURS[i % len(COLOURS)]
        _line(axes, line, colours[line.label], MARKERS[i % len(MARKERS)])
    for curve in beside.curves:
        axes.plot(
            *zip(*curve.points, strict=True),
            linestyle="--",
            linewidth=0.9,
            zorder=2,
            color=_colour_of(curve, colours),
            marker="o" if len(curve.points) == 1 else "",
            markersize=4,
            markerfacecolor="white",
            label=f"{curve.method}, published",
        )


def _colour_of(curve: Curve, colours: Mapping[str, str]) -> str:
    """Return the colour of its method, or of the same with other settings."""
    usual = colours.get(curve.method.partition(":")[0], GREY)
    return colours.get(curve.method, usual)


def _panel(axes: Axes, line: Series, lines: Sequence[Series]) -> None:
    """Draw one line in front of all others."""
    title = textwrap.fill(line.label.replace(",", ", ").replace(",  ", ", "), _OF_A_TITLE)
    axes.set_title(title, loc="left", pad=2, fontsize=5.5)
    for other in lines:
        if (level := _level(other)) is not None:
            axes.axhline(level, color=GREY, linewidth=1.1, zorder=1)
        elif other is not line:
            xs, ys = [place.x for place in other.places], [place.y for place in other.places]
            axes.plot(xs, ys, color=_BEHIND, linewidth=0.7, zorder=0)
    _line(axes, line, COLOURS[0], MARKERS[0])


def _line(axes: Axes, line: Series, colour: str, marker: str) -> None:
    label = line.label
    if line.places:
        axes.errorbar(
            [place.x for place in line.places],
            [place.y for place in line.places],
            [place.half or 0.0 for place in line.places],
            color=colour,
            marker=marker,
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.4,
            linewidth=1.1,
            elinewidth=0.7,
            label=label,
            zorder=3,
        )
    level = _level(line)
    if level is not None and line.places:
        axes.axhline(level, color=colour, linewidth=0.8, linestyle=":", zorder=1)
    elif level is not None:
        axes.axhline(level, color=colour, linewidth=1.1, label=label, zorder=1)


def _scale(axes: Axes, lines: Sequence[Series], kind: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = sorted({place.x for line in lines for place in line.places})
    if places and places[0] > 0 and (kind == RATIO or places[-1] > 5 * places[0]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        if places[-1] < 2 * places[0]:  # all but one place: its surroundings tell where it is
            axes.set_xlim(places[0] / 2, 2 * places[-1])
    if kind != RATIO and len(places) <= 8:  # as many as were run, and no values between
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.minorticks_off()


def _x_label(kind: str) -> str:
    if kind == RATIO:
        return "bytes sent and received, over those of uncompressed float32 tensors"
    name = kind.partition(":")[2]
    unit = _UNITS.get(name.rpartition(".")[2])
    return f"{name} ({unit})" if unit else name


def _told(lines: Sequence[Series], beside: Published, apart: bool) -> str:
    """Return what points and lines are, and what is not there."""
    several = any(p.half is not None for line in lines for p in (*line.places, line.level) if p)
    told = ["mean and 95 % interval over the seeds" if several else "one run each"]
    if not any(line.places or line.level for line in lines):
        told = ["no run is finished"]
    elif missing := sum(line.missing for line in lines):
        told.append(f"{missing} row{'s' * (missing > 1)} without a finished run")
    levels = [line.label for line in lines if _level(line) is not None]
    if levels and apart:
        told.append(f"level: {', '.join(levels)}")
    elif any(line.level for line in lines):
        told.append("level: has no such setting")
    if apart:
        told.append("light grey: the other panels' lines")
    below = [beside.note] if beside.note else []
    if beside.curves:
        below.append("published: at the ratio that the source charges")
    return "\n".join(["; ".join(told), *textwrap.wrap("; ".join(below), _LETTERS)])
