"""How a process imports what takes long."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["heavy_imports"]


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import torch and what needs it inside the block: nothing that it makes is looked through.

    Modules stay to the end. Looking for garbage among their hundreds of thousands of objects, again
    and again while they come and once more at the end, takes a third of a short run's time.
    """
    if "torch" in sys.modules or not gc.isenabled():  # the process is somebody else's
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
