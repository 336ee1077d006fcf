"""``splitlab estimate``: what it prints of recorded runs, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.command.main import main
from splitlab.core.report.estimate import profiles
from splitlab.core.runs.config import Config
from splitlab.core.runs.records import EvaluationRecord, StepRecord, Summary, version_line


def recorded(folder: Path, *, finished: bool = True, seed: int = 0) -> Path:
    """Write what a run of two steps would have left."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(Config(dataset="d", cut=3, seed=seed).to_toml())
    (folder / "run.json").write_text(json.dumps({"id": folder.name}))
    known: dict[str, Any] = {"stack": (), "transport": "t", "dataset": "d", "model": "m", "cut": 3}
    known |= {"accuracy": 0.5, "loss": 1.0, "steps": 2, "epochs": 1.0, "seconds": 9.0, "seed": 0}
    known |= {"client_seconds": 2.0, "server_seconds": 1.0, "link_seconds": 0.0}
    known |= {"ratio_nominal": 1.0, "ratio_measured": 1.0, "bytes_up": 2000, "bytes_down": 2000}
    if finished:
        (folder / "summary.json").write_text(Summary(**known).text())
    records = [
        StepRecord(1, 2.0, 1000, 1000),
        StepRecord(2, 1.0, 1000, 1000),
        EvaluationRecord(2, 0.5, 1.0, True, 0, 0, 4000),
    ]
    lines = [version_line(), *(record.line() for record in records)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_a_line_for_every_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(recorded(tmp_path / "a"))
    assert main(["estimate", folder]) == 0
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in profiles())
    assert "until an accuracy of 0.5000, the highest that every run reached" in text
    assert "assumed" not in text
    options = ["--link", "rate=1mbit", "--client-speed", "0.1", "--accuracy", "0.9"]
    assert main(["estimate", folder, *options]) == 0
    text = capsys.readouterr().out
    assert "never" in text
    assert "until an accuracy of 0.9000; estimated" in text
    assert "the client is assumed to compute 0.1 times as fast" in text


def test_runs_that_differ_by_seed_are_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        recorded(tmp_path / f"a{seed}", seed=seed)
    recorded(tmp_path / "c", seed=2, finished=False)
    assert main(["estimate", str(tmp_path), "--link", "delay=1s"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "delay=1s" in line]
    assert " ".join(line.split()) == "none delay=1s 2 3.5 s 7 s 57% 7 s"


def test_json_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path / "a")
    recorded(tmp_path / "b", finished=False, seed=1)
    assert main(["estimate", str(tmp_path), "--link", "delay=1s", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["link"] == "delay=1s"
    assert found["link_seconds"] == pytest.approx(4.0)
    assert found["seconds"] == found["reached_seconds"] == pytest.approx(7.0)
    assert found["run"] == str(tmp_path / "a")


def test_bad_input(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    folder = str(recorded(tmp_path / "a"))
    assert "is no folder" in fails("estimate", str(tmp_path / "nothing"))
    assert "no run is in" in fails("estimate", str(tmp_path / "empty"))
    assert "unknown link 'lta'" in fails("estimate", folder, "--link", "lta")
    assert "rate=20 is not allowed" in fails("estimate", folder, "--link", "rate=20")
    assert "--client-speed 0 is not" in fails("estimate", folder, "--client-speed", "0")
    unfinished = str(recorded(tmp_path / "c", finished=False))
    assert "only a finished run knows" in fails("estimate", unfinished)


def test_the_help_says_what_it_is(help_of: Callable[..., str]) -> None:
    text = help_of("estimate")
    assert "trains nothing" in text
    assert "--client-speed X" in text
