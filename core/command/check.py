"""``splitlab check``: the conformance kit, and its findings check by check."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, add_json, declare, print_json
from splitlab.core.contract.errors import ConfigError

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.testing.report import Report

__all__ = ["add", "show_report", "show_verdict"]

_MORE = """\
Without a NAME, all that is listed is checked, which takes minutes. The exit
status is 1 if a check failed; the same checks are a pytest suite in
splitlab.core.testing.
"""

_EXAMPLES = """\
  splitlab check adc                              every promise of a method, verified
  splitlab check my_method.py:MyMethod            one of your own, from its file
  splitlab check --transport tcp                  what a link must hold
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "check",
        _check,
        "check what a method or a link must hold, or check all of them",
        takes="[NAME | --transport NAME] [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a plugin and its settings, a stack, FILE.py:Class, or a link",
    )
    parser.add_argument("--transport", metavar="NAME", help="check this link instead")
    add_json(parser)
    return parser


def _check(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.tables import entries
    from splitlab.core.testing import check_listed, check_plugin, check_transport, listed

    name, transport = arguments.name, arguments.transport
    if name in entries("transports") and name not in {**entries("plugins"), **entries("stacks")}:
        name, transport = transport, name
    if name and transport:
        raise ConfigError(f"check {name} and --transport {transport} exclude each other; give one")
    if name or transport:
        report = check_plugin(name) if name else check_transport(transport)
        if arguments.json:
            print_json(report.as_dict())
        else:
            show_report(report)
        return 0 if report.ok else 1
    reports = []
    total = len(listed())
    for report, seconds in check_listed():
        reports.append(report)
        if not arguments.json:
            show_verdict(report, len(reports), total, seconds)
    if arguments.json:
        print_json([report.as_dict() for report in reports])
    return 0 if all(report.ok for report in reports) else 1


_STYLES = {"failed": "bold red", "warning": "yellow", "passed": "green", "skipped": "dim"}


def show_report(report: Report) -> None:
    """Print what every check found, one line a check."""
    from splitlab.core.command.show import print_table

    print(f"{report.subject}: {report.counts()}\n")
    print_table(
        ("", "check", "what is checked", ""),
        [
            ((row.outcome, _STYLES[row.outcome]), row.check, row.title, row.reason)
            for row in report.rows
        ],
        whole=(1,),
    )


def show_verdict(report: Report, done: int, total: int, seconds: float) -> None:
    """Print one line for a report of many, and one more for every check that failed."""
    from splitlab.core.command.show import print_line

    style = _STYLES["passed" if report.ok else "failed"]
    line = f"{report.subject:<24} {report.counts():<34} {seconds:5.1f} s"
    print_line((f"{done:>3}/{total}  ", "dim"), (line, style))
    for row in report.rows:
        if row.outcome == "failed":
            print_line(f"         {row.check}  {row.reason}", wrap=False)
