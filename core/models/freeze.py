"""What of a model is trained: all of it, its head, or parameters by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from splitlab.core.contract.errors import ConfigError
from splitlab.core.models.segments import Segmented

__all__ = ["freeze"]

_NEAREST = 3


def freeze(model: Segmented, train: Sequence[str]) -> None:
    """Let nothing of a model be trained but what is named; its parts inherit that.

    Args:
        model: whole.
        train: parameters, modules of them, or patterns with ``*`` and ``?``; ``last`` is the head.

    Raises:
        ConfigError: a name matches nothing; says which are the nearest.
    """
    parameters = dict(model.module.named_parameters())
    chosen: set[str] = set()
    for name in train:
        found = _head(model, [*parameters]) if name == "last" else _matching(name, [*parameters])
        if not found:
            raise ConfigError(f"--train {name} names no parameter of the model{_near(name, model)}")
        chosen.update(found)
    for name, parameter in parameters.items():
        parameter.requires_grad_(parameter.requires_grad and name in chosen)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    return [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]


def _head(model: Segmented, names: Sequence[str]) -> list[str]:
    """Return what makes logits: the head that weights for other classes do not fit, if any does."""
    own = [name for name in names if model.heads and name.startswith(model.heads)]
    return own or [name for name in names if model.segment_of(name) == model.last_cut + 1]


def _near(name: str, model: Segmented) -> str:
    """Return the nearest names of parameters and of modules that have some, for a message."""
    parts = [name.split(".") for name, _ in model.module.named_parameters()]
    known = {".".join(path[:end]) for path in parts for end in range(1, len(path) + 1)}
    near = difflib.get_close_matches(name, sorted(known), n=_NEAREST, cutoff=0.3)
    first = sorted({path[0] for path in parts})
    return f"; the nearest: {', '.join(near)}" if near else f"; its modules: {', '.join(first)}"
