"""Who is told how a run goes: in which order, and with what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import SplitlabError, run
from splitlab.core.contract.errors import Interrupted
from splitlab.core.runs.plan import Plan
from splitlab.core.runs.records import EvaluationRecord
from splitlab.core.runs.reporter import Progress, Reporter, Result
from splitlab.core.wire.ledger import Ledger


class Notes(Reporter):
    """Notes everything."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def begin(self, plan: Plan, folder: Path, used: Callable[[], float]) -> None:
        self.used = used
        self.told.append(("begin", plan.budget.amount, folder.name, round(used(), 6)))

    def loading(self, part: str, done: int, total: int) -> None:
        self.told.append(("loading", part, done, total))

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        up = ledger.total("up", "training")
        self.told.append(("step", progress.step, progress.samples, round(self.used(), 6), up > 0))

    def evaluating(self, done: int, total: int) -> None:
        self.told.append(("evaluating", done, total))

    def evaluated(self, record: EvaluationRecord) -> None:
        self.told.append(("evaluated", record.step))

    def end(self, result: Result | None) -> None:
        self.told.append(("end", result))

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.told if entry[0] in kinds]


OPTIONS: dict[str, Any] = {
    "weights": "none",
    "batch_size": 8,
    "threads": 1,
    "device": "cpu",
    "eval_every": 2,
}


def test_a_run_is_told_from_its_beginning_to_its_end(two_classes: str, tmp_path: Path) -> None:
    notes = Notes()
    result = run(
        reporter=notes,
        data_dir=two_classes,
        output=str(tmp_path / "r"),
        budget="steps=4",
        **OPTIONS,
    )
    # 20 training images are batches of 8, 8 and 4.
    assert [e for e in notes.told if e[0] not in ("loading", "end")] == [
        ("begin", 4.0, "r", 0.0),
        ("step", 1, 8, 0.25, True),
        ("step", 2, 16, 0.5, True),
        ("evaluating", 8, 8),
        ("evaluated", 2),
        ("step", 3, 20, 0.75, True),
        ("step", 4, 28, 1.0, True),
        ("evaluating", 8, 8),
        ("evaluated", 4),
    ]
    assert notes.told[-1][0] == "end"
    assert notes.told[-1][1] is result
    loaded = notes.of("loading")
    assert loaded[-1][2] == loaded[-1][3]
    assert notes.told.index(loaded[-1]) < notes.told.index(notes.of("begin")[0])


def test_a_run_that_failed_or_was_stopped_ends_with_none(two_classes: str, tmp_path: Path) -> None:
    options = {"data_dir": two_classes, "budget": "steps=4", **OPTIONS}
    stopped = Notes()
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        run(
            reporter=stopped, output=str(tmp_path / "a"), should_stop=lambda: next(asked), **options
        )
    assert stopped.told[-1] == ("end", None)
    assert [entry[1] for entry in stopped.of("step")] == [1]
    failed = Notes()
    with pytest.raises(SplitlabError):
        run(reporter=failed, output=str(tmp_path / "b"), **{**options, "cut": 99})
    assert failed.told == [("end", None)]


def test_the_reporter_of_nobody_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Reporter()
    silent.loading("train", 1, 2)
    silent.step(Progress(step=1), Ledger(), 0.5)
    silent.evaluating(1, 2)
    silent.end(None)
    assert capsys.readouterr() == ("", "")


def test_progress_of_an_older_checkpoint_did_not_tell_of_data() -> None:
    values = dataclasses.asdict(Progress(step=3, samples=9, client_seconds=2.0, data_seconds=1.0))
    assert Progress.read(values, 3).data_seconds == 1.0
    del values["data_seconds"]
    older = Progress(step=3, samples=9, client_seconds=2.0, data_seconds=None)
    assert Progress.read(values, 3) == older
    assert Progress.read(dataclasses.asdict(older), 3) == older  # also when it has gone on
    with pytest.raises(ValueError, match="its progress is"):
        Progress.read({**values, "data_seconds": -1.0}, 3)
    del values["samples"]
    with pytest.raises(ValueError, match="its progress is"):
        Progress.read(values, 3)
