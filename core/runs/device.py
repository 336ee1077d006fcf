"""Where a peer computes, and in which precision."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import MOST_THREADS

__all__ = ["autocast", "choose_device", "default_threads", "products"]


def choose_device(name: str, role: Literal["client", "server"], *, peers_here: int) -> torch.device:
    """Return the device of a peer.

    ``auto``: a GPU if there is one; of several, the one that a launcher chose (``LOCAL_RANK``), or
    the second for the server if both peers run on this machine.
    """
    if name == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not gpus:
            return torch.device("cpu")
        second = role == "server" and peers_here == 2
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", int(second))) % gpus)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # also refuses meta, which computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"--device {name} cannot be used here: {reason}") from error
    return device


def default_threads() -> int:
    """Return what ``$OMP_NUM_THREADS`` says, as torch itself would; else the cores we may use."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if said.isdecimal() and 0 < int(said) <= MOST_THREADS:
        return int(said)
    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """Return what `torch.autocast` computes in on a device; None without it.

    Raises:
        ConfigError: the device has no units for it.
    """
    if precision != "bf16":
        return None
    if device.type == "cuda":
        with torch.cuda.device(device):
            able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.amp.is_autocast_available(device.type)
    if not able:
        raise ConfigError(
            f"--precision bf16 cannot be used on {device}, which does not compute in bfloat16; "
            "allowed here: --precision fp32 or tf32"
        )
    return torch.bfloat16


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Let a GPU multiply float32 numbers as TensorFloat-32, or not, inside the block.

    That is what convolutions do by default in torch, and matrix products do not; here both do what
    the precision says. On a CPU it changes nothing.
    """
    if not torch.cuda.is_available():
        yield
        return
    before = _tensor_float()
    _set_tensor_float((precision == "tf32",) * 2)
    try:
        yield
    finally:
        if before is not None:
            _set_tensor_float(before)


# Newer torch has other names for the same two switches, and refuses to read these once those were
# used; what compiles for a GPU reads these in some versions, so these are set.


def _tensor_float() -> tuple[bool, bool] | None:
    """Return whether matrix products and convolutions round; None if others hide it."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions warn of the other names
        try:
            return cuda.allow_tf32, cudnn.allow_tf32
        except RuntimeError:
            return None


def _set_tensor_float(allowed: tuple[bool, bool]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
