"""A run from its configuration to its result: plan, folder, server, loop, in that order.

The order is that in which they may fail: what can be known before a folder is made is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.errors import ConfigError, Diverged
from splitlab.core.runs.config import Config, flag
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.launch import Launch, link_inside
from splitlab.core.runs.loop import Loop
from splitlab.core.runs.plan import Decided, make
from splitlab.core.runs.reporter import Reporter, Result
from splitlab.core.runs.workers import build_client, build_server, limited_threads

__all__ = ["chosen", "run"]


def run(
    config: Config | None = None,
    *,
    resume: str | Path | None = None,
    connect: str | None = None,
    observers: Sequence[object] = (),
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Result:
    """Train a split model and return what came of it.

    Args:
        config: the run; ``run(plugins=["adc"], seed=1)`` is short for
            ``run(Config(plugins=("adc",), seed=1))``.
        resume: go on with the run in this folder; of the options only ``budget`` and ``timeout``
            may be given then.
        connect: address of a server that runs already (``splitlab serve``); by default the
            transport decides whether the server is in this process or in a second one on this
            machine.
        observers: objects with ``@hookimpl(wrapper=True)`` methods that watch the client's hooks,
            and the server's too if it is in this process.
        reporter: is told how the run goes.
        should_stop: asked before the first step and after every one; True ends the run with a
            checkpoint and `Interrupted`.
        options: fields of `Config`, instead of ``config`` or on top of it.

    Raises:
        SplitlabError: everything that is wrong with configuration, plugins, data or link.
    """
    reporter = reporter or Reporter()
    result = None
    try:
        config, folder = chosen(config, resume, options)
        result = _run(config, folder, connect, observers, reporter, should_stop)
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
        fixed = sorted(options.keys() - {"budget", "timeout"})
        if config is not None or fixed:
            what = ", ".join(map(flag, fixed)) or "a configuration"
            raise ConfigError(
                f"{what} cannot be given with --resume: the run goes on as it began; "
                "only --budget and --timeout may change"
            )
        config = folder.read_config()
    known = dataclasses.asdict(config) if config else {}
    return Config.from_mapping(known | options), folder


def _run(
    config: Config,
    folder: RunFolder | None,
    connect: str | None,
    observers: Sequence[object],
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> Result:
    transport = load_transport(config.transport)
    if transport.place == "inside" and connect:
        raise ConfigError(
            f"transport {config.transport!r} has both peers in one process and cannot join a "
            "server; name the server's with --transport"
        )
    alone = transport.place == "inside" or connect is not None
    decided = Decided.of(config)
    with ExitStack() as cleanup:
        cleanup.enter_context(limited_threads(decided.threads))
        plan, model, data = make(decided, loading=reporter.loading, peers_here=1 if alone else 2)
        client = build_client(plan, model, observers)
        cleanup.callback(client.stack.run_end)
        if folder is None:
            folder = RunFolder.create(config.output, plan.titles)
            folder.write_config(plan.config)
            folder.write_environment(device=str(plan.device), threads=plan.threads)
            cleanup.push(_remove_if_unused(folder))
        last_words: Callable[[], str] = str
        if transport.place == "inside":
            server = build_server(plan, model, observers)
            del model  # each peer has its own part
            cleanup.callback(server.stack.run_end)
            link = cleanup.enter_context(link_inside(transport, plan, server, folder))
        else:
            del model  # the server makes its own
            launch = Launch(plan, folder)
            last_words = launch.last_words
            link = cleanup.enter_context(launch.link(transport, connect))
        loop = Loop(plan, data, client, link, folder, reporter, should_stop, connect)
        return loop.go(last_words)


def _remove_if_unused(folder: RunFolder) -> Callable[..., None]:
    """Return an exit callback: a failed run that made no step leaves no folder behind.

    One that diverged in its first step does: that is what came of it.
    """

    def leave(kind: type[BaseException] | None, *rest: object) -> None:
        if kind not in (None, Diverged) and not folder.has_records():
            folder.remove()

    return leave
