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
    from splitlab.core.report.over_links import OverLinks
    from splitlab.core.report.results import Row

__all__ = ["add", "add_accuracy", "add_links", "over_links_asked", "show_means", "wants_accuracy"]

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
    add_links(parser, "all profiles")
    add_accuracy(parser)
    add_json(parser)
    return parser


def add_accuracy(parser: argparse._ActionsContainer) -> None:
    """Add what is looked for, and on which client."""
    parser.add_argument(
        "--accuracy",
        type=float,
        metavar="X",
        help="how long until this accuracy, 0 to 1 (default: the highest that every run reached)",
    )
    parser.add_argument(
        "--client-speed",
        type=float,
        metavar="X",
        help="the client computes this much as fast as it did, such as 0.1 (default: 1)",
    )


def add_links(parser: argparse._ActionsContainer, default: str) -> None:
    """Add the links that runs are estimated over."""
    link = parser.add_argument(
        "--link",
        dest="links",
        action="append",
        default=[],
        metavar="NAME[:key=value,…]|key=value,…",
        help=f"a link that paces; repeat it for several (default: {default})",
    )
    completes(link, "links")


def wants_accuracy(arguments: argparse.Namespace) -> bool:
    """Return whether one of these options was given."""
    return (arguments.accuracy, arguments.client_speed) != (None, None)


def over_links_asked(
    rows: Sequence[Row], arguments: argparse.Namespace, links: Sequence[str] = ()
) -> OverLinks:
    """Return what the runs of these rows would take, as the options of a command say it.

    Args:
        rows: of which one run at least is finished.
        arguments: of a parser with `add_accuracy`.
        links: over which; all profiles by default.
    """
    from splitlab.core.report.over_links import over_links

    speed = 1.0 if arguments.client_speed is None else arguments.client_speed
    return over_links(rows, links, accuracy=arguments.accuracy, client_speed=speed)


def _estimate(arguments: argparse.Namespace) -> int:
    with heavy_imports():
        from splitlab.core.report.estimate import estimate
    from splitlab.core.report.collect import results_of
    from splitlab.core.runs.listing import find_runs

    places = [Path(place) for place in arguments.places]
    rows = results_of(places).rows
    if not any(row.finished for row in rows):
        estimate(find_runs(*places)[0], arguments.links)  # tells what is the matter
    found = over_links_asked(rows, arguments, arguments.links)
    if arguments.json:
        return print_json([dataclasses.asdict(each) for each in found.estimates])
    show_means(found)
    return 0


def show_means(found: OverLinks) -> None:
    """Print a line for every row and link."""
    from splitlab.core.command.show import print_line, print_table
    from splitlab.core.report.over_links import human_seconds

    lines = [
        (
            each.title,
            each.link,
            str(each.runs),
            human_seconds(each.step_seconds),
            human_seconds(each.seconds),
            f"{each.link_share:.0%}",
            each.until,
        )
        for each in found.means
    ]
    header = ("row", "link", "n", "a step", "training", "on the link", "to accuracy")
    print_table(header, lines, numbers=range(2, len(header)), whole=(1,))
    print()
    print_line(f"to accuracy: {found.told}")
