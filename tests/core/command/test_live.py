"""The displays on a terminal: what they show, and that they are gone in the end."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitlab.core.command.live import LiveReporter, LiveStudy
from splitlab.core.runs.config import Config
from splitlab.core.runs.reporter import Progress

LEDGER: Any = SimpleNamespace(total=lambda way, phase: 1500 if way == "up" else 500)
CONFIG = Config(dataset="data", cut=3, budget="steps=9", transport="link", links=("slow",))
DATA: Any = SimpleNamespace(notices=("pets: left out [x]\x1b[31m",), test=1000)
PLAN: Any = SimpleNamespace(config=CONFIG, titles=("a [b]", "c"), data=DATA)


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the output a terminal of 120 columns; in a test, where it is what is captured."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")  # a dumb one has 80 columns, whatever it says
    monkeypatch.setenv("COLUMNS", "120")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was drawn since the last look, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)


def test_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(monkeypatch)
    display = LiveReporter()
    display.begin(PLAN, Path("runs/x"), lambda: 0.25)
    display._live.refresh()
    text = shown(capsys)
    assert "a [b] + c  data · vit-mini · cut 3 · link + slow · runs/x" in text
    assert "budget steps=9" in text
    assert "note: pets: left out [x]\\x1b[31m" in text
    display.probed({"mine": "nothing [b]to see"})
    assert "probe mine: nothing [b]to see" in shown(capsys)
    facts = {"accuracy": 0.5, "loss": 1.25, "training_bytes": 2000}
    first: Any = SimpleNamespace(step=0, samples=40, **facts)
    record: Any = SimpleNamespace(step=1, samples=1000, **facts)
    for each in (first, record):  # the first one comes before any step
        display.evaluated(each)
    text = shown(capsys)
    assert "step      0   accuracy 0.5000   loss 1.2500   2 kB on 40 of 1,000 images" in text
    assert re.search(r"step      1   accuracy 0.5000   loss 1.2500   2 kB *\r?\n", text)
    progress = Progress(
        step=2, samples=8, nominal=2.0, base_bytes=8000, client_seconds=3.0, server_seconds=1.0
    )
    display.step(progress, LEDGER, 1.5)
    display._live.refresh()
    text = shown(capsys)
    for words in (
        r"25%",
        r"loss +1\.5000",
        r"accuracy +0\.5000",
        r"up +1\.5 kB",
        r"down +500 B",
        r"measured 0\.2500 of fp32 +nominal ξ 0\.2500",
        r"client 3\.0 s \(75%\) +server 1\.0 s \(25%\) +link 0\.0 s \(0%\)",
    ):
        assert re.search(words, text), words
    display.loading("train", 1000, 6000)
    display._live.refresh()
    assert "loading train: 1,000 of 6,000 images" in shown(capsys)
    display.evaluating(10, 2000)
    display._live.refresh()
    assert "evaluating 10 of 2,000 images" in shown(capsys)
    display.end(None)
    assert not display._live.is_started


def job(number: int, seed: int = 7) -> Any:
    return SimpleNamespace(number=number, title="a", config=SimpleNamespace(seed=seed))


SUMMARY = SimpleNamespace(accuracy=0.5, steps=10, bytes_up=1, bytes_down=1)
DONE: Any = SimpleNamespace(summary=SUMMARY)
STUDY: Any = SimpleNamespace(folder=Path("c"))


def test_a_study_and_its_run_share_a_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch)
    display = LiveStudy()
    display.begin(STUDY, 4, 1)
    run = display.run(job(2))
    run.begin(PLAN, Path("c/a"), lambda: 0.5)
    display.live.refresh()
    text = shown(capsys)
    assert re.search(r"38%|37%", text)  # one run and a half of four are 37.5%
    assert "1 of 4 runs, c" in text
    assert "run 2 of 4: a, seed 7" in text
    run.end(None)
    assert display.live.is_started  # a run does not take the study's display away
    display.ended(job(2), DONE)
    assert "run 2 of 4: a, seed 7: done   accuracy 0.5000" in shown(capsys)
    display.end()
    assert not display.live.is_started


def test_a_study_shows_its_runs_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch)
    display = LiveStudy()
    display.begin(STUDY, 4, 0)
    display.progress(job(1), 0.5, "step 3")
    display.progress(job(2, seed=8), 0.25, "starting [x]\x1b[31m")
    display.live.refresh()
    text = shown(capsys)
    assert "19%  0 of 4 runs, c" in text
    assert "50%  a, seed 7: step 3" in text
    assert "25%  a, seed 8: starting [x]\\x1b[31m" in text
    display.ended(job(1), DONE)
    display.live.refresh()
    text = shown(capsys)
    assert "run 1 of 4: a, seed 7: done   accuracy 0.5000" in text
    display.end()
    assert not display.live.is_started
