"""``splitlab links``: the wrappers that stand around any link."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, add_json, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]

_EXAMPLES = """\
  splitlab links my_link.py:Delayed               one explained
  splitlab run --link my_link.py:Delayed:ms=20    around both ends of the link
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "links",
        _links,
        "list the wrappers that stand around any link",
        takes="[NAME] [options]",
        examples=_EXAMPLES,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a link, or FILE.py:Class")
    add_json(parser)
    return parser


def _links(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import link_facts, link_rows
    from splitlab.core.command.plugins import show_plugin
    from splitlab.core.command.show import print_table

    if arguments.name is None:
        rows = link_rows()
        if arguments.json:
            return print_json(rows)
        cells = [(row["name"], row["problem"] or row["summary"], row["source"]) for row in rows]
        print_table(("link", "summary", "from"), cells)
        print("\n--link NAME or --link FILE.py:Class puts one into a run; repeat it for several.")
        return 0
    facts = link_facts(arguments.name)
    if arguments.json:
        return print_json(facts)
    show_plugin(facts)
    return 0
