"""The style of all figures, and one picture in it, for who draws something of their own."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from splitlab.core.report.draw_curves import COLOURS
from splitlab.core.runs.disk import write_whole

__all__ = ["DATED", "picture", "style"]

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "splitlab",  # or every file would have identifiers of its own
    "pdf.fonttype": 42,
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 7,
    "figure.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a name may have a $ in it
}
DATED = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}
"""What of a file would differ from day to day or from version to version, by its format."""


@contextmanager
def style(more: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draw with matplotlib's own settings and those of reports, whatever the user's are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_STYLE, **(more or {})})
        yield


@contextmanager
def picture(path: Path, width: float = 6.5, height: float = 2.4) -> Iterator[Any]:
    """Draw a picture in the style of reports: give a figure of matplotlib, and then write the file.

    >>> with picture(folder / "curve.png") as figure:  # doctest: +SKIP
    ...     figure.subplots().plot([1, 2, 3])

    Args:
        path: of the file; ``.png``, ``.pdf`` or ``.svg``.
        width: in inches.
        height: likewise.
    """
    suffix = path.suffix.removeprefix(".")
    from cycler import cycler
    from matplotlib.figure import Figure

    more = {
        "axes.prop_cycle": cycler(color=COLOURS),
        "figure.titlesize": _STYLE["axes.titlesize"],
        "lines.linewidth": 1.0,
        "text.parse_math": True,  # the powers of ten at an axis are mathematics
    }
    with style(more):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        made = io.BytesIO()
        figure.savefig(made, format=suffix, dpi=200, metadata={DATED[suffix]: None})
    write_whole(path, made.getvalue())
