"""The main program of a process that decodes images for another one; it ends with that one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from splitlab.core.catalogue.imports import heavy_imports

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Do jobs until the pipe is closed.

    Args:
        arguments: descriptor of the pipe.
    """
    descriptor = int(arguments[0])
    os.set_inheritable(descriptor, False)  # its end tells that this process has ended
    # A scheduler sends it to all processes of a job; who asks decides when this one is to end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    with heavy_imports():
        import torch

        from splitlab.core.data.decode import perform
        from splitlab.core.data.fleet import serve

    torch.set_num_threads(1)
    with Connection(descriptor) as pipe:
        serve(pipe, perform)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # there is nothing to save, and Python would take torch apart first
