"""``splitlab models``: the models that can be cut."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from splitlab.core.command.options import Parser, add_json, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.command.show import Cell

__all__ = ["add"]

_EXAMPLES = """\
  splitlab models                                 those of the catalogue, and how many timm has
  splitlab models deit_tiny                       those whose name contains deit_tiny
  splitlab models resnet18 --json
"""

_SHOWN = 8
"""At most so many models are looked at; building one takes a while."""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "models",
        _models,
        "list the models that can be cut",
        takes="[FILTER] [options]",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "filter", nargs="?", default="", metavar="FILTER", help="only names that contain this"
    )
    add_json(parser)
    return parser


def _models(arguments: argparse.Namespace) -> int:
    from splitlab.core.models.timm_models import timm_names

    families = timm_names()
    if arguments.filter:
        return _matching(arguments.filter, families, arguments.json)
    return _overview(families, arguments.json)


def _overview(families: Mapping[str, list[str]], as_json: bool) -> int:
    """Show the catalogue's models, and how many of timm's there are."""
    from splitlab.core.catalogue.tables import entries

    rows = [
        {"name": entry.name, "summary": entry.problem or entry.summary, "source": entry.source}
        for entry in entries("models").values()
    ]
    counts = {family: len(names) for family, names in families.items()}
    if as_json:
        return print_json({"models": rows, "timm": counts})
    from splitlab.core.command.show import print_line, print_table

    print_table(("model", "summary"), [(row["name"], row["summary"]) for row in rows])
    print()
    numbers = ", ".join(f"{count:,} of family {family}" for family, count in counts.items())
    print_line(f"timm's names are models, too: {numbers}; `splitlab models FILTER` lists some.")
    return 0


def _matching(text: str, families: Mapping[str, list[str]], as_json: bool) -> int:
    """Show the models whose name contains the text; how they look, where they are few."""
    from splitlab.core.catalogue.tables import entries
    from splitlab.core.contract.errors import ConfigError

    family_of = dict.fromkeys(entries("models"), "catalogue")
    for family, names in families.items():
        for name in names:
            family_of.setdefault(name, family)
    found = [name for name in family_of if text in name]
    if not found:
        raise ConfigError(f"no model has {text!r} in its name; `splitlab models` lists all")
    if text in family_of:
        found = [text]
    rows: list[dict[str, Any]] = [{"name": name, "family": family_of[name]} for name in found]
    looked_at = len(rows) <= _SHOWN
    if looked_at:
        rows = [row | _looks(row["name"]) for row in rows]
    if as_json:
        return print_json(rows)
    from splitlab.core.command.show import print_table

    if looked_at:
        header = ("model", "family", "parameters", "input", "cuts", "at the default cut")
        print_table(header, [_cells(row) for row in rows], numbers=(2,), whole=(0, 1, 3, 4))
    else:
        print_table(("model", "family"), [(row["name"], row["family"]) for row in rows])
    return 0


def _looks(name: str) -> dict[str, Any]:
    """Return the facts of a model at its default cut, or why there are none."""
    from splitlab.core.contract.errors import SplitlabError
    from splitlab.core.models.build import describe

    try:
        facts = describe(name)
    except SplitlabError as error:  # the others are shown all the same
        return {"problem": str(error)}
    return {
        "parameters": facts.client_parameters + facts.server_parameters,
        "channels": facts.channels,
        "image_size": facts.image_size,
        "last_cut": facts.last_cut,
        "cut": facts.cut,
        "tokens": facts.layout.tokens,
        "width": facts.layout.width,
    }


def _cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    if "problem" in row:
        return (row["name"], row["family"], "", "", "", row["problem"])
    size = row["image_size"]
    return (
        row["name"],
        row["family"],
        f"{row['parameters']:,}",
        f"{row['channels']}×{size}×{size}",
        f"0 to {row['last_cut']}",
        f"cut {row['cut']}: {row['tokens']} tokens × {row['width']}",
    )
