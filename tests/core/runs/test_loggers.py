"""What loggers are told of a run, that they decide nothing of it, and that none of them ends it."""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest

from splitlab.core import Config, ConfigError, Diverged, Interrupted, LoggedRun, Logger, run
from splitlab.core.contract.errors import Notice
from splitlab.core.runs.loggers import Loggers, numbers_of, options_of
from splitlab.core.runs.records import (
    EvaluationRecord,
    StepRecord,
    read_records,
    read_state,
    read_summary,
)

pytestmark = pytest.mark.usefixtures("starts_fast")

MINE = """
import json
from pathlib import Path
from splitlab.core import Logger

class Mine(Logger):
    def __init__(self, *, at: int = 0) -> None:
        self.at = at

    def begin(self, run):
        self.file = run.folder / "told.jsonl"
        self.tell("begin", run.id, run.name, run.step, dict(run.options), run.tags)

    def log(self, step, numbers):
        if step == self.at:
            raise OSError("the disk is full")
        self.tell("log", step, dict(numbers))

    def end(self, state, summary):
        self.tell("end", state, dict(summary))

    def tell(self, *words):
        with self.file.open("a") as file:
            print(json.dumps(words), file=file)

class Probe:
    from splitlab.core import hookimpl

    @hookimpl
    def metrics(self, step):
        return {"answer": 42.0 + step}
"""


@pytest.fixture
def options(real: Any, noise_data: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "mine.py").write_text(MINE)
    return {
        **real.SMALL,
        "batch_size": 10,
        "budget": "steps=4",
        "eval_every": 2,
        "plugins": ("quantize",),
        "probes": (f"{tmp_path}/mine.py:Probe",),
        "data_dir": noise_data,
    }


@pytest.fixture
def mine(tmp_path: Path) -> str:
    return f"{tmp_path}/mine.py:Mine"


def told(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]


class Notes(Logger):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def begin(self, run: LoggedRun) -> None:
        self.said.append(run)

    def log(self, step: int, numbers: Any) -> None:
        self.said.append((step, dict(numbers)))

    def end(self, state: str, summary: Any) -> None:
        self.said.append((state, dict(summary)))


# What they are told.


def test_a_record_is_numbers_by_name() -> None:
    step = StepRecord(3, 0.5, 10, 20, {"adc": {"kept": 4}, "time": {"adc before_send": 0.1}})
    assert numbers_of(step) == {
        **{"train/loss": 0.5, "train/bytes_up": 10, "train/bytes_down": 20},
        **{"adc/kept": 4.0, "time/adc before_send": 0.1},
    }
    scored = EvaluationRecord(2, 0.75, math.inf, True, 1, 2, 300, accuracy_uncompressed=0.5)
    assert numbers_of(scored) == {
        **{"eval/accuracy": 0.75, "eval/loss": math.inf, "eval/bytes_up": 1, "eval/bytes_down": 2},
        **{"eval/training_bytes": 300, "eval/accuracy_uncompressed": 0.5},
    }


def test_options_are_one_value_each_and_decide_the_run() -> None:
    config = Config(plugins=("adc", "quantize"), name="n", tags=("t",), loggers=("none",))
    found = options_of(config)
    assert found["plugins"] == "adc + quantize"
    assert (found["probes"], found["train"]) == ("none", "all")
    assert (found["seed"], found["lr"], found["pretrained"]) == (0, 3e-4, False)
    assert {"name", "tags", "loggers", "output", "cut"}.isdisjoint(found)  # cut is not decided yet


def test_a_run_tells_all_that_it_logs(options: Any, mine: str, tmp_path: Path) -> None:
    result = run(output=str(tmp_path / "r"), name="my run", tags=("a",), loggers=(mine,), **options)
    begin, *logged, end = told(result.folder)
    word, id, name, step, known, tags = begin
    assert (word, name, step, tags) == ("begin", "my run", 0, ["a"])
    assert id == json.loads((result.folder / "run.json").read_text())["id"]
    assert (known["plugins"], known["cut"], known["budget"]) == ("quantize", 3, "steps=4")
    records = read_records(result.folder)
    assert logged == [["log", each.step, numbers_of(each)] for each in records]
    assert [numbers["Probe/answer"] for _, _, numbers in logged if "Probe/answer" in numbers] == [
        *(42.0, 43.0, 44.0, 45.0)
    ]
    assert end[:2] == ["end", "finished"]
    summary = json.loads((result.folder / "summary.json").read_text())
    assert end[2] == {
        key: value
        for key, value in summary.items()
        if type(value) in (int, float) and key != "version"
    }


