"""The server: one client is served to the end of its run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.errors import ConfigError, ProtocolError
from splitlab.core.contract.link import Link
from splitlab.core.engine.server import Server
from splitlab.core.runs.checkpoint import Checkpoints
from splitlab.core.runs.ends import called, end
from splitlab.core.runs.folder import append, cut_after
from splitlab.core.runs.plan import Decided, PeerPlan, make_for_server
from splitlab.core.runs.records import SERVER_METRICS, StepRecord
from splitlab.core.runs.workers import build_server, limited_threads
from splitlab.core.session.server import ServerSession

__all__ = ["open_session", "serve"]


def serve(
    decided: Decided,
    classes: int,
    *,
    address: str | None = None,
    output: str | None = None,
    announce: int | None = None,
    wait: float = 86400.0,
    peers_here: int = 1,
    samples: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Listen, serve one client, and return the number of training steps served.

    Args:
        decided: of a configuration that is the client's in everything that both must agree on.
        classes: C, width of the head.
        address: where to listen; the transport's default (loopback, a free port) if None.
        output: folder for the server's checkpoints; ``runs/NAME`` by default, with the client's
            name for the run.
        announce: file descriptor to which the real address is written once the server listens.
        wait: seconds to wait for a client.
        peers_here: 2 if the client runs on this machine too; it then has the first GPU.
        samples: of the client's training data, if a client on this machine started this server.
        say: is told in a line where it listens, and how it went.

    Raises:
        SplitlabError: also when the client is gone before the end of its run.
    """
    named = decided.config.transport
    transport = load_transport(named)
    if transport.place == "inside":
        raise ConfigError(f"transport {named!r} has both peers in one process; use tcp")
    with ExitStack() as cleanup:
        cleanup.enter_context(limited_threads(decided.threads))
        plan, model = make_for_server(decided, classes, peers_here=peers_here, samples=samples)
        server = build_server(plan, model)
        del model  # of which the server has its part
        cleanup.callback(server.stack.run_end)
        owner, place = f"transport {named!r}", address or transport.default_address
        listener = called(owner, transport.listen, place, device=plan.device)
        with closing(listener):
            say(f"serving {' + '.join(plan.titles) or 'none'} on {listener.address}")
            if announce is not None:
                with os.fdopen(announce, "w") as pipe:
                    pipe.write(listener.address + "\n")
            link = end(called(owner, listener.accept, wait), named, plan.links, "server")
            cleanup.enter_context(closing(link))
        session, report = open_session(link, server, plan, output)
        while session.turn():
            pass
        report()
    say(f"served {session.steps} steps to the end of the client's run")
    return session.steps


def open_session(
    link: Link, server: Server, plan: PeerPlan, output: str | Path | None
) -> tuple[ServerSession, Callable[[], None]]:
    """Return the server's session on a link, and what lets its probes report after its goodbye.

    What the server leaves is written below ``output``.
    """
    folder = Path(output) if output is not None else Path("runs")
    checkpoints: list[Checkpoints] = []

    def resume(run: str, step: int) -> None:
        nonlocal folder
        if output is None:
            if not re.fullmatch(r"\w[\w.+-]{0,199}", run):
                raise ProtocolError(
                    f"the client's name for the run, {run!r}, cannot name a folder; "
                    "name the server's own with --output DIR"
                )
            folder = folder / run
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {folder} cannot be made: {error.strerror}") from None
        checkpoints.append(Checkpoints(folder, "server"))
        if step:
            server.load_state(*checkpoints[0].load(step))
        checkpoints[0].forget_after(step)
        cut_after(folder / SERVER_METRICS, step)

    def save(step: int) -> None:
        checkpoints[0].save(step, *server.state())

    def measured(step: int) -> None:
        append(folder / SERVER_METRICS, StepRecord(step, metrics=server.metrics))

    def report() -> None:
        server.stack.report(folder / "probes")

    session = ServerSession(
        link,
        server,
        dict(plan.agreement),
        batch_bytes=plan.batch_bytes,
        timeout=plan.config.timeout,
        resume=resume,
        save=save,
        measured=measured,
    )
    return session, report
