"""The server: one client is served to the end of its run."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, closing
from pathlib import Path

from splitlab.core.catalogue.links import load_transport
from splitlab.core.catalogue.registry import bind_stack
from splitlab.core.contract.errors import ConfigError, ProtocolError
from splitlab.core.contract.link import Link, PairTransport
from splitlab.core.engine.peers import Server
from splitlab.core.run.checkpoint import Checkpoints
from splitlab.core.run.config import Config
from splitlab.core.run.plan import Built, build_server, choose_device, limited_threads, resolve
from splitlab.core.session.session import ServerSession

__all__ = ["open_session", "serve"]


def serve(
    config: Config,
    classes: int,
    *,
    address: str | None = None,
    output: str | None = None,
    announce: int | None = None,
    wait: float = 86400.0,
    peers_here: int = 1,
) -> int:
    """Listen, serve one client, print how it went, and return the number of training steps served.

    Args:
        config: the same as the client's in everything that both must agree on.
        classes: C, width of the head.
        address: where to listen; the transport's default (loopback, a free port) if None.
        output: folder for the server's checkpoints; ``runs/NAME`` by default, with the client's
            name for the run.
        announce: file descriptor to which the real address is written once the server listens.
        wait: seconds to wait for a client.
        peers_here: 2 if the client runs on this machine too; it then has the first GPU.

    Raises:
        SplitlabError: also when the client is gone before the end of its run.
    """
    config = resolve(config)
    transport = load_transport(config.transport)
    if isinstance(transport, PairTransport):
        raise ConfigError(f"transport {config.transport!r} has both peers in one process; use tcp")
    device = choose_device(config.device, "server", peers_here=peers_here)
    with limited_threads(config.threads or 1), ExitStack() as cleanup:
        built = build_server(config, classes, device)
        cleanup.callback(built.worker.stack.run_end)
        listener = transport.listen(address or transport.default_address, device=device)
        with closing(listener):
            stack = " + ".join(map(str, bind_stack(config.plugins))) or "none"
            print(f"serving {stack} on {listener.address}", flush=True)
            if announce is not None:
                with os.fdopen(announce, "w") as pipe:
                    pipe.write(listener.address + "\n")
            link = cleanup.enter_context(closing(listener.accept(wait)))
        session = open_session(link, built, config, output)
        while session.turn():
            pass
    print(f"served {session.steps} steps to the end of the client's run", flush=True)
    return session.steps


def open_session(
    link: Link, built: Built[Server], config: Config, output: str | Path | None
) -> ServerSession:
    """Return the server's session on a link, with checkpoints below ``output``."""
    checkpoints: list[Checkpoints] = []

    def resume(run: str, step: int) -> None:
        if output is None and not re.fullmatch(r"\w[\w.+-]{0,199}", run):
            raise ProtocolError(
                f"the client's name for the run, {run!r}, cannot name a folder; "
                "name the server's own with --output DIR"
            )
        folder = Path(output) if output is not None else Path("runs") / run
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {folder} cannot be made: {error.strerror}") from None
        checkpoints.append(Checkpoints(folder, "server"))
        if step:
            built.worker.load_state(*checkpoints[0].load(step))
        checkpoints[0].forget_after(step)

    def save(step: int) -> None:
        checkpoints[0].save(step, *built.worker.state())

    return ServerSession(
        link,
        built.worker,
        built.agreement,
        batch_bytes=built.batch_bytes,
        timeout=config.timeout,
        resume=resume,
        save=save,
    )
