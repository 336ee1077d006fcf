"""``splitlab probes``: the probes, which watch a run and change nothing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, add_json, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]

_EXAMPLES = """\
  splitlab probes time                            one explained
  splitlab run --probe time                       its numbers stand in metrics.jsonl
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "probes",
        _probes,
        "list the probes, which watch a run and change nothing",
        takes="[NAME] [options]",
        examples=_EXAMPLES,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a probe, or FILE.py:Class")
    add_json(parser)
    return parser


def _probes(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import probe_facts, probe_rows
    from splitlab.core.command.plugins import show_plugin
    from splitlab.core.command.show import print_table

    if arguments.name is None:
        rows = probe_rows()
        if arguments.json:
            return print_json(rows)
        cells = [(row["name"], row["problem"] or row["summary"], row["source"]) for row in rows]
        print_table(("probe", "summary", "from"), cells)
        print("\n--probe NAME or --probe FILE.py:Class puts one into a run; repeat it for several.")
        return 0
    facts = probe_facts(arguments.name)
    if arguments.json:
        return print_json(facts)
    show_plugin(facts)
    return 0
