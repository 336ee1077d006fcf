"""The run folder: what is written, what is found again, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from splitlab.core import Config, ConfigError
from splitlab.core.runs import folder as folders
from splitlab.core.runs.folder import RunFolder, run_name
from splitlab.core.runs.records import (
    VERSION,
    EvaluationRecord,
    StepRecord,
    Summary,
    read_ledger,
    read_summary,
    version_line,
)
from splitlab.core.wire.ledger import Ledger

SUMMARY = Summary(
    accuracy=0.5,
    loss=1.0,
    steps=2,
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
    seed=0,
)


def evaluation(step: int, accuracy: float) -> EvaluationRecord:
    return EvaluationRecord(step, accuracy, 1.0, False, 5, 6, 7)


@pytest.mark.parametrize(
    ("plugins", "head"),
    [
        ([], "none"),
        (["adc"], "adc"),
        (["adc:ratio=0.1,alloc=sqrt", "zip"], "adc+zip"),
        (["some/where/mine.py:Mine:x=1"], "Mine"),
    ],
)
def test_a_run_is_named_for_its_stack(plugins: list[str], head: str) -> None:
    assert re.fullmatch(rf"{re.escape(head)}-\d{{8}}-\d{{6}}", run_name(plugins))


def test_a_folder_without_a_name_is_made_under_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders, "run_name", lambda plugins: "same")
    paths = [RunFolder.create(None, ["adc"]).path for _ in range(3)]
    names = ["runs/same", "runs/same-2", "runs/same-3"]
    assert paths == [tmp_path / name for name in names]  # wherever the process goes
    paths = [RunFolder.create(None, ["adc"], "mine").path.name for _ in range(2)]
    assert paths == ["mine", "mine-2"]
    assert RunFolder.create("there", ["adc"], "mine").path == tmp_path / "there"


def test_a_folder_that_exists_is_refused_with_the_way_to_go_on(tmp_path: Path) -> None:
    path = RunFolder.create(str(tmp_path / "a" / "b"), []).path
    assert path.is_dir()
    with pytest.raises(ConfigError, match=r"--output .*b exists already; move it away, or name"):
        RunFolder.create(str(path), [])
    (path / "config.toml").touch()
    with pytest.raises(
        ConfigError, match=r"--output .*b exists already; go on with --resume .*b, or"
    ):
        RunFolder.create(str(path), [])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--output .*file/x cannot be made: Not a directory"):
        RunFolder.create(str(tmp_path / "file" / "x"), [])


def test_a_folder_is_found_again_by_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run folder \(it has no config.toml\)"):
        RunFolder.open(tmp_path)
    config = Config(plugins=("adc",), seed=3, cut=2)
    RunFolder(tmp_path).write_config(config)
    assert RunFolder.open(tmp_path).read_config() == config


def test_metrics_are_appended_and_cut_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.metrics_size() == 0
    assert folder.evaluations() == []
    folder.cut_metrics(0, 0)
    folder.log(StepRecord(1, 2.0, 3, 4))
    assert folder.evaluations() == []
    folder.log(evaluation(1, 0.5))
    folder.log(StepRecord(2, 1.0, 3, 4))
    size = folder.metrics_size()
    folder.log(evaluation(2, 0.6))
    assert folder.evaluations()[-1] == evaluation(2, 0.6)
    folder.check_metrics(size, 2)
    folder.cut_metrics(size, 0)
    assert folder.metrics_size() == size
    assert folder.evaluations() == [evaluation(1, 0.5)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"kind": "records", "version": VERSION}
    assert [json.loads(line)["step"] for line in lines[1:]] == [1, 1, 2]
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is shorter than at its checkpoint"):
        folder.check_metrics(size + 1, 2)


def test_a_line_that_a_killed_run_left_half_is_cut_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log(StepRecord(1, 2.0, 3, 4))
    folder.log(evaluation(1, 0.5))
    size = folder.metrics_size()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ev')
    folder.check_metrics(size, 1)
    folder.cut_metrics(size, 0)
    assert folder.evaluations() == [evaluation(1, 0.5)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"loss": 2.5, ', '"loss": 2.'),  # torn: everything behind it has moved
        ('"kind": "train", "step": 1', '"kind": "train", "step": 9'),
        ('"kind": "train", "step": 1', '"kind": "wrong", "step": 1'),
        ('"loss": 2.5', '"loss": "x"'),
        (version_line(), ""),
    ],
)
def test_a_log_that_was_edited_is_not_gone_on_with(tmp_path: Path, old: str, new: str) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.log(StepRecord(step, 2.5, 3, 4))
    size = folder.metrics_size()
    for step in (3, 4):
        folder.log(StepRecord(step, 2.5, 3, 4))
    file = tmp_path / "metrics.jsonl"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    edited = file.read_bytes()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is damaged \(.*; delete the run"):
        folder.check_metrics(size, 2)
    assert file.read_bytes() == edited


def test_facts_ledger_and_summary_are_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_environment(device="cpu", threads=2)
    folder.write_ledger(Ledger())
    folder.write_summary(SUMMARY)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert environment["packages"]["torch"]
    assert environment["system"]
    assert json.loads((tmp_path / "ledger.json").read_text()) == {
        "version": VERSION,
        **Ledger().counts,
    }
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"] == 0.5
    assert read_summary(tmp_path) == SUMMARY
    assert read_ledger(tmp_path).counts == Ledger().counts
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_folder_can_be_removed(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), [])
    folder.log(StepRecord(1))
    folder.remove()
    assert not folder.path.exists()
