"""How a client comes to its server: in this process, in a second one, or elsewhere."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import torch

from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.core.contract.link import Link, PairTransport, Transport
from splitlab.core.run.config import Config
from splitlab.core.run.folder import RunFolder
from splitlab.core.run.plan import build_server
from splitlab.core.run.serve import open_session

__all__ = ["Launch"]

# A second process imports torch and builds the model before it listens.
_STARTUP_SECONDS = 180.0
_PARTING_SECONDS = 5.0


class Launch:
    """Makes the client's end of a link, and the server if there is none yet.

    Args:
        config: the run's, resolved.
        classes: C, width of the head.
        folder: where the server's checkpoints and what it prints go.
        device: the client's.
        observers: watch the server's hooks too, if it is in this process.
    """

    def __init__(
        self,
        config: Config,
        classes: int,
        folder: RunFolder,
        device: torch.device,
        observers: Sequence[object],
    ) -> None:
        self._config = config
        self._classes = classes
        self._folder = folder
        self._device = device
        self._observers = observers
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def link(self, transport: Transport | PairTransport, connect: str | None) -> Iterator[Link]:
        """Yield the client's end; whatever was started ends with the block.

        Args:
            transport: an object of the configuration's transport.
            connect: address of a server that runs already, or None.
        """
        if isinstance(transport, PairTransport):
            if connect:
                raise ConfigError(f"transport {self._config.transport!r} cannot join a server")
            with self._server_inside(transport) as link:
                yield link
            return
        launched = transport.launched()
        address = connect or (launched and launched[1])
        if address:
            timeout = self._config.timeout
            with closing(transport.connect(address, device=self._device, timeout=timeout)) as link:
                yield link
            return
        with self._server_process() as address:
            timeout = _STARTUP_SECONDS
            with closing(transport.connect(address, device=self._device, timeout=timeout)) as link:
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
    def _server_inside(self, transport: PairTransport) -> Iterator[Link]:
        built = build_server(self._config, self._classes, self._device, self._observers)
        client_end, server_end = transport.pair(lambda: session.turn() and None)
        session = open_session(server_end, built, self._config, self._folder.path)
        try:
            yield client_end
        finally:
            client_end.close()
            server_end.close()
            built.worker.stack.run_end()

    @contextmanager
    def _server_process(self) -> Iterator[str]:
        """Start a server on this machine and yield its address."""
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", "splitlab.core.command.main", "serve"]
        command += ["--config", str(self._folder.path / "config.toml")]
        command += ["--output", str(self._folder.path)]
        command += ["--classes", str(self._classes)]
        command += ["--announce", str(writing), "--wait", str(_STARTUP_SECONDS)]
        command += ["--timeout", str(self._config.timeout)]
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
        try:
            with os.fdopen(reading) as pipe:
                ready, _, _ = select.select([pipe], [], [], _STARTUP_SECONDS)
                address = pipe.readline().strip() if ready else ""
            if not address:
                raise NetworkError(f"the server process did not start{self.last_words()}")
            yield address
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the server process, which ends by itself when the link does; then make it end."""
    for insist in (None, process.terminate, process.kill):
        if insist is not None:
            insist()
        try:
            process.wait(_PARTING_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue
