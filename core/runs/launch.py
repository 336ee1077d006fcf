"""How a client comes to its server: in this process, in a second one, or elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from splitlab.core.contract.errors import Notice
from splitlab.core.contract.link import InsideTransport, Link, NetworkTransport
from splitlab.core.engine.server import Server
from splitlab.core.runs.ends import called, end
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.plan import PeerPlan
from splitlab.core.runs.process import STARTUP_SECONDS, ServerProcess
from splitlab.core.runs.serve import open_session
from splitlab.core.runs.stopping import Heeding
from splitlab.core.session.redialling import Redialling
from splitlab.core.wire.ledger import Ledger

__all__ = ["Launch", "link_inside"]


@contextmanager
def link_inside(
    transport: InsideTransport, plan: PeerPlan, server: Server, folder: RunFolder
) -> Iterator[Link]:
    """Yield the client's end of a link to a server in this process, which takes its turns there.

    When the block has come to its end, the server's probes report.
    """

    def serve() -> None:
        session.turn()

    name = plan.config.transport
    pair = called(f"transport {name!r}", transport.pair, serve)
    client_end = end(pair[0], name, plan.links, "client")
    server_end = end(pair[1], name, plan.links, "server")
    with ExitStack() as cleanup:
        cleanup.callback(server_end.close)
        cleanup.callback(client_end.close)
        session, report = open_session(server_end, server, plan, folder.path, cleanup)
        yield client_end
        report()


class Launch:
    """Makes the client's end of a link to another process.

    Args:
        plan: of the run.
        folder: where the server's checkpoints and what it prints go.
        process: of the server, if it is not somebody else's.
        ledger: counts what a lost connection costs.
        should_stop: asked while a lost connection is tried again; True gives it up.
    """

    def __init__(
        self,
        plan: PeerPlan,
        folder: RunFolder,
        process: ServerProcess | None,
        ledger: Ledger,
        should_stop: Callable[[], bool],
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._process = process
        self._ledger = ledger
        self._should_stop = should_stop
        self._heeding: Heeding | None = None

    @contextmanager
    def link(self, transport: NetworkTransport, address: str | None) -> Iterator[Heeding]:
        """Yield the client's end; the server's process ends with the block.

        Args:
            transport: an object of the configuration's transport.
            address: of a server that runs already; None for one in a process of its own.
        """
        if address is not None:
            with self._connected(transport, address, self._plan.config.timeout) as link:
                yield link
            return
        assert self._process is not None
        with self._process as process:
            listens = process.serve(self._arguments(), self._folder.server_log())
            with self._connected(transport, listens, STARTUP_SECONDS) as link:
                yield link
            process.patience = self._plan.config.timeout  # after the goodbye its probes report

    @contextmanager
    def _connected(
        self, transport: NetworkTransport, address: str, timeout: float
    ) -> Iterator[Heeding]:
        name, device = self._plan.config.transport, self._plan.device

        def dial(timeout: float) -> Link:
            owner, connect = f"transport {name!r}", transport.connect
            return called(owner, connect, address, device=device, timeout=timeout)

        bare = dial(timeout)
        if hasattr(bare, "sever"):  # its listener goes on listening
            bare = self._lasting(bare, dial)
        with closing(end(bare, name, self._plan.links, "client")) as link:
            self._heeding = Heeding(link, self._ledger)
            yield self._heeding

    def _lasting(self, bare: Link, dial: Callable[[float], Link]) -> Link:
        process = self._process

        def hopeless() -> bool:
            return process is not None and process.ended()

        def stopping() -> bool:
            return self._should_stop() or (self._heeding is not None and self._heeding.asked)

        timeout, patience = self._plan.timeout, self._plan.config.reconnect
        link = Redialling(
            bare,
            dial,
            timeout=timeout,
            patience=patience,
            hopeless=hopeless,
            stopping=stopping,
            say=_note,
        )
        link.ledger = self._ledger
        return link

    def last_words(self) -> str:
        """Return why the server's process ended, as the end of an error line, if it did."""
        return self._process.last_words() if self._process else ""

    def _arguments(self) -> list[str]:
        arguments = [
            *("--config", str(self._folder.config_for_server())),
            *("--output", str(self._folder.path)),
            *("--classes", str(self._plan.classes)),
            *("--timeout", str(self._plan.config.timeout)),
            *("--reconnect", str(self._plan.config.reconnect)),
            *("--wait", str(STARTUP_SECONDS)),
        ]
        if self._plan.schedule is not None:
            arguments += ["--samples", str(self._plan.schedule.training_samples)]
        return arguments


def _note(line: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)  # the same may happen again
        warnings.warn(line, Notice, stacklevel=2)
