"""Heat maps with their numbers: accuracy, and beside it the bytes that it took."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from splitlab.core.contract.settings import shown
from splitlab.core.report.heat_maps import Cell, Map, Maps, contours
from splitlab.core.report.results import Row
from splitlab.core.report.statistics import Mean
from splitlab.core.report.summary_table import byte_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["draw_maps"]

_WIDTH = 6.9
_CELL = (0.52, 0.38)  # inches
_OF_A_LETTER = 0.06  # inches, on the average
_BESIDE_NUMBERS = 0.3
"""From the middle of a cell, of whose height it is a share, to the end of a link."""
_BESIDE = 4
"""How many rows that are in no map are told below it."""


def draw_maps(maps: Maps, *, ridge: bool = False) -> Figure:
    """Draw a map of accuracy and one of bytes for every combination of the other settings.

    Args:
        maps: of `splitlab.core.report.heat_maps.maps`.
        ridge: draw lines of equal products, and frame the best cell on each.
    """
    from matplotlib.figure import Figure

    titles = max(len(each.title) for each in maps.maps)
    names = max(len(shown(value)) for value in maps.y.values)
    width = max(_CELL[0] * len(maps.x.values), _OF_A_LETTER * titles) + 0.2 + _OF_A_LETTER * names
    height = _CELL[1] * len(maps.y.values) + 0.45
    alone = len(maps.maps) == 1
    columns = 1 if alone else max(1, min(len(maps.maps), int((_WIDTH - 0.6) / width)))
    rows = math.ceil(len(maps.maps) / columns)
    across, down = (2, 1) if alone else (1, 2)
    size = (across * (columns * width + 0.75), down * (rows * height + 0.3) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down * rows, across * columns, squeeze=False).ravel()
    half = len(grid) // 2
    for part, accuracy in ((grid[:half], True), (grid[half:], False)):
        _draw_all(figure, [*part], maps, columns, accuracy)
        if ridge:
            for axes, each in zip(part, maps.maps, strict=False):
                _draw_lines(axes, maps, each)
    figure.supxlabel(_told(maps, ridge), fontsize=6.5)
    return figure


def _draw_all(
    figure: Figure, grid: Sequence[Axes], maps: Maps, columns: int, accuracy: bool
) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    cells = [cell for each in maps.maps for cell in each.cells.values()]
    unit, size = byte_unit([cell.bytes for cell in cells if cell.bytes is not None])
    known = [value for cell in cells if (value := _value(cell, accuracy, size)) is not None]
    colours = _colours(known, accuracy)
    for i, (axes, each) in enumerate(zip(grid, maps.maps, strict=False)):
        _draw_map(axes, maps, each, colours, accuracy, size)
        if i % columns == 0:
            axes.set_ylabel(maps.y.name)
        if i + columns >= len(maps.maps):
            axes.set_xlabel(maps.x.name)
    for axes in grid[len(maps.maps) :]:
        axes.set_axis_off()
    if known:
        bar = figure.colorbar(colours, ax=[*grid], aspect=24, pad=0.02)
        bar.outline.set_linewidth(0.4)
        if isinstance(colours.norm, LogNorm):  # or its numbers are formulas, which nothing sets
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.set_label("test accuracy" if accuracy else f"training bytes ({unit})")


def _value(cell: Cell, accuracy: bool, size: float) -> float | None:
    if accuracy:
        return cell.accuracy.mean if cell.accuracy else None
    return None if cell.bytes is None else cell.bytes / size


def _colours(known: Sequence[float], accuracy: bool) -> ScalarMappable:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    low, high = min(known, default=0.0), max(known, default=1.0)
    wide = not accuracy and low > 0 and high > 10 * low
    norm = LogNorm(low, high) if wide else Normalize(low, high)
    return ScalarMappable(norm, "viridis" if accuracy else "cividis")


def _draw_map(
    axes: Axes, maps: Maps, each: Map, colours: ScalarMappable, accuracy: bool, size: float
) -> None:
    from matplotlib.patches import Rectangle

    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(each.title, loc="left", pad=3)
    axes.set_xlim(-0.5, len(maps.x.values) - 0.5)
    axes.set_ylim(len(maps.y.values) - 0.5, -0.5)
    axes.set_xticks(range(len(maps.x.values)), [shown(value) for value in maps.x.values])
    axes.set_yticks(range(len(maps.y.values)), [shown(value) for value in maps.y.values])
    for i in range(len(maps.x.values)):
        for j in range(len(maps.y.values)):
            cell = each.cells.get((i, j))
            value = _value(cell, accuracy, size) if cell else None
            look: dict[str, Any]
            if value is None:
                look = {"facecolor": "#f4f4f4", "edgecolor": "#b0b0b0", "hatch": "////"}
            else:
                look = {"facecolor": _colour(colours, value), "edgecolor": "white"}
            axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, linewidth=0.8, **look))
            _write(axes, i, j, cell, value, colours, accuracy)


def _draw_lines(axes: Axes, maps: Maps, each: Map) -> None:
    """Link the cells of one product, outside of their numbers, and frame the best of them."""
    from matplotlib.patches import Rectangle

    colour = "#D55E00"  # which neither map has
    for line in contours(maps, each):
        for (i, j), (k, m) in itertools.pairwise(line.places):
            short = _BESIDE_NUMBERS / max(abs(k - i), abs(m - j))
            x, y = ([a + short * (b - a), b - short * (b - a)] for a, b in ((i, k), (j, m)))
            axes.plot(x, y, color=colour, linewidth=1.1, zorder=3)
        if line.best is not None:
            i, j = line.best
            look: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.6}
            axes.add_patch(Rectangle((i - 0.44, j - 0.42), 0.88, 0.84, zorder=4, **look))


def _write(
    axes: Axes,
    i: int,
    j: int,
    cell: Cell | None,
    value: float | None,
    colours: ScalarMappable,
    accuracy: bool,
) -> None:
    place: dict[str, Any] = {"ha": "center", "va": "center"}
    if value is None:
        states = {run.state for run in cell.row.runs} if cell else set()
        why = "diverged" if "diverged" in states else "failed" if "failed" in states else ""
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        if why:
            axes.text(i, j, why, fontsize=5.5, color="#444444", bbox=box, **place)
        return
    red, green, blue, _ = _colour(colours, value)
    ink = "black" if _luminance(red, green, blue) > 0.18 else "white"
    mean = cell.accuracy if cell else None
    if accuracy and mean is not None and mean.half is not None:
        axes.text(i, j - 0.14, f"{value:.3f}", fontsize=7, color=ink, **place)
        axes.text(i, j + 0.24, f"± {mean.half:.3f}", fontsize=5, color=ink, **place)
    else:
        text = f"{value:.3f}" if accuracy else f"{value:.3g}"
        axes.text(i, j, text, fontsize=7 if len(text) < 6 else 6, color=ink, **place)


def _colour(colours: Any, value: float) -> tuple[float, float, float, float]:
    red, green, blue, alpha = colours.to_rgba(value)  # its types know of arrays only
    return red, green, blue, alpha


def _luminance(*channels: float) -> float:
    """Return the relative luminance of an sRGB colour, as WCAG 2 has it; black text reads from
    0.18 on."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _told(maps: Maps, ridge: bool) -> str:
    cells = [cell for each in maps.maps for cell in each.cells.values()]
    told = ["mean ± half the 95 % interval"]
    whole = len(maps.x.values) * len(maps.y.values) * len(maps.maps)
    if len(cells) < whole or any(cell.accuracy is None for cell in cells):
        told.append("hatched: no finished run")
    if ridge:
        told.append("linked: equal products; framed: the best of each")
    below = ["; ".join(told)]
    beside = [f"{row.title}: {_result(row)}" for row in maps.beside[:_BESIDE]]
    if len(maps.beside) > _BESIDE:
        beside.append(f"{len(maps.beside) - _BESIDE} more rows are in the table only")
    return "\n".join([*below, *beside])


def _result(row: Row) -> str:
    values = [run.summary.accuracy for run in row.runs if run.summary is not None]
    if not values:
        return "no finished run"
    mean = Mean.of(values)
    return f"{mean.mean:.3f}" + ("" if mean.half is None else f" ± {mean.half:.3f}")
