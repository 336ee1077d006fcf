"""Fixtures: packages of others, a folder of the user's, a file of classes and a function."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from splitlab.core.catalogue import tables

SOURCE = '''
from __future__ import annotations
import dataclasses
from typing import Literal

@dataclasses.dataclass
class Mine:
    """Mine."""
    ratio: float = 0.5
    mode: Literal["a", "b"] = "a"

class Other: ...

def net(*, classes: int, depth: int = 2, wide: bool = False) -> tuple[int, int, bool]:
    """A net."""
    return classes, depth, wide

number = 3
'''


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what pretends that packages of others bring these entry points of a group."""

    def installs(group: str, **targets: str) -> None:
        points = [importlib.metadata.EntryPoint(n, t, group) for n, t in targets.items()]
        monkeypatch.setattr(
            tables, "installed", lambda group: tuple(p for p in points if p.group == group)
        )

    return installs


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in an empty folder; return where the user's own registry would be."""
    monkeypatch.delenv("SPLITLAB_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "registry.toml"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Write a file with classes and a function; forget the modules that were made of it."""
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    before = set(sys.modules)
    yield path
    for name in set(sys.modules) - before:
        if name.startswith("splitlab_file_"):
            del sys.modules[name]
