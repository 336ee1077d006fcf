"""How things look: tables, facts and lines of text. With `live`, all that knows rich.

On a terminal as wide as it is, with colours; elsewhere (a file, a pipe, CI) plain text. What is
printed is taken as it is: no markup, nothing highlighted.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitlab.core.command.streams import visible

__all__ = [
    "Cell",
    "human_bytes",
    "near",
    "print_facts",
    "print_line",
    "print_table",
    "speed",
    "width",
]

# A text, or a text and rich's name of a style.
Cell = str | tuple[str, str]


def human_bytes(count: float) -> str:
    """Return a size in decimal units: ``1536`` → ``"1.54 kB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def speed(images_per_second: float, data_share: float | None) -> str:
    """Return how many images a second a run trained on, and how long it waited for them."""
    waited = "" if data_share is None else f", {data_share:.1%} waiting for data"
    return f"{images_per_second:,.0f} images/s{waited}"


def near(path: Path) -> str:
    """Return a path as one would type it here: relative, if it is below the working folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def print_written(files: Sequence[Path]) -> None:
    """Print which files were written, a line for every folder."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    for folder, inside in folders.items():
        if len(inside) == 1:
            print_line(f"written: {near(inside[0])}")
        else:
            print_line(f"written in {near(folder)}: {', '.join(file.name for file in inside)}")


def width() -> int:
    """Return how many characters of a line there is room for."""
    return _console().width


def print_line(*cells: Cell, wrap: bool = True) -> None:
    """Print pieces of text beside each other.

    Args:
        cells: the pieces.
        wrap: break lines between words where there is no more room.
    """
    _console().print(_text(*cells), soft_wrap=not wrap)


def print_facts(facts: Iterable[tuple[str, Cell]]) -> None:
    """Print names and what is known of them, one below the other."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, cell in facts:
        table.add_row(name, _text(cell))
    _console().print(table)


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    title: str = "",
    numbers: Collection[int] = (),
    whole: Collection[int] = (0,),
) -> None:
    """Print a table; its last column takes the room that is left.

    Args:
        header: names of the columns.
        rows: as many cells each.
        title: stands above it.
        numbers: columns to put flush right, and never over two lines.
        whole: columns of words that do not go over two lines either.
    """
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold")
    for i, name in enumerate(header):
        table.add_column(
            name,
            overflow="fold",
            justify="right" if i in numbers else "left",
            no_wrap=i in whole or i in numbers,
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    _console().print(table)


def _text(*cells: Cell) -> Text:
    shown = (visible(c) if isinstance(c, str) else (visible(c[0]), c[1]) for c in cells)
    return Text.assemble(*shown)


def _console() -> Console:
    # Where there is no terminal there is no width to fit into; rich would assume 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=140)
