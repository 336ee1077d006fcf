"""``splitlab models``: the models that can be cut."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, add_json, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]

_EXAMPLES = """\
  splitlab models deit_tiny                       those whose name contains deit_tiny
"""


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
    from splitlab.core.catalogue.listing import model_rows

    rows = model_rows(arguments.filter)
    if arguments.json:
        return print_json(rows)
    from splitlab.core.command.show import print_table

    print_table(("model", "summary"), [(r["name"], r["summary"]) for r in rows])
    return 0
