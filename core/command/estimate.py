"""``splitlab estimate``: what recorded runs would take over other links. Runs nothing."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, add_json, completes, declare, print_json
from splitlab.core.contract.errors import ConfigError

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.report.estimate import Estimate

__all__ = ["add", "show_estimates"]

_MORE = """\
Reads the bytes of every step and the seconds of client and server from the
logs of finished runs, and trains nothing. A --link takes the place of the one
that the run had, and is a line of the table; without it, every profile of
`splitlab links` is. Evaluations are left out: they are the laboratory's.
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
    from splitlab.core.command.imports import heavy_imports

    with heavy_imports():
        from splitlab.core.report.estimate import estimate, profiles
    from splitlab.core.runs.listing import find_runs

    runs = find_runs(*(Path(place) for place in arguments.places))
    if not runs:
        raise ConfigError(
            f"no run is in {' '.join(arguments.places)}; name run folders, or a folder of them"
        )
    if len(runs) > 1:  # of a study, what has not come to its end is left out
        left = [run for run in runs if run.summary is not None]
        runs = left or runs[:1]
    options = {"accuracy": arguments.accuracy, "client_speed": arguments.client_speed}
    found = [e for run in runs for e in estimate(run, arguments.links or profiles(), **options)]
    if arguments.json:
        return print_json([dataclasses.asdict(each) for each in found])
    show_estimates(found)
    return 0


def show_estimates(found: Sequence[Estimate]) -> None:
    """Print a line for every run and link."""
    from splitlab.core.command.show import human_seconds, near, print_line, print_table

    rows = []
    for each in found:
        reached = "never reached"
        if each.reached_seconds is not None:
            reached = f"{human_seconds(each.reached_seconds)} (step {each.reached_step:,})"
        rows.append(
            (
                near(each.run),
                each.link,
                human_seconds(each.seconds / each.steps),
                human_seconds(each.seconds),
                f"{each.link_seconds / each.seconds:.0%}",
                f"{each.accuracy:.4f}",
                reached,
            )
        )
    header = ("run", "link", "a step", "training", "on the link", "accuracy", "reached after")
    print_table(header, rows, numbers=(2, 3, 4, 5, 6), whole=(1,))
    print()
    print_line("estimated from the logs: mean compute of a step, its own bytes; no evaluations")
    if found[0].client_speed != 1:
        print_line(f"the client is assumed to compute {found[0].client_speed:g} times as fast")
