"""What a plugin must leave alone: global random state, and objects that both peers can reach."""

from __future__ import annotations

import enum
import random
import types
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch

__all__ = ["Belongings", "GlobalRandom"]


class GlobalRandom:
    """Seeds every global random generator inside the block and puts its state back afterwards."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> GlobalRandom:
        self._before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        torch.default_generator.manual_seed(self._seed)
        random.seed(self._seed)
        np.random.seed(self._seed)  # the old, global one: it is what may be drawn from
        self._seeded = self._states()
        return self

    def disturbed(self) -> list[str]:
        """Return the modules whose state is no longer what the block began with."""
        return [name for name, state in self._states().items() if state != self._seeded[name]]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        of_torch, of_python, of_numpy = self._before
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)

    @staticmethod
    def _states() -> dict[str, Any]:
        _, words, *rest = np.random.get_state()
        return {
            "torch": torch.get_rng_state().tolist(),
            "random": random.getstate(),
            "numpy": [np.asarray(words).tolist(), *rest],
        }


class Belongings:
    """All objects that can change and that a plugin's instance can reach, class attributes too.

    Args:
        instance: the plugin, as it was set up.
    """

    def __init__(self, instance: object) -> None:
        self._instance = instance
        self._found = dict(_reachable(instance))

    @classmethod
    def changed_together(cls, client: Belongings, server: Belongings) -> list[str]:
        """Return what both instances reach and what is no longer as it was set up, by path."""
        now = dict(_reachable(client._instance))
        shared = client._found.keys() & server._found.keys() & now.keys()
        return sorted(
            now[key].path for key in shared if now[key].content != client._found[key].content
        )


class _Thing:
    """An object, kept alive so that its id stays its own, and what it held when it was found."""

    def __init__(self, path: str, value: object, content: object, held: object) -> None:
        self.path = path
        self.content = content
        self._alive = (value, held)


_FIXED = (
    *(int, float, str, bytes, complex, enum.Enum, torch.dtype, torch.device),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, property),
)


def _reachable(instance: object) -> Iterator[tuple[int, _Thing]]:
    classes = type(instance).__mro__[:-1]
    todo: deque[tuple[str, object]] = deque([(classes[0].__name__, instance)])
    todo += [(cls.__name__, cls) for cls in classes]
    known: set[int] = set()
    while todo:
        path, value = todo.popleft()
        other_class = isinstance(value, type) and value not in classes
        if id(value) in known or value is None or other_class or isinstance(value, _FIXED):
            continue
        known.add(id(value))
        parts = list(_parts(value))
        content = tuple((part, id(held)) for part, held in parts), _numbers(value)
        yield id(value), _Thing(path, value, content, parts)
        todo += [(path + part, held) for part, held in parts]


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what the object holds, each with its path from there."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", held) for key, held in value.items())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from ((f"[{i}]", held) for i, held in enumerate(value))
    elif not isinstance(value, (torch.Tensor, np.ndarray, torch.Generator)):
        names = [*getattr(value, "__dict__", ())]
        if not isinstance(value, type):
            names += [name for cls in type(value).__mro__ for name in _slots(cls)]
        for name in names:
            if not name.startswith("__"):
                yield f".{name}", getattr(value, name, None)


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _numbers(value: Any) -> object:
    """Return what tells whether an object that holds numbers was written to."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr(), value._version, tuple(value.shape)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    return None
