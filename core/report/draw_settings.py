"""Final accuracy against a setting or the share of bytes: a line a method; what was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from splitlab.core.report.by_setting import RATIO, Series
from splitlab.core.report.draw_curves import COLOURS, GREY, MARKERS, within_shares
from splitlab.core.report.published import Published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_settings"]

_LETTERS = 110
"""Of a line of the note below."""


def draw_settings(lines: Sequence[Series], kind: str, published: Published) -> Figure:
    """Draw the means with their intervals, and dashed what others published.

    Args:
        lines: of `splitlab.core.report.by_setting.series`.
        kind: the figure's name.
        published: what to draw beside them; of ``ratio`` alone.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    colours = {}
    for i, line in enumerate(lines):
        colour = GREY if line.method == "none" else COLOURS[i % len(COLOURS)]
        colours[line.label] = colour
        _line(axes, line, colour, MARKERS[i % len(MARKERS)])
    beside = published if kind == RATIO else Published()
    for curve in beside.curves:
        x, y = zip(*curve.points, strict=True)
        look: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9, "zorder": 2}
        axes.plot(
            *(x, y),
            **look,
            color=colours.get(curve.method, GREY),
            marker="." if len(x) == 1 else "",
            label=f"{curve.method}, published",
        )
    _scale(axes, lines, kind)
    within_shares(axes)
    axes.set_ylabel("test accuracy")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, handlelength=2.2)
    figure.supxlabel(_told(lines, beside), fontsize=6.5)
    return figure


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
    if line.level is not None:
        axes.axhline(line.level.y, color=colour, linewidth=1.1, label=label, zorder=1)


def _scale(axes: Axes, lines: Sequence[Series], kind: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = sorted({place.x for line in lines for place in line.places})
    if places and places[0] > 0 and (kind == RATIO or places[-1] > 5 * places[0]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if kind == RATIO:
        axes.set_xlabel("bytes sent and received, over those of uncompressed float32 tensors")
        return
    axes.set_xlabel(kind.partition(":")[2])
    if len(places) <= 8:  # as many as were run, and no values between
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.minorticks_off()


def _told(lines: Sequence[Series], beside: Published) -> str:
    """Return what points and lines are, and what is not there."""
    several = any(p.half is not None for line in lines for p in (*line.places, line.level) if p)
    told = ["mean and 95 % interval over the seeds" if several else "one run each"]
    if not any(line.places or line.level for line in lines):
        told = ["no run is finished"]
    elif missing := sum(line.missing for line in lines):
        told.append(f"{missing} row{'s' * (missing > 1)} without a finished run")
    if any(line.level for line in lines):
        told.append("level: has no such setting")
    below = [beside.note] if beside.note else []
    if beside.curves:
        below.append("published: at the ratio that the source charges")
    return "\n".join(["; ".join(told), *_wrapped("; ".join(below))])


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, _LETTERS)
