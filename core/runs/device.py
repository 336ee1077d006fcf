"""Where a peer computes, and with how many threads."""

from __future__ import annotations

import os
from typing import Literal

import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.machine import MOST_THREADS

__all__ = ["choose_device", "default_threads"]


def choose_device(name: str, role: Literal["client", "server"], *, peers_here: int) -> torch.device:
    """Return the device of a peer.

    ``auto``: a GPU if there is one; of several, the one that a launcher chose (``LOCAL_RANK``), or
    the second for the server if both peers run on this machine. ``cuda``: the same, but never the
    CPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not gpus:
        return torch.device("cpu")
    if name == "auto" or (name == "cuda" and gpus):
        second = role == "server" and peers_here == 2
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", int(second))) % gpus)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # also refuses meta, which computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]  # torch lists its backends behind
        here = ", ".join(["auto", "cpu", *(f"cuda:{number}" for number in range(gpus))])
        raise ConfigError(
            f"--device {name} cannot be used here: {reason}; these can: {here}"
        ) from error
    return device


def default_threads() -> int:
    """Return what ``$OMP_NUM_THREADS`` says, as torch itself would; else the cores we may use."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if said.isdecimal() and 0 < int(said) <= MOST_THREADS:
        return int(said)
    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(allowed(0)) if allowed else os.cpu_count() or 1
