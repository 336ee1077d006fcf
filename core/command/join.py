"""``splitlab join``: a run whose server waits elsewhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from splitlab.core.command.options import Parser, add_config, add_json, add_quiet, declare
from splitlab.core.command.run import add_resume, known, train
from splitlab.core.command.streams import say

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add"]

_MORE = """\
The client has the data, decides when the run ends, and writes the run folder.
Give it the same options as the server for what both must agree on. A lost
connection comes back by itself (--reconnect). If the client is killed, start it
again with --resume RUN while the server waits; if the server is, start that
first. A server that asks for certificates (--tls-cert, --tls-key and
--tls-ca) or a secret (--secret-file) is given them by the same options.
"""

_EXAMPLES = """\
  splitlab join tcp://HOST:4711 --plugin adc
  splitlab join tcp://HOST:4711 --data-dir my-images --plugin adc
  splitlab join tcp://HOST:4711 --transport tcp:nodelay=false --plugin adc
  splitlab join tcp://HOST:4711 --tls-cert lab/client.pem \\
                --tls-key lab/client.key --tls-ca lab/ca.pem --plugin adc
  splitlab join tcp://HOST:4711 --resume runs/NAME
"""

_TEXTS = {"transport": "the link to the server and its settings; as the address begins by default"}


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "join",
        _join,
        "train as the client of a server that waits elsewhere",
        takes="ADDRESS [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "address", metavar="ADDRESS", help="as the server printed it: tcp://HOST:PORT"
    )
    add_resume(parser)
    add_quiet(parser)
    add_json(parser)
    add_config(parser, texts=_TEXTS)
    return parser


def _join(arguments: argparse.Namespace) -> int:
    if not (arguments.quiet or arguments.json):  # at once: what comes next takes a while
        patience = known(arguments).timeout
        say(
            f"join   {arguments.address}: loads first, then waits up to {patience:g} s for a "
            "server there"
        )
    return train(arguments, connect=arguments.address)
