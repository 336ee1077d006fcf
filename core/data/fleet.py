"""Processes that decode images for this one, where threads do not scale.

Each is asked over a pipe of its own, by one thread at a time, and writes pixels straight into the
batch that they belong to: nothing lies in shared memory, of which containers have little. Sources
stay here: what they hold of an image (a path, the bytes of a file) travels.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import numpy.typing as npt

from splitlab.core.contract.errors import ConfigError, WorkerError

__all__ = ["KINDS", "Answer", "Fleet", "Warned", "serve"]

KINDS = ("threads", "processes")
"""What workers can be."""

_MAIN = "splitlab.core.data.worker"
_PARTING_SECONDS = 5.0
_ENDING_SECONDS = 30.0  # of one that has closed its end already, on a busy machine
_PATIENCE_SECONDS = 300.0  # of which a process that starts on a busy machine takes some

Warned = tuple[str, type[Warning], str, int]
"""A warning: its text, its kind, and the file and line where it arose."""


@dataclass(frozen=True)
class Answer:
    """What a process says of a job; the pixels follow, unless an image is bad.

    Attributes:
        bad: position of the first image that cannot be read, and why; None if all can.
        opened: images as they were stored, by position, if they are to be kept.
        warned: what libraries had to say.
    """

    bad: tuple[int, str] | None = None
    opened: Sequence[tuple[int, npt.NDArray[np.uint8]]] = ()
    warned: Sequence[Warned] = ()


class Fleet:
    """So many processes; they are started when they are first asked, and end with `close`.

    If this process ends, however, they end too.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._starting = threading.Lock()
        self._all: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._told: dict[Any, Any] = {}
        weakref.finalize(self, _end, self._all)

    def ask(self, job: object, out: npt.NDArray[np.uint8]) -> Answer:
        """Let a process do a job (`splitlab.core.data.decode.Job`); waits for one that is idle.

        Args:
            job: what to decode.
            out: is filled with the pixels, unless an image is bad; contiguous.

        Raises:
            WorkerError: the process has ended; says why.
        """
        with self._starting:
            for _ in range(self._count - len(self._all)):
                self._all.append(_Worker())
                self._idle.put(self._all[-1])
        worker = self._idle.get()
        try:
            answer = worker.ask(job, out)
        finally:
            self._idle.put(worker)  # one that has ended says so to everybody
        for text, kind, file, line in answer.warned:
            warnings.warn_explicit(text, kind, file, line, registry=self._told)
        return answer

    def close(self) -> None:
        """End them; nobody may ask any more. Allowed twice."""
        _end(self._all)


class _Worker:
    """One process, and the pipe to it."""

    def __init__(self) -> None:
        self._late = False
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",  # of no use there, and its memory is dear
            "OMP_NUM_THREADS": "1",
            "GOMP_SPINCOUNT": "1000",
        }
        with ExitStack() as undo:
            try:
                self._pipe, theirs = Pipe()
                undo.enter_context(self._pipe)
                with theirs:
                    self._said = undo.enter_context(tempfile.TemporaryFile())
                    # A session of its own: Ctrl-C reaches this process only, which ends both in
                    # good order.
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", _MAIN, str(theirs.fileno())],
                        stdin=subprocess.DEVNULL,
                        stdout=self._said,
                        stderr=self._said,
                        env=environment,
                        pass_fds=(theirs.fileno(),),
                        start_new_session=True,
                    )
            except OSError as error:
                raise ConfigError(
                    f"--worker-kind processes: none can be started ({error.strerror or error}); "
                    "take fewer --workers, or --worker-kind threads"
                ) from None
            undo.pop_all()

    def ask(self, job: object, out: npt.NDArray[np.uint8]) -> Answer:
        # Not a wait with an end: it may stop amid an answer, too.
        watch = threading.Timer(_PATIENCE_SECONDS, self._give_up)
        watch.start()
        try:
            self._pipe.send(job)
            answer: Answer = self._pipe.recv()
            if answer.bad is None:
                self._pipe.recv_bytes_into(out.reshape(-1))
            return answer
        except (EOFError, OSError):
            raise WorkerError(
                f"a process that decodes images {self._last_words()}; take fewer --workers, or "
                "--worker-kind threads"
            ) from None
        finally:
            watch.cancel()
            watch.join()

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _last_words(self) -> str:
        if self._late:
            return f"has not answered for {_PATIENCE_SECONDS:g} s and was killed"
        try:
            status = self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "does not answer"
        if status < 0:
            by = signal.Signals(-status).name
            return f"was killed by {by}{', out of memory?' if by == 'SIGKILL' else ''}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status}: {lines[-1] if lines else 'it printed nothing'}"

    def dismiss(self) -> None:
        with suppress(OSError):
            self._pipe.close()  # which it waits for, unless it is at work

    def end(self) -> None:
        if self._said.closed:
            return
        try:
            self._process.wait(_PARTING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.dismiss()
    for worker in workers:
        worker.end()


def serve(pipe: Connection, perform: Any) -> None:
    """Do jobs until the other end of the pipe is closed; called by the process itself.

    Args:
        pipe: to who asks.
        perform: takes a job, returns an `Answer` without warnings, and the pixels.
    """
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer, pixels = perform(job)
        warned = [(str(w.message), w.category, w.filename, w.lineno) for w in caught]
        with suppress(OSError):  # nobody waits for it any more, which is heard next
            pipe.send(Answer(answer.bad, answer.opened, warned))
            if answer.bad is None:
                pipe.send_bytes(pixels.reshape(-1))
