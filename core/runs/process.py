"""The server of a run in a second process, which loads what it needs while the client does.

It is started before anybody knows what it is to serve: importing torch takes both of them longest.
This module imports nothing that takes long.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from splitlab.core.contract.errors import NetworkError

__all__ = ["STARTUP_SECONDS", "ServerProcess", "client_is_gone", "orders"]

# A second process imports torch and builds the model before it listens.
STARTUP_SECONDS = 180.0
_PARTING_SECONDS = 5.0
# The end of a link says more, if there is one.
_LINK_SECONDS = 1.0
_gone = threading.Event()


class ServerProcess:
    """A process that will be the server, on this machine; it ends with the block.

    Attributes:
        patience: seconds that it is given to end by itself, once it has its orders.
    """

    def __init__(self) -> None:
        self.patience = _PARTING_SECONDS
        self._log: Path | None = None
        # What it prints before it knows its log; it is closed with the process.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        reading, writing = os.pipe()
        self._announced = os.fdopen(reading)
        # A session of its own: Ctrl-C reaches the client only, which ends both in good order.
        self._process = subprocess.Popen(
            [*(sys.executable, "-P", "-m", "splitlab"), "serve", "--announce", str(writing)],
            stdin=subprocess.PIPE,
            stdout=self._said,
            stderr=self._said,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)

    def serve(self, arguments: Sequence[str], log: Path) -> str:
        """Tell it what to serve, and return the address where it listens.

        Args:
            arguments: of ``splitlab serve``.
            log: where it is to print from now on.

        Raises:
            NetworkError: it ended, or does not listen in `STARTUP_SECONDS`; says why.
        """
        self._log = log
        text = json.dumps({"arguments": [*arguments], "log": str(log.absolute())})
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and announces nothing
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()  # open until it has ended: it hears of this one's death
        ready, _, _ = select.select([self._announced], [], [], STARTUP_SECONDS)
        address = self._announced.readline().strip() if ready else ""
        if not address:
            raise NetworkError(f"the server process did not start{self.last_words()}")
        return address

    def last_words(self) -> str:
        """Return why it ended, as the end of an error line, if it did."""
        try:
            status = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return ""
        if status == -signal.SIGKILL:
            return "; the server process was killed"
        lines = self._printed().strip().splitlines()
        last = lines[-1].removeprefix("splitlab: error: ") if lines else "it printed nothing"
        return f"; the server process ended with status {status}: {last}"

    def ended(self) -> bool:
        """Return whether it has."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Wait for it, which ends by itself when the link does, and then make it end.

        One that was never told what to serve ends at once. Allowed twice.
        """
        for insist in (None, self._process.terminate, self._process.kill):
            if insist is not None:
                insist()
            elif self._log is None:
                self._process.kill()
            try:
                self._process.wait(self.patience if insist is None else _PARTING_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        for file in (self._process.stdin, self._announced, self._said):
            with contextlib.suppress(BrokenPipeError):
                file.close()  # type: ignore[union-attr]

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _printed(self) -> str:
        with contextlib.suppress(OSError):  # no log, or its folder is gone
            if self._log is not None and (text := self._log.read_text(errors="replace")).strip():
                return text
        if self._said.closed:
            return ""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")


def orders() -> list[str] | None:
    """Return what this process is to serve, and print into its log; None if the client is gone.

    Called by the process itself, when it has loaded what it needs.
    """
    text = sys.stdin.readline()
    if not text:
        return None
    told: dict[str, Any] = json.loads(text)
    log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
    # What a script starts in the background ignores SIGINT, and so would this child of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_the_client, daemon=True).start()
    return list(told["arguments"])


def client_is_gone() -> bool:
    """Return whether the process is that of a client that has ended."""
    return _gone.is_set()


def _end_with_the_client() -> None:
    """Interrupt this process when the client's has ended, whether or not they are linked."""
    while os.read(sys.stdin.fileno(), 64):  # nothing comes until the client's end is closed
        pass
    _gone.set()
    time.sleep(_LINK_SECONDS)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
