"""``splitlab compare``: several stacks alike, a study without a definition of its own."""

from __future__ import annotations

import argparse
import itertools
import time
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.command.options import (
    Parser,
    add_config,
    add_json,
    add_quiet,
    declare,
    given,
)
from splitlab.core.command.study import (
    NOT_OF_A_STUDY,
    add_client,
    add_executor,
    add_stacks,
    conducted,
)
from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import Config

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]

_MORE = """\
A comparison is a study over stacks: every run is an ordinary run folder.
Started again with --output DIR it skips what is finished and goes on with what
was interrupted; with more stacks, seeds or another ratio it grows.
DIR/report.html, table.md, table.csv and figures/ hold what came of it;
`splitlab report DIR` draws them anew, `splitlab study` takes more axes.
"""

_EXAMPLES = """\
  splitlab compare --plugin none --plugin adc --plugin adc+quantize:bits=8 \\
                   --ratio 0.1 --seeds 3 --output comparisons/mine
  splitlab compare --plugin adc:ratio=0.05 --plugin adc:ratio=0.2 \\
                   --budget bytes=50MB --seeds 0,1,5
  splitlab compare --output comparisons/mine --client-speed 0.1   time to accuracy, by link
  splitlab compare --output comparisons/mine --ratio 0.2          another ratio of the same stacks
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "compare",
        _compare,
        "run several stacks alike: one table, one page of figures",
        takes="--plugin STACK --plugin STACK… [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    add_quiet(parser)
    add_json(parser)
    group = parser.add_argument_group("the comparison")
    add_stacks(group)
    group.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="given to the first plugin of every stack that takes a ratio, unless you set anything "
        "of that plugin; other stacks stay as they are, which the table says",
    )
    group.add_argument(
        "--seeds",
        metavar="N|LIST",
        help="how many runs of each, with seeds from --seed on, or which seeds, as in 0,1,5 "
        "(default: 3)",
    )
    group.add_argument(
        "--output",
        type=expanduser,
        metavar="DIR",
        help="the comparison's folder; comparisons/TIME by default. One that exists goes on with "
        "what is missing",
    )
    add_executor(group)
    add_client(parser)
    add_config(parser, exclude=NOT_OF_A_STUDY)
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    options = given(arguments)
    stacks = options.pop("plugins", ())
    output = options.pop("output", None)
    if not stacks and output is None:
        raise ConfigError(
            "nothing to compare; name every stack with --plugin, or with --output DIR a "
            "comparison that is to go on"
        )
    Config.from_mapping({"plugins": stacks})  # a file may hold something else than a list
    with heavy_imports():
        from splitlab.core.studies.definition import RATIO, Definition, axis_of_columns
        from splitlab.core.studies.study import Study

    folder = output if output is not None else _new_folder()
    axes = [] if arguments.ratio is None else [axis_of_columns({RATIO: [arguments.ratio]})]
    if not stacks and Study.read(Path(folder).absolute()) is None:
        raise ConfigError(f"--output {output} is empty; say what to compare with --plugin")
    what = Definition("comparison", stacks=tuple(stacks)) if stacks else None
    return conducted(
        arguments, what, options, stacks=stacks, over=axes, seeds=arguments.seeds, output=folder
    )


def _new_folder() -> Path:
    path = Path("comparisons") / time.strftime("%Y%m%d-%H%M%S")
    others = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(free for free in itertools.chain([path], others) if not free.exists())
