"""``splitlab completion``: what lets the shell complete options and names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, declare

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]

_SHELLS = ("bash", "zsh", "fish", "powershell")

_MORE = """\
What it prints is for the shell to read at its start. Options, plugins, models,
data sets and links, your own registry's too, are completed then by the Tab key.
"""

_EXAMPLES = """\
  splitlab completion bash                        what bash is to read
  eval "$(splitlab completion bash)"              a line for ~/.bashrc
  eval "$(splitlab completion zsh)"               a line for ~/.zshrc, below compinit
  splitlab completion fish | source               a line for ~/.config/fish/config.fish
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "completion",
        _completion,
        "let the shell complete options and names",
        takes="|".join(_SHELLS),
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))
    return parser


def _completion(arguments: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["splitlab"], shell=arguments.shell))
    return 0
