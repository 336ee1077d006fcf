"""What a run imports, and that what is imported is not looked through for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitlab.core.catalogue.imports import heavy_imports

UNUSED = ["datasets", "matplotlib", "pandas", "pyarrow.dataset", "scipy", "sklearn", "zstandard"]


def test_a_run_of_what_ships_imports_only_what_it_uses(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import gc, sys; from splitlab.core.command.main import main; status = main();"
            "print(gc.get_freeze_count(), gc.isenabled(), *sys.modules); sys.exit(status)",
            *("run", "--quiet", "--budget", "steps=1", "--batch-size", "1000", "--threads", "1"),
            *("--model", "vit:image_size=28,channels=1,patch=14,width=8,depth=1,heads=1"),
            *("--device", "cpu", "--output", str(tmp_path / "r")),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    frozen, enabled, *imported = done.stdout.split()
    assert "torch" in imported
    found = {*UNUSED} & {*imported}
    assert not found or not found - imported_by_libraries()
    assert int(frozen) > 100_000
    assert enabled == "True"


def imported_by_libraries() -> set[str]:
    """Return what the libraries import by themselves where much else is installed."""
    code = "import sys, timm, safetensors.torch, pyarrow.parquet; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {*done.stdout.split()}


class Calls:
    """Counts what is asked of the garbage collection, which stays as it is."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        for name in ("disable", "enable", "freeze"):
            patch.setattr(gc, name, lambda name=name: self.made.append(name))


@pytest.fixture
def calls() -> Iterator[Calls]:
    with pytest.MonkeyPatch.context() as patch:
        yield Calls(patch)


def test_garbage_is_collected_again_whatever_an_import_raises(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(ImportError, match="no torch"), heavy_imports():
        raise ImportError("no torch")
    assert calls.made == ["disable", "freeze", "enable"]


@pytest.mark.parametrize("torch_is_there", [True, False])
def test_the_garbage_of_somebody_elses_process_is_left_alone(
    torch_is_there: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch_is_there:
        monkeypatch.setitem(sys.modules, "torch", sys)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        monkeypatch.setattr(gc, "isenabled", lambda: False)
    with heavy_imports():
        pass
    assert calls.made == []
