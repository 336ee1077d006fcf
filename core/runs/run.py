"""A run from its configuration to its result: plan, folder, server, loop, in that order.

The order is that in which they may fail: what can be known before a folder is made is known.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.links import load_transport
from splitlab.core.catalogue.loggers import load_loggers
from splitlab.core.contract.errors import ConfigError, Diverged, Notice
from splitlab.core.contract.link import Link
from splitlab.core.contract.settings import ACCESS
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.config import LABELS, Config, flag
from splitlab.core.runs.disk import hold
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.launch import Launch, link_inside
from splitlab.core.runs.loggers import Loggers
from splitlab.core.runs.loop import Loop
from splitlab.core.runs.origin import Origin
from splitlab.core.runs.plan import Decided, Plan, make
from splitlab.core.runs.precision import products
from splitlab.core.runs.process import ServerProcess
from splitlab.core.runs.repeating import repeating
from splitlab.core.runs.reporter import Reporter, Result
from splitlab.core.runs.stopping import Heeding
from splitlab.core.runs.workers import build_client, build_server, limited_threads
from splitlab.core.wire.ledger import Ledger

__all__ = ["chosen", "run"]

_FREE = (
    *("budget", "timeout", "reconnect", "patience", "workers", "worker_kind", "cache"),
    *(*ACCESS, *LABELS),
)
"""What may change when a run goes on: it decides no number, or when the run ends."""
_MOVABLE = {"data_dir", "weights", "model", "plugins", "probes", "links", "transport"}
"""What may name the same in another place; `Origin` tells whether it is the same."""


def run(
    config: Config | None = None,
    *,
    resume: str | Path | None = None,
    from_step: int | None = None,
    accept_changes: bool = False,
    connect: str | None = None,
    observers: Sequence[object] = (),
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    server: ServerProcess | None = None,
    **options: Any,
) -> Result:
    """Train a split model and return what came of it.

    Args:
        config: the run; ``run(plugins=["adc"], seed=1)`` is short for
            ``run(Config(plugins=("adc",), seed=1))``.
        resume: go on with the run in this folder; of the options only ``budget``, ``timeout``,
            ``reconnect``, ``patience``, ``workers``, ``worker_kind``, ``cache``, who may connect,
            ``name``, ``tags`` and ``loggers`` may be given then, and anew what names files, if
            their content is the same.
        from_step: go on from this checkpoint, or from 0, the beginning; newer ones are forgotten.
            From the newest by default.
        accept_changes: go on although data, files, versions or configuration have changed.
        connect: address of a server that runs already (``splitlab serve``); by default the
            transport decides whether the server is in this process or in a second one on this
            machine.
        observers: objects with ``@hookimpl(wrapper=True)`` methods that watch the client's hooks,
            and the server's too if it is in this process.
        reporter: is told how the run goes.
        should_stop: asked before the first step and after every one; True ends the run with a
            checkpoint and `Interrupted`.
        server: a process for the server that was started already; it ends with the run. If one is
            needed, it is started first of all by default.
        options: fields of `Config`, instead of ``config`` or on top of it.

    Raises:
        SplitlabError: everything that is wrong with configuration, plugins, data or link.
    """
    reporter = reporter or Reporter()
    result = None
    try:
        with server or nullcontext():
            config, folder = chosen(config, resume, options)
            if folder is None and (from_step is not None or accept_changes):
                name = "--accept-changes" if from_step is None else f"--from-step {from_step}"
                raise ConfigError(f"{name} goes with --resume RUN, the run to go on with; drop it")
            if from_step is not None and from_step < 0:
                raise ConfigError(
                    f"--from-step {from_step} is not allowed; a checkpoint's step, or 0"
                )
            going_on = _GoingOn(folder, from_step, accept_changes)
            result = _run(
                config.placed(), going_on, connect, observers, reporter, should_stop, server
            )
            return result
    finally:
        reporter.end(result)


def chosen(
    config: Config | None, resume: str | Path | None, options: dict[str, Any]
) -> tuple[Config, RunFolder | None]:
    """Return the configuration of a new run, or that of the run to go on with and its folder.

    Args:
        config: as in `run`; so are the others.
        resume: folder of the run to go on with.
        options: fields of `Config`, on top of it.

    Raises:
        ConfigError: an option that does not exist, cannot be changed, or a folder of no run.
    """
    Config.from_mapping(options)  # a key that does not exist is the first thing to say
    folder = RunFolder.open(resume) if resume is not None else None
    if folder is not None:
        fixed = sorted(options.keys() - {*_FREE} - _MOVABLE)
        if config is not None or fixed:
            what = ", ".join(map(flag, fixed)) or "a configuration"
            raise ConfigError(
                f"{what} cannot be given with --resume: the run goes on as it began; "
                f"only {', '.join(map(flag, _FREE))} may change, and where files and data lie"
            )
        config = folder.read_config()
    known = dataclasses.asdict(config) if config else {}
    return Config.from_mapping(known | options), folder


@dataclass(frozen=True)
class _GoingOn:
    """How a run goes on; a new one has no folder yet."""

    folder: RunFolder | None
    from_step: int | None
    accept_changes: bool


def _run(
    config: Config,
    going_on: _GoingOn,
    connect: str | None,
    observers: Sequence[object],
    reporter: Reporter,
    should_stop: Callable[[], bool],
    process: ServerProcess | None,
) -> Result:
    transport = load_transport(config.transport, config.access)
    loggers = Loggers(load_loggers(config.loggers))
    if transport.place == "inside" and connect:
        raise ConfigError(
            f"transport {config.transport!r} has both peers in one process and cannot join a "
            "server; give the server's with --transport"
        )
    alone = transport.place == "inside" or connect is not None
    launched = transport.launched() if transport.place == "beside" else None
    address = connect or (launched[1] if launched else None)
    if transport.place == "beside" and address is None:
        config.check_both()
    folder = going_on.folder
    with ExitStack() as cleanup:
        if process is None and transport.place == "beside" and address is None:
            process = cleanup.enter_context(ServerProcess())  # it loads while this one does
        if folder is not None:
            cleanup.enter_context(hold(folder.path, "client"))
            folder.drop_halves()
            if config.data_dir and not Path(config.data_dir).exists():
                raise ConfigError(
                    f"the data folder {config.data_dir} is gone; if it was moved, say where to "
                    "with --data-dir"
                )
        reporter.starting("reading the data, building the model")
        decided = Decided.of(config)
        cleanup.enter_context(limited_threads(decided.threads))
        cleanup.enter_context(products(config.precision))
        cleanup.enter_context(repeating(config))
        plan, model, data = make(decided, loading=reporter.loading, peers_here=1 if alone else 2)
        cleanup.callback(data.close)
        client = build_client(plan, model, observers)
        cleanup.callback(client.stack.run_end)
        _tell_of_warmup(plan)
        if folder is None:
            folder = RunFolder.create(config.output, plan.titles, config.name)
            cleanup.enter_context(hold(folder.path, "client"))
            cleanup.push(_remove_if_unused(folder))  # not before: it may be another's by now
            origin = Origin.of(plan)
            origin.write(folder.path)
            folder.write_config(plan.config)
            seen = {"mean": plan.data.mean, "std": plan.data.std}
            folder.write_environment(
                device=str(plan.device), threads=plan.threads, normalisation=seen
            )
        else:
            origin = _checked(plan, folder, going_on.accept_changes, reporter)
            cleanup.callback(folder.drop_proposal)
            folder.propose(plan.config)
        last_words: Callable[[], str] = str
        link: Link
        ledger = Ledger()
        linked = cleanup.enter_context(ExitStack())
        if transport.place == "inside":
            server = build_server(plan, model, observers)
            del model  # each peer has its own part
            cleanup.callback(server.stack.run_end)
            link = linked.enter_context(link_inside(transport, plan, server, folder))
        else:
            del model  # the server makes its own
            own = process if address is None else None
            launch = Launch(plan, folder, own, ledger, should_stop)
            whom = f"connecting to {address}" if address else "waiting for the server's process"
            reporter.starting(whom)
            last_words = launch.last_words
            heeding = linked.enter_context(launch.link(transport, address))
            link, should_stop = heeding, _either(should_stop, heeding)
        loop = Loop(
            *(plan, data, client, link, ledger, folder, origin, reporter),
            *(should_stop, connect, loggers),
        )
        result = loop.go(last_words, going_on.from_step)
        try:
            linked.close()  # the server's probes report, and a client's may read what they left
        finally:
            loop.report()
        return result


def _either(should_stop: Callable[[], bool], link: Heeding) -> Callable[[], bool]:
    """Return what says whether to stop: the user of this process, or that of the server."""
    told = False

    def stop() -> bool:
        nonlocal told
        if link.asked and not told:
            told = True
            warnings.warn(f"the server at {link.remote} asks to stop", Notice, stacklevel=2)
        return should_stop() or link.asked

    return stop


def _tell_of_warmup(plan: Plan) -> None:
    """Say in a `Notice` that the learning rate never gets where it is to be."""
    warmup, steps = plan.config.warmup, plan.expected_steps
    if steps is not None and warmup >= 1 and warmup > steps:
        warnings.warn(
            f"--warmup {warmup:g} is longer than the run, which --budget {plan.config.budget} ends "
            f"after {steps:,} steps: the learning rate stays below --lr {plan.config.lr:g}; give "
            "fewer steps, or a share, such as --warmup 0.05",
            Notice,
            stacklevel=2,
        )


def _checked(plan: Plan, folder: RunFolder, accept: bool, reporter: Reporter) -> Origin:
    """Return what a run goes on with; `ConfigError` if that has changed and nobody accepts it."""
    before = folder.read_config()
    changing = next((bound for bound in plan.stack if bound.pieces > 1), None)
    if changing and plan.budget.unit == "nominal" and Budget.parse(before.budget) != plan.budget:
        raise ConfigError(
            f"{changing} changes in mid-run, where the steps of another --budget in nominal are "
            f"others from the beginning; go on with {before.budget}, or begin anew"
        )
    origin, changes = Origin.read(folder.path).followed_by(plan, before)
    if changes and not accept:
        raise ConfigError(
            f"{folder.path} began with something else: {'; '.join(changes)}; put it back, or go on "
            "all the same with --accept-changes"
        )
    reporter.accepted(changes)
    return origin


def _remove_if_unused(folder: RunFolder) -> Callable[..., None]:
    """Return an exit callback: a failed run that made no step leaves no folder behind.

    One that diverged in its first step does: that is what came of it.
    """

    def leave(kind: type[BaseException] | None, *rest: object) -> None:
        if kind not in (None, Diverged) and not folder.has_records():
            folder.remove()

    return leave
