"""A run folder as bytes, for machines that share no files."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

from splitlab.core.runs.disk import LOCKS, writing

__all__ = ["pack", "unpack"]


def pack(folder: Path) -> bytes:
    """Return the files of a folder, without locks and what is half written; empty if it is gone."""
    if not folder.is_dir():
        return b""
    memory = io.BytesIO()
    # Tensors hardly shrink, and a zip file's names cannot lead out of where it is unpacked.
    with zipfile.ZipFile(memory, "w", strict_timestamps=False) as parcel:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.endswith((LOCKS, ".tmp")):
                parcel.write(path, path.relative_to(folder))
    return memory.getvalue()


def unpack(parcel: bytes, folder: Path) -> None:
    """Put the files there, all of them or none, in place of what was there.

    Raises:
        DiskError: they cannot be written.
    """
    new, old = (folder.with_name(f".{folder.name}.{what}.tmp") for what in ("new", "old"))
    with writing(folder):
        for left in (new, old):  # by one who was killed
            if left.exists():
                shutil.rmtree(left)
        with zipfile.ZipFile(io.BytesIO(parcel)) as files:
            files.extractall(new)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
