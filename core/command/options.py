"""What the parsers of several commands share; above all the options made from `Config`'s fields."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from splitlab.core.catalogue.tables import Kind, entries
from splitlab.core.command.streams import visible
from splitlab.core.contract.jsonable import json_text
from splitlab.core.contract.settings import ACCESS
from splitlab.core.runs.config import GROUPS, Config, by_group, flag, read_toml

if TYPE_CHECKING:
    from typing import TypeAlias

    Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

__all__ = [
    "Formatter",
    "Parser",
    "add_access",
    "add_common",
    "add_config",
    "add_json",
    "add_quiet",
    "completes",
    "declare",
    "examples_of",
    "given",
    "print_json",
]


_COLUMNS = 80  # of a terminal as it opens


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line that says where help is.

    Attributes:
        name: of the command, as it is typed.
        summary: the command in one line, for the list of commands.
        inner: parsers of commands of two words, by their second.
    """

    name = ""
    summary = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.inner: dict[str, Parser] = {}

    def parse_known_args(  # type: ignore[override]  # argparse's has overloads
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, or let the command of two words do it."""
        if args and args[0] in self.inner:
            return self.inner[args[0]].parse_known_args(args[1:], namespace)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the mistake on stderr and end with status 2."""
        self.exit(2, visible(f"splitlab: error: {message}; see `{self.prog} --help`\n"))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help, or fail: argparse's own would lose it without a word."""
        file = file or sys.stderr
        file.write(message)
        file.flush()


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Texts as they are written, and room for the names of options beside their help."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, **options})


def declare(
    commands: Commands,
    name: str,
    does: Callable[[argparse.Namespace], int],
    summary: str,
    *,
    takes: str = "[options]",
    more: str = "",
    examples: str = "",
) -> Parser:
    """Add the parser of a command.

    Args:
        commands: where to.
        name: as the user types it.
        does: is called with what was typed, and returns the exit status.
        summary: one line without a full stop.
        takes: what is typed after the name, for the usage line.
        more: what the help says after the summary.
        examples: lines that end the help, as for `examples_of`.
    """
    parser = commands.add_parser(
        name,
        usage=f"splitlab {name} {takes}",
        description=f"{summary[0].upper()}{summary[1:]}.\n{more and chr(10)}{more}",
        epilog=examples_of(examples) if examples else None,
        formatter_class=Formatter,
    )
    parser.name = name
    parser.summary = summary
    parser.set_defaults(command=does, parser=parser)
    add_common(parser)
    return parser


def examples_of(lines: str) -> str:
    """Return the end of a help: commands, and beside them or below what they are for.

    Args:
        lines: each a command, after three spaces what it does; one with ``\\`` goes on below.
    """
    parts = [re.split(r"(?<=\S) {3,}", line.rstrip(), maxsplit=1) for line in lines.splitlines()]
    told = [part for part in parts if len(part) > 1]
    most = _COLUMNS - max((len(text) for _, text in told), default=0)
    begin = min(most, max((len(command) + 3 for command, _ in told), default=0))
    shown = ["examples:"]
    for command, *text in parts:
        if text and len(command) + 2 > begin:
            shown += [command, " " * begin + text[0]]
        else:
            shown.append(command.ljust(begin) + text[0] if text else command)
    return "\n".join(shown) + "\n"


def add_common(parser: Parser) -> None:
    """Add what every command takes; what is not given is not in the namespace."""
    parser.add_argument(
        "--registry",
        metavar="FILE.toml",
        default=argparse.SUPPRESS,
        help="read names of your own from this file; sets $SPLITLAB_REGISTRY",
    )
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="with an error, show all lines of code that led to it; sets $SPLITLAB_TRACEBACK",
    )


def add_quiet(parser: Parser) -> None:
    """Add ``--quiet``."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add ``--json``; `print_json` is for commands that find it set."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


def print_json(value: Any) -> int:
    """Print a value as JSON; returns the exit status 0."""
    print(json_text(value, indent=2, default=str))
    return 0


def add_config(
    parser: Parser, exclude: Sequence[str] = (), texts: Mapping[str, str] | None = None
) -> None:
    """Add an option for every field of `Config`; what is not given is not in the namespace.

    Args:
        parser: of the command.
        exclude: fields that the command does not take.
        texts: other help texts than the fields' own.
    """
    parser.add_argument(
        "--config", metavar="FILE.toml", help="read options from a file; flags override it"
    )
    hints = typing.get_type_hints(Config)
    fields = [spec for spec in by_group() if spec.name not in exclude]
    for title in GROUPS:
        members = [spec for spec in fields if spec.metadata["group"] == title]
        if not members:
            continue
        group = parser.add_argument_group(title)
        for spec in members:
            text = (texts or {}).get(spec.name)
            action = group.add_argument(flag(spec.name), **_option(spec, hints[spec.name], text))
            if kinds := spec.metadata.get("kinds"):
                completes(action, *kinds)
            elif choices := spec.metadata.get("choices"):
                action.completer = lambda choices=choices, **rest: choices  # type: ignore[attr-defined]


def add_access(parser: Parser) -> None:
    """Add the options of who may connect; what is not given is not in the namespace."""
    hints = typing.get_type_hints(Config)
    for spec in by_group():
        if spec.name in ACCESS:
            parser.add_argument(flag(spec.name), **_option(spec, hints[spec.name], None))


def completes(action: argparse.Action, *kinds: Kind) -> None:
    """Let the shell complete an option or argument with the catalogue's names of some kinds.

    Of a stack, the member behind the last ``+`` is completed; a file's name may stand there, too.
    """

    def names(prefix: str, **rest: Any) -> list[str]:
        before = prefix[: prefix.rfind("+") + 1]
        found = [before + name for kind in kinds for name in entries(kind)]
        return found if any(name.startswith(prefix) for name in found) else _files(prefix)

    action.completer = names  # type: ignore[attr-defined]  # argcomplete looks there


def _files(prefix: str) -> list[str]:
    from argcomplete.completers import FilesCompleter

    return list(FilesCompleter()(prefix))


def _option(spec: dataclasses.Field[Any], hint: Any, text: str | None) -> dict[str, Any]:
    """Return what `add_argument` takes for a field of this type, with this help or its own."""
    if text is None:
        text = spec.metadata["help"].replace("%", "%%")
        default = spec.metadata.get("unset", spec.default)
        if default not in (None, ()) and default is not False:
            text += f" (default: {default})".replace("%", "%%")
    option: dict[str, Any] = {"dest": spec.name, "default": argparse.SUPPRESS, "help": text}
    if hint is bool:
        return option | {"action": "store_true"}
    metavar = spec.metadata.get("metavar")
    if spec.metadata.get("choices"):
        metavar = "|".join(spec.metadata["choices"])
    if typing.get_origin(hint) is tuple:
        return option | {"action": "append", "metavar": metavar or "TEXT"}
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(member for member in members if member is not type(None))
    return option | {"type": kind, "metavar": metavar or {int: "N", float: "X"}.get(kind, "TEXT")}


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration from ``--config`` and the flags, flags first."""
    values = read_toml(arguments.config) if arguments.config else {}
    names = {spec.name for spec in dataclasses.fields(Config)}
    return values | {key: value for key, value in vars(arguments).items() if key in names}
