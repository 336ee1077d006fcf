"""``splitlab runs``: what runs there are, and what is known of them. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitlab.core.command.options import Parser, add_json, declare, print_json
from splitlab.core.command.runs_shown import json_of, show_difference, show_list, show_one
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.runs.listing import Run, Runs

__all__ = ["add"]

_PLACES = ("runs", "comparisons", "studies")
"""Where runs are looked for if nobody says where."""

_MORE = """\
A folder of runs is looked through to any depth: those of comparisons and
studies are runs like the others. Without one, that is runs, comparisons and
studies here. Nothing is trained or loaded.

  splitlab runs show RUN          all that is known of one, and how it goes on
  splitlab runs diff RUN RUN…     settings that differ, and figures side by side
  splitlab runs label RUN…        change names and tags
  splitlab runs rm RUN…           delete run folders; asks first

A RUN is a folder, or the name or id of a run that is listed here. State is
running, finished, interrupted (also what was killed), failed, diverged or
damaged. A filter is KEY=VALUE, or with !=, >, <, >=, <=, or ~ for a part of a
text; a key is a column, a figure, or any option of `splitlab run`.
"""

_EXAMPLES = """\
  splitlab runs                                   all that are here, the newest last
  splitlab runs studies/mine --sort accuracy      those of one study, the best last
  splitlab runs --sort=-bytes                     most bytes first
  splitlab runs --filter state=failed             what failed
  splitlab runs --filter stack~adc --filter 'accuracy>0.8' --filter tag=paper
  splitlab runs --filter 'batch-size<64' --json   for a program, in full precision
"""

_SHOW_EXAMPLES = """\
  splitlab runs show runs/mine
  splitlab runs show mine                         by its name
  splitlab runs show mine --json
"""

_DIFF_EXAMPLES = """\
  splitlab runs diff runs/adc-20261231-235959 runs/topk-20261231-235959
  splitlab runs diff first second third
"""

_LABEL_EXAMPLES = """\
  splitlab runs label runs/adc-20261231-235959 --name "the good one" --add paper
  splitlab runs label first second --add draft --drop paper
"""

_RM_EXAMPLES = """\
  splitlab runs rm runs/mine
  splitlab runs rm first second --yes             without a question, for scripts
