"""A job: claimed, performed, left to others, and what is kept of one that failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config, Diverged, Interrupted, SplitlabError
from splitlab.core.runs.disk import hold
from splitlab.core.runs.listing import read_run
from splitlab.core.runs.reporter import Reporter
from splitlab.core.studies.job import Job, Outcome, failure, note_failure
from splitlab.core.studies.perform import perform


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
def test_why_a_job_failed_is_kept_until_somebody_wants_it_performed_again(
    error: Exception, state: str, told: str, job: Job, runs: Any
) -> None:
    def fail(config: Config) -> None:
        raise error

    runs.before = fail
    assert perform(job, Reporter()) == Outcome(state, told)  # type: ignore[arg-type]
    assert failure(job.folder) == Outcome(state, told)  # type: ignore[arg-type]
    runs.before = lambda config: None
    assert perform(job, Reporter()).state == state  # as for one that listed it before
    assert len(runs.log) == 1
    note_failure(job, None)
    assert perform(job, Reporter()).state == "finished"
    assert failure(job.folder) is None


def test_an_interrupt_is_no_failure(job: Job, runs: Any) -> None:
    def interrupt(config: Config) -> None:
        raise Interrupted("x")

    runs.before = interrupt
    with pytest.raises(Interrupted):
        perform(job, Reporter())
    assert failure(job.folder) is None


@pytest.mark.parametrize("name", ["summary.json", "state.json"])
def test_what_a_run_left_damaged_is_made_anew(name: str, make_jobs: Any, tmp_path: Path) -> None:
    job = make_jobs(tmp_path, stacks=["none"], keep="best")[0]
    first = perform(job, Reporter())
    (job.folder / name).write_text("{")
    assert read_run(job.folder).state == "damaged"
    again = perform(job, Reporter())
    assert again.state == "finished"
    assert again.summary is not None
    assert first.summary is not None
    assert again.summary == replace(first.summary, seconds=again.summary.seconds)
    assert read_run(job.folder).state == "finished"
