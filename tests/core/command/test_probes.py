"""``splitlab probes``: what it lists, and what it explains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.catalogue.tables import entries
from splitlab.core.command.main import main

MINE = """
from splitlab.core import hookimpl


class Mine:
    \"\"\"Does what I want.

    Args:
        ms: how long it takes.
    \"\"\"

    def __init__(self, ms: int = 3): ...

    @hookimpl
    def run_end(self): ...
"""


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*entries("probes")]
    assert main(["probes"]) == 0
    text = capsys.readouterr().out
    assert all(row["summary"] in text for row in rows)
    assert "--probe NAME" in text


def test_one_of_a_file_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    assert main(["probes", f"{tmp_path}/mine.py:Mine"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Does what I want." in text
    assert "ms int 3 how long it takes." in text
    assert f"splitlab run --probe {tmp_path}/mine.py:Mine" in text


def test_no_such_name(fails: Callable[..., str]) -> None:
    assert "unknown probe 'nothing-like-it'" in fails("probes", "nothing-like-it")
