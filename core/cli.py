"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from splitlab.core.config import Config, flag, read_toml
from splitlab.core.errors import ConfigError, SplitlabError
from splitlab.core.registry import catalogue, entries

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


# Listings.


def _plugins(arguments: argparse.Namespace) -> int:
    if arguments.name:
        return _explain(arguments.name, arguments.json)
    rows = [
        {"name": e.name, "summary": e.summary, "source": e.source, **e.facts}
        for e in entries("plugins").values()
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    from splitlab.core.display import print_table

    print_table(
        ("plugin", "paper", "summary"),
        [(r["name"], r.get("paper", ""), r["summary"] or f"(from {r['source']})") for r in rows],
    )
    print("\nsplitlab plugins NAME explains one; --plugin FILE.py:Class takes one from a file.")
    return 0


def _explain(name: str, as_json: bool) -> int:
    from splitlab.core.hooks import HookSpecs
    from splitlab.core.registry import bind_plugin, load, parameters

    entry = entries("plugins").get(name)
    factory = load("plugins", name) if entry else bind_plugin(name).factory
    own_hooks = [
        hook for hook in vars(HookSpecs) if not hook.startswith("_") and hasattr(factory, hook)
    ]
    known = parameters(factory)
    facts: dict[str, Any] = {
        "name": name,
        "summary": entry.summary if entry else "",
        "paper": entry.facts.get("paper", "") if entry else "",
        "hooks": own_hooks,
        "parameters": [
            {
                "name": p.name,
                "type": p.kind,
                "default": None if p.required else p.default,
                "required": p.required,
            }
            for p in known.values()
        ],
        "description": inspect.getdoc(factory) or "",
    }
    if as_json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    from splitlab.core.display import print_table

    print(f"{name}: {facts['summary']}" if facts["summary"] else name)
    if facts["paper"]:
        print(f"paper: {facts['paper']}")
    print(f"hooks: {', '.join(own_hooks)}\n")
    print(facts["description"] + "\n")
    print_table(
        ("parameter", "type", "default"),
        [(p.name, p.kind, p.default_text) for p in known.values()],
    )
    first = next((p for p in known.values() if not p.required), None)
    setting = f":{first.name}={first.default_text}" if first else ""
    print(f"\nexample: splitlab run --plugin {name}{setting}")
    return 0


def _transports(arguments: argparse.Namespace) -> int:
    from splitlab.core.registry import load

    rows = []
    for entry in entries("transports").values():
        try:
            missing = load("transports", entry.name)().unavailable()
        except SplitlabError as error:
            missing = str(error)
        facts = {"name": entry.name, "summary": entry.summary, "source": entry.source}
        rows.append({**facts, "works_here": missing is None, "missing": missing})
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
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
    rows = [{"name": name, **table} for name, table in catalogue()["datasets"].items()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
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
    from splitlab.core.model import list_models

    rows = [
        {"name": name, "summary": table["summary"]} for name, table in catalogue()["models"].items()
    ]
    rows += [{"name": name, "summary": "timm"} for name in list_models()]
    rows = [row for row in rows if arguments.filter in row["name"]]
    if not rows:
        raise ConfigError(
            f"no model has {arguments.filter!r} in its name; `splitlab models` lists all"
        )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    from splitlab.core.display import print_table

    print_table(("model", "summary"), [(r["name"], r["summary"]) for r in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
