"""``splitlab studies``: the studies known by name."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from splitlab.core.catalogue.tables import entries
from splitlab.core.command.options import Parser, add_json, completes, declare, print_json
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.studies.definition import Definition

__all__ = ["add"]

_MORE = """\
A study of your own is a table [studies.NAME] in a registry.toml (--registry),
or a TOML file with its keys: summary, paper, base, stacks, over, zip, seeds,
draw, reference, published. docs/studies.md explains them.
"""

_EXAMPLES = """\
  splitlab studies adc/balance                    one explained
  splitlab study adc/balance                      run it
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "studies",
        _studies,
        "list the studies known by name",
        takes="[NAME|FILE.toml] [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    name = parser.add_argument("name", nargs="?", metavar="NAME", help="a study, or a TOML file")
    completes(name, "studies")
    add_json(parser)
    return parser


def _studies(arguments: argparse.Namespace) -> int:
    from splitlab.core.studies.find import definition_of

    if arguments.name is not None:
        found = definition_of(arguments.name)
        return print_json(found.as_table()) if arguments.json else _explain(found, arguments.name)
    rows = []
    for name, entry in entries("studies").items():
        row: dict[str, Any] = {"name": name, "source": entry.source, "problem": ""}
        try:
            found = definition_of(name)
            row |= {"summary": found.summary, "paper": found.paper, "runs": _most_runs(found)}
        except ConfigError as error:
            row |= {"summary": "", "paper": "", "runs": None, "problem": str(error)}
        rows.append(row)
    if arguments.json:
        return print_json(rows)
    from splitlab.core.command.show import print_table

    print_table(
        ("study", "runs, at most", "summary", "paper", "from"),
        [
            (
                row["name"],
                "" if row["runs"] is None else f"{row['runs']:,}",
                row["problem"] or row["summary"],
                row["paper"],
                row["source"],
            )
            for row in rows
        ],
        numbers=(1,),
    )
    say("\n`splitlab study NAME` runs one; with --dry-run it lists the rows.")
    return 0


def _most_runs(found: Definition) -> int:
    """Return how many runs there are; fewer, if a stack does not have a setting on an axis."""
    count = len(found.stacks) * len(found.seeds)
    for axis in found.axes:
        count *= len(axis)
    return count


def _explain(found: Definition, typed: str) -> int:
    from splitlab.core.command.show import Cell, print_facts, print_line
    from splitlab.core.studies.definition import shown_key

    print_line((found.name, "bold"), f": {found.summary}")
    facts: list[tuple[str, Cell]] = [("paper", found.paper)] if found.paper else []
    facts += [("" if i else "stacks", text) for i, text in enumerate(found.stacks)]
    for axis in found.axes:
        for i, key in enumerate(axis[0]):
            values = ", ".join(str(choice[key]) for choice in axis)
            facts.append((f"zip {shown_key(key)}" if i else shown_key(key), values))
    facts.append(("seeds", ", ".join(map(str, found.seeds))))
    changed = {key for axis in found.axes for key in axis[0]}
    facts += [(shown_key(k), str(value)) for k, value in found.base.items() if k not in changed]
    facts.append(("runs", f"at most {_most_runs(found):,}; --dry-run of the study lists its rows"))
    if found.published:
        facts.append(("published", found.published))
    if found.draw:
        facts.append(("draws", ", ".join(found.draw)))
    print_facts(facts)
    say(f"\nexample: splitlab study {shlex.quote(typed)}")
    return 0
