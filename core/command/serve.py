"""``splitlab serve``: the server of a run whose client is elsewhere, or in another process."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.command.options import Parser, add_config, declare, given
from splitlab.core.command.stop import StopAsked
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import Config
from splitlab.core.runs.process import client_is_gone, orders

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.runs.plan import Decided

__all__ = ["add", "scheme", "serve_config"]

_MORE = """\
Give both peers the same options for what they must agree on: stack, model,
cut, weights, batch size, seed and how it is trained; the handshake compares
them. A client that differs is told in what and turned away, and so is whoever
is no client; the server then waits on. Data, budget and evaluation are the
client's, and of a learning rate's schedule the length of the run.

Who may connect: on another machine than this nobody, without certificates
(--tls-cert, --tls-key and --tls-ca; `splitlab certs` makes them), a secret
(--secret-file) or --insecure. Only certificates encrypt.
"""

_EXAMPLES = """\
  splitlab serve --plugin adc                                  this machine, a free port
  splitlab serve --address tcp://0.0.0.0:4711 --tls-cert lab/server.pem \\
                 --tls-key lab/server.key --tls-ca lab/ca.pem --plugin adc
"""

# Options of the client that a server would silently ignore.
_CLIENT_ONLY = (
    "data_dir",
    "label_column",
    "test_split",
    "test_share",
    "augment",
    "mixup",
    "budget",
    "evaluate",
    "eval_every",
    "eval_points",
    "eval_samples",
    "patience",
    "keep",
    "checkpoint_every",
    "workers",
    "worker_kind",
    "cache",
    "name",
    "tags",
    "loggers",
)

_TEXTS = {
    "transport": "the link to the client and its settings; as the address begins, or tcp",
    "dataset": "the client's data set, which says how many classes there are (or --classes does)",
    "output": "folder for the checkpoints; runs/NAME with the client's name by default",
}

_A_DAY = 86400.0


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "serve",
        _serve,
        "wait for one client on this machine and serve its run",
        takes="[--address tcp://HOST:PORT] [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--address",
        metavar="tcp://HOST:PORT",
        help="where to listen; loopback and a free port by default; 0.0.0.0 for every interface, "
        "which needs certificates, a secret or --insecure",
    )
    parser.add_argument(
        "--classes", type=int, metavar="N", help="classes of the client's data, if it has no name"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=_A_DAY,
        metavar="SECONDS",
        help="how long to wait for a client (default: a day)",
    )
    # The server that a run starts beside itself reads from it what to serve when it has loaded, and
    # writes its address to this file descriptor.
    parser.add_argument("--announce", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)  # of its training data
    add_config(parser, exclude=_CLIENT_ONLY, texts=_TEXTS)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.announce is not None:
        with heavy_imports():
            import splitlab.core.runs.serve  # noqa: F401
        told = orders()
        if told is None:
            return 0  # the client is gone
        arguments = arguments.parser.parse_args(told, arguments)
    options = given(arguments)
    if "transport" not in options:
        options["transport"] = scheme(arguments.address) if arguments.address else "tcp"
    return serve_config(
        Config.from_mapping(options),
        address=arguments.address,
        classes=arguments.classes,
        wait=arguments.wait,
        announce=arguments.announce,
        patient=arguments.announce is None,  # else the one client is beside it, and ends with it
        samples=arguments.samples,
    )


def serve_config(
    config: Config,
    *,
    address: str | None,
    classes: int | None,
    wait: float = _A_DAY,
    announce: int | None = None,
    patient: bool = True,
    samples: int | None = None,
    quiet: bool = False,
) -> int:
    """Serve one client of this configuration; returns the exit status.

    Args:
        config: may leave open what a plan decides.
        address: where to listen; the transport's default if None.
        classes: C, width of the head; that of the configuration's data if None.
        wait: seconds to wait for a client.
        announce: file descriptor for the address, if a client on this machine started this server.
        patient: whether to wait for another client if one does not fit.
        samples: of the data that such a client trains on.
        quiet: print nothing.
    """
    with heavy_imports():
        from splitlab.core.data.entry import class_count
        from splitlab.core.runs.plan import Decided
        from splitlab.core.runs.serve import serve

    decided = Decided.of(config)
    config = decided.config
    if classes is None:
        classes = class_count(config.dataset) if config.dataset else _count_classes(decided)
    if classes < 1:
        raise ConfigError(f"--classes {classes} is not allowed; 1 or more")
    if not 0 < wait <= 1e6:
        raise ConfigError(f"--wait {wait} is not allowed; more than 0, at most 1000000 seconds")
    serve(
        decided,
        classes,
        address=address,
        output=config.output,
        announce=announce,
        wait=wait,
        peers_here=1 if announce is None else 2,
        patient=patient,
        samples=samples,
        say=_say_nothing if quiet else say,
        # The server of a run ends as its client says, and at once where that does not wait for it.
        **({"should_stop": StopAsked()} if announce is None else {}),
        client_is_gone=client_is_gone,
    )
    return 0


def _count_classes(decided: Decided) -> int:
    if not os.path.isdir(decided.config.data_dir or ""):
        raise ConfigError(
            "the server must know how many classes the client's data have; give --classes N"
        )
    from splitlab.core.runs.plan import load_configured_data

    return len(load_configured_data(decided).train.classes)


def _say_nothing(line: str) -> None:
    pass


def scheme(address: str) -> str:
    """Return the transport that an address names; `ConfigError` if it names none."""
    name, separator, _ = address.partition("://")
    if not separator:
        raise ConfigError(
            f"address {address!r} names no transport; write it as tcp://HOST:PORT, or name one "
            "with --transport"
        )
    return name
