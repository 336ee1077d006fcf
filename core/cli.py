"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitlab.core.config import Config, flag, read_toml
from splitlab.core.errors import ConfigError, SplitlabError
from splitlab.core.registry import entries

__all__ = ["main"]

_EPILOG = """\
examples:
  splitlab run --plugin adc                       ADC on the data and model that ship
  splitlab run --plugin adc:ratio=0.05 --transport tcp
  splitlab run --plugin adc-batch-merge:ratio=0.3 --plugin adc-token-select:ratio=0.3
  splitlab run --model deit_tiny_patch16_224 --pretrained --dataset cifar100 \\
               --augment paper --budget nominal=10 --plugin adc
  splitlab plugins adc                            what a plugin does and takes

  splitlab serve --address tcp://0.0.0.0:4711 --plugin adc     on one machine, and on another
  splitlab join tcp://HOST:4711 --plugin adc
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors of splitlab are one line on stderr."""
    # libgomp's threads wait for each other by spinning, for milliseconds; on a core that another
    # process wants too, that makes a step several times slower. A short spin serves as well.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        arguments = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except SplitlabError as error:
        sys.stdout.flush()
        print(f"splitlab: error: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 1
    except KeyboardInterrupt:
        print("splitlab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the listing has seen enough; closing stdout again would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="splitlab",
        description="A laboratory for split-learning compression of Vision Transformers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(commands, "run", _run, "train a split model and count what crosses the link")
    _add_config(run, exclude=())
    run.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.add_argument(
        "--classes",
        type=int,
        help="classes of --data-dir, for the server that torchrun started where it is not",
    )

    serve = _command(
        commands, "serve", _serve, "wait for one client on this machine and serve its run"
    )
    texts = {
        "transport": "the link to the client, as in the address (default: tcp)",
        "output": "folder for the checkpoints; runs/NAME with the client's name by default",
    }
    _add_config(serve, exclude=_CLIENT_ONLY, texts=texts)
    serve.add_argument(
        "--address",
        metavar="tcp://HOST:PORT",
        help="where to listen; loopback and a free port by default; 0.0.0.0 for every interface",
    )
    serve.add_argument(
        "--classes", type=int, help="classes of the client's data, if it has no name"
    )
    serve.add_argument(
        "--wait", type=float, default=86400.0, help="seconds to wait for a client (default: a day)"
    )
    serve.add_argument("--announce", type=int, help=argparse.SUPPRESS)

    join = _command(commands, "join", _join, "train as the client of a server that waits elsewhere")
    join.add_argument(
        "address", metavar="ADDRESS", help="as the server printed it: tcp://HOST:PORT"
    )
    _add_config(join, exclude=("transport",))
    join.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    join.add_argument("--quiet", action="store_true", help="print nothing but errors")

    plugins = _command(
        commands, "plugins", _plugins, "list the compression methods, or explain one"
    )
    plugins.add_argument("name", nargs="?", metavar="NAME", help="a plugin, or FILE.py:Class")
    transports = _command(
        commands, "transports", _transports, "list the links, and which work here"
    )
    datasets = _command(commands, "datasets", _datasets, "list the data sets known by name")
    models = _command(commands, "models", _models, "list the models that can be cut")
    models.add_argument("filter", nargs="?", default="", help="only names that contain this")
    new = _command(
        commands, "new-plugin", _new_plugin, "write a small package with a method to start from"
    )
    new.add_argument("name", metavar="NAME", help="as users will type it, such as my-method")
    new.add_argument("--directory", metavar="DIR", help="where to write it; ./NAME by default")
    for listing in (plugins, transports, datasets, models):
        listing.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _command(commands: Any, name: str, function: Callable[..., int], help: str) -> Any:
    parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(command=function)
    return parser


# Options of the client that a server would silently ignore.
_CLIENT_ONLY = (
    "data_dir",
    "augment",
    "budget",
    "evaluate",
    "eval_every",
    "checkpoint_every",
    "workers",
)


def _add_config(
    parser: argparse.ArgumentParser, exclude: Sequence[str], texts: Mapping[str, str] | None = None
) -> None:
    """Add an option for every field of `Config`; what is not given is not in the namespace.

    Args:
        parser: of the command.
        exclude: fields that the command does not take.
        texts: other help texts than the fields' own.
    """
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config", metavar="FILE.toml", help="read options from a file; flags override it"
    )
    hints = typing.get_type_hints(Config)
    for spec in dataclasses.fields(Config):
        if spec.name in exclude:
            continue
        help = spec.metadata["help"].replace("%", "%%")
        if spec.default not in (None, (), False):
            help += f" (default: {spec.default})"
        help = (texts or {}).get(spec.name, help)
        options: dict[str, Any] = {"dest": spec.name, "default": argparse.SUPPRESS, "help": help}
        hint = hints[spec.name]
        if typing.get_origin(hint) is tuple:
            options |= {"action": "append"}
        elif hint is bool:
            options |= {"action": "store_true"}
        else:
            members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            options["type"] = next(member for member in members if member is not type(None))
        metavar = spec.metadata.get("metavar")
        if spec.metadata.get("choices"):
            metavar = "|".join(spec.metadata["choices"])
        if hint is not bool:
            options["metavar"] = metavar or {int: "N", float: "X"}.get(options["type"], "TEXT")
        group.add_argument(flag(spec.name), **options)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration from ``--config`` and the flags, flags first."""
    values = read_toml(arguments.config) if arguments.config else {}
    names = {spec.name for spec in dataclasses.fields(Config)}
    return values | {key: value for key, value in vars(arguments).items() if key in names}


def _run(arguments: argparse.Namespace, connect: str | None = None) -> int:
    from splitlab.core.display import reporter
    from splitlab.core.folder import RunFolder
    from splitlab.core.runner import run
    from splitlab.core.transport import PairTransport, load_transport

    given = _given(arguments)
    if connect:
        given["transport"] = _scheme(connect)
    config = Config.from_mapping(given)
    if arguments.resume is not None:
        if connect:
            del given["transport"]  # the run has one already
        config = replace(RunFolder.open(arguments.resume).read_config(), output=arguments.resume)
    transport = load_transport(config.transport)
    launched = None if isinstance(transport, PairTransport) else transport.launched()
    if launched and launched[0] == "server":
        return _serve_config(config, arguments, address=launched[1])
    stop = _StopAsked()
    run(
        resume=arguments.resume,
        connect=connect,
        reporter=reporter(arguments.quiet),
        should_stop=stop,
        **given,
    )
    return 0


def _join(arguments: argparse.Namespace) -> int:
    return _run(arguments, connect=arguments.address)


def _serve(arguments: argparse.Namespace) -> int:
    given = _given(arguments)
    if arguments.address:
        given["transport"] = _scheme(arguments.address)
    given.setdefault("transport", "tcp")
    return _serve_config(Config.from_mapping(given), arguments, address=arguments.address)


def _serve_config(config: Config, arguments: argparse.Namespace, address: str | None) -> int:
    from splitlab.core.build import resolve
    from splitlab.core.dataset_entry import class_count
    from splitlab.core.serve import serve

    config = resolve(config)
    classes = getattr(arguments, "classes", None)
    if classes is None and config.dataset:
        classes = class_count(config.dataset)
    elif classes is None:
        if not os.path.isdir(config.data_dir or ""):
            raise ConfigError(
                "the server must know how many classes the client's data have; give --classes N"
            )
        from splitlab.core.runner import load_configured_data

        classes = len(load_configured_data(config).train.classes)
    if classes < 1:
        raise ConfigError(f"--classes {classes} is not allowed; 1 or more")
    wait = getattr(arguments, "wait", 86400.0)
    if not 0 < wait <= 1e6:
        raise ConfigError(f"--wait {wait} is not allowed; more than 0, at most 1000000 seconds")
    announce = getattr(arguments, "announce", None)
    serve(
        config,
        classes,
        address=address,
        output=config.output,
        announce=announce,
        wait=wait,
        peers_here=1 if announce is None else 2,
    )
    return 0


def _scheme(address: str) -> str:
    scheme, separator, _ = address.partition("://")
    if not separator:
        raise ConfigError(f"address {address!r} names no transport; write it as tcp://HOST:PORT")
    return scheme


class _StopAsked:
    """Ctrl-C or SIGTERM asks a run to stop after its step; before the first, or twice, at once."""

    def __init__(self) -> None:
        self._running = False
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self._asked or not self._running:
            raise KeyboardInterrupt
        self._asked = True

    def __call__(self) -> bool:
        self._running = True
        return self._asked


def _new_plugin(arguments: argparse.Namespace) -> int:
    from splitlab.core.scaffold import new_plugin

    name, directory = arguments.name, arguments.directory
    folder = new_plugin(name, Path(directory) if directory else None)
    for path in sorted(folder.iterdir()):
        print(f"wrote {path}")
    print(
        f"\nIt works as it is; make it yours in {folder / name.replace('-', '_')}.py. Then:\n\n"
        f"    pip install -e {folder}\n"
        f"    splitlab check {name}\n"
        f"    splitlab run --plugin {name}"
    )
    return 0


# Listings.


def _plugins(arguments: argparse.Namespace) -> int:
    from splitlab.core.listing import plugin_facts, plugin_rows, stack_facts

    name = arguments.name
    if name is None:
        rows = plugin_rows()
        if arguments.json:
            return _as_json(rows)
        from splitlab.core.display import show_plugins

        show_plugins(rows)
        return 0
    facts = stack_facts(name) if name in entries("stacks") else plugin_facts(name)
    if arguments.json:
        return _as_json(facts)
    from splitlab.core.display import show_plugin

    show_plugin(facts)
    return 0


def _transports(arguments: argparse.Namespace) -> int:
    from splitlab.core.listing import transport_rows

    rows = transport_rows()
    if arguments.json:
        return _as_json(rows)
    from splitlab.core.display import print_table

    print_table(
        ("transport", "works here", "summary"),
        [
            (r["name"], "yes" if r["works_here"] else f"no: {r['missing']}", r["summary"] or "")
            for r in rows
        ],
    )
    return 0


def _datasets(arguments: argparse.Namespace) -> int:
    from splitlab.core.listing import dataset_rows

    rows = dataset_rows()
    if arguments.json:
        return _as_json(rows)
    from splitlab.core.display import print_table

    print_table(
        ("data set", "classes", "from", "summary"),
        [
            (r["name"], str(r["classes"]), r.get("hub", "the package itself"), r["summary"])
            for r in rows
        ],
    )
    print("\n--data-dir DIR takes IDX files, Parquet files or train/CLASS/, test/CLASS/ images.")
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from splitlab.core.listing import model_rows

    rows = model_rows(arguments.filter)
    if arguments.json:
        return _as_json(rows)
    from splitlab.core.display import print_table

    print_table(("model", "summary"), [(r["name"], r["summary"]) for r in rows])
    return 0


def _as_json(value: Any) -> int:
    print(json.dumps(value, indent=2, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
