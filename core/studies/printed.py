"""What is printed where nobody looks: by plugins and libraries, in a process that performs a job.

It goes into a file beside the folder of the run, which must not be there before the run makes it,
and in the end into ``worker.log`` of the folder; where there is no folder, it stays where it is.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["keep_log", "log_file", "printing_into"]

_OUTPUTS = (1, 2)


def log_file(folder: Path) -> Path:
    """Return where is printed what a run prints while it goes; makes the folder above."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.with_name(f"{folder.name}.log")


@contextmanager
def printing_into(path: Path) -> Iterator[None]:
    """Let this process print to the end of a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    before = [os.dup(output) for output in _OUTPUTS]
    _direct([file, file])
    os.close(file)
    try:
        yield
    except Exception:
        traceback.print_exc()  # here, not where this process printed before
        raise
    finally:
        _direct(before)
        for output in before:
            os.close(output)


def _direct(targets: list[int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for target, output in zip(targets, _OUTPUTS, strict=True):
        os.dup2(target, output)


def keep_log(folder: Path) -> None:
    """Put what was printed into the folder of the run, if there is one; no empty file stays."""
    path = log_file(folder)
    with suppress(OSError):  # a log is no reason to fail
        text = path.read_bytes()
        if text and not folder.is_dir():
            return
        if text:
            with (folder / "worker.log").open("ab") as log:
                log.write(text)
        path.unlink()
