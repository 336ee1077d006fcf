"""Time to accuracy over links: a level a link, a point a row."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from splitlab.core.report.draw_curves import COLOURS, GREY, MARKERS
from splitlab.core.report.over_links import OverLinks, human_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_links"]

_LETTERS = 110
"""Of a line of the note below."""


def draw_links(found: OverLinks) -> Figure:
    """Draw until when all runs of each row have the accuracy; rows that have not are named."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    titles = list(dict.fromkeys(each.title for each in found.means))
    late = {m.title for m in found.means if m.reached < m.runs}
    shown = [title for title in titles if title not in late]
    height = 1.3 + max(0.3 * len(found.links), 0.13 * len(shown))
    figure = Figure(figsize=(6.9, height), layout="constrained")
    axes = figure.add_subplot()
    for i, title in enumerate(shown):
        own = [m for m in found.means if m.title == title]  # in the order of the links
        axes.plot(
            [m.reached_seconds or 0.0 for m in own],
            range(len(own)),
            color=GREY if title == "none" else COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            linestyle="",
            label=title,
        )
    axes.set_yticks(range(len(found.links)), found.links)
    axes.set_ylim(len(found.links) - 0.6, -0.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: human_seconds(x)))
    axes.set_xlabel("time to accuracy")
    if shown:
        beside = max(map(len, shown)) <= _LETTERS // 4
        figure.legend(loc=f"outside {'right upper' if beside else 'upper left'}", frameon=False)
    told = found.told
    if late:
        told += f". Not reached by every run of {', '.join(t for t in titles if t in late)}"
    figure.supxlabel("\n".join(textwrap.wrap(told, _LETTERS)), fontsize=6.5)
    return figure
