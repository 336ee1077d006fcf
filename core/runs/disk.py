"""What runs and comparisons do to their folders: written whole or not at all, by one at a time.

A lock is the kernel's, on a file of the folder that names who holds it. It ends with its holder,
however that ends; a file that is left behind locks nobody out.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from splitlab.core.contract.errors import ConfigError

__all__ = [
    "LOCKS",
    "DiskError",
    "HeldError",
    "append_whole",
    "hold",
    "holder",
    "write_whole",
    "writing",
]

LOCKS = ".lock"
"""What names of lock files end with."""

_A_LOOK = 0.1
"""Seconds to wait at least: `holder` locks what a killed process left for the time of a look."""


class DiskError(ConfigError):
    """A file of a run or a comparison cannot be written."""


class HeldError(ConfigError):
    """Another process is the same in this folder."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever keeps the block from writing is told in one line, with the path.

    Raises:
        DiskError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that others find whole: as it was before, or as it is now.

    Raises:
        DiskError: it could not be written, and is as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def append_whole(path: Path, text: str, first: str) -> None:
    """Append to a file; what cannot be appended whole is taken back.

    Args:
        path: of the file.
        text: to append.
        first: what a new file begins with.

    Raises:
        DiskError: it could not be written.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        start = file.tell()
        left = memoryview((text if start else first + text).encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(start)
            raise


@contextmanager
def hold(folder: Path, who: str, patience: float = 0.0) -> Iterator[None]:
    """Keep everybody else who would be the same in this folder out of it.

    Args:
        folder: made if it is not there, with those above it; taken away again if it is empty in
            the end.
        who: such as ``client``: the client and the server of a run share its folder.
        patience: seconds to wait for another holder, who may be about to end.

    Raises:
        HeldError: another process holds it; says which one.
        DiskError: the folder cannot be written.
    """
    path = folder / f"{who}{LOCKS}"
    deadline = time.monotonic() + max(patience, _A_LOOK)
    with writing(folder):
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        while (descriptor := _lock(path)) is None:
            if time.monotonic() >= deadline:
                raise HeldError(
                    f"{folder} is in use by {_holder(path) or 'another process'}; wait until that "
                    "ends, or name another folder"
                )
            time.sleep(0.05)
    try:
        with writing(path):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.ftruncate(descriptor, 0)
            text = f"process {os.getpid()} on {platform.node()} since {since}\n"
            os.pwrite(descriptor, text.encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):  # if anything is in it
            for each in made:
                each.rmdir()


def holder(folder: Path, who: str) -> str:
    """Return who holds a folder as this, such as ``process 12 on HOST since …``; "" if nobody does.

    Nothing is written, and nobody is kept out: `hold` waits for as long as a look takes.
    """
    path = folder / f"{who}{LOCKS}"
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path) or "another process"
    except OSError:  # it is not there, or not ours to look at
        pass
    return ""


def _lock(path: Path) -> int | None:
    """Return the descriptor of the locked file; None if another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A holder takes its file away when it ends: this may be the lock of a file that is gone.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
