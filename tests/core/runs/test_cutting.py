"""A log that a run goes on with: cut at a step, whatever a killed writer left behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlab.core import ConfigError
from splitlab.core.runs.folder import append, cut_after
from splitlab.core.runs.records import METRICS, StepRecord, read_records, version_line


def test_records_of_later_steps_are_cut(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    cut_after(path, 3)
    assert not path.exists()
    for step in range(1, 6):
        append(path, StepRecord(step))
    cut_after(path, 3)
    assert read_records(tmp_path) == [StepRecord(step) for step in (1, 2, 3)]
    cut_after(path, 0)
    assert path.read_text() == version_line()


@pytest.mark.parametrize(
    "torn",
    [b'{"kind": "tr', StepRecord(3).line().rstrip().encode(), b"\0\0\0\n", b"\xff\n", b"3\n"],
)
def test_a_last_line_that_a_killed_writer_left_is_dropped(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / METRICS
    for step in (1, 2):
        append(path, StepRecord(step))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    cut_after(path, 9)
    assert path.read_bytes() == whole
    append(path, StepRecord(3))
    assert read_records(tmp_path) == [StepRecord(step) for step in (1, 2, 3)]


def test_a_version_line_that_is_torn_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text(version_line()[:9])
    cut_after(path, 0)
    append(path, StepRecord(1))
    assert path.read_text() == version_line() + StepRecord(1).line()


@pytest.mark.parametrize("damage", ['{"kind": "tr', "3", '{"kind": "train", "step": "x"}'])
def test_a_log_that_is_damaged_before_its_end_is_not_cut(damage: str, tmp_path: Path) -> None:
    path = tmp_path / METRICS
    text = version_line() + damage + "\n" + StepRecord(2).line()
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is damaged \(.*delete the run"):
        cut_after(path, 1)
    assert path.read_text() == text
