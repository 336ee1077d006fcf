"""``splitlab new-plugin``: it says what it wrote and what comes next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.command.main import main


def test_it_says_what_it_wrote_and_what_comes_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "token-norm"]) == 0
    text = capsys.readouterr().out
    assert "wrote token-norm/token_norm.py" in text
    assert "splitlab check token-norm" in text
    assert "exists already" in fails("new-plugin", "token-norm")
    assert main(["new-plugin", "token-norm", "--directory", "elsewhere"]) == 0
    assert (tmp_path / "elsewhere" / "token_norm.py").is_file()
