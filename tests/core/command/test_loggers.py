"""``splitlab loggers``: what it lists, explains, and says is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.command.main import main


def test_all_are_listed_with_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loggers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows][: len(catalogue()["loggers"])] == [*catalogue()["loggers"]]
    for row in rows:
        assert row["works_here"] == (row["missing"] is None)
        assert row["works_here"] or f"pip install 'splitlab[{row['name']}]'" in row["missing"]
    assert main(["loggers"]) == 0
    text = capsys.readouterr().out
    assert "--log NAME" in text
    assert all(row["name"] in text for row in rows)


def test_one_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loggers", "mlflow"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"mlflow: {catalogue()['loggers']['mlflow']['summary']} works here ")
    assert "experiment str splitlab that it belongs to" in text
    assert text.endswith("example: splitlab run --log mlflow:experiment=splitlab")


def test_no_such_name(fails: Callable[..., str]) -> None:
    assert "unknown logger 'nothing-like-it'" in fails("loggers", "nothing-like-it")


def test_no_library_is_imported_to_list_or_explain_one(tmp_path: Path) -> None:
    program = """
import sys
from splitlab.core.command.main import main
main(["loggers"]), main(["loggers", "wandb"])
heavy = {"torch", "numpy", "tensorboard", "wandb", "mlflow", "trackio"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_dry_run_refuses_a_logger_that_is_not_installed(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from splitlab.core import Logger\nclass Mine(Logger):\n    needs = 'nothing_like_it'\n"
    )
    monkeypatch.chdir(tmp_path)
    told = fails("run", "--log", "mine.py:Mine", "--dry-run")
    assert "nothing_like_it is not installed; pip install 'nothing_like_it'" in told
