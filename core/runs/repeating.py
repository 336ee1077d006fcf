"""`--deterministic`: a GPU repeats a run bit for bit.

A CPU repeats its runs without it, and computes the same with it. On a GPU many operations add in
the order in which threads happen to come, unless torch is told otherwise, which is a matter of the
whole process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic
from torch.backends import cudnn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import Config

__all__ = ["repeating"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_REPEATING = (":4096:8", ":16:8")
"""Workspaces with which cuBLAS repeats itself, by its documentation ("Results reproducibility")."""


_memory: Any = torch.utils.deterministic  # mypy sees no setters of modules


@contextmanager
def repeating(config: Config) -> Iterator[None]:
    """Let torch compute as the configuration asks for inside the block.

    To be entered before the GPU is first used: cuBLAS looks at its environment then, and never
    again.

    Raises:
        ConfigError: it is too late for that in this process.
    """
    if not config.deterministic or not _may_take_a_gpu(config.device):
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warning = torch.is_deterministic_algorithms_warn_only_enabled()
    filled, measuring = _memory.fill_uninitialized_memory, cudnn.benchmark
    with _workspace():
        torch.use_deterministic_algorithms(True)
        # Nobody reads memory that nobody has written, and a length that a peer declares must not
        # take physical memory.
        _memory.fill_uninitialized_memory = False
        cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warning)
            _memory.fill_uninitialized_memory, cudnn.benchmark = filled, measuring


@contextmanager
def _workspace() -> Iterator[None]:
    """Give cuBLAS a workspace with which it repeats itself; it keeps it to the process's end."""
    before = os.environ.get(_WORKSPACE)
    if before in _REPEATING:
        yield
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise ConfigError(
            f"--deterministic comes too late: this process has used its GPU with {_WORKSPACE}="
            f"{before or ''}; set it to {_REPEATING[0]} before, or start a new process"
        )
    os.environ[_WORKSPACE] = _REPEATING[0]
    try:
        yield
    finally:
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            if before is None:
                del os.environ[_WORKSPACE]
            else:
                os.environ[_WORKSPACE] = before


def _may_take_a_gpu(device: str) -> bool:
    return torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
