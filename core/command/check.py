"""``splitlab check``: the conformance kit, and its findings check by check."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import TYPE_CHECKING

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.catalogue.tables import SINGULAR
from splitlab.core.command.options import (
    Parser,
    add_access,
    add_json,
    completes,
    declare,
    print_json,
)
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError, SplitlabError
from splitlab.core.contract.settings import ACCESS
from splitlab.core.runs.config import Config, flag

if TYPE_CHECKING:
    from splitlab.core.catalogue.tables import Loadable
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
  splitlab check adc+quantize:bits=4              a stack of several
  splitlab check my-method --model resnet18       the same promises, on another model
  splitlab check quantize --model my_model.py:my_model         on a model of your own
  splitlab check --transport tcp:nodelay=false    what a link must hold
  splitlab check --link my_link.py:MyLink         with a wrapper around it
  splitlab check --probe my_probe.py:MyProbe      that it changes nothing
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "check",
        _check,
        "check what methods, links and probes must hold",
        takes="[NAME|--transport NAME|--link NAME|--probe NAME] [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    named = parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a plugin and its settings, a stack, FILE.py:Class, a transport, a link or a probe",
    )
    completes(named, "plugins", "stacks", "transports", "links", "probes")
    texts: dict[Loadable, str] = {
        "models": "check the plugin on this model, with small images, instead of a tiny one",
        "transports": "check this transport instead",
        "links": "check this link wrapper instead",
        "probes": "check this probe instead",
    }
    for kind, text in texts.items():
        option = parser.add_argument(f"--{SINGULAR[kind]}", metavar="NAME", help=text)
        completes(option, kind)
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="check the plugin on this device, such as cuda (default: cpu)",
    )
    add_access(parser)
    add_json(parser)
    return parser


def _check(arguments: argparse.Namespace) -> int:
    with heavy_imports():
        from splitlab.core.testing import check_listed, listed

    if report := _one(arguments):
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


def _one(arguments: argparse.Namespace) -> Report | None:
    """Return the report of the one thing that was named; None if nothing was."""
    from splitlab.core.catalogue.tables import entries
    from splitlab.core.testing import check_link, check_plugin, check_probe, check_transport

    given = {
        "": arguments.name,
        "--transport ": arguments.transport,
        "--link ": arguments.link,
        "--probe ": arguments.probe,
    }
    named = [(option, text) for option, text in given.items() if text]
    if len(named) > 1:
        first, second, *_ = ("".join(each) for each in named)
        raise ConfigError(f"check {first} and {second} exclude each other; give one")
    if not named:
        for name, value in _of_a_plugin(arguments):
            raise ConfigError(
                f"{name} {value} needs a NAME, the plugin to check on it: "
                f"splitlab check quantize {name} {value}"
            )
        return None
    [(option, text)] = named
    head = re.split(r"[:+]", text)[0]
    if not option and head not in {**entries("plugins"), **entries("stacks")}:
        kinds: tuple[tuple[Loadable, str], ...] = (
            ("transports", "--transport "),
            ("links", "--link "),
            ("probes", "--probe "),
        )
        option = next((each for kind, each in kinds if head in entries(kind)), "")
        if not option and _is_model(text):
            raise ConfigError(
                f"{text} is a model; check a plugin on it: splitlab check quantize --model {text}"
            )
    typed = {name: value for name, value in vars(arguments).items() if name in ACCESS}
    access = Config.from_mapping(typed).access
    if access and option != "--transport ":
        raise ConfigError(f"{flag(next(iter(access)))} is for transports; check {text} without it")
    if not option:
        return check_plugin(text, model=arguments.model, device=arguments.device)
    for name, value in _of_a_plugin(arguments):
        raise ConfigError(f"{name} {value} is for plugins; check {text} without it")
    if option == "--transport ":
        return check_transport(text, access=access)
    return check_link(text) if option == "--link " else check_probe(text)


def _of_a_plugin(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return what was given that only a plugin can be checked on."""
    given = {"--model": arguments.model, "--device": arguments.device}
    return [(name, value) for name, value in given.items() if value not in (None, "cpu")]


def _is_model(text: str) -> bool:
    """Return whether this names a model, of the catalogue, a file's or timm's."""
    from splitlab.core.catalogue.loading import load, split, takes_classes
    from splitlab.core.models.timm_models import is_timms

    try:
        head, _ = split("models", text)
        if is_timms(head):
            return True
        made = load("models", head)  # a plugin's class may have a parameter of that name, too
        return inspect.isfunction(made) and takes_classes(made)
    except SplitlabError:
        return False


_STYLES = {"failed": "bold red", "warning": "yellow", "passed": "green", "skipped": "dim"}


def show_report(report: Report) -> None:
    """Print what every check found, one line a check."""
    from splitlab.core.command.show import print_table

    say(f"{report.subject}: {report.counts()}\n")
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
