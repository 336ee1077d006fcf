"""``splitlab transports``: the links, and which of them work here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.kinds import declare_kind, list_or_explain

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands, Parser

__all__ = ["add"]

_EXAMPLES = """\
  splitlab transports tcp                         one explained
  splitlab run --transport tcp:nodelay=false      two processes, with this setting
"""

_END = "--transport NAME or --transport FILE.py:Class is what a run goes over."


def add(commands: Commands) -> Parser:
    """Add the command."""
    summary = "list the links, and which work here"
    return declare_kind(
        commands, "transports", _transports, summary, one="a transport", examples=_EXAMPLES
    )


def _transports(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import transport_facts, transport_rows

    return list_or_explain(arguments, "transport", transport_rows, transport_facts, _END)