def test_a_run_that_goes_on_says_where(options: Any, mine: str, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        run(
            output=str(tmp_path / "r"),
            loggers=(mine,),
            should_stop=lambda: next(asked),
            **options,
        )
    first = told(tmp_path / "r")
    assert first[-1] == ["end", "interrupted", {}]
    (tmp_path / "r" / "told.jsonl").unlink()
    run(resume=tmp_path / "r")
    again = told(tmp_path / "r")
    assert again[0][:3] == first[0][:3]
    assert again[0][3] == 2
    assert [step for word, step, *_ in again if word == "log"] == [3, 4, 4]


def test_how_a_run_ended_is_told(options: Any, mine: str, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        run(output=str(tmp_path / "r"), loggers=(mine,), **{**options, "lr": 1e6})
    assert told(tmp_path / "r")[-1] == ["end", "diverged", {}]


# They decide nothing.


def test_who_does_not_wait_for_a_logger_has_a_finished_run(options: Any, tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "from splitlab.core import Logger\n"
        "class Slow(Logger):\n"
        "    def end(self, state, summary):\n"
        "        raise KeyboardInterrupt\n"
    )
    with pytest.raises(KeyboardInterrupt):
        run(output=str(tmp_path / "r"), loggers=(f"{file}:Slow",), **options)
    state = read_state(tmp_path / "r")
    assert state is not None
    assert state.state == "finished"
    assert read_summary(tmp_path / "r").steps == 4


def test_losses_and_bytes_are_the_same_with_and_without(
    real: Any, options: Any, mine: str, tmp_path: Path
) -> None:
    without = run(output=str(tmp_path / "without"), **options)
    logged = run(output=str(tmp_path / "withlog"), loggers=(mine, "none"), **options)
    assert real.losses(logged.folder) == real.losses(without.folder)
    assert logged.ledger.counts == without.ledger.counts


def test_they_may_change_when_a_run_goes_on(options: Any, mine: str, tmp_path: Path) -> None:
    folder = run(output=str(tmp_path / "r"), loggers=(mine,), **options).folder
    lines = len(told(folder))
    assert run(resume=folder, loggers=("none",), budget="steps=5").summary.steps == 5
    assert len(told(folder)) == lines
    assert 'loggers = ["none"]' in (folder / "config.toml").read_text()
    assert run(resume=folder, budget="steps=6").summary.steps == 6
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('["none"]', "[]"))
    assert run(resume=folder, budget="steps=7").summary.steps == 7  # edited, and nothing is said


def test_the_server_of_two_processes_does_not_log(
    real: Any, options: Any, mine: str, tmp_path: Path
) -> None:
    inside = run(output=str(tmp_path / "inside"), loggers=(mine,), **options)
    beside = run(output=str(tmp_path / "beside"), loggers=(mine,), transport="tcp", **options)
    assert [line[0] for line in told(beside.folder)].count("begin") == 1
    assert [line for line in told(beside.folder) if line[0] == "log"] == [
        line for line in told(inside.folder) if line[0] == "log"
    ]


# None of them ends a run.


def test_one_that_is_not_installed_is_refused_before_anything_is_made(
    options: Any, tmp_path: Path
) -> None:
    (tmp_path / "lacks.py").write_text(
        "from splitlab.core import Logger\n"
        "class Lacks(Logger):\n    needs, install = 'nothing_like_it', 'splitlab[it]'\n"
    )
    with pytest.raises(ConfigError, match=r"nothing_like_it is not .*; pip install 'splitlab.it.'"):
        run(output=str(tmp_path / "r"), loggers=(f"{tmp_path}/lacks.py:Lacks",), **options)
    assert not (tmp_path / "r").exists()


def test_one_that_fails_is_told_of_once_and_the_run_goes_on(
    options: Any, mine: str, tmp_path: Path
) -> None:
    with pytest.warns(Notice) as caught:
        result = run(output=str(tmp_path / "r"), loggers=(f"{mine}:at=3", "none"), **options)
    [notice] = [str(warning.message) for warning in caught]
    assert notice == (
        f"logger '{mine}:at=3' failed and is told no more, the run goes on: "
        "OSError: the disk is full (mine.py:16)"
    )
    assert result.summary.steps == 4
    assert [word for word, *_ in told(result.folder)] == ["begin", "log", "log", "log", "end"]
    assert told(result.folder)[-1] == ["end", "failed", {}]


@pytest.mark.parametrize("method", ["begin", "log", "end"])
def test_whatever_it_raises_only_the_other_is_told_the_rest(method: str, tmp_path: Path) -> None:
    class Fails(Logger):
        asked: ClassVar[list[str]] = []

    def fail(self: object, *words: object) -> None:
        Fails.asked.append(method)
        raise SystemExit(3)

    setattr(Fails, method, fail)
    notes = Notes()
    loggers = Loggers({"bad": Fails(), "good": notes})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loggers.begin(Config(), "id", tmp_path, 0)
        loggers.log(StepRecord(1, 0.5))
        loggers.log(StepRecord(2, 0.5))
        loggers.end("failed")
    [notice] = [str(warning.message) for warning in caught]
    assert notice.startswith(
        "logger 'bad' failed and is told no more, the run goes on: SystemExit: 3"
    )
    assert notes.said[1:] == [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.5}), ("failed", {})]
    assert Fails.asked == [method] * (2 if method == "end" else 1)  # it is asked to end


def test_what_never_began_is_not_ended_and_no_end_comes_twice(tmp_path: Path) -> None:
    notes = Notes()
    loggers = Loggers({"notes": notes})
    loggers.end("failed")
    assert notes.said == []
    loggers.begin(Config(), "id", tmp_path, 0)
    loggers.end("finished")
    loggers.end("failed")
    assert notes.said[1:] == [("finished", {})]


def test_libraries_neither_warn_nor_ask(tmp_path: Path) -> None:
    class Asks(Notes):
        def begin(self, run: LoggedRun) -> None:
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            self.said += [sys.stdin.isatty(), sys.stdin.read()]

    notes, before = Asks(), sys.stdin
    Loggers({"asks": notes}).begin(Config(), "id", tmp_path, 0)
    assert notes.said == [False, ""]
    assert sys.stdin is before
