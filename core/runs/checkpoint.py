"""Checkpoints of a run: one safetensors file for each peer and step, written all or nothing.

``RUN/checkpoints/step-00000120/client.safetensors`` and ``server.safetensors`` (on two machines
each has its own). The server writes first, so a step with a client's file is complete. The two
newest steps are kept: whenever a peer is killed, both still have one in common.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from splitlab.core.contract.errors import ConfigError

__all__ = ["Checkpoints"]

_KEPT = 2


class Checkpoints:
    """The checkpoints of one peer in one run folder."""

    def __init__(self, run_folder: Path, role: Literal["client", "server"]) -> None:
        self._folder = run_folder / "checkpoints"
        self._role = role

    def steps(self) -> list[int]:
        """Return the steps of which this peer has a checkpoint, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", path.parent.name) for path in self._files())
        return sorted(int(match[1]) for match in found if match)

    def save(
        self, step: int, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]
    ) -> None:
        """Write the state after ``step`` training steps, then forget all but the newest two."""
        path = self._path(step)
        # Clones: tensors that share memory are refused by safetensors.
        own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_worded(values), allow_nan=False)
            save_file(own, temporary, metadata={"values": text})
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise ConfigError(f"cannot write the checkpoint {path}: {error}") from error
        for old in self.steps()[:-_KEPT]:
            self._delete(old)

    def forget_after(self, step: int) -> None:
        """Delete what is newer: the other peer goes on from ``step``, so it will never be used.

        Left in place it would count among the newest two and push out what the other peer has.
        """
        for newer in self.steps():
            if newer > step:
                self._delete(newer)

    def load(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what was saved; `ConfigError` if there is none or the file is damaged."""
        path = self._path(step)
        if not path.is_file():
            known = ", ".join(map(str, self.steps())) or "none"
            raise ConfigError(
                f"the {self._role} has no checkpoint of step {step} in {self._folder} "
                f"(it has: {known})"
            )
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads(file.metadata()["values"], object_hook=_unworded)
                return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"checkpoint {path} is damaged ({error}); delete it to go back further"
            ) from error

    def _delete(self, step: int) -> None:
        path = self._path(step)
        path.unlink(missing_ok=True)
        if not any(path.parent.glob("*.safetensors")):
            shutil.rmtree(path.parent, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}" / f"{self._role}.safetensors"

    def _files(self) -> list[Path]:
        return list(self._folder.glob(f"step-*/{self._role}.safetensors"))


# JSON has no word for NaN and infinity, which the state of a plugin may hold.

_WORDED = "not finite"


def _worded(value: Any) -> Any:
    """Return JSON values with an object in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: _worded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_worded(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_WORDED: str(value)}
    return value


def _unworded(values: dict[str, Any]) -> Any:
    return float(values[_WORDED]) if [*values] == [_WORDED] else values
