"""``splitlab compare``: several stacks alike, and the table of what came of them."""

from __future__ import annotations

import argparse
from os.path import expanduser
from typing import TYPE_CHECKING

from splitlab.core.command.imports import heavy_imports
from splitlab.core.command.options import Parser, add_config, add_quiet, completes, declare, given
from splitlab.core.command.stop import StopAsked
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError, Diverged, SplitlabError
from splitlab.core.runs.config import Config, flag

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.studies.comparison import Comparison

__all__ = ["add", "show_comparison"]

_MORE = """\
Every run is an ordinary run folder, DIR/STACK/seed-S. Started again with the
same options and --output DIR, a comparison skips what is finished and goes on
with what was interrupted; with more stacks or seeds it grows. DIR/table.md,
table.csv, results.json and accuracy.png, .pdf hold what came of it.
"""

_EXAMPLES = """\
  splitlab compare --plugin none --plugin adc --plugin topk --plugin adc+quantize:bits=8 \\
                   --ratio 0.1 --seeds 3 --output comparisons/mine
  splitlab compare --plugin adc:ratio=0.05 --plugin adc:ratio=0.2 --budget bytes=50MB --seeds 0,1,5
  splitlab compare --output comparisons/mine --x-scale log        table and figure anew
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "compare",
        _compare,
        "run several stacks alike: one table, one figure",
        takes="--plugin STACK --plugin STACK… [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    add_quiet(parser)
    group = parser.add_argument_group("the comparison")
    stacks = group.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=argparse.SUPPRESS,
        metavar="STACK",
        help="a whole stack, NAME[:key=value,…]+NAME…; repeat it for every stack to compare",
    )
    completes(stacks, "plugins", "stacks")
    group.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="given to the first plugin of every stack that takes a ratio, unless you set anything "
        "of that plugin; other stacks stay as they are, which the table says",
    )
    group.add_argument(
        "--seeds",
        default="3",
        metavar="N|LIST",
        help="how many runs of each, with seeds from --seed on, or which seeds, as in 0,1,5 "
        "(default: 3)",
    )
    group.add_argument(
        "--output",
        type=expanduser,
        metavar="DIR",
        help="the comparison's folder; comparisons/TIME by default. One that exists goes on with "
        "what is missing; without --plugin its table and figure are made anew",
    )
    group.add_argument(
        "--x-scale",
        default="linear",
        choices=("linear", "log"),
        help="of the figure's bytes (default: linear)",
    )
    add_config(parser, exclude=("plugins", "output", "name"))
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    options = given(arguments)
    stacks = options.pop("plugins", None)
    output = options.pop("output", None)
    if stacks is None:
        if output is None:
            raise ConfigError(
                "nothing to compare; name every stack with --plugin, or with --output DIR a "
                "comparison whose table and figure to make anew"
            )
        unused = [flag(name) for name in options] + ["--ratio"] * (arguments.ratio is not None)
        if unused:
            raise ConfigError(f"{unused[0]} without --plugin: nothing is run; drop it")
    with heavy_imports():
        from splitlab.core.command.progress import comparison_reporter
        from splitlab.core.studies.compare import compare, redraw

    scale = arguments.x_scale
    if stacks is None:
        comparison = redraw(output, scale)
    else:
        Config.from_mapping({"plugins": stacks})  # a file may hold something else than a list
        comparison = compare(
            stacks,
            ratio=arguments.ratio,
            seeds=arguments.seeds,
            output=output,
            x_scale=scale,
            reporter=comparison_reporter(arguments.quiet),
            should_stop=StopAsked(),
            **options,
        )
    if not arguments.quiet:
        show_comparison(comparison)
    failures = comparison.failures() if stacks else []
    if failures:
        more = f" (and {len(failures) - 1} more runs)" if len(failures) > 1 else ""
        states = {outcome.state for outcome in comparison.outcomes.values()}
        if "failed" in states:
            raise SplitlabError(f"a run failed{more}: {failures[0]}")
        raise Diverged(f"a run diverged{more}: {failures[0]}")
    return 0


def show_comparison(comparison: Comparison) -> None:
    """Print the table of a comparison, and where it is written."""
    from splitlab.core.command.show import near, print_line, print_table, width
    from splitlab.core.report.table import Table

    cells = Table.of(comparison.rows())
    print()
    say(comparison.description())
    # Numbers are never folded: where they do not all fit beside each other, two tables do.
    numbers = [i for i, name in enumerate(cells.header) if name not in ("stack", "note")]
    wide = 24 + sum(2 + max(len(row[i]) for row in (cells.header, *cells.rows)) for i in numbers)
    half = len(numbers) // 2
    parts = [numbers] if wide <= width() else [numbers[:half], numbers[half:]]
    for part in parts:
        print()
        print_table(
            ("stack", *(cells.header[i] for i in part)),
            [(texts[0], *(texts[i] for i in part)) for texts in cells.rows],
            numbers=range(1, len(part) + 1),
            whole=(),
        )
    print()
    for row in comparison.rows():
        if row.note:
            print_line(f"{row.title}: {row.note}")
    say(f"written: {', '.join(map(near, comparison.files()))}")
