"""What commands share that list a kind of things or explain one: a table, or all that is known."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from splitlab.core.command.options import Parser, add_json, completes, declare, print_json
from splitlab.core.command.streams import say

if TYPE_CHECKING:
    from splitlab.core.catalogue.tables import Loadable
    from splitlab.core.command.options import Commands

__all__ = ["declare_kind", "list_or_explain", "show_facts"]

Facts = dict[str, Any]
"""What is known of one thing, by name."""


def declare_kind(
    commands: Commands,
    name: Loadable,
    does: Callable[[argparse.Namespace], int],
    summary: str,
    *,
    one: str,
    examples: str,
) -> Parser:
    """Add the parser of a command that lists a kind, or explains the one that is named.

    Args:
        commands: where to.
        name: of the command, and of the kind.
        does: calls `list_or_explain`.
        summary: one line without a full stop.
        one: what is named: ``"a probe"``.
        examples: lines that end the help.
    """
    parser = declare(commands, name, does, summary, takes="[NAME] [options]", examples=examples)
    named = parser.add_argument("name", nargs="?", metavar="NAME", help=f"{one}, or FILE.py:Class")
    completes(named, name)
    add_json(parser)
    return parser


def list_or_explain(
    arguments: argparse.Namespace,
    kind: str,
    rows: Callable[[], Sequence[Facts]],
    facts: Callable[[str], Facts],
    end: str,
) -> int:
    """Print all of a kind, or what is known of the one that was named; returns the exit status 0.

    Args:
        arguments: of a parser of `declare_kind`.
        kind: one of the kind: ``"probe"``.
        rows: returns name, summary, source and problem of all.
        facts: returns what is known of one.
        end: the line below the table.
    """
    from splitlab.core.command.show import print_table

    if arguments.name is not None:
        found = facts(arguments.name)
        if arguments.json:
            return print_json(found)
        show_facts(found)
        return 0
    listed = rows()
    if arguments.json:
        return print_json(listed)
    works = ("works here",) if any("works_here" in row for row in listed) else ()
    print_table(
        (kind, *works, "summary", "from"),
        [
            (
                row["name"],
                *(_works(row) for _ in works),
                row.get("problem") or row["summary"],
                row["source"],
            )
            for row in listed
        ],
    )
    print(f"\n{end}")
    return 0


def show_facts(facts: Facts) -> None:
    """Print all that is known of one thing: a plugin, a named stack, a probe, a link or so."""
    from splitlab.core.command.show import print_facts, print_line, print_table

    title = "title" if "title" in facts else "name"
    print_line((facts[title], "bold"), f": {facts['summary']}")
    print_facts(_lines(facts))
    rest = facts.get("description", "").partition("\n\n")[2]
    if rest:
        print()
        print_line(rest)
    if facts.get("parameters"):
        print()
        print_table(
            ("parameter", "type", "default", "meaning"),
            [(p["name"], p["type"], p["default_text"], p["meaning"]) for p in facts["parameters"]],
        )
    say(f"\nexample: {facts['example']}")


def _lines(facts: Facts) -> list[tuple[str, str]]:
    lines = [("paper", facts.get("paper", ""))]
    if facts.get("reconstruction"):
        lines.append(
            ("reconstruction", "rebuilt from the abstract; its full text was not available")
        )
    lines.append(("plugins", " + ".join(facts.get("plugins", ()))))
    lines.append(("sends", facts.get("sends", "")))
    lines.append(("hooks", ", ".join(facts.get("hooks", ()))))
    if "works_here" in facts:
        lines.append(("works here", _works(facts)))
    traits = facts.get("traits")
    if traits:
        lines += [
            ("needs", ", ".join(traits["needs"])),
            ("changes", ", ".join(traits["changes"])),
            ("gradient", traits["gradient"]),
            ("evaluation", "acts on it, too" if traits["evaluation"] else "leaves it alone"),
            ("state", "kept over steps" if traits["stateful"] else ""),
            ("place", "last in a stack" if traits["last"] else ""),
            ("on a GPU", f"waits in a step: {traits['waits']}" if traits["waits"] else ""),
        ]
    return [(name, text) for name, text in lines if text]


def _works(facts: Facts) -> str:
    return "yes" if facts["works_here"] else f"no: {facts['missing']}"
