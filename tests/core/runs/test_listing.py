"""What is known of run folders at a glance, whole or damaged, and without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError, load_runs, run
from splitlab.core.runs.config import Config
from splitlab.core.runs.disk import hold
from splitlab.core.runs.listing import find_runs, is_run, read_run, stack_title
from splitlab.core.runs.records import (
    EvaluationRecord,
    State,
    StepRecord,
    Summary,
    version_line,
)

SUMMARY = Summary(
    accuracy=0.5,
    loss=1.25,
    steps=7,
    epochs=1.0,
    seconds=3.0,
    client_seconds=1.0,
    server_seconds=1.0,
    link_seconds=1.0,
    ratio_nominal=1.0,
    ratio_measured=1.1,
    bytes_up=10,
    bytes_down=9,
    stack=("adc",),
    transport="inprocess",
    dataset="d",
    model="vit-mini",
    cut=3,
    seed=4,
)
RECORDS = [StepRecord(1, 0.5, 6, 7), EvaluationRecord(1, 0.25, 0.75, True, 3, 4, 13)]
RECORDS += [StepRecord(2, 0.4, 6, 7)]

Made = Callable[..., Path]


def made(
    folder: Path,
    state: State | None = None,
    summary: Summary | None = None,
    records: list[Any] | None = None,
    **options: Any,
) -> Path:
    """Write what a run of these options would have left."""
    folder.mkdir(parents=True)
    config = Config.from_mapping({"dataset": "d", "cut": 3, "seed": 4, **options})
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "run.json").write_text(json.dumps({"id": f"id of {folder.name}"}))
    if state is not None:
        (folder / "state.json").write_text(state.text())
    if summary is not None:
        (folder / "summary.json").write_text(summary.text())
    if records is not None:
        lines = [version_line(), *(record.line() for record in records)]
        (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    folder = made(tmp_path / "r", State("finished", 7), SUMMARY, plugins=["adc", "quantize:bits=8"])
    found = read_run(folder)
    assert (found.state, found.step, found.error) == ("finished", 7, "")
    assert (found.accuracy, found.bytes_up, found.bytes_down) == (0.5, 10, 9)
    assert (found.name, found.stack, found.data) == ("r", "adc + quantize:bits=8", "d")
    assert (found.id, found.seed, found.summary) == ("id of r", 4, SUMMARY)
    assert found.begun > 1e9


@pytest.mark.parametrize(
    ("state", "told", "error"),
    [
        (None, "interrupted", ""),
        (State("running", 0), "interrupted", "its process is gone"),
        (State("interrupted", 2, "asked to"), "interrupted", "asked to"),
        (State("failed", 2, "no memory"), "failed", "no memory"),
        (State("diverged", 2, "step 2: the loss is nan"), "diverged", "step 2: the loss is nan"),
    ],
)
def test_a_run_without_a_summary(
    state: State | None, told: str, error: str, tmp_path: Path
) -> None:
    folder = made(tmp_path / "r", state, records=RECORDS)
    counts = {"up": {"activation": 5, "header": 1}, "down": {"gradient": 7}}
    (folder / "ledger.json").write_text(json.dumps({"version": 2, "training": counts}))
    found = read_run(folder)
    assert (found.state, found.error) == (told, error)
    assert found.step == 2  # as the log says
    assert (found.accuracy, found.bytes_up, found.bytes_down) == (0.25, 6, 7)
    assert found.summary is None


def test_a_run_that_is_held_is_running_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    folder = made(tmp_path / "r", State("running", 0))
    with hold(folder, "client"):
        assert read_run(folder).state == "running"
        (folder / "metrics.jsonl").write_text(version_line() + '{"kind": "train", "step')
        assert read_run(folder).state == "running"  # a line may be half written
    (folder / "client.lock").write_text("process 1 on earth\n")  # of a holder that was killed
    assert read_run(folder).state == "interrupted"
    assert sorted(path.name for path in folder.iterdir()) == [
        "client.lock",
        "config.toml",
        "metrics.jsonl",
        "run.json",
        "state.json",
    ]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("config.toml", "seed = 'x'", "seed = 'x' is not allowed"),
        ("config.toml", "tomorrow = 1", "unknown key 'tomorrow'"),
        ("config.toml", "=", "is not TOML"),
        ("state.json", "{}", "state.json is damaged"),
        ("summary.json", "[]", "summary.json is damaged"),
        ("summary.json", '{"version": 99, "stack": []}', "use a newer one"),
    ],
)
def test_what_is_damaged_is_told_and_listed(
    name: str, text: str, error: str, tmp_path: Path
) -> None:
    made(tmp_path / "well", State("finished", 7), SUMMARY)
    folder = made(tmp_path / "r", State("finished", 7), SUMMARY)
    (folder / name).write_text(text)
    found = read_run(folder)
    assert found.state == "damaged"
    assert error in found.error
    assert (found.config is None) == (name == "config.toml")
    runs = load_runs(tmp_path)
    assert sorted(each.state for each in runs) == ["damaged", "finished"]
    first, second = runs.table()
    assert first.keys() == second.keys()


@pytest.mark.parametrize(
    ("name", "text"),
    [("metrics.jsonl", "{}\n"), ("ledger.json", "[]"), ("ledger.json", '{"training": {"up": 1}}')],
)
def test_logs_are_looked_at_where_there_is_no_summary(name: str, text: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "r", State("failed", 2, "why"), records=RECORDS)
    (folder / name).write_text(text)
    assert (read_run(folder).state, name in read_run(folder).error) == ("damaged", True)
    (folder / "summary.json").write_text(SUMMARY.text())
    assert read_run(folder).state == "finished"


def test_a_summary_that_is_not_finite_is_that_of_a_run_that_diverged(tmp_path: Path) -> None:
    summary = Summary(**{**SUMMARY.as_dict(), "loss": float("nan"), "stack": ("adc",)})
    found = read_run(made(tmp_path / "r", State("finished", 7), summary))
    assert (found.state, found.summary, found.step) == ("diverged", None, 7)


def test_runs_are_found_at_any_depth_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    names = ["study/a/seed-0", "study/a/seed-1", "b", ".cache/c", "b/checkpoints/d"]
    for age, name in enumerate(names):
        folder = made(tmp_path / name) if not (tmp_path / name).exists() else tmp_path / name
        for file in folder.glob("*.*"):
            os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "config.toml").write_text("seed = 1")  # of somebody who starts runs with it
    assert not is_run(tmp_path)
    found = find_runs(tmp_path)
    assert [str(each.folder.relative_to(tmp_path)) for each in found] == [
        "b",
        "study/a/seed-1",
        "study/a/seed-0",
    ]
    assert [each.folder for each in find_runs(tmp_path / "b")] == [tmp_path / "b"]
    assert len(find_runs(tmp_path, tmp_path / "study", tmp_path / "b")) == 3  # each once
    with pytest.raises(ConfigError, match="nowhere is no folder; name a run, or a folder of runs"):
        find_runs(tmp_path / "nowhere")


def test_stacks_are_called_as_tables_call_them(tmp_path: Path) -> None:
    assert stack_title(()) == "none"
    assert stack_title(("adc:ratio=0.05+quantize",)) == "adc:ratio=0.05 + quantize"
    assert stack_title((f"{tmp_path}/my_method.py:MyMethod:x=1",)) == "MyMethod:x=1"
    assert stack_title(("gone-since:x=1",)) == "gone-since:x=1"
    assert stack_title(("sl-acc:bits=4", "tsflora")) == "sl-acc-recon:bits=4 + tsflora-recon"
    assert stack_title(("+",)) == "+"  # what no run could have had is shown as it stands


def test_records_are_plain(tmp_path: Path) -> None:
    options = {"plugins": ["adc", "cast"], "tags": ["x", "y"], "name": "mine"}
    made(tmp_path / "r", State("failed", 2, "why"), records=RECORDS, **options)
    made(tmp_path / "s", State("finished", 7), SUMMARY)
    runs = load_runs(tmp_path)
    table = {record["folder"]: record for record in runs.table()}
    record = table[str(tmp_path / "r")]
    assert all(value is None or isinstance(value, str | int | float) for value in record.values())
    assert record.keys() == table[str(tmp_path / "s")].keys() > Config.__dataclass_fields__.keys()
    assert (record["plugins"], record["stack"]) == ("adc+cast", "adc + cast")
    assert (record["name"], record["tags"], record["state"]) == ("mine", "x,y", "failed")
    assert (record["accuracy"], record["loss"], record["steps"]) == (0.25, 0.75, 2)
    assert record["seconds"] is None
    assert table[str(tmp_path / "s")]["loss"] == 1.25
    [evaluation] = runs.evaluations()
    assert (evaluation["step"], evaluation["accuracy"], evaluation["loss"]) == (1, 0.25, 0.75)
    assert (evaluation["training_bytes"], evaluation["evaluation_bytes_up"]) == (13, 3)
    assert (evaluation["seed"], evaluation["stack"], evaluation["cut"]) == (4, "adc + cast", 3)


def test_runs_are_filtered_and_sorted(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        made(tmp_path / f"r{seed}", State("finished", 7), SUMMARY, seed=seed, tags=[f"t{seed}"])
    made(tmp_path / "s", State("failed", 2, "why"))
    runs = load_runs(tmp_path)
    assert len(runs.where()) == 4
    assert [run.name for run in runs.where("seed>=2", "state=finished").by("-seed")] == ["r3", "r2"]
    assert [run.name for run in runs.where("tag=t1", "bytes=19")] == ["r1"]
    assert [run.state for run in runs.by("accuracy")][-1] == "failed"  # it has none
    with pytest.raises(ConfigError, match=r"unknown key of --filter 'stat'.*did you mean 'state'"):
        runs.where("stat=failed")


def test_pandas_makes_frames_of_them(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for seed in (0, 1):
        made(tmp_path / f"r{seed}", State("finished", 7), SUMMARY, RECORDS, seed=seed)
    runs = load_runs(tmp_path)
    assert pandas.DataFrame(runs.table()).groupby("stack")["accuracy"].mean()["none"] == 0.5
    assert list(pandas.DataFrame(runs.evaluations()).groupby("step").size()) == [2]


def test_a_real_run(tmp_path: Path, noise_data: str, real: Any) -> None:
    options = {**real.SMALL, "data_dir": noise_data, "budget": "steps=2", "plugins": ["adc"]}
    result = run(output=str(tmp_path / "r"), tags=("mine",), **options)
    [found] = load_runs(tmp_path)
    assert (found.state, found.step, found.tags) == ("finished", 2, ("mine",))
    assert found.summary == result.summary
    assert len(found.id) == 16
    assert found.data == Path(noise_data).name
    assert found.evaluations()[-1].accuracy == found.accuracy


def test_looking_at_runs_imports_no_torch(tmp_path: Path) -> None:
    folder = made(tmp_path / "r", State("failed", 2, "why"), records=RECORDS)
    (folder / "ledger.json").write_text('{"training": {"up": {}, "down": {}}}')
    program = (
        "import sys; from splitlab.core import load_runs\n"
        "[run] = load_runs(sys.argv[1]); assert run.sent == (0, 0), run\n"
        "print({'torch', 'numpy', 'timm'} & sys.modules.keys())"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout == "set()\n"
