"""``splitlab plugins``: the compression methods, listed or explained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from splitlab.core.command.kinds import show_facts
from splitlab.core.command.options import Parser, add_json, completes, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add", "show_plugins"]

_EXAMPLES = """\
  splitlab plugins                                all that are known here, yours included
  splitlab plugins adc                            what one does, sends, needs and takes
  splitlab plugins my_method.py:MyMethod          the same of a file
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "plugins",
        _plugins,
        "list the compression methods, or explain one",
        takes="[NAME] [options]",
        examples=_EXAMPLES,
    )
    named = parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a plugin, a stack, or FILE.py:Class"
    )
    completes(named, "plugins", "stacks")
    add_json(parser)
    return parser


def _plugins(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import plugin_facts, plugin_rows, stack_facts
    from splitlab.core.catalogue.tables import entries

    name = arguments.name
    if name is None:
        rows = plugin_rows()
        if arguments.json:
            return print_json(rows)
        show_plugins(rows)
        return 0
    facts = stack_facts(name) if name in entries("stacks") else plugin_facts(name)
    if arguments.json:
        return print_json(facts)
    show_facts(facts)
    return 0


def show_plugins(rows: Sequence[dict[str, Any]]) -> None:
    """Print all plugins, all stacks, and below them what is broken and why."""
    from splitlab.core.command.show import print_table

    well = [row for row in rows if not row["problem"]]
    print_table(
        ("plugin", "paper", "summary"),
        [(r["title"], r.get("paper", ""), _summary(r)) for r in well if r["kind"] == "plugin"],
    )
    print()
    print_table(
        ("stack", "plugins", "summary"),
        [(r["name"], " + ".join(r["plugins"]), _summary(r)) for r in well if r["kind"] == "stack"],
    )
    broken = [(row["name"], row["problem"]) for row in rows if row["problem"]]
    if broken:
        print()
        print_table(("broken", "why"), broken)
    print(
        "\nsplitlab plugins NAME explains one; --plugin FILE.py:Class takes one from a file. "
        "A method called …-recon was\nrebuilt from what its abstract says; type its name without "
        "the suffix."
    )


def _summary(row: dict[str, Any]) -> str:
    return f"{row['summary']}" + ("" if row["source"] == "splitlab" else f" (from {row['source']})")
