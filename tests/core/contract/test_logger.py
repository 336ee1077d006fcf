"""The base of loggers does nothing, and knows whether what a logger needs is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from splitlab.core import LoggedRun, Logger


def test_the_base_takes_everything_and_does_nothing(tmp_path: Path) -> None:
    logger = Logger()
    assert logger.unavailable() is None
    logger.begin(LoggedRun("0" * 16, "name", tmp_path, 0, {}))
    logger.log(1, {"train/loss": 1.0})
    logger.end("finished", {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_says_what_pip_is_to_be_told() -> None:
    class Bare(Logger):
        needs = "nothing_like_it"

    class Extra(Bare):
        install = "splitlab[nothing]"

    assert Bare().unavailable() == (
        "nothing_like_it is not installed; pip install 'nothing_like_it'"
    )
    assert (Extra().unavailable() or "").endswith("pip install 'splitlab[nothing]'")


def test_what_is_installed_is_found_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_library.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "a_folder").mkdir()

    class Has(Logger):
        needs = "a_library"

    class FolderOfThatName(Logger):
        needs = "a_folder"

    assert Has().unavailable() is None
    assert "a_library" not in sys.modules
    assert "not installed" in (FolderOfThatName().unavailable() or "")
