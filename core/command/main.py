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

from splitlab.core.catalogue.registry import entries
from splitlab.core.contract.errors import ConfigError, SplitlabError
from splitlab.core.run.config import Config, flag, read_toml

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

_COMPARE_EPILOG = """\
Every run is an ordinary run folder, DIR/STACK/seed-S. Started again with the same options and
--output DIR, a comparison skips what is finished and goes on with what was interrupted; with more
stacks or seeds it grows. DIR/table.md, table.csv, results.json and accuracy.png, .pdf hold what
came of it.

examples:
  splitlab compare --plugin none --plugin adc --plugin topk --plugin adc+quantize:bits=8 \\
                   --ratio 0.1 --seeds 3 --output comparisons/mine
  splitlab compare --plugin adc:ratio=0.05 --plugin adc:ratio=0.2 --budget bytes=50MB --seeds 0,1,5
  splitlab compare --output comparisons/mine --x-scale log        table and figure anew
"""

_TRACE_EPILOG = """\
Both peers are in this process and exchange real frames. A line is a tensor that the stage made or
changed, with its bytes in memory; a frame's lines are its bytes by what they are.

examples:
  splitlab trace --plugin adc --plugin quantize
  splitlab trace --plugin adc --batch-size 32 --step 10 --json
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

    compare = _command(
        commands, "compare", _compare, "run several stacks alike: one table, one figure"
    )
    compare.epilog = _COMPARE_EPILOG
    compare.formatter_class = argparse.RawDescriptionHelpFormatter
    compare.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=argparse.SUPPRESS,
        metavar="STACK",
        help="a whole stack, NAME[:key=value,…]+NAME…; repeat it for every stack to compare",
    )
    compare.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="given to the first plugin of every stack that takes a ratio, unless you set anything "
        "of that plugin; other stacks stay as they are, which the table says",
    )
    compare.add_argument(
        "--seeds",
        default="3",
        metavar="N|LIST",
        help="how many runs of each, with seeds from --seed on, or which seeds, as in 0,1,5 "
        "(default: 3)",
    )
    compare.add_argument(
        "--output",
        metavar="DIR",
        help="the comparison's folder; comparisons/TIME by default. One that exists goes on with "
        "what is missing; without --plugin its table and figure are made anew",
    )
    compare.add_argument(
        "--x-scale",
        default="linear",
        choices=("linear", "log"),
        help="of the figure's bytes (default: linear)",
    )
    compare.add_argument("--quiet", action="store_true", help="print nothing but errors")
    _add_config(compare, exclude=("plugins", "output"))

    trace = _command(
        commands, "trace", _trace, "show one training step: every tensor, frame and millisecond"
    )
    trace.epilog = _TRACE_EPILOG
    trace.formatter_class = argparse.RawDescriptionHelpFormatter
    trace.add_argument(
        "--step",
        type=int,
        default=1,
        metavar="N",
        help="which training step; those before it are trained first (default: 1)",
    )
    trace.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="further steps that are timed; milliseconds are their medians (default: 5)",
    )
    trace.add_argument("--json", action="store_true", help="print JSON")
    _add_config(trace, exclude=_NOT_TRACED)

    check = _command(
        commands, "check", _check, "check what a method or a link must hold, or check all of them"
    )
    check.add_argument(
        "name", nargs="?", metavar="NAME", help="a plugin and its settings, a stack, FILE.py:Class"
    )
    check.add_argument("--transport", metavar="NAME", help="check this link instead")

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
    for listing in (check, plugins, transports, datasets, models):
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


# Options that say nothing of a single step between peers in this process.
_NOT_TRACED = (
    "transport",
    "budget",
    "evaluate",
    "eval_every",
    "checkpoint_every",
    "timeout",
    "output",
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
    from splitlab.core.catalogue.links import load_transport
    from splitlab.core.command.display import reporter
    from splitlab.core.contract.link import PairTransport
    from splitlab.core.run.folder import RunFolder
    from splitlab.core.run.loop import run

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
    from splitlab.core.data.entry import class_count
    from splitlab.core.run.plan import resolve
    from splitlab.core.run.serve import serve

    config = resolve(config)
    classes = getattr(arguments, "classes", None)
    if classes is None and config.dataset:
        classes = class_count(config.dataset)
    elif classes is None:
        if not os.path.isdir(config.data_dir or ""):
            raise ConfigError(
                "the server must know how many classes the client's data have; give --classes N"
            )
        from splitlab.core.run.loop import load_configured_data

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


def _compare(arguments: argparse.Namespace) -> int:
    given = _given(arguments)
    stacks = given.pop("plugins", None)
    output = given.pop("output", None)
    if stacks is None:
        if output is None:
            raise ConfigError(
                "nothing to compare; name every stack with --plugin, or with --output DIR a "
                "comparison whose table and figure to make anew"
            )
        unused = [flag(name) for name in given] + ["--ratio"] * (arguments.ratio is not None)
        if unused:
            raise ConfigError(f"{unused[0]} without --plugin: nothing is run; drop it")
    from splitlab.core.command.display import comparison_reporter, show_comparison
    from splitlab.core.study.compare import compare, redraw

    scale = arguments.x_scale
    if stacks is None:
        comparison = redraw(output, scale)
    else:
        Config.from_mapping({"plugins": stacks})  # a file may hold something else than a list
        comparison = compare(
            stacks,
            ratio=arguments.ratio,
            seeds=arguments.seeds,
            output=output,
            x_scale=scale,
            reporter=comparison_reporter(arguments.quiet),
            should_stop=_StopAsked(),
            **given,
        )
    if not arguments.quiet:
        show_comparison(comparison)
    failures = comparison.failures() if stacks else []
    if failures:
        more = f" (and {len(failures) - 1} more runs)" if len(failures) > 1 else ""
        raise SplitlabError(f"a run failed{more}: {failures[0]}")
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from splitlab.core.command.display import show_trace
    from splitlab.core.run.trace import trace

    traced = trace(step=arguments.step, repeats=arguments.repeats, **_given(arguments))
    if arguments.json:
        return _as_json(traced.as_json())
    show_trace(traced)
    return 0


def _new_plugin(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.scaffold import new_plugin

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


def _check(arguments: argparse.Namespace) -> int:
    from splitlab.core.command.display import show_report, show_verdict
    from splitlab.core.testing import check_listed, check_plugin, check_transport, listed

    name, transport = arguments.name, arguments.transport
    if name in entries("transports") and name not in {**entries("plugins"), **entries("stacks")}:
        name, transport = transport, name
    if name and transport:
        raise ConfigError(f"check {name} and --transport {transport} exclude each other; give one")
    if name or transport:
        report = check_plugin(name) if name else check_transport(transport)
        if arguments.json:
            _as_json(report.as_dict())
        else:
            show_report(report)
        return 0 if report.ok else 1
    reports = []
    total = len(listed())
    for report, seconds in check_listed():
        reports.append(report)
        if not arguments.json:
            show_verdict(report, len(reports), total, seconds)
    if arguments.json:
        _as_json([report.as_dict() for report in reports])
    return 0 if all(report.ok for report in reports) else 1


# Listings.


def _plugins(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import plugin_facts, plugin_rows, stack_facts

    name = arguments.name
    if name is None:
        rows = plugin_rows()
        if arguments.json:
            return _as_json(rows)
        from splitlab.core.command.display import show_plugins

        show_plugins(rows)
        return 0
    facts = stack_facts(name) if name in entries("stacks") else plugin_facts(name)
    if arguments.json:
        return _as_json(facts)
    from splitlab.core.command.display import show_plugin

    show_plugin(facts)
    return 0


def _transports(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import transport_rows

    rows = transport_rows()
    if arguments.json:
        return _as_json(rows)
    from splitlab.core.command.display import print_table

    print_table(
        ("transport", "works here", "summary"),
        [
            (r["name"], "yes" if r["works_here"] else f"no: {r['missing']}", r["summary"] or "")
            for r in rows
        ],
    )
    return 0


def _datasets(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.listing import dataset_rows

    rows = dataset_rows()
    if arguments.json:
        return _as_json(rows)
    from splitlab.core.command.display import print_table

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
    from splitlab.core.catalogue.listing import model_rows

    rows = model_rows(arguments.filter)
    if arguments.json:
        return _as_json(rows)
    from splitlab.core.command.display import print_table

    print_table(("model", "summary"), [(r["name"], r["summary"]) for r in rows])
    return 0


def _as_json(value: Any) -> int:
    print(json.dumps(value, indent=2, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
