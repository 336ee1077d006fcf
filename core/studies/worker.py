"""The main program of a process that performs jobs, one after the other, for another one.

It is told jobs on its standard input, one a line, each when the one before has ended. When that
is closed, by whomever, it stops after its step, with a checkpoint, and ends. What becomes of a job
it tells in lines of JSON on a pipe of its own; what plugins and libraries print goes into a log
beside the folder of the run.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["log_file", "main"]


def log_file(folder: Path) -> Path:
    """Return where is printed what a run prints; the run's folder must not be there yet."""
    return folder.with_name(f"{folder.name}.log")


def main(arguments: Sequence[str]) -> None:
    """Perform jobs until the standard input ends.

    Args:
        arguments: descriptor of the pipe; the cores to compute on, as in ``0,1``, or nothing.
    """
    pipe, cores = int(arguments[0]), [int(core) for core in arguments[1].split(",") if core]
    os.set_inheritable(pipe, False)  # its end tells that this process has ended
    if cores:  # before any library starts its threads
        os.sched_setaffinity(0, cores)
    # Cleaning up, so that the server of a run ends too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    from splitlab.core.contract.errors import Interrupted
    from splitlab.core.studies.job import Outcome, perform
    from splitlab.core.studies.remote import Telling, job_from

    def tell(**values: Any) -> None:
        with suppress(BrokenPipeError):  # nobody listens any more: the next step is the last
            os.write(pipe, json.dumps(values).encode() + b"\n")

    for line in sys.stdin:
        job = job_from(line)
        _print_into(log_file(job.folder))
        reporter = Telling(lambda share, note: tell(share=share, note=note))
        try:
            outcome = perform(job, reporter, _is_asked_to_stop)
        except Interrupted as reason:
            outcome = Outcome("interrupted", str(reason))
        del reporter
        _release()
        if outcome.state != "busy":
            _remove_if_empty(log_file(job.folder))
        tell(state=outcome.state, error=outcome.error)


def _is_asked_to_stop() -> bool:
    """Whether the standard input has ended; nothing else comes there during a job."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _print_into(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)


def _remove_if_empty(path: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):
        if not path.stat().st_size:
            path.unlink()


def _release() -> None:
    """Give back what a run leaves behind: other processes may want the memory of the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:  # ended by the signal, as its parent is to see
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
