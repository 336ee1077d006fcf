"""One run of a study: claimed, performed, and what is kept of one that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config, Diverged, Interrupted, SplitlabError
from splitlab.core.runs.disk import hold
from splitlab.core.runs.reporter import Reporter
from splitlab.core.studies.job import Job, Outcome, failure, note_failure, perform


@pytest.fixture
def job(runs: Any, tmp_path: Path) -> Job:
    config = Config(plugins=("none",), output=str(tmp_path / "s" / "none" / "seed-0"))
    return Job(1, "none", config)


def test_a_job_that_another_has_in_hand_is_left(job: Job) -> None:
    with hold(job.folder.parent, job.folder.name):
        outcome = perform(job, Reporter())
    assert outcome.state == "busy"
    assert "is in use by process" in outcome.error
    assert not job.folder.exists()


def test_a_job_that_another_has_finished_is_taken_as_it_is(job: Job, runs: Any) -> None:
    first = perform(job, Reporter())
    assert perform(job, Reporter()) == first
    assert first.summary is not None
    assert runs.log == ["run none 0"]


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (SplitlabError("bad; go on from step 3 with: x"), "failed", "bad"),
        (Diverged("the loss is nan"), "diverged", "the loss is nan"),
        (MemoryError("all of it"), "failed", "MemoryError: all of it"),
    ],
)
def test_why_a_job_failed_is_kept_until_it_is_performed_again(
    error: Exception, state: str, told: str, job: Job, runs: Any
) -> None:
    def fail(config: Config) -> None:
        raise error

    runs.before = fail
    assert perform(job, Reporter()) == Outcome(state, told)  # type: ignore[arg-type]
    assert failure(job.folder) == (state, told)
    runs.before = lambda config: None
    assert perform(job, Reporter()).state == "finished"
    assert failure(job.folder) is None


def test_an_interrupt_is_no_failure(job: Job, runs: Any) -> None:
    def interrupt(config: Config) -> None:
        raise Interrupted("x")

    runs.before = interrupt
    with pytest.raises(Interrupted):
        perform(job, Reporter())
    assert failure(job.folder) is None


def test_a_failure_that_cannot_be_read_is_one(job: Job) -> None:
    note_failure(job, Outcome("failed", "x"))
    job.folder.with_name("seed-0.failed.json").write_text("{")
    found = failure(job.folder)
    assert found is not None
    assert found[0] == "failed"
    assert "seed-0.failed.json cannot be read" in found[1]


def test_a_job_needs_a_place() -> None:
    with pytest.raises(AssertionError):
        _ = Job(1, "x", Config()).folder
