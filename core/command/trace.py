"""``splitlab trace``: one training step under a lens, one line a tensor."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.command.options import Parser, add_config, add_json, declare, given, print_json
from splitlab.core.contract.settings import ACCESS

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.runs.trace import Trace

__all__ = ["add", "show_trace"]

_MORE = """\
Both peers are in this process and exchange real frames. A line is a tensor
that the stage made or changed, with its bytes in memory; a frame's lines are
its bytes by what they are. Probes and link wrappers act as in a run; of probes
and plugins the numbers of the step are shown, and nothing is reported.
"""

_EXAMPLES = """\
  splitlab trace --plugin adc --plugin quantize
  splitlab trace --plugin adc --batch-size 32 --step 10 --json
"""

# Options that say nothing of a single step between peers in this process.
_NOT_TRACED = (
    "transport",
    *ACCESS,
    "budget",
    "evaluate",
    "eval_every",
    "eval_points",
    "eval_samples",
    "patience",
    "keep",
    "checkpoint_every",
    "timeout",
    "reconnect",
    "output",
    "name",
    "tags",
    "loggers",
)


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "trace",
        _trace,
        "show one training step: every tensor, frame and millisecond",
        takes="[--plugin NAME[:key=value,…]]… [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--step",
        type=int,
        default=1,
        metavar="N",
        help="which training step; those before it are trained first (default: 1)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="further steps that are timed; milliseconds are their medians (default: 5)",
    )
    add_json(parser)
    add_config(parser, exclude=_NOT_TRACED)
    return parser


def _trace(arguments: argparse.Namespace) -> int:
    with heavy_imports():
        from splitlab.core.runs.trace import trace

    traced = trace(step=arguments.step, repeats=arguments.repeats, **given(arguments))
    if arguments.json:
        return print_json(traced.as_json())
    show_trace(traced)
    return 0


def show_trace(trace: Trace) -> None:
    """Print the stages of a step, one line a tensor."""
    from splitlab.core.command.show import print_line, print_table

    for line in trace.heading():
        print_line(line)
    rows = []
    for stage in trace.stages:
        took = "" if stage.milliseconds is None else f"{stage.milliseconds:.2f}"
        for i, cells in enumerate(stage.lines()):
            first, last = ((stage.peer, stage.what), took) if i == 0 else (("", ""), "")
            rows.append((*first, *cells, last))
    header = ("peer", "what happens", "tensor", "shape", "dtype", "bytes", "ms")
    print()
    print_table(header, rows, numbers=(5, 6), whole=())
    print()
    for line in trace.totals():
        print_line(line)
