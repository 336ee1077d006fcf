"""The scripts that made what ships; they stand outside the package."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Callable

import pytest

from splitlab.core.catalogue.tables import ROOT


@pytest.fixture(scope="session")
def script() -> Callable[[str], types.ModuleType]:
    """Return what loads a script of core/assets by its name."""

    def load(name: str) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "core" / "assets" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
