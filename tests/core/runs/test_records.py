"""Records are written and read in one place: equal when read back, or a clear refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from splitlab.core import ConfigError
from splitlab.core.runs.folder import append, cut_after
from splitlab.core.runs.records import (
    LEDGER,
    METRICS,
    STATE,
    SUMMARY,
    TIMES,
    VERSION,
    EvaluationRecord,
    State,
    StepRecord,
    Summary,
    TimeRecord,
    ledger_text,
    parse_record,
    read_evaluations,
    read_ledger,
    read_records,
    read_state,
    read_summary,
    read_times,
    version_line,
)
from splitlab.core.wire.ledger import Ledger

STEP = StepRecord(1, 0.5, 10, 20, {"probe": {"x": 1.5}})
EVALUATION = EvaluationRecord(1, 0.75, 0.1, True, 3, 4, 30, 0.8, 0.2)
RESULT = Summary(
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
    stack=("adc", "zip"),
    transport="inprocess",
    dataset="d",
    model="vit-mini",
    cut=3,
    seed=0,
)


@pytest.mark.parametrize(
    "record",
    [
        *(STEP, StepRecord(2), EVALUATION, EvaluationRecord(2, 0.5, 0.1, False, 3, 4, 30)),
        replace(EVALUATION, samples=1000, accuracy_subset=0.5),
    ],
)
def test_a_record_is_read_back_equal(record: StepRecord | EvaluationRecord) -> None:
    line = record.line()
    assert line.endswith("\n")
    assert parse_record(line) == record
    assert None not in json.loads(line).values()


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_valid_json_and_read_back_as_nan(
    odd: float, tmp_path: Path
) -> None:
    step = StepRecord(1, odd, 10, 20, {"probe": {"x": odd, "y": 1.0}})
    values = json.loads(step.line(), parse_constant=pytest.fail)
    assert (values["loss"], values["metrics"]) == (None, {"probe": {"x": None, "y": 1.0}})
    old = step.line().replace("null", "NaN")
    for line in (step.line(), old):
        found = parse_record(line)
        assert isinstance(found, StepRecord)
        assert str((found.loss, found.metrics["probe"]["x"])) == "(nan, nan)"
        assert found.metrics["probe"]["y"] == 1.0
    text = replace(RESULT, loss=odd).text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None
    (tmp_path / SUMMARY).write_text(text)
    assert math.isnan(read_summary(tmp_path).loss)
    evaluation = parse_record(replace(EVALUATION, loss=odd).line())
    assert isinstance(evaluation, EvaluationRecord)
    assert math.isnan(evaluation.loss)


def test_a_log_begins_with_its_version_and_keeps_the_order(tmp_path: Path) -> None:
    records = [STEP, EVALUATION, StepRecord(2, 0.25, 10, 20)]
    for record in records:
        append(tmp_path / METRICS, record)
    text = (tmp_path / METRICS).read_text()
    assert text.startswith(version_line())
    assert text.count('"records"') == 1
    assert read_records(tmp_path) == records
    assert read_evaluations(tmp_path) == [EVALUATION]


def test_times_are_read_back_and_older_runs_have_none(tmp_path: Path) -> None:
    assert read_times(tmp_path) == []
    times = [TimeRecord(0, 0.5, 0.0), TimeRecord(4, 9.0, 7.5)]
    for time in times:
        append(tmp_path / TIMES, time)
    assert read_times(tmp_path) == times
    assert (tmp_path / TIMES).read_text().startswith(version_line())


def test_a_state_is_read_back_and_says_what_is_best_where_that_is_kept(tmp_path: Path) -> None:
    for state in (State("running", 3), State("finished", 9, best_step=6)):
        (tmp_path / STATE).write_text(state.text())
        assert read_state(tmp_path) == state
        assert ("best_step" in json.loads(state.text())) is (state.best_step is not None)


def test_a_summary_tells_its_speed_unless_it_is_older(tmp_path: Path) -> None:
    assert not {"images_per_second", "data_share"} & RESULT.as_dict().keys()
    told = replace(RESULT, images_per_second=123.5, data_share=0.0)
    assert (told["images_per_second"], told["data_share"]) == (123.5, 0.0)
    (tmp_path / SUMMARY).write_text(told.text())
    assert read_summary(tmp_path) == told


def test_a_summary_says_what_is_special_of_a_run_only(tmp_path: Path) -> None:
    names = ("stopped_early", "best_step", "best_accuracy")
    assert not any(name in RESULT for name in names)
    early = replace(RESULT, stopped_early=True, best_step=2, best_accuracy=0.0)
    assert [early[name] for name in names] == [True, 2, 0.0]
    (tmp_path / SUMMARY).write_text(early.text())
    assert read_summary(tmp_path) == early


def test_logs_of_the_first_version_have_no_version_line(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text(StepRecord(1, 0.5, 1, 2).line() + EVALUATION.line())
    assert read_records(tmp_path) == [StepRecord(1, 0.5, 1, 2), EVALUATION]
    old = RESULT.as_dict()
    del old["version"]
    (tmp_path / SUMMARY).write_text(json.dumps(old))
    assert read_summary(tmp_path).version == 1
    (tmp_path / LEDGER).write_text(json.dumps(Ledger().counts))
    assert read_ledger(tmp_path).counts == Ledger().counts


def test_a_summary_answers_to_its_names(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(RESULT.text())
    summary = read_summary(tmp_path)
    assert summary == RESULT
    assert summary["accuracy"] == summary.accuracy == 0.5
    assert summary["stack"] == ("adc", "zip")
    assert "accuracy" in summary
    assert "accuracy_uncompressed" not in summary
    for name in ("accuracy_uncompressed", "as_dict", "nonsense"):
        with pytest.raises(KeyError):
            summary[name]


def test_a_summary_names_its_links_where_there_are_any(tmp_path: Path) -> None:
    assert "links" not in RESULT.as_dict()
    late = replace(RESULT, stack=(), links=("delay:ms=3",))
    (tmp_path / SUMMARY).write_text(late.text())
    assert read_summary(tmp_path) == late
    assert (late["links"], late.as_dict()["stack"]) == (("delay:ms=3",), ())


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"version": "x"}', '{"version": 2}'])
def test_a_damaged_summary_names_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(text)
    with pytest.raises(ConfigError, match=r"summary\.json is damaged \(.*delete the run"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("accuracy", "x"), ("steps", 1.5), ("seed", True), ("stack", "abc"), ("links", [1])],
)
def test_a_summary_with_a_value_of_another_type_is_damaged(
    name: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps(RESULT.as_dict() | {name: value}))
    with pytest.raises(
        ConfigError, match=r"summary\.json is damaged \(TypeError: .*delete the run"
    ):
        read_summary(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"version": 0}', '{"training": {"up": 3}}'])
def test_a_damaged_ledger_names_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text(text)
    with pytest.raises(ConfigError, match=r"ledger\.json is damaged \("):
        read_ledger(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", "3", "{}", '{"kind": "other"}', '{"kind": "train", "loss": 1}'),
        *('{"kind": "train", "step": true}', '{"kind": "train", "step": 1, "loss": "x"}'),
        '{"kind": "train", "step": 1, "metrics": [1]}',
    ],
)
def test_a_damaged_log_names_the_file(line: str, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text(version_line() + line + "\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is damaged \("):
        read_records(tmp_path)


Read = Callable[[Path], object]
READERS: list[tuple[str, Read]] = [
    (SUMMARY, read_summary),
    (LEDGER, read_ledger),
    (METRICS, read_records),
    (METRICS, read_evaluations),
    (TIMES, read_times),
    (METRICS, lambda folder: cut_after(folder / METRICS, 1)),
]
NEEDED = [(name, read) for name, read in READERS[:-1] if name != TIMES]


@pytest.mark.parametrize(("name", "read"), READERS)
def test_a_later_version_is_told_as_such(name: str, read: Read, tmp_path: Path) -> None:
    later = json.dumps({"kind": "records", "version": VERSION + 1}) + "\n"
    (tmp_path / name).write_text(later)
    told = rf"{name} is of version {VERSION + 1}; this splitlab reads 1 to {VERSION}: use a newer"
    with pytest.raises(ConfigError, match=told):
        read(tmp_path)
    assert (tmp_path / name).read_text() == later


@pytest.mark.parametrize(("name", "read"), NEEDED)
def test_a_file_that_is_not_there_is_told_as_such(name: str, read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name} does not exist; .*go on .*--resume {tmp_path}"):
        read(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name} cannot be read: Is a directory"):
        read(tmp_path)


def test_the_ledger_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger({"training": {"up": {"activation": 3}}})
    (tmp_path / LEDGER).write_text(ledger_text(ledger))
    assert read_ledger(tmp_path).counts == ledger.counts
