"""Figures: the only module that knows matplotlib, which it imports when the first one is drawn.

A figure is drawn with matplotlib's own settings, whatever the user's are, and holds no date: the
same curves make the same file, byte for byte, with the same version of matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splitlab.core.contract.errors import ConfigError

__all__ = ["Curve", "draw_curves"]

# Okabe and Ito's colours, told apart by nearly everybody, without their yellow, which is too light
# for a line on white. With markers and dashes of other periods, 84 curves all look different.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES = ("-", "--", "-.", ":")


def _look(i: int) -> tuple[str, str, str]:
    """Return colour, marker and dashes of the curve of this number."""
    dashes = _DASHES[i // len(_COLOURS) % len(_DASHES)]
    return _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], dashes


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    Attributes:
        label: for the legend.
        x: where its points are; the last one is the end of the runs. Without any, the label is all
            that the figure shows of it.
        y: mean of the runs at each of them.
        spread: standard deviation there, or None where there is a single run.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def draw_curves(
    curves: Sequence[Curve],
    files: Sequence[Path],
    *,
    x_label: str,
    y_label: str,
    x_unit: str = "",
    x_scale: Literal["linear", "log"] = "linear",
) -> None:
    """Draw all curves into one figure and write it.

    Args:
        curves: each a line through the means with a marker at its end, and a band (of a single
            point, a bar) of one standard deviation to both sides.
        files: where to; the suffix decides the format (``.png``, ``.pdf``, ``.svg``).
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        x_unit: what x is counted in; written with a prefix, as in ``20 MB``.
        x_scale: of the horizontal axis.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["svg.hashsalt"] = "splitlab"  # or every file would have identifiers of its own
        rows = max(len(curves), 1)
        figure = Figure(figsize=(9.0, max(4.5, 0.24 * rows + 0.8)), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        for i, curve in enumerate(curves):
            colour, marker, dashes = _look(i)
            axes.plot(
                curve.x,
                curve.y,
                color=colour,
                linestyle=dashes,
                linewidth=1.4,
                marker=marker,
                markersize=7,
                markevery=[len(curve.x) - 1] if curve.x else None,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=curve.label,
            )
            if curve.spread is not None and len(curve.x) > 1:
                low = [y - s for y, s in zip(curve.y, curve.spread, strict=True)]
                high = [y + s for y, s in zip(curve.y, curve.spread, strict=True)]
                axes.fill_between(curve.x, low, high, color=colour, alpha=0.15, linewidth=0)
            elif curve.spread is not None:
                axes.errorbar(curve.x, curve.y, curve.spread, color=colour, linewidth=1, capsize=3)
        axes.set_xscale(x_scale)
        if x_scale == "linear":
            axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(unit=x_unit))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if curves:
            figure.legend(loc="outside right upper", frameon=False, fontsize=8, handlelength=3.2)
        for file in files:
            dated = {".png": "Software", ".pdf": "CreationDate", ".svg": "Date"}.get(file.suffix)
            try:
                figure.savefig(file, metadata={dated: None} if dated else None)
            except OSError as error:
                raise ConfigError(f"cannot write {file}: {error.strerror}") from None
