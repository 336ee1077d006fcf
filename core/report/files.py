"""All that a folder of results gets: the page, the tables and the figures.

report.html                          one page with everything, which works offline
table.md                             the table, for people
table.csv runs.csv evaluations.csv   the same and what it is made of, for machines
figures/NAME.pdf figures/NAME.svg    see `splitlab.core.report.figures`
links.csv figures/links.…            time to accuracy over links, where that was asked for
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from splitlab.core.report.draw import draw, draw_over_links
from splitlab.core.report.latex import latex_document, latex_table
from splitlab.core.report.long import write_csv
from splitlab.core.report.over_links import OverLinks, write_links_csv
from splitlab.core.report.page import write_page
from splitlab.core.report.results import Results
from splitlab.core.report.summary_table import markdown
from splitlab.core.runs.disk import write_whole, writing

__all__ = ["write_all", "write_latex"]

_VECTORS = ("pdf", "svg")


def write_all(results: Results, folder: Path, links: OverLinks | None = None) -> list[Path]:
    """Write everything into a folder; returns the paths.

    Args:
        results: what came of the runs.
        folder: where to.
        links: what they would take over these; None leaves it out.

    Raises:
        ConfigError: a file cannot be written, or the results have not what their figures need.
    """
    table = folder / "table.md"
    with writing(table):
        folder.mkdir(parents=True, exist_ok=True)
    write_page(results, folder / "report.html", links)
    write_whole(table, markdown(results))
    written = [
        folder / "report.html",
        table,
        *write_csv(results, folder),
        *draw(results, folder / "figures", formats=_VECTORS),
    ]
    if links:
        written.append(write_links_csv(links, folder))
        written += draw_over_links(links, folder / "figures", formats=_VECTORS)
    return written


def write_latex(results: Results, file: Path, figures: Sequence[Path] = ()) -> list[Path]:
    r"""Write the table for ``\input``, and beside it a document of the table and figures.

    Args:
        results: what the table is of.
        file: of the table; that of the document is called ``…-document.tex``.
        figures: PDF files that the document is to hold.

    Raises:
        ConfigError: a file cannot be written.
    """
    document = file.with_name(f"{file.stem}-document.tex")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, latex_table(results))
    paths = [Path(os.path.relpath(each, file.parent)).as_posix() for each in figures]
    write_whole(document, latex_document(results, paths))
    return [file, document]
