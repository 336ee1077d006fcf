"""A job in another process: written, read, and told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlab.core.runs.reporter import Progress
from splitlab.core.studies.remote import Telling, job_from, job_text
from splitlab.core.wire.ledger import Ledger


def test_a_job_is_read_as_it_was_written(make_jobs: Any, tmp_path: Path) -> None:
    for job in make_jobs(tmp_path, probes=["time"], augment="paper", lr=1e-5):
        assert job_from(job_text(job)) == job
        assert "\n" not in job_text(job)


def test_it_is_told_a_few_times_a_second_how_far_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, str]] = []
    reporter = Telling(lambda share, note: told.append((share, note)))
    clock = [0.0]
    monkeypatch.setattr("splitlab.core.studies.remote.time.monotonic", lambda: clock[0])
    used = [0.5]
    record: Any = type("Record", (), {"accuracy": 0.7149})
    plan: Any = None

    reporter.starting("reading the data")
    reporter.loading("train", 1500, 6000)  # too soon
    clock[0] += 1
    reporter.loading("train", 3000, 6000)
    reporter.begin(plan, Path(), lambda: used[0])
    clock[0] += 1
    reporter.step(Progress(step=120), Ledger(), 0.1)
    reporter.evaluating(3, 10)
    reporter.evaluated(record)
    clock[0] += 1
    reporter.step(Progress(step=121), Ledger(), 0.1)
    clock[0], used[0] = 9, 1.0000001
    reporter.evaluating(3, 10)
    assert told == [
        (0.0, "reading the data"),
        (0.0, "train: 3,000 of 6,000 images"),
        (0.5, "step 120"),
        (0.5, "step 121, accuracy 0.71"),
        (1.0, "step 121, accuracy 0.71, evaluating"),
    ]
