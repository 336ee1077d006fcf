"""Checkpoints of a run: one safetensors file for each peer and step, written all or nothing.

``RUN/checkpoints/step-00000120/client.safetensors`` and ``server.safetensors`` (on two machines
each has its own). The server writes first, so a step with a client's file is complete. The two
newest steps are kept: whenever a peer is killed, both still have one in common. With
``--keep best`` that of the best accuracy is kept besides, ``best_step`` of ``summary.json`` and
``state.json``. A best one that was surpassed goes a checkpoint later: the run may have to go back.

Besides its state a file holds marks, which say what it belongs to (run, seed, plan, role and step),
and a checksum of all that it holds. What does not belong to what is asked for, or is not whole, is
never given back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.disk import DiskError, writing

__all__ = ["Checkpoints", "plan_mark"]

_KEPT = 2

_DAMAGED = "damaged"
"""In place of a mark; no run is called so, since ids are hexadecimal digits of a fixed number."""

_DAMAGE = (
    SafetensorError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
)
"""What reading raises where a file does not hold what was written."""


def plan_mark(agreement: Mapping[str, str]) -> str:
    """Return a short hash of what both peers have in common."""
    return hashlib.sha256(json.dumps(sorted(agreement.items())).encode()).hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one peer in one run folder.

    Args:
        run_folder: of the run; it must be there when one is saved.
        role: of the peer.
        marks: what its checkpoints belong to: ``run`` (its id), ``seed``, ``plan`` (`plan_mark`).
    """

    def __init__(
        self,
        run_folder: Path,
        role: Literal["client", "server"],
        marks: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._folder = run_folder / "checkpoints"
        self._role = role
        self._marks = marks

    def steps(self) -> list[int]:
        """Return the steps of which this peer has a checkpoint, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", path.parent.name) for path in self._files())
        return sorted(int(match[1]) for match in found if match)

    def save(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        values: Mapping[str, Any],
        keep: Collection[int] = (),
    ) -> None:
        """Write the state after ``step`` training steps, then forget all but the newest two.

        Args:
            step: see above.
            tensors: of the state.
            values: of the state, as JSON has them.
            keep: older steps that are not forgotten, if they are there.

        Raises:
            DiskError: it cannot be written; those that are there are as they were.
        """
        path = self._path(step)
        # Clones: tensors that share memory are refused by safetensors.
        own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        worded = json.dumps(_worded(values), allow_nan=False)
        texts = {"values": worded, "marks": json.dumps(self._wanted(step))}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            for folder in (self._folder, path.parent):  # a run folder that is gone stays gone
                folder.mkdir(exist_ok=True)
            save_file(own, temporary, metadata=texts | {"checksum": _checksum(own, texts)})
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
                path.parent.rmdir()  # if it is empty
            raise DiskError(f"cannot write the checkpoint {path}: {error}") from error
        done = [each for each in self.steps() if each <= step]  # newer ones are nobody's yet
        for old in done[:-_KEPT]:
            if old not in keep:
                self._delete(old)

    def forget_after(self, step: int) -> None:
        """Delete what is newer: the run goes on from ``step``, so it will never be used.

        What a killed process had written half goes, too. Whoever begins at step 0 has shown nothing
        that fits yet, so there only what says that it is of this run goes: another's stays, and
        what is damaged.
        """
        for half in self._folder.glob(f"step-*/{self._role}.*.tmp"):
            with writing(half):
                half.unlink(missing_ok=True)
            with suppress(OSError):
                half.parent.rmdir()  # if it is empty
        for newer in self.steps():
            if newer > step and (step or self._says(newer, "run") == self._marks.get("run")):
                self._delete(newer)

    def load(
        self, step: int, plans: Collection[str] = ()
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what was saved.

        Args:
            step: after which it was saved.
            plans: other plans than the marks' that it may belong to.

        Raises:
            ConfigError: there is none, it is damaged, or it belongs to something else.
        """
        with self._reading(step) as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = json.loads(texts["values"], object_hook=_unworded)
            checksum = texts.pop("checksum", None)
            if checksum is not None and checksum != _checksum(tensors, texts):
                raise ValueError("its checksum does not fit what it holds")
            found = self._marks_in(step, file.metadata())
        for name, wanted in self._wanted(step).items():
            if found[name] != wanted and not (name == "plan" and found[name] in plans):
                raise ConfigError(
                    f"checkpoint {self._path(step)} is of {name} {found[name]}, not of {name} "
                    f"{wanted}; put the right file in its place"
                )
        return tensors, values

    def marks(self, step: int) -> dict[str, str]:
        """Return what a checkpoint says that it belongs to; the rest of it is not looked at.

        Raises:
            ConfigError: there is none, or it says nothing that can be read.
        """
        with self._reading(step) as file:
            return self._marks_in(step, file.metadata())

    def _marks_in(self, step: int, texts: Mapping[str, str] | None) -> dict[str, str]:
        if not texts or not texts.keys() >= {"marks", "checksum"}:
            raise ConfigError(
                f"checkpoint {self._path(step)} does not say which run it is of: an earlier "
                "version of splitlab wrote it, or another program; run it again"
            )
        found = json.loads(texts["marks"])
        return {name: str(found[name]) for name in self._wanted(step)}

    def whole(self, step: int, plans: Collection[str] = ()) -> bool:
        """Return whether `load` gives this step back."""
        try:
            self.load(step, plans)
        except ConfigError:
            return False
        return True

    def older(self, step: int, fits: Callable[[int], bool]) -> int:
        """Return the newest step before this one that fits, or 0.

        0 is the beginning, from which every run can go on.
        """
        older = (found for found in reversed(self.steps()) if found < step)
        return next(filter(fits, older), 0)

    def refuse_others(self) -> None:
        """Raise `ConfigError` if there are checkpoints of another run."""
        for step in self.steps():
            run = self._says(step, "run")
            if run not in (self._marks["run"], _DAMAGED):  # nobody can go on from what is damaged
                raise ConfigError(
                    f"{self._folder} holds checkpoints of another run, {run}; go on with that one, "
                    "or name another folder with --output"
                )

    def _says(self, step: int, mark: str) -> str | None:
        """Return a mark of a checkpoint, None if such have none, `_DAMAGED` if it says nothing."""
        try:
            return self.marks(step).get(mark)
        except _DamagedError:
            return _DAMAGED

    @contextmanager
    def taking(self, step: int) -> Iterator[None]:
        """Whatever a peer raises when it takes a state that is not its own names the file.

        Raises:
            ConfigError: in place of it.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except _DAMAGE as error:
            raise ConfigError(
                f"checkpoint {self._path(step)} does not fit the run ({_reason(error)})"
            ) from error

    @contextmanager
    def _reading(self, step: int) -> Iterator[Any]:
        path = self._path(step)
        if not path.is_file():
            known = ", ".join(map(str, self.steps())) or "none"
            raise ConfigError(
                f"the {self._role} has no checkpoint of step {step} in {self._folder} "
                f"(it has: {known})"
            )
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except _DAMAGE as error:
            raise _DamagedError(f"checkpoint {path} is damaged ({_reason(error)})") from error

    def _wanted(self, step: int) -> dict[str, str]:
        return {**self._marks, "role": self._role, "step": str(step)}

    def _delete(self, step: int) -> None:
        path = self._path(step)
        with writing(path):
            path.unlink(missing_ok=True)
        if not any(path.parent.glob("*.safetensors")):
            shutil.rmtree(path.parent, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}" / f"{self._role}.safetensors"

    def _files(self) -> list[Path]:
        return list(self._folder.glob(f"step-*/{self._role}.safetensors"))


class _DamagedError(ConfigError):
    """A file is not as it was written."""


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _checksum(tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]) -> str:
    """Return the CRC-32 of tensors (on the CPU, contiguous) and texts, of names and types too."""
    found = zlib.crc32(json.dumps(sorted(texts.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


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
