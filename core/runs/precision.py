"""`--precision`: what both parts compute in, on the device that there is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from splitlab.core.contract.errors import ConfigError

__all__ = ["autocast", "products"]


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
