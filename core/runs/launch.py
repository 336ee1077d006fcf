"""How a client comes to its server: in this process, in a second one, or elsewhere."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from splitlab.core.contract.errors import NetworkError
from splitlab.core.contract.link import InsideTransport, Link, NetworkTransport
from splitlab.core.engine.server import Server
from splitlab.core.runs.ends import called, end
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.plan import PeerPlan
from splitlab.core.runs.serve import open_session

__all__ = ["Launch", "link_inside"]

# A second process imports torch and builds the model before it listens.
_STARTUP_SECONDS = 180.0
_PARTING_SECONDS = 5.0


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
    session, report = open_session(server_end, server, plan, folder.path)
    try:
        yield client_end
        report()
    finally:
        client_end.close()
        server_end.close()


class Launch:
    """Makes the client's end of a link to another process, and that process if there is none yet.

    Args:
        plan: of the run.
        folder: where the server's checkpoints and what it prints go.
    """

    def __init__(self, plan: PeerPlan, folder: RunFolder) -> None:
        self._plan = plan
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def link(self, transport: NetworkTransport, connect: str | None) -> Iterator[Link]:
        """Yield the client's end; whatever was started ends with the block.

        Args:
            transport: an object of the configuration's transport.
            connect: address of a server that runs already, or None.
        """
        launched = transport.launched()
        address = connect or (launched[1] if launched else None)
        if address:
            with self._connected(transport, address, self._plan.config.timeout) as link:
                yield link
            return
        with (
            self._server_process() as address,
            self._connected(transport, address, _STARTUP_SECONDS) as link,
        ):
            yield link

    @contextmanager
    def _connected(
        self, transport: NetworkTransport, address: str, timeout: float
    ) -> Iterator[Link]:
        name, device = self._plan.config.transport, self._plan.device
        connect = transport.connect
        bare = called(f"transport {name!r}", connect, address, device=device, timeout=timeout)
        with closing(end(bare, name, self._plan.links, "client")) as link:
            yield link

    def last_words(self) -> str:
        """Return why the server's process ended, as the end of an error line, if it did."""
        if self._process is None:
            return ""
        try:
            status = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return ""
        if status == -signal.SIGKILL:
            return "; the server process was killed"
        lines = self._folder.server_log().read_text(errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("splitlab: error: ") if lines else "it printed nothing"
        return f"; the server process ended with status {status}: {last}"

    @contextmanager
    def _server_process(self) -> Iterator[str]:
        """Start a server on this machine and yield its address."""
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", "splitlab", "serve"]
        command += ["--config", str(self._folder.path / "config.toml")]
        command += ["--output", str(self._folder.path)]
        command += ["--classes", str(self._plan.classes)]
        if self._plan.schedule is not None:
            command += ["--samples", str(self._plan.schedule.training_samples)]
        command += ["--announce", str(writing), "--wait", str(_STARTUP_SECONDS)]
        command += ["--timeout", str(self._plan.config.timeout)]
        with self._folder.server_log().open("wb") as log:
            # A session of its own: Ctrl-C reaches the client only, which ends both in good order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        self._process = process
        patience = _PARTING_SECONDS
        try:
            with os.fdopen(reading) as pipe:
                ready, _, _ = select.select([pipe], [], [], _STARTUP_SECONDS)
                address = pipe.readline().strip() if ready else ""
            if not address:
                raise NetworkError(f"the server process did not start{self.last_words()}")
            yield address
            patience = self._plan.config.timeout  # after the goodbye its probes report
        finally:
            _end(process, patience)


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait for the server process, which ends by itself when the link does; then make it end."""
    for insist in (None, process.terminate, process.kill):
        if insist is not None:
            insist()
        try:
            process.wait(patience if insist is None else _PARTING_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue
