"""``splitlab loggers``: what the numbers of a run can be sent to, and which works here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.kinds import declare_kind, list_or_explain

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands, Parser

__all__ = ["add"]

_EXAMPLES = """\
  splitlab loggers tensorboard                    one explained
  splitlab run --log tensorboard                  its files are in the run folder
  splitlab run --log wandb:project=mine,mode=offline
"""

_END = "--log NAME or --log FILE.py:Class sends a run's numbers there; repeat it for several."


def add(commands: Commands) -> Parser:
    """Add the command."""
    summary = "list the loggers, and which work here"
    return declare_kind(commands, "loggers", _loggers, summary, one="a logger", examples=_EXAMPLES)


def _loggers(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import logger_facts, logger_rows

    return list_or_explain(arguments, "logger", logger_rows, logger_facts, _END)
