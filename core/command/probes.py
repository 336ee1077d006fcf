"""``splitlab probes``: the probes, which watch a run and change nothing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.kinds import declare_kind, list_or_explain

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands, Parser

__all__ = ["add"]

_EXAMPLES = """\
  splitlab probes time                            one explained
  splitlab run --probe time                       its numbers stand in metrics.jsonl
"""

_END = "--probe NAME or --probe FILE.py:Class puts one into a run; repeat it for several."


def add(commands: Commands) -> Parser:
    """Add the command."""
    summary = "list the probes, which watch a run and change nothing"
    return declare_kind(commands, "probes", _probes, summary, one="a probe", examples=_EXAMPLES)


def _probes(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import probe_facts, probe_rows

    return list_or_explain(arguments, "probe", probe_rows, probe_facts, _END)
