"""``splitlab transports``: the links, and which of them work here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, add_json, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(commands, "transports", _transports, "list the links, and which work here")
    add_json(parser)
    return parser


def _transports(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import transport_rows

    rows = transport_rows()
    if arguments.json:
        return print_json(rows)
    from splitlab.core.command.show import print_table

    print_table(
        ("transport", "works here", "summary"),
        [
            (r["name"], "yes" if r["works_here"] else f"no: {r['missing']}", r["summary"] or "")
            for r in rows
        ],
    )
    return 0
