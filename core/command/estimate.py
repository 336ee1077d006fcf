"""``splitlab estimate``: what recorded runs would take over other links. Runs nothing."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.command.options import Parser, add_json, completes, declare, print_json

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.report.estimate import Means

__all__ = ["add", "show_means"]

_MORE = """\
Reads the bytes of every step and the seconds of client and server from the
logs of finished runs, and trains nothing. A --link takes the place of the one
that the run had, and is a line of the table; without it, every profile of
`splitlab links` is. Runs that differ in their seed alone are one line, with
their means. Evaluations are left out: they are the laboratory's.
--client-speed is an assumption about a device, not a measurement of one.
docs/links.md explains what is estimated, and how near it comes.
"""

_EXAMPLES = """\
  splitlab estimate runs/mine                               over all links
  splitlab estimate runs/mine --link lte --link rate=5mbit,delay=20ms
  splitlab estimate studies/mine --link lte --accuracy 0.8  which is there first
  splitlab estimate runs/mine --client-speed 0.1            a client ten times slower
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "estimate",
        _estimate,
        "tell what recorded runs would take over other links",
        takes="STUDY|RUN… [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "places",
        nargs="+",
        type=expanduser,
        metavar="STUDY|RUN",
        help="run folders, or folders of them, such as a study's",
    )
    link = parser.add_argument(
        "--link",
        dest="links",
        action="append",
        default=[],
        metavar="NAME[:key=value,…]|key=value,…",
        help="a link that paces; repeat it for several (default: all profiles)",
    )
    completes(link, "links")
    parser.add_argument(
        "--accuracy",
        type=float,
        metavar="X",
        help="how long until this accuracy, 0 to 1 (default: the best of each run)",
    )
    parser.add_argument(
        "--client-speed",
        type=float,
        default=1.0,
        metavar="X",
        help="the client computes this much as fast as it did, such as 0.1 (default: 1)",
    )
    add_json(parser)
    return parser


def _estimate(arguments: argparse.Namespace) -> int:
    with heavy_imports():
        from splitlab.core.report.estimate import estimate, means, profiles
    from splitlab.core.report.collect import results_of
    from splitlab.core.runs.listing import find_runs

    places = [Path(place) for place in arguments.places]
    results = results_of(places)
    counted = {run.folder for row in results.rows for run in row.runs}
    runs = [run for run in find_runs(*places) if run.folder in counted]
    # Of several, what has not come to its end is left out; of one alone it is told.
    runs = [run for run in runs if run.summary is not None] or runs[:1]
    options = {"accuracy": arguments.accuracy, "client_speed": arguments.client_speed}
    found = [e for run in runs for e in estimate(run, arguments.links or profiles(), **options)]
    if arguments.json:
        return print_json([dataclasses.asdict(each) for each in found])
    rows = {row.title: [run.folder for run in row.runs] for row in results.rows}
    show_means(means(rows, found), arguments.client_speed)
    return 0


def show_means(found: Sequence[Means], client_speed: float) -> None:
    """Print a line for every row and link."""
    from splitlab.core.command.show import human_seconds, print_line, print_table

    lines = []
    for each in found:
        reached = "never reached"
        if each.reached_seconds is not None:
            reached = human_seconds(each.reached_seconds)
            if each.reached < each.runs:
                reached += f" ({each.reached} of {each.runs})"
        lines.append(
            (
                each.title,
                each.link,
                str(each.runs),
                human_seconds(each.step_seconds),
                human_seconds(each.seconds),
                f"{each.link_share:.0%}",
                f"{each.accuracy:.4f}",
                reached,
            )
        )
    header = ("row", "link", "n", "a step", "training", "on the link", "accuracy", "reached after")
    print_table(header, lines, numbers=range(2, len(header)), whole=(1,))
    print()
    print_line(
        "estimated from the logs: mean compute of a step, its own bytes, no evaluations; means "
        "over n runs"
    )
    if client_speed != 1:
        print_line(f"the client is assumed to compute {client_speed:g} times as fast")
