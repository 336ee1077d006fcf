"""``splitlab run``: one run, and the table that ends it. ``join`` is a run, too."""

from __future__ import annotations

import argparse
import dataclasses
import os
from contextlib import ExitStack
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.catalogue.loading import split
from splitlab.core.command.options import (
    Parser,
    add_config,
    add_json,
    add_quiet,
    declare,
    given,
    print_json,
)
from splitlab.core.command.serve import scheme, serve_config
from splitlab.core.command.stop import StopAsked
from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import Config
from splitlab.core.runs.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from splitlab.core.command.options import Commands
    from splitlab.core.command.show import Cell
    from splitlab.core.contract.settings import Bound
    from splitlab.core.runs.plan import Plan
    from splitlab.core.runs.records import Summary
    from splitlab.core.runs.reporter import Result

__all__ = ["add", "add_resume", "known", "show_plan", "show_result", "train"]

_MORE = """\
Client and server are in this process, or the server is a second one that is
started beside it, as --transport says. What comes of a run is a folder: its
configuration, every step's loss and bytes, the ledger, a summary, and
checkpoints. Ctrl-C ends a run after its step; --resume goes on with it. Under
torchrun, rank 0 is the client and rank 1 the server.
"""

_EXAMPLES = """\
  splitlab run --plugin adc                       ADC on the data and model that ship
  splitlab run --plugin adc:ratio=0.05 --transport tcp
  splitlab run --plugin adc --link lte            over a link as slow as LTE
  splitlab run --plugin adc-batch-merge:ratio=0.3 \\
               --plugin adc-token-select:ratio=0.3
  splitlab run --plugin my_method.py:MyMethod --budget bytes=50MB
  splitlab run --model deit_tiny_patch16_224 --pretrained --dataset cifar100 \\
               --augment paper --budget nominal=10 --plugin adc
  splitlab run --config runs/NAME/config.toml --seed 1
  splitlab run --resume runs/NAME
  splitlab run --plugin adc --json                what came of it, for a program
  splitlab run --plugin adc --dry-run             what would run, and what it would send
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "run",
        train,
        "train a split model and count what crosses the link",
        takes="[--plugin NAME[:key=value,…]]… [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    add_resume(parser)
    add_quiet(parser)
    either = parser.add_mutually_exclusive_group()
    add_json(either)
    either.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan of the run and end; nothing is trained or written",
    )
    parser.add_argument(
        "--classes",
        type=int,
        metavar="N",
        help="classes of --data-dir, for the server that torchrun started where it is not",
    )
    add_config(parser)
    return parser


def add_resume(parser: Parser) -> None:
    """Add ``--resume`` and what goes with it."""
    parser.add_argument(
        "--resume", metavar="RUN", type=expanduser, help="go on with the run in this folder"
    )
    parser.add_argument(
        "--from-step",
        type=int,
        metavar="N",
        help="resume from this checkpoint, or from 0, the beginning, and forget newer ones",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although data, files, versions or config.toml have changed",
    )


def train(arguments: argparse.Namespace, connect: str | None = None) -> int:
    """Train as the arguments say.

    Args:
        arguments: of ``run`` or ``join``.
        connect: address of a server that runs elsewhere, or None.
    """
    options = given(arguments)
    if connect and arguments.resume is None and "transport" not in options:
        options["transport"] = scheme(connect)
    with ExitStack() as cleanup:
        server = None
        if connect is None and not getattr(arguments, "dry_run", False) and _beside(arguments):
            server = cleanup.enter_context(ServerProcess())  # it loads while this one does
        return _train(arguments, connect, options, server)


def known(arguments: argparse.Namespace) -> Config:
    """Return the configuration of a new run, or of the one that goes on, as it was typed."""
    options = given(arguments)
    file = Path(arguments.resume or "", "config.toml")
    if arguments.resume is not None and file.is_file():  # else the run says what is wrong with it
        options = dataclasses.asdict(Config.from_toml(file)) | options
    return Config.from_mapping(options)


def _beside(arguments: argparse.Namespace) -> bool:
    """Return whether the server is likely to be a process beside this one, which is not known yet.

    A launcher such as torchrun, which gives every process its rank, has started it itself.
    """
    return split("transports", known(arguments).transport)[0] != Config.transport and (
        "RANK" not in os.environ
    )


def _train(
    arguments: argparse.Namespace,
    connect: str | None,
    options: dict[str, Any],
    server: ServerProcess | None,
) -> int:
    from splitlab.core.command.progress import reporter

    if arguments.quiet or arguments.json or getattr(arguments, "dry_run", False):
        return _followed(arguments, connect, options, server, None)
    following = reporter()
    try:
        following.starting("importing torch and timm")
        return _followed(arguments, connect, options, server, following)
    finally:
        following.end(None)  # if the run did not come to do so


def _followed(
    arguments: argparse.Namespace,
    connect: str | None,
    options: dict[str, Any],
    server: ServerProcess | None,
    following: Any,
) -> int:
    with heavy_imports():
        from splitlab.core.catalogue.links import load_transport
        from splitlab.core.catalogue.loggers import load_loggers
        from splitlab.core.runs.run import chosen, run

    config, folder = chosen(None, arguments.resume, options)
    if getattr(arguments, "dry_run", False):
        from splitlab.core.runs.plan import Plan

        load_transport(config.transport, config.access)  # one that cannot work is refused here, too
        load_loggers(config.loggers)
        show_plan(Plan.of(config))
        return 0
    transport = load_transport(config.transport, config.access)
    launched = transport.launched() if transport.place == "beside" else None
    if launched and launched[0] == "server":
        if folder is not None:
            config = replace(config, output=str(folder.path))
        classes = getattr(arguments, "classes", None)
        if following is not None:
            following.end(None)  # from here on it is the server's lines that are printed
        return serve_config(
            config,
            address=launched[1],
            classes=classes,
            patient=False,  # a launcher joins two peers once
            quiet=following is None,
        )
    if launched is None and getattr(arguments, "classes", None) is not None:
        raise ConfigError(
            f"--classes {arguments.classes} is for the server that a launcher starts; a client "
            "counts the classes of its data: drop it"
        )
    result = run(
        resume=arguments.resume,
        from_step=arguments.from_step,
        accept_changes=arguments.accept_changes,
        connect=connect,
        reporter=following,
        should_stop=StopAsked(),
        server=server,
        **options,
    )
    if arguments.json:
        return print_json(
            {
                "folder": str(result.folder),
                "summary": result.summary.as_dict(),
                "ledger": result.ledger.counts,
            }
        )
    if not arguments.quiet:
        show_result(result)
    return 0


def show_plan(plan: Plan) -> None:
    """Print what a run would be."""
    from splitlab.core.command.show import human_bytes, print_facts

    config, model, data, layout = plan.config, plan.model, plan.data, plan.model.layout
    cut = f"cut {model.cut} of 0 to {model.last_cut}: {layout.tokens} tokens × {layout.width}"
    facts: list[tuple[str, Cell]] = [
        ("model", (f"{model.name}, {cut}", "bold")),
        ("client part", f"{model.client_parameters:,} parameters"),
        ("server part", f"{model.server_parameters:,} parameters"),
        ("data", f"{data.name}, {data.train:,} training images, {plan.classes} classes"),
        *_listed("left out", data.notices),
        ("normalised by", f"mean {_numbers(data.mean)}, std {_numbers(data.std)}"),
    ]
    facts += _listed("stack", [p.full() for p in plan.stack]) or [("stack", "none")]
    facts += _listed("probes", _as_named("probes", config.probes, plan.probes))
    whole = f"{human_bytes(plan.batch_bytes)} each way uncompressed, in fp32"
    if plan.step_bytes is None:
        predicted = [f"cannot be foreseen, {whole}"]
    else:
        up, down = plan.step_bytes
        predicted = [f"about {human_bytes(up)} up, {human_bytes(down)} down ({whole})"]
        predicted += ["besides labels, side information and headers"]
    steps = plan.expected_steps
    facts += [
        *_listed("bytes a step", predicted),
        ("steps", "cannot be foreseen" if steps is None else f"about {steps:,}"),
        ("budget", config.budget),
        *_listed("evaluation", _evaluations(plan)),
        ("checkpoint", _checkpoints(plan)),
        ("link", config.transport),
        *_listed("link wrappers", _as_named("links", config.links, plan.links)),
        ("device", f"{plan.device}, {_precision(plan)}"),
    ]
    print_facts(facts)


def _precision(plan: Plan) -> str:
    """Say in what the parts compute; a CPU does not round as a GPU with tf32 does."""
    asked = plan.config.precision
    return f"{asked}, as fp32 here" if (asked, plan.device.type) == ("tf32", "cpu") else asked


def _listed(name: str, members: Sequence[str]) -> list[tuple[str, Cell]]:
    """Return a fact of several lines."""
    return [("" if i else name, member) for i, member in enumerate(members)]


def _as_named(
    kind: Literal["probes", "links"], texts: Sequence[str], members: Sequence[Bound]
) -> list[str]:
    """Return everyone under the name that the user gave it, with all parameters."""
    return [member.full(split(kind, text)[0]) for text, member in zip(texts, members, strict=True)]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _every(steps: int) -> str:
    return f"every {steps:,} steps" if steps > 1 else "every step"


def _evaluations(plan: Plan) -> list[str]:
    """Say when an evaluation is, on what, and whether it may end the run."""
    points, patience, all_of_them = plan.config.eval_points, plan.config.patience, plan.data.test
    when = "" if plan.eval_every is None else _every(plan.eval_every)
    if points is not None:
        when = f"before the first step and at {points:,} even shares of the budget"
    said = [f"{when}, {_through(plan)}"]
    if plan.eval_samples < all_of_them:
        said.append(f"on {plan.eval_samples:,} of {all_of_them:,} images, at the end on all")
    if patience is not None:
        said.append(f"ends the run after {patience:,} in a row without a better accuracy")
    return said


def _checkpoints(plan: Plan) -> str:
    every = plan.checkpoint_every
    when = "at every evaluation" if every is None else _every(every)
    return f"{when}; the best is kept" if plan.config.keep == "best" else when


def _through(plan: Plan) -> str:
    """Say what an evaluation goes through."""
    if not any(traits.evaluation for traits in plan.traits.values()):
        return "uncompressed: no plugin acts in evaluation"
    return {
        "both": "through the stack and without it",
        "compressed": "through the stack",
        "uncompressed": "without the stack",
    }[plan.config.evaluate]


def _used(summary: Summary) -> str:
    """Say how much of the budget was used."""
    from splitlab.core.command.show import human_bytes
    from splitlab.core.runs.budget import Budget

    budget, used = Budget.parse(summary.budget), summary.budget_used
    if budget.unit == "bytes":
        text = f"used {human_bytes(used)} of {human_bytes(budget.amount)}"
    else:
        unit = "nominal epochs" if budget.unit == "nominal" else budget.unit
        text = f"used {used:.4g} of {budget.amount:.4g} {unit}"
    if summary.stopped_early:
        return f"{text}: the accuracy no longer got better, see --patience"
    over = used > budget.amount * (1 + 1e-6)
    return f"{text}: a step is not divided" if over else text


_KINDS = ("activation", "gradient", "targets", "side", "prediction", "header")


def show_result(result: Result) -> None:
    """Print what came of a run: its summary, and its bytes by phase, direction and kind."""
    from splitlab.core.command.show import human_bytes, near, print_facts, print_table, speed, width
    from splitlab.core.report.collect import result_of
    from splitlab.core.runs.listing import read_run

    summary, ledger = result.summary, result.ledger.counts
    facts: list[tuple[str, Cell]] = [("accuracy", (f"{summary.accuracy:.4f}", "bold"))]
    if summary.accuracy_uncompressed is not None:
        without = f"{summary.accuracy_uncompressed:.4f} (evaluated without the stack)"
        facts.append(("uncompressed", without))
    if summary.best_step is not None:
        some = result_of(read_run(result.folder)).best_samples
        best = f"{summary.best_accuracy:.4f}{f' on {some:,} samples,' if some else ''} after step "
        best += f"{summary.best_step:,}, checkpoint kept"
        facts.append(("best", best))
    measured, nominal = f"{summary.ratio_measured:.4f}", f"{summary.ratio_nominal:.4f}"
    ratio = f"measured {measured} of fp32, nominal ξ {nominal}"
    parts = (
        f"client {summary.client_seconds:.1f} s, server {summary.server_seconds:.1f} s, "
        f"link {summary.link_seconds:.1f} s"
    )
    images = summary.images_per_second
    facts += [
        ("steps", f"{summary.steps:,} ({summary.epochs:.2f} epochs)"),
        *([("budget", _used(summary))] if summary.budget else []),
        ("ratio", ratio),
        ("time", f"{summary.seconds:.1f} s (training: {parts})"),
        *([("speed", speed(images, summary.data_share))] if images is not None else []),
        ("run folder", near(result.folder)),
    ]
    print()
    print_facts(facts)

    rows = [
        (f"{phase} {direction}", counts)
        for phase, directions in ledger.items()
        for direction, counts in directions.items()
    ]
    shown = [kind for kind in _KINDS if any(kind in counts for _, counts in rows)]
    sums = [human_bytes(sum(counts.values())) for _, counts in rows]
    cells = [
        [name, *(human_bytes(counts[kind]) if kind in counts else "" for kind in shown), total]
        for (name, counts), total in zip(rows, sums, strict=True)
    ]
    header, title = ["", *shown, "sum"], "bytes that crossed the link"
    print()
    if sum(2 + max(map(len, column)) for column in zip(header, *cells, strict=True)) <= width():
        print_table(header, cells, title=title, numbers=range(1, len(header)))
        return
    print(f"{title}:")
    print_facts(
        (name, f"{total}: " + ", ".join(f"{k} {human_bytes(counts[k])}" for k in counts))
        for (name, counts), total in zip(rows, sums, strict=True)
    )
