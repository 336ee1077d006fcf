"""``splitlab new-plugin``: a package of one's own to start from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, declare
from splitlab.core.command.streams import say

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]

_MORE = """\
The package holds a method that works, its test, and how to install it; make
the method yours.
"""

_EXAMPLES = """\
  splitlab new-plugin my-method
  splitlab new-plugin my-method --directory ~/methods/mine
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "new-plugin",
        _new_plugin,
        "write a small package with a method to start from",
        takes="NAME [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument("name", metavar="NAME", help="as users will type it, such as my-method")
    parser.add_argument("--directory", metavar="DIR", help="where to write it; ./NAME by default")
    return parser


def _new_plugin(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.scaffold import new_plugin

    name, directory = arguments.name, arguments.directory
    folder = new_plugin(name, Path(directory) if directory else None)
    for path in sorted(folder.iterdir()):
        say(f"wrote {path}")
    say(
        f"\nIt works as it is; make it yours in {folder / name.replace('-', '_')}.py. Then:\n\n"
        f"    pip install -e {folder}\n"
        f"    splitlab check {name}\n"
        f"    splitlab run --plugin {name}"
    )
    return 0