"""


def add(commands: Commands) -> Parser:
    """Add the command, and those of two words that begin with it."""
    parser = declare(
        commands,
        "runs",
        _list,
        "list runs: settings, figures, how they stand",
        takes="[DIR…] [options] | show|diff|label|rm RUN…",
        more=_MORE,
        examples=_EXAMPLES,
    )
    places = parser.add_argument(
        "places",
        nargs="*",
        type=expanduser,
        metavar="DIR",
        help="a run, or a folder of runs (a folder called show is ./show); "
        "runs, comparisons and studies by default",
    )
    condition = parser.add_argument(
        "--filter",
        dest="filters",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only those; also != > < >= <= and ~ for a part; repeat it for several conditions",
    )
    order = parser.add_argument(
        "--sort", metavar="KEY", help="by this, rising; --sort=-KEY falling (default: by beginning)"
    )
    add_json(parser)
    for action, completer in ((places, _words), (condition, _keys), (order, _keys)):
        action.completer = completer  # type: ignore[attr-defined]  # argcomplete looks there
    # A parser that nobody else sees: the second word is not argparse's to choose by.
    inner = Parser(prog="splitlab").add_subparsers(prog="splitlab")
    show = _declare(inner, "show", _show, "show all that is known of a run", _SHOW_EXAMPLES)
    diff = _declare(inner, "diff", _diff, "show where runs differ", _DIFF_EXAMPLES)
    for each in (show, diff):
        add_json(each)
    label = _declare(inner, "label", _label, "change names and tags of runs", _LABEL_EXAMPLES)
    label.add_argument("--name", help="what lists call it; the folder keeps its name")
    label.add_argument("--add", action="append", default=[], metavar="TAG", help="a tag more")
    label.add_argument("--drop", action="append", default=[], metavar="TAG", help="a tag less")
    remove = _declare(inner, "rm", _remove, "delete run folders", _RM_EXAMPLES)
    remove.add_argument("--yes", action="store_true", help="do not ask")
    parser.inner = {"show": show, "diff": diff, "label": label, "rm": remove}
    return parser


def _declare(commands: Commands, word: str, does: Any, summary: str, examples: str) -> Parser:
    takes = {"show": "RUN", "diff": "RUN RUN…"}.get(word, "RUN…") + " [options]"
    parser = declare(commands, f"runs {word}", does, summary, takes=takes, examples=examples)
    parser.add_argument(
        "runs",
        nargs=1 if word == "show" else "+",
        type=expanduser,
        metavar="RUN",
        help="its folder, or the name or id of a run that `splitlab runs` lists here",
    )
    return parser


# What the shell completes.


def _words(prefix: str, parser: Parser, **rest: Any) -> list[str]:
    from argcomplete.completers import DirectoriesCompleter

    names = [run.name for run in _here()]
    return [*parser.inner, *names, *DirectoriesCompleter()(prefix)]


def _keys(prefix: str, **rest: Any) -> list[str]:
    from splitlab.core.runs.listing import keys

    return [sign + key for sign in ("", "-") for key in keys()]


# Finding.


def _here() -> Runs:
    """Return the runs below the places where runs are by default."""
    from splitlab.core.runs.listing import load_runs

    return load_runs(*(place for place in _PLACES if Path(place).is_dir()))


def _named(texts: Sequence[str]) -> list[Run]:
    """Return the runs that are meant: folders, or names or ids of those here."""
    from splitlab.core.runs.listing import is_run, read_run

    here: Runs | None = None
    found = []
    for text in texts:
        if is_run(Path(text)):
            found.append(read_run(Path(text)))
            continue
        here = _here() if here is None else here
        found.append(_one(text, here))
    return found


def _one(text: str, here: Runs) -> Run:
    from splitlab.core.command.show import near

    found = [run for run in here if text in (run.name, run.folder.name, run.id)]
    if len(found) == 1:
        return found[0]
    if found:
        folders = ", ".join(near(run.folder) for run in found)
        raise ConfigError(f"{text} may be any of {folders}; name the folder")
    what = "is a folder, but no run" if Path(text).is_dir() else "is no run"
    raise ConfigError(f"{text} {what}; name a run's folder, or one that `splitlab runs` lists")


# The commands.


def _list(arguments: argparse.Namespace) -> int:
    from splitlab.core.runs.listing import load_runs

    places = arguments.places
    found = load_runs(*places) if places else _here()
    chosen = found.where(*arguments.filters)
    if arguments.sort is not None:
        chosen = chosen.by(arguments.sort)
    if arguments.json:
        return print_json(chosen.table())
    if not found:
        where = ", ".join(places) or f"{', '.join(_PLACES[:-1])} and {_PLACES[-1]} here"
        say(f"no runs in {where}; name a folder of runs, or make one with `splitlab run`")
        return 0
    show_list(chosen)
    of = f" of {len(found)}" if len(chosen) < len(found) else ""
    counts = Counter(run.state for run in chosen)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    say(f"{len(chosen)}{of} run{'s' * (len(found) != 1)}{': ' * bool(states)}{states}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    [run] = _named(arguments.runs)
    if arguments.json:
        return print_json(json_of(run))
    show_one(run)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from splitlab.core.runs.listing import differing

    runs = _named(arguments.runs)
    if len(runs) < 2:
        raise ConfigError(f"{arguments.runs[0]} alone differs from nothing; name two runs or more")
    settings, figures = differing(runs)
    if arguments.json:
        folders = [str(run.folder) for run in runs]
        return print_json({"runs": folders, "settings": settings, "figures": figures})
    show_difference(runs, settings, figures)
    return 0


def _label(arguments: argparse.Namespace) -> int:
    from splitlab.core.command.show import near
    from splitlab.core.runs.folder import relabel

    runs = _named(arguments.runs)
    name, added, dropped = arguments.name, arguments.add, arguments.drop
    if name is None and not added and not dropped:
        raise ConfigError("nothing to change; give --name NAME, --add TAG or --drop TAG")
    for run in runs:
        config = relabel(run.folder, name, added, dropped)
        tags = ", ".join(config.tags) or "none"
        say(f"{near(run.folder)}: name {config.name or run.folder.name}, tags {tags}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from splitlab.core.command.show import near
    from splitlab.core.runs.folder import remove_run

    runs = {run.folder.resolve(): run for run in _named(arguments.runs)}.values()
    for run in runs:
        if why := _must_stay(run.folder):
            raise ConfigError(f"{near(run.folder)} {why}. Nothing was deleted")
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is here to ask; delete runs without a terminal with --yes")
        show_list(list(runs))
        what = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
        if not _agreed(f"delete {what} with all that is in the folder? [y/N] "):
            say("nothing was deleted")
            return 0
    for run, name in [(run, near(run.folder)) for run in runs]:  # which may be where we are
        remove_run(run.folder)
        say(f"deleted {name}")
    return 0


def _must_stay(folder: Path) -> str:
    """Return why the folder of a run cannot be deleted; nothing if it can."""
    from splitlab.core.command.show import near
    from splitlab.core.runs.disk import holder
    from splitlab.core.runs.listing import is_run

    if holder(folder, "client") or holder(folder, "server") or holder(folder.parent, folder.name):
        return "is running; stop it first"
    if folder.is_symlink():
        return f"is a link; name the run itself: {near(folder.resolve())}"
    below = (Path(path, name) for path, names, _ in os.walk(folder) for name in names)
    if inner := next(filter(is_run, below), None):
        return f"holds another run, {near(inner)}; delete that first, or move it away"
    return ""


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False
