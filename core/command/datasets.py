"""``splitlab datasets``: the data sets known by name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from splitlab.core.command.options import Parser, add_json, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(commands, "datasets", _datasets, "list the data sets known by name")
    add_json(parser)
    return parser


def _datasets(arguments: argparse.Namespace) -> int:
    from splitlab.core.data.entry import dataset_rows

    rows = dataset_rows()
    if arguments.json:
        return print_json(rows)
    from splitlab.core.command.show import print_table

    print_table(
        ("data set", "classes", "from", "summary"),
        [
            (r["name"], str(r["classes"]), _whence(r), r["summary"])
            for r in rows
            if not r["problem"]
        ],
    )
    broken = [(r["name"], r["problem"]) for r in rows if r["problem"]]
    if broken:
        print()
        print_table(("broken", "why"), broken)
    from splitlab.core.data.words import FORMS

    print()
    print_table(("--data-dir DIR takes", "files in it"), FORMS)
    return 0


def _whence(row: dict[str, Any]) -> str:
    own = "the package itself" if row["source"] == "splitlab" else row["source"]
    return str(row.get("hub") or own)
