"""Weights from a file: which one, what is in it, and whether the model can take it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from splitlab.core.catalogue.loading import split
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import ConfigError, Notice
from splitlab.core.models.segments import Segmented

__all__ = ["load_weights", "weights_file"]

_WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training programs keep the tensors."""
_PREFIX = re.compile(r"(module|_orig_mod|model)\.")
"""What wrappers of modules put in front of every name."""
_NAMED = 3
"""So many tensors are named of those that do not fit."""


def weights_file(name: str, weights: str) -> tuple[str, Path] | None:
    """Return what names the file that a model starts from, for messages, and the file.

    Args:
        name: of the model, with or without settings.
        weights: a file, ``"default"`` for what the catalogue names, or ``"none"``.

    Raises:
        ConfigError: there is no such file.
    """
    if weights not in ("default", "none"):
        path = Path(weights)
        if not path.is_file():
            raise ConfigError(
                f"--weights {path}: no such file; give a safetensors file, a .pth file, default or "
                "none"
            )
        return f"--weights {path}", path
    entry = entries("models").get(split("models", name)[0])
    if weights == "none" or entry is None or "weights" not in entry.facts:
        return None
    path = entry.folder / entry.facts["weights"]
    who = f"weights of [models.{entry.name}] (from {entry.source}): {path}"
    if not path.is_file():
        raise ConfigError(f"{who} is no file; mend the registry, or give --weights none or FILE")
    return who, path


def load_weights(model: Segmented, who: str, path: Path) -> None:
    """Load a file into a model; a head for another number of classes is left out.

    Names may carry what wrappers put in front of them; a `Notice` says what was taken off, and one
    says that a head was left out.

    Args:
        model: to load into.
        who: names the file, for messages.
        path: of a safetensors file, or of what ``torch.save`` wrote, tensors alone.

    Raises:
        ConfigError: the file cannot be read, or is of another model; names what does not fit.
    """
    target = model.module.state_dict()
    found, stripped = _unwrapped(_read(who, path), target)
    odd = next((key for key, value in found.items() if not isinstance(value, torch.Tensor)), None)
    if odd is not None or not found:
        what = "nothing" if odd is None else f"{odd!r}, a {type(found[odd]).__name__},"
        raise ConfigError(f"{who}: it holds {what} where tensors by name are expected")
    if stripped:
        told = f"{who}: {' and '.join(map(repr, stripped))} taken off the names of its tensors"
        warnings.warn(told, Notice, stacklevel=2)
    try:
        state = model.adapted(found)
    except Exception as error:
        raise ConfigError(
            f"{who}: not weights of such a model ({type(error).__name__}: {error})"
        ) from error
    heads = model.heads
    other = [
        key
        for key, value in state.items()
        if key.startswith(heads) and (key not in target or target[key].shape != value.shape)
    ]
    state = {key: value for key, value in state.items() if key not in other}
    wrong = _wrong(state, target, heads)
    if wrong:
        raise ConfigError(
            f"{who} does not fit the model: {'; '.join(wrong)}; give weights of the same model, or "
            "none"
        )
    model.module.load_state_dict(state, strict=False)
    if other:
        told = f"{who}: its head ({', '.join(other)}) is left out; the model's own begins random"
        warnings.warn(told, Notice, stacklevel=2)


def _read(who: str, path: Path) -> Any:
    """Return what is in the file; nothing of it is ever run."""
    try:
        with path.open("rb") as file:
            begins = file.read(4)
        if begins[:2] == b"PK" or begins[:1] == b"\x80":  # a zip, or a bare pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{who}: it holds more than tensors, or is damaged, and is not opened, since a pickle "
            f"can run anything ({type(error).__name__}: {reason[:200]}); save the state_dict() "
            "alone, best as safetensors"
        ) from error
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise ConfigError(
            f"{who}: not a safetensors file, nor one of torch.save ({type(error).__name__}: "
            f"{error})"
        ) from error


def _unwrapped(found: Any, target: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the tensors by their bare names, and what stood around and in front of them."""
    taken: list[str] = []
    while isinstance(found, Mapping):
        wrapper = next((w for w in _WRAPPERS if isinstance(found.get(w), Mapping)), None)
        if wrapper is None:
            break
        found = found[wrapper]
    if not isinstance(found, Mapping):
        return {type(found).__name__: found}, taken
    tensors = {str(key): value for key, value in found.items()}
    while prefix := _PREFIX.match(next(iter(tensors), "")):
        front = prefix[0]
        if not all(key.startswith(front) for key in tensors):
            break
        if any(key.startswith(front) for key in target):
            break  # the model's own names begin so
        tensors = {key.removeprefix(front): value for key, value in tensors.items()}
        taken.append(front)
    return tensors, taken


def _wrong(
    state: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], heads: tuple[str, ...]
) -> list[str]:
    """Return what does not fit, kind by kind, the first few of each by name."""
    shared = [key for key in target if key in state]
    kinds: list[tuple[str, list[str], Callable[[str], str]]] = [
        (
            "of another shape",
            [key for key in shared if state[key].shape != target[key].shape],
            lambda key: f"{key} is {[*state[key].shape]}, the model's {[*target[key].shape]}",
        ),
        (
            "of another kind of number",
            [key for key in shared if _kind(state[key]) != _kind(target[key])],
            lambda key: f"{key} is {_kind(state[key])}, the model's {_kind(target[key])}",
        ),
        ("missing", [key for key in target if key not in state and not key.startswith(heads)], str),
        ("unexpected", [key for key in state if key not in target], str),
    ]
    told = []
    for what, keys, named in kinds:
        if keys:
            first = ", ".join(map(named, keys[:_NAMED]))
            more = ", …" if len(keys) > _NAMED else ""
            told.append(f"{len(keys)} tensors {what} ({first}{more})")
    return told


def _kind(tensor: torch.Tensor) -> str:
    """Return the dtype; floating point of any width is one kind."""
    return "floating point" if tensor.is_floating_point() else str(tensor.dtype)
