"""The main program of a process that performs jobs, one after the other, for another one.

It is told jobs on its standard input, one a line, each when the one before has ended. When that
is closed, by whomever, it stops after its step, with a checkpoint, and ends. What becomes of a job
it tells in lines of JSON on a pipe of its own; where what is printed goes tells
`splitlab.core.studies.printed`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from splitlab.core.catalogue.imports import heavy_imports
from splitlab.core.studies.printed import keep_log, log_file, printing_into

__all__ = ["main"]


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

    with heavy_imports():
        from splitlab.core.contract.errors import Interrupted
        from splitlab.core.studies.job import Outcome, told
        from splitlab.core.studies.perform import perform, release
        from splitlab.core.studies.remote import Telling, job_from

    def tell(**values: Any) -> None:
        with suppress(BrokenPipeError):  # nobody listens any more: the next step is the last
            os.write(pipe, json.dumps(values).encode() + b"\n")

    for line in sys.stdin:
        job = job_from(line)
        with printing_into(log_file(job.folder)):
            reporter = Telling(lambda share, note: tell(share=share, note=note))
            try:
                outcome = perform(job, reporter, _is_asked_to_stop)
            except Interrupted as reason:
                outcome = Outcome("interrupted", told(reason))
            del reporter
            release()
        if outcome.state != "busy":  # the log is another's
            keep_log(job.folder)
        tell(state=outcome.state, error=outcome.error)


def _is_asked_to_stop() -> bool:
    """Whether the standard input has ended; nothing else comes there during a job."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:  # ended by the signal, as its parent is to see
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
