"""Figures as files. With its neighbours ``draw_…`` all that knows matplotlib, imported when needed.

A figure is drawn with matplotlib's own settings and a few of ours, whatever the user's are, and
holds no date: the same results make the same file, byte for byte, with the same matplotlib. Texts
in a PDF are TrueType, as conferences ask.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitlab.core.report.by_setting import RATIO, SETTING, series
from splitlab.core.report.draw_picture import DATED, style
from splitlab.core.report.figures import found_of, frontier, panels, spent, wanted
from splitlab.core.report.heat_maps import HEATMAP, RIDGE, maps
from splitlab.core.report.over_links import OverLinks
from splitlab.core.report.results import Results
from splitlab.core.runs.disk import write_whole, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "draw", "draw_over_links", "draw_svg", "file_name", "over_links_svg"]

FORMATS = ("pdf", "svg", "png")


def draw(
    results: Results,
    folder: Path,
    kinds: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw figures into a folder, which is made; returns their paths.

    Args:
        results: what is drawn.
        folder: where to.
        kinds: which ones, see `splitlab.core.report.figures`; those of `wanted` by default.
        formats: of every one: ``pdf``, ``svg``, ``png``.

    Raises:
        ConfigError: there is no such figure, the results have not what it needs, or a file cannot
            be written.
    """
    kinds = wanted(results) if kinds is None else kinds
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        with style():
            written += _save(_figure(results, kind), folder / file_name(kind), formats)
    return written


def draw_over_links(found: OverLinks, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw the time to accuracy over links as ``links.…`` into a folder; returns the paths.

    Raises:
        ConfigError: a file cannot be written.
    """
    from splitlab.core.report.draw_links import draw_links

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with style():
        return _save(draw_links(found), folder / "links", formats)


def _save(figure: Figure, file: Path, formats: Sequence[str]) -> list[Path]:
    written = []
    for suffix in formats:
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix, dpi=300, metadata={DATED[suffix]: None})
        written.append(file.with_name(f"{file.name}.{suffix}"))
        write_whole(written[-1], picture.getvalue())
    return written


def draw_svg(results: Results, kind: str) -> str:
    """Return one figure as an ``<svg>`` element for a page; its texts stay texts.

    Raises:
        ConfigError: as `draw`.
    """
    with style(_in_a_page(kind)):
        return _svg(_figure(results, kind))


def over_links_svg(found: OverLinks) -> str:
    """Return the time to accuracy over links as an ``<svg>`` element for a page."""
    from splitlab.core.report.draw_links import draw_links

    with style(_in_a_page("links")):
        return _svg(draw_links(found))


def _in_a_page(name: str) -> dict[str, str]:
    return {"svg.fonttype": "none", "svg.hashsalt": f"splitlab {name}"}


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def file_name(kind: str) -> str:
    """Return what the files of a figure are called, without their suffix."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in kind.replace("×", "-by-"))


def _figure(results: Results, kind: str) -> Figure:
    from splitlab.core.report.draw_curves import draw_panels
    from splitlab.core.report.draw_frontier import draw_frontier
    from splitlab.core.report.draw_maps import draw_maps
    from splitlab.core.report.draw_settings import draw_settings

    if spent(kind) in (HEATMAP, RIDGE):
        return draw_maps(maps(results, kind), ridge=spent(kind) == RIDGE)
    if spent(kind) in (RATIO, SETTING):
        return draw_settings(series(results, kind), kind, results.published)
    if spent(kind) == "frontier":
        return draw_frontier(frontier(results, kind), found_of(kind))
    return draw_panels(panels(results, kind), kind)
