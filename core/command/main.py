"""The command line as a whole: its parsers, what every command does first, and how it ends.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TextIO

from splitlab import __version__
from splitlab.core.command import (
    certs,
    check,
    compare,
    completion,
    datasets,
    estimate,
    join,
    links,
    loggers,
    models,
    new_plugin,
    plugins,
    probes,
    report,
    run,
    runs,
    serve,
    studies,
    study,
    trace,
    transports,
)
from splitlab.core.command.elsewhere import mistyped
from splitlab.core.command.options import Formatter, Parser, add_common, examples_of
from splitlab.core.command.streams import prepare, visible
from splitlab.core.contract.errors import (
    ConfigError,
    Interrupted,
    Notice,
    SplitlabError,
    unknown_name,
)

__all__ = ["main", "parser"]

_TRACEBACK = "SPLITLAB_TRACEBACK"

_COMMANDS = {
    "train": (run, study, compare, serve, join),
    "look": (
        *(report, estimate, runs, trace, studies),
        *(plugins, models, datasets, transports, links, probes, loggers),
    ),
    "write a method": (new_plugin, check),
    "set up": (certs, completion),
}

_DESCRIPTION = """\
A laboratory for split-learning compression. A client with the data trains the
first part of a model, a server the rest; what crosses the link between them is
compressed by plugins, and its bytes are counted where they leave.
"""

_EXAMPLES = """\
  splitlab run --plugin adc                       ADC on the data that ship, in a minute
  splitlab run                                    the same without compression
  splitlab run --plugin adc:ratio=0.05 --transport tcp   two processes, a real socket
  splitlab compare --plugin none --plugin adc --ratio 0.1 --seeds 3
  splitlab study adc/balance                      a grid of runs, and its page
  splitlab report studies/mine --html mine.html   its tables and figures on one page
  splitlab runs --sort accuracy                   what there is, the best last
  splitlab trace --plugin adc                     what one step does, sends and takes
  splitlab plugins adc                            what a plugin does and takes
"""

_EPILOG = """
`splitlab COMMAND --help` explains a command's options and has more examples.
docs/glossary.md explains the words: ξ, cut, stack, link, nominal, measured, …

exit status: 0 done, 1 failed (a plugin, a peer, the network), 2 what was typed
or a file cannot be used, 3 the training diverged, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors of splitlab are one line on stderr."""
    # libgomp's threads wait for each other by spinning, for milliseconds; on a core that another
    # process wants too, that makes a step several times slower. A short spin serves as well.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    prepare()
    try:
        arguments = _parse(argv)
        if getattr(arguments, "traceback", False):
            os.environ[_TRACEBACK] = "1"  # of a server process, too, whose errors are in its log
        _use_registry(arguments)
        for notice in _notices():
            _say(f"note: {notice}")
        command: Callable[[argparse.Namespace], int] = arguments.command
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = command(arguments)
        sys.stdout.flush()
        return status
    except SplitlabError as error:
        try:
            sys.stdout.flush()
        except OSError:
            _leave_stdout()
        if os.environ.get(_TRACEBACK):
            sys.stderr.write(visible("".join(traceback.format_exception(error))))
        _say(f"error: {error}")
        return error.status
    except KeyboardInterrupt:
        _say("interrupted")
        return Interrupted.status
    except BrokenPipeError:
        _leave_stdout()  # whoever read the listing has seen enough
        return 0
    except OSError as error:
        _leave_stdout()
        if os.environ.get(_TRACEBACK):
            sys.stderr.write(visible("".join(traceback.format_exception(error))))
        where = error.filename or "what is printed cannot be written"
        _say(f"error: {where}: {error.strerror or error}")
        return SplitlabError.status


def _leave_stdout() -> None:
    """Let what is still to be printed go nowhere: at its end Python would complain once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, Notice):
        _say(f"note: {message}")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def parser() -> Parser:
    """Return the parser of the whole command line, with every command's own in it."""
    whole = Parser(
        prog="splitlab",
        usage="splitlab COMMAND [options]",
        epilog=examples_of(_EXAMPLES) + _EPILOG,
        formatter_class=Formatter,
    )
    whole.add_argument("--version", action="version", version=f"splitlab {__version__}")
    add_common(whole)
    # argparse would list all commands in one column; below they are listed by what they are for.
    commands = whole.add_subparsers(
        prog="splitlab", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    parts = [_DESCRIPTION]
    for title, modules in _COMMANDS.items():
        added = [module.add(commands) for module in modules]
        parts.append(f"{title}:\n" + "".join(f"  {one.name:<13}{one.summary}\n" for one in added))
    whole.description = "\n".join(parts)
    return whole


def _all_commands() -> list[ModuleType]:
    return [module for modules in _COMMANDS.values() for module in modules]


def _say(line: str) -> None:
    print(visible(f"splitlab: {line}"), file=sys.stderr)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    whole = parser()
    words = sys.argv[1:] if argv is None else argv
    known = [module.__name__.rpartition(".")[2].replace("_", "-") for module in _all_commands()]
    if words and not words[0].startswith("-") and words[0] not in known:
        whole.error(str(unknown_name("command", words[0], known)))
    if "_ARGCOMPLETE" in os.environ:  # the shell asks how a word may go on; answers and ends
        import argcomplete

        argcomplete.autocomplete(whole)
    arguments, unknown = whole.parse_known_args(argv)
    if unknown:  # the command's own parser tells where its options are explained
        arguments.parser.error(mistyped(arguments.parser, unknown))
    return arguments


def _use_registry(arguments: argparse.Namespace) -> None:
    """Name the user's registry in the environment: a server process is to read the same one."""
    file = os.path.expanduser(getattr(arguments, "registry", ""))
    if not file:
        return
    if os.path.isdir(file):
        raise ConfigError(f"--registry {file} is a folder; name the TOML file in it")
    if not os.path.isfile(file):
        raise ConfigError(f"--registry {file}: no such file; name a TOML file of names of your own")
    os.environ["SPLITLAB_REGISTRY"] = os.path.abspath(file)


def _notices() -> list[str]:
    """Return what the catalogue has to say before a command runs."""
    from splitlab.core.catalogue.tables import notices

    return notices()
