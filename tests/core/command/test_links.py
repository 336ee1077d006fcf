"""``splitlab links``: what it lists, and what it explains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.catalogue.tables import entries
from splitlab.core.command.main import main

MINE = """
class Mine:
    \"\"\"Does what I want.

    Args:
        ms: how long it takes.
    \"\"\"

    def __init__(self, ms: int = 3): ...
"""


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["links", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*entries("links")]
    assert main(["links"]) == 0
    text = capsys.readouterr().out
    assert all(row["summary"] in text for row in rows)
    assert "--link NAME" in text


def test_one_of_a_file_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    assert main(["links", f"{tmp_path}/mine.py:Mine"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Does what I want." in text
    assert "ms int 3 how long it takes." in text
    assert f"splitlab run --link {tmp_path}/mine.py:Mine" in text


def test_a_preset_is_explained_with_its_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["links", "lte", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    told = {p["name"]: p["default_text"] for p in facts["parameters"]}
    preset = entries("links")["lte"].target.partition(":")[2]
    assert dict(item.split("=") for item in preset.split(",")).items() <= told.items()
    assert told["loss"] == "0.0"
    assert facts["example"] == "splitlab run --link lte"


def test_no_such_name(fails: Callable[..., str]) -> None:
    assert "unknown link 'nothing-like-it'" in fails("links", "nothing-like-it")
