"""Lines of text: which come always, which only now and then, and what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitlab.core.command import progress as module
from splitlab.core.command.live import LiveReporter, LiveStudy
from splitlab.core.command.progress import (
    PlainReporter,
    PlainStudy,
    RunState,
    StudyState,
    ending,
    reporter,
    study_reporter,
)
from splitlab.core.runs.config import Config
from splitlab.core.runs.records import EvaluationRecord
from splitlab.core.runs.reporter import Progress
from splitlab.core.studies.conduct import StudyReporter

LEDGER: Any = SimpleNamespace(total=lambda way, phase: 1500 if way == "up" else 2_000_000)


class Clock:
    """Stands in for `time.monotonic`."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    return clock


def plan(config: Config, *titles: str, notices: tuple[str, ...] = ()) -> Any:
    data = SimpleNamespace(notices=notices, test=1000)
    return SimpleNamespace(config=config, titles=titles, data=data)


def progress(step: int, samples: int, seconds: float) -> Progress:
    return Progress(step=step, samples=samples, client_seconds=seconds)


def test_time_left_goes_by_the_share_of_the_budget(clock: Clock) -> None:
    state = RunState()
    used = iter([0.5, 0.5, 0.6, 0.999, 1.0])
    state.total = lambda: next(used)
    assert state.left() == ""  # of a resumed run, of which half was done before
    clock.now += 30
    assert state.left() == ""
    clock.now += 30
    assert state.left() == "4:00 left"  # a tenth took a minute, four more are to come
    clock.now += 59_940
    assert state.left() == "2:00 left"
    assert state.left() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (245, "4:05"), (3612, "1:00:12")]
)
def test_a_time_reads_like_a_clock(seconds: float, text: str) -> None:
    assert module._clock(seconds) == text


def test_speed_is_of_this_session() -> None:
    state = RunState()
    assert state.speed(progress(10, 1000, 50.0)) == 0
    assert state.speed(progress(11, 1100, 52.0)) == 50
    assert state.speed(progress(12, 1200, 60.0)) == 20


def test_a_run_in_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainReporter()
    lines.starting("reading the data")
    assert capsys.readouterr().out == "start  reading the data\n"
    config = Config(dataset="data", cut=3, budget="steps=9", transport="link")
    lines.begin(plan(config, "a", "b"), Path("runs/x"), lambda: 0.25)
    assert capsys.readouterr().out == (
        "run    a + b on data, vit-mini, cut 3\nlink   link, budget steps=9, folder runs/x\n"
    )
    lines.begin(plan(replace(config, links=("slow:ms=3", "b")), "a"), Path("x"), lambda: 0.25)
    assert "link   link + slow:ms=3 + b, budget" in capsys.readouterr().out
    lines.step(progress(1, 8, 1.0), LEDGER, 2.0)
    assert capsys.readouterr().out == ""  # the first lines are just printed
    clock.now += 5
    lines.step(progress(2, 16, 2.0), LEDGER, 1.5)
    assert capsys.readouterr().out == (
        "step   2: 25% of the budget, loss 1.5000, 8 images/s, up 1.5 kB, down 2 MB\n"
    )
    clock.now += 4.9
    lines.evaluating(8, 1000)
    assert capsys.readouterr().out == ""
    clock.now += 0.2
    lines.evaluating(16, 1000)
    assert capsys.readouterr().out == "eval   16 of 1,000 images\n"
    clock.now += 6
    lines.loading("train", 1000, 6000)
    assert capsys.readouterr().out == "load   train: 1,000 of 6,000 images\n"
    record = EvaluationRecord(
        step=2,
        accuracy=0.5,
        loss=1.0,
        compressed=True,
        bytes_up=1,
        bytes_down=1,
        training_bytes=999,
    )
    lines.evaluated(record)
    lines.evaluated(replace(record, accuracy_uncompressed=0.75, samples=1000))
    lines.evaluated(replace(record, samples=40))
    lines.probed({"mine": "nothing to see"})
    assert capsys.readouterr().out.splitlines() == [
        "eval   step 2: accuracy 0.5000, loss 1.0000, 999 B of training traffic",
        "eval   step 2: accuracy 0.5000, uncompressed 0.7500, loss 1.0000, "
        "999 B of training traffic",
        "eval   step 2: accuracy 0.5000 on 40 of 1,000 images, loss 1.0000, "
        "999 B of training traffic",
        "probe  mine: nothing to see",
    ]
    lines.end(None)
    assert capsys.readouterr().out == ""


