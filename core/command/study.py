"""``splitlab study``: a grid of runs, from its definition to its tables and figures."""

from __future__ import annotations

import argparse
import re
import shlex
import warnings
from os.path import expanduser
from typing import TYPE_CHECKING, Any

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.command.estimate import add_accuracy, over_links_asked, wants_accuracy
from splitlab.core.command.options import (
    Parser,
    add_config,
    add_json,
    add_quiet,
    completes,
    declare,
    given,
    print_json,
)
from splitlab.core.command.stop import StopAsked
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError, Diverged, Notice, SplitlabError

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.report.over_links import OverLinks
    from splitlab.core.report.results import Results
    from splitlab.core.studies.study import Study

__all__ = [
    "NOT_OF_A_STUDY",
    "add",
    "add_client",
    "add_executor",
    "add_stacks",
    "conducted",
    "ended",
]

NOT_OF_A_STUDY = ("plugins", "output", "name", "tags")
"""Fields of `Config` that a study has for every run, or not at all."""

_MORE = """\
A study is data: base options, stacks, axes, seeds, and what to draw, in a table
[studies.NAME] of a registry or a TOML file of its own (`splitlab studies` lists
them). Every combination and seed is a run, in an ordinary run folder. Started
again, a study goes on with what is missing; told more stacks, values, seeds or
budget, it grows: only what differs needs to be said. Several processes may work
on one study. Runs have one CPU thread each unless --threads says otherwise:
several side by side are faster (--executor processes:N), and no result depends
on how many there are.
"""

_EXAMPLES = """\
  splitlab study adc/split-point                              in studies/adc/split-point
  splitlab study adc/split-point --seeds 5                    two more seeds of the same
  splitlab study adc/balance --over plugin.adc.tau=0.1,0.3 \\
                             --over plugin.adc.kappa=0.1,0.3
  splitlab study --plugin none --plugin adc --over ratio=0.05,0.1 \\
                 --over cut=1,2,3 --output mine
  splitlab study --output mine --plugin topk                  one more stack, same axes
  splitlab study --output mine --retry                        what failed, once more
  splitlab study --plugin adc --over batch-size=64,128 --zip lr=1e-3,2e-3 \\
                 --output both
  splitlab study methods --executor processes:8
  splitlab study methods --for 9min                           a part of it; the same again goes on
  splitlab study methods --dry-run                            its rows, and how they stand
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "study",
        _study,
        "run a grid of runs with seeds, and draw what came of it",
        takes="[NAME|FILE.toml] [--over AXIS=VALUE,VALUE…]… [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    name = parser.add_argument(
        "study",
        nargs="?",
        metavar="NAME|FILE.toml",
        help="a study of the catalogue, or a file; without it, the one in --output goes on",
    )
    completes(name, "studies")
    add_quiet(parser)
    either = parser.add_mutually_exclusive_group()
    add_json(either)
    either.add_argument(
        "--dry-run", action="store_true", help="list the rows and how they stand; nothing is run"
    )
    group = parser.add_argument_group("the study")
    add_stacks(group)
    group.add_argument(
        "--over",
        action=_AxisAction,
        dest="axes",
        metavar="AXIS=VALUE,VALUE…",
        help="an axis: an option of `splitlab run` (cut=1,2,3), a plugin's setting "
        "(plugin.adc.ratio=0.05,0.1), or ratio for the first plugin of every stack that takes one; "
        "values with commas of their own are separated by ;",
    )
    group.add_argument(
        "--zip",
        action=_AxisAction,
        dest="axes",
        metavar="AXIS=VALUE,VALUE…",
        help="goes along with the --over before it, value by value",
    )
    group.add_argument(
        "--seeds",
        metavar="N|LIST",
        help="how many runs of each combination, with seeds from --seed on, or which seeds, as in "
        "0,1,5 (default: what the study says, or 3)",
    )
    group.add_argument(
        "--output",
        type=expanduser,
        metavar="DIR",
        help="the study's folder (default: studies/NAME); one that exists goes on and grows",
    )
    add_executor(group)
    add_client(parser)
    add_config(parser, exclude=NOT_OF_A_STUDY)
    return parser


def add_stacks(group: argparse._ActionsContainer) -> None:
    """Add the stacks, one an option."""
    stacks = group.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=argparse.SUPPRESS,
        metavar="STACK",
        help="a whole stack, NAME[:key=value,…]+NAME…; repeat it for every stack",
    )
    completes(stacks, "plugins", "stacks")


def add_client(parser: argparse.ArgumentParser) -> None:
    """Add what the reports also tell: the time to accuracy over links."""
    add_accuracy(
        parser.add_argument_group(
            "time to accuracy over links",
            "With either, table and page also tell it, over all profiles.",
        )
    )


def add_executor(group: argparse._ActionsContainer) -> None:
    """Add who performs the runs, and which."""
    group.add_argument(
        "--executor",
        default="inside",
        metavar="inside|processes:N|ray",
        help="who performs the runs: this process, N processes that share the cores or one GPU "
        "each, or a Ray cluster (default: inside)",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the Ray cluster (default: $RAY_ADDRESS, one that runs here, or a new one)",
    )
    group.add_argument(
        "--retry", action="store_true", help="run again what failed or diverged before"
    )
    group.add_argument(
        "--for",
        dest="seconds",
        metavar="TIME",
        help="stop after this long, such as 90s, 9min or 2h: no run is begun any more, and those "
        "under way end after their step, with a checkpoint; the same command goes on",
    )


class _AxisAction(argparse.Action):
    """Collects ``--over``, and ``--zip`` that goes along with the one before it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        axes = list(getattr(namespace, self.dest) or [])
        if option_string == "--zip":
            if not axes:
                parser.error(f"--zip {values} goes along with an --over, which stands before it")
            axes[-1] = [*axes[-1], values]
        else:
            axes.append([values])
        setattr(namespace, self.dest, axes)


