"""The process that performs jobs, spoken to as its parent does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from splitlab.core.studies.remote import job_text

CORE = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ""


@pytest.fixture
def started() -> Any:
    """A worker on one core, and what it tells."""
    reading, writing = os.pipe()
    with (
        subprocess.Popen(
            [sys.executable, "-P", "-m", "splitlab.core.studies.worker", str(writing), str(CORE)],
            stdin=subprocess.PIPE,
            pass_fds=(writing,),
        ) as process,
        os.fdopen(reading) as told,
    ):
        os.close(writing)
        yield process, told
        process.kill()


def test_jobs_come_on_the_input_and_what_becomes_of_them_on_the_pipe(
    started: Any, make_jobs: Any, tmp_path: Any
) -> None:
    process, told = started
    for job in make_jobs(tmp_path, stacks=["none"]):
        process.stdin.write(job_text(job).encode() + b"\n")
        process.stdin.flush()
        heard = []
        while "state" not in (values := json.loads(told.readline())):
            heard.append(values)
        assert values == {"state": "finished", "error": ""}
        assert all(0 <= values["share"] <= 1 for values in heard)
        assert heard[0]["note"] == "reading the data, building the model"
    if CORE != "":
        assert os.sched_getaffinity(process.pid) == {CORE}
    process.stdin.close()
    assert process.wait() == 0
    assert told.read() == ""


def test_a_signal_ends_it_as_one_does(started: Any, make_jobs: Any, tmp_path: Any) -> None:
    process, told = started
    [job, _] = make_jobs(tmp_path / "study", stacks=["none"], slow=True, budget="steps=1000")
    process.stdin.write(job_text(job).encode() + b"\n")
    process.stdin.flush()
    while not json.loads(told.readline())["note"].startswith("step"):
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    assert json.loads((job.folder / "state.json").read_text())["state"] == "interrupted"
