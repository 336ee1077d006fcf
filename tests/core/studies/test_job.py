"""What is kept of a job that failed, and where a job belongs."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlab.core import Config
from splitlab.core.studies.job import Job, Outcome, failure, note_failure


def test_a_failure_that_cannot_be_read_is_one(tmp_path: Path) -> None:
    job = Job(1, "none", Config(output=str(tmp_path / "s" / "none" / "seed-0")))
    note_failure(job, Outcome("failed", "x"))
    job.folder.with_name("seed-0.failed.json").write_text("{")
    found = failure(job.folder)
    assert found is not None
    assert found.state == "failed"
    assert "seed-0.failed.json cannot be read" in found.error


def test_a_job_needs_a_place() -> None:
    with pytest.raises(AssertionError):
        _ = Job(1, "x", Config()).folder