def _study(arguments: argparse.Namespace) -> int:
    options = given(arguments)
    stacks = options.pop("plugins", ())
    output = options.pop("output", None)
    if arguments.study is None and output is None:
        raise ConfigError(
            "which study? name one of `splitlab studies`, a TOML file, or with --output the folder "
            "of one"
        )
    with heavy_imports():
        from splitlab.core.studies.conduct import prepare
        from splitlab.core.studies.definition import axis_of_texts
        from splitlab.core.studies.executors import executor

    axes = [axis_of_texts(together) for together in arguments.axes or ()]
    asked = {"stacks": stacks, "over": axes, "seeds": arguments.seeds, "output": output}
    if arguments.dry_run:
        found = prepare(arguments.study, options=options, dry=True, **asked)
        performer = executor(arguments.executor, ray_address=arguments.ray_address)
        return _show_plan(found, performer.sharing(found.jobs()))
    return conducted(arguments, arguments.study, options, **asked)


def conducted(
    arguments: argparse.Namespace, what: Any, options: dict[str, Any], **asked: Any
) -> int:
    """Run a study, show what came of it, and return the exit status 0.

    Args:
        arguments: of a parser with `add_executor`, ``--quiet`` and ``--json``.
        what: see `splitlab.core.studies.conduct.study`, and so are the others.

    Raises:
        SplitlabError, Diverged: a run failed, or diverged.
    """
    seconds = None if arguments.seconds is None else _seconds(arguments.seconds)
    from splitlab.core.command.progress import study_reporter
    from splitlab.core.report.estimate import check
    from splitlab.core.studies.conduct import study

    check(arguments.accuracy, arguments.client_speed)
    found = study(
        what,
        executor=arguments.executor,
        ray_address=arguments.ray_address,
        retry=arguments.retry,
        seconds=seconds,
        reporter=study_reporter(arguments.quiet or arguments.json),
        should_stop=StopAsked(),
        **asked,
        **options,
    )
    return ended(found, arguments)


def _seconds(text: str) -> float:
    """Return the seconds of ``90s``, ``9min`` or ``2h``.

    Raises:
        ConfigError: it is no time.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(s|min|h)", text.strip())
    seconds = float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds:
        raise ConfigError(f"--for {text} is not allowed; write how long, as in 90s, 9min or 2h")
    return seconds


def ended(found: Study, arguments: argparse.Namespace) -> int:
    """Write tables, figures and page of a study, print its table, and fail if a run did."""
    from splitlab.core.command.show import print_written
    from splitlab.core.report.figures import drawable
    from splitlab.core.report.files import write_all

    results = drawable(found.results())
    links = _over_links(results, arguments)
    files = write_all(results, found.folder, links)
    if arguments.json:
        from splitlab.core.report.long import run_records

        print_json({"folder": str(found.folder), "runs": run_records(results)})
    elif not arguments.quiet:
        from splitlab.core.command.report import show_results

        show_results(results, links)
        print_written(files)
        _say_what_is_left(results, found)
    fail(results, found)
    return 0


def _over_links(results: Results, arguments: argparse.Namespace) -> OverLinks | None:
    """Return what the runs would take over links, if it is asked for and can be told."""
    if not wants_accuracy(arguments) or not any(row.finished for row in results.rows):
        return None
    try:
        return over_links_asked(results.rows, arguments)
    except ConfigError as error:  # the runs are done, and their tables are wanted in any case
        warnings.warn(f"the time to accuracy is left out: {error}", Notice, stacklevel=2)
        return None


def _say_what_is_left(results: Results, found: Study) -> None:
    """Say how many runs are to be made yet: the time was up, or others have them in hand."""
    runs = [run for row in results.rows for run in row.runs]
    left = sum(run.state not in ("finished", "failed", "diverged") for run in runs)
    if left:
        output = shlex.quote(str(found.folder))
        say(f"{left} of {len(runs)} runs are left; go on with: splitlab study --output {output}")


def fail(results: Results, found: Study) -> None:
    """Raise what a study ends with whose runs did not all come to their end.

    Raises:
        SplitlabError: a run failed.
        Diverged: none failed, and one diverged.
    """
    bad = [
        (run.state, f"{row.title}, seed {run.seed}: {run.error}")
        for row in results.rows
        for run in row.runs
        if run.state in ("failed", "diverged")
    ]
    if not bad:
        return
    more = f" (and {len(bad) - 1} more runs)" if len(bad) > 1 else ""
    them = "them" if more else "it"
    failed = next((text for state, text in bad if state == "failed"), "")
    if failed:
        raise SplitlabError(
            f"a run failed{more}: {failed}; run {them} again with: splitlab study --output "
            f"{shlex.quote(str(found.folder))} --retry"
        )
    raise Diverged(f"a run diverged{more}: {bad[0][1]}")


def _show_plan(found: Study, sharing: str) -> int:
    """Print the rows of a study, how many of their runs are finished, and what these share."""
    from splitlab.core.command.show import near, print_line, print_table

    results = found.results()
    runs = [run for row in results.rows for run in row.runs]
    finished = sum(run.state == "finished" for run in runs)
    print_line((found.definition.name, "bold"), f": {found.definition.summary}")
    say(f"{len(runs)} runs in {near(found.folder)}, of which {finished} are finished")
    if sharing:
        say(sharing)
    print()
    print_table(
        ("row", "finished", "remark"),
        [
            (
                row.title,
                f"{len(row.finished)}/{len(row.runs)}",
                row.remark or "; ".join({run.error for run in row.runs if run.error}),
            )
            for row in results.rows
        ],
        numbers=(1,),
    )
    return 0