def job(number: int, title: str = "a", seed: int = 0) -> Any:
    return SimpleNamespace(number=number, title=title, config=SimpleNamespace(seed=seed))


STUDY: Any = SimpleNamespace(folder=Path("c"))
DONE: Any = SimpleNamespace(
    summary=SimpleNamespace(accuracy=0.5, steps=1000, bytes_up=1500, bytes_down=10)
)
TOLD = "done   accuracy 0.5000, 1,000 steps, up 1.5 kB, down 10 B"


def test_a_study_in_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainStudy()
    lines.begin(STUDY, 4, 0)
    lines.begin(STUDY, 4, 2)
    run = lines.run(job(3, "a + b", 7))
    run.begin(plan(Config(), "a", "b"), Path("c/a"), lambda: 0.0)  # the study has said it
    clock.now += 60
    lines.ended(job(3, "a + b", 7), DONE)
    lines.end()
    assert capsys.readouterr().out.splitlines() == [
        "study  4 runs in c",
        "study  4 runs in c, 2 of them finished before",
        "run 3 of 4: a + b, seed 7",
        f"{TOLD} (run 3 of 4: a + b, seed 7, 1:00 left)",
    ]
    ended: Any = SimpleNamespace(summary=None, state="diverged", error="the loss is nan")
    assert ending(ended) == "diverged the loss is nan"


def test_runs_elsewhere_in_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainStudy()
    lines.begin(STUDY, 4, 1)
    lines.progress(job(2), 0.0, "starting")
    lines.progress(job(3), 0.0, "starting")
    clock.now += 30
    lines.progress(job(2), 0.5, "step 5")
    lines.progress(job(3), 0.5, "step 5")  # the last line is not old enough
    lines.ended(job(2), DONE)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "run 2 of 4: a, seed 0",
        "run 3 of 4: a, seed 0",
        "study  1 of 4 runs, 2:30 left, c",  # half a run took half a minute
        f"{TOLD} (run 2 of 4: a, seed 0, 0:30 left)",
    ]


def test_no_time_is_told_that_nobody_can_know(clock: Clock) -> None:
    state = StudyState()
    state.begin(STUDY, 4, 2)
    assert (state.left(), state.share()) == ("", 0.5)
    clock.now += 60
    state.progress(job(3), 0.001, "step 1")
    assert state.left() == ""  # a guess from a thousandth of a run
    state.progress(job(3), 0.5, "step 500")
    assert (state.left(), state.share()) == ("3:00 left", 0.625)


def test_what_the_data_leave_out_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainStudy()
    for number in (1, 2):
        run = lines.run(job(number))
        run.begin(plan(Config(), notices=("left [out] a", "b")), Path("c"), lambda: 0.0)
    assert capsys.readouterr().out.splitlines() == [
        "run 1 of 0: a, seed 0", "note   left [out] a", "note   b", "run 2 of 0: a, seed 0",
    ]  # fmt: skip


def test_no_name_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    red = "\x1b[31m"
    lines = PlainReporter()
    lines.begin(plan(Config(data_dir=red), red, notices=(red,)), Path(red), lambda: 0.0)
    lines.accepted([red])
    study = PlainStudy()
    where: Any = SimpleNamespace(folder=Path(red))
    study.begin(where, 1, 0)
    study.run(job(1, red))
    failed: Any = SimpleNamespace(summary=None, state="failed", error=red)
    study.ended(job(1, red), failed)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert text.count("\\x1b[31m") == 9


def test_the_output_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(study_reporter(quiet=True)) is StudyReporter
    assert type(reporter()) is PlainReporter
    assert type(study_reporter(quiet=False)) is PlainStudy
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    display = reporter()
    display.end(None)
    assert type(display) is LiveReporter
    assert type(study_reporter(quiet=False)) is LiveStudy
