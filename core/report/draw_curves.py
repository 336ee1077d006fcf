"""Small multiples: a panel a method, its settings as lines, what is uncompressed in grey behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from splitlab.core.report.figures import Line, Panel, spent
from splitlab.core.report.summary_table import byte_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "MARKERS", "draw_panels", "within_shares"]

# Okabe and Ito's colours, told apart by nearly everybody, without their yellow, which is too light
# for a line on white. Markers and dashes have other periods, so that 84 lines all look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (7, 2)))
GREY = "#8c8c8c"

_WIDTH = 6.9  # inches of a page's text, in most journals
_LABELS_OF_A_LEGEND = 8
_FAR = 1.5
"""How much further than all others a grey line goes before it is cut off."""


def draw_panels(panels: Sequence[Panel], kind: str) -> Figure:
    """Draw all panels with the same axes.

    Args:
        panels: of `splitlab.core.report.figures.panels`.
        kind: the figure's name.
    """
    from matplotlib.figure import Figure

    columns = _columns(len(panels))
    rows = max(1, math.ceil(len(panels) / columns))
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    shared = len(labels) <= _LABELS_OF_A_LEGEND
    size = (_WIDTH, 1.4 * rows + 0.9) if len(panels) > 1 else (3.4, 2.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    unit, size_of_unit = _unit(panels, kind)
    cut = None if kind.endswith(":log") else _cut(panels)
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, panel, labels, cut, kind.endswith(":log"))
        if not shared and any(line.label for line in panel.lines):
            axes.legend(loc="lower right", frameon=False, fontsize=5.5, handlelength=2.2)
    _scale(grid[0], kind, size_of_unit, cut, 4 if len(panels) > 1 else 6)
    within_shares(grid[0])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for i, axes in enumerate(grid[: len(panels)]):  # the last of every column has the numbers
        axes.tick_params(labelbottom=i + columns >= len(panels))
    figure.supxlabel(f"{_X[spent(kind)].format(unit)}\n{_told(panels, cut)}")
    figure.supylabel("test accuracy")
    _legend(figure, [*grid], labels if shared else [])
    return figure


def within_shares(axes: Axes) -> None:
    """End the axis of accuracies where they do; an interval by Student's t may go further."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))


_X = {
    "bytes": "training bytes over the link, both directions ({})",
    "steps": "training steps",
    "seconds": "seconds of training, client, server and link",
    "joules": "joules of the client's training",
}


def _columns(panels: int) -> int:
    """Return how many panels stand beside each other: as few holes as can be, 4 at most."""
    if panels <= 4:
        return max(panels, 1)
    return min((4, 3), key=lambda columns: -panels % columns)


def _unit(panels: Sequence[Panel], kind: str) -> tuple[str, float]:
    if spent(kind) != "bytes":
        return "", 1.0
    return byte_unit([x for panel in panels for line in panel.lines for x in line.x])


def _cut(panels: Sequence[Panel]) -> float | None:
    """Return where the axis ends if grey lines go much further than all others."""
    own = max((x for panel in panels for line in panel.lines for x in line.x), default=0.0)
    far = max((x for panel in panels for line in panel.context for x in line.x), default=0.0)
    return 1.04 * own if far > _FAR * own > 0 else None


def _panel(axes: Axes, panel: Panel, labels: Sequence[str], cut: float | None, log: bool) -> None:
    axes.set_title(panel.title, loc="left", pad=3)
    for line in panel.context:
        _draw(axes, line, GREY, "", "-", line.row.method)
        if line.x and cut is not None and line.x[-1] > cut:
            axes.axhline(line.y[-1], color=GREY, linestyle=":", linewidth=0.8, zorder=1)
    for line in panel.lines:
        i = labels.index(line.label)
        look = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], _DASHES[i % len(_DASHES)]
        _draw(axes, line, *look, line.label)
    missing = [
        f"{line.label}: {line.missing}" if line.label else line.missing
        for line in (*panel.context, *panel.lines)
        if line.missing
    ]
    if missing:  # where curves that rise leave room
        x, y, ha, va = (0.02, 0.98, "left", "top") if log else (0.98, 0.04, "right", "bottom")
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": ha, "va": va}
        axes.text(x, y, "\n".join(missing), fontsize=5.5, color="#444444", zorder=5, **place)


def _draw(axes: Axes, line: Line, colour: str, marker: str, dashes: Any, label: str) -> None:
    every = max(1, len(line.x) // 4)
    axes.plot(
        line.x,
        line.y,
        color=colour,
        linestyle=dashes,
        linewidth=1.1,
        marker=marker,
        markersize=3.2,
        markevery=[*range(len(line.x) - 1, 0, -every)] if line.x else None,
        markeredgecolor="white",
        markeredgewidth=0.4,
        label=label,
        zorder=2 if colour == GREY else 3,
    )
    if line.n > 1 and len(line.x) > 1:
        axes.fill_between(
            line.x, line.low, line.high, color=colour, alpha=0.22, linewidth=0, zorder=1.5
        )
    elif line.n > 1:
        ends = [[line.y[0] - line.low[0]], [line.high[0] - line.y[0]]]
        axes.errorbar(line.x, line.y, ends, color=colour, linewidth=0.8, capsize=2)


def _scale(axes: Axes, kind: str, size: float, cut: float | None, ticks: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if kind.endswith(":log"):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlim(left=0, right=cut)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / size:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(ticks + 1, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))


def _told(panels: Sequence[Panel], cut: float | None) -> str:
    """Return what lines and bands are."""
    lines = [line for panel in panels for line in (*panel.lines, *panel.context) if line.n]
    counts = sorted({line.n for line in lines})
    if not counts:
        return "no run is finished"
    if counts == [1]:
        told = "one run each"
    else:
        seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        band = "95 % interval of the mean" if counts[-1] > 2 else "from the lower to the higher run"
        if counts[-1] > 2 and 2 in counts:
            band += ", of two runs their range"
        told = f"mean over {seeds} seeds; band: {band}"
    return told if cut is None else f"{told}; dotted: where the grey line ends"


def _legend(figure: Figure, grid: Sequence[Axes], labels: Sequence[str]) -> None:
    handles: dict[str, Any] = {}
    for axes in grid:
        for line in axes.get_lines():
            label = str(line.get_label())
            if label in labels or (line.get_color() == GREY and not label.startswith("_")):
                handles.setdefault(label, line)
    names = [*(name for name in labels if name in handles), *(handles.keys() - {*labels})]
    names = [name for name in names if name]
    if names:
        figure.legend(
            [handles[name] for name in names],
            names,
            loc="outside upper center",
            ncols=max(1, min(len(names), int(150 / (max(map(len, names)) + 8)))),
            frameon=False,
            handlelength=2.6,
        )
