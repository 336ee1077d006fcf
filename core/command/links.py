"""``splitlab links``: the wrappers that stand around any link."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.kinds import declare_kind, list_or_explain

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands, Parser

__all__ = ["add"]

_EXAMPLES = """\
  splitlab links lte                              one explained
  splitlab run --link lte                         as slow as LTE, both ways
  splitlab run --link rate=20mbit,delay=40ms,jitter=5ms,loss=0.01
  splitlab run --link my_link.py:Delayed:ms=20    around both ends of the link
"""

_END = (
    "--link NAME or --link FILE.py:Class puts one into a run, --link key=value,… one of your own "
    "numbers; repeat it for several."
)


def add(commands: Commands) -> Parser:
    """Add the command."""
    summary = "list the wrappers that stand around any link"
    return declare_kind(commands, "links", _links, summary, one="a link", examples=_EXAMPLES)


def _links(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import link_facts, link_rows

    return list_or_explain(arguments, "link", link_rows, link_facts, _END)
