"""Jobs in processes of this machine: alike, in parallel, and whatever ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.contract.errors import Interrupted
from splitlab.core.runs.disk import hold
from splitlab.core.studies import processes
from splitlab.core.studies.inside import Inside
from splitlab.core.studies.job import Outcome, failure, note_failure
from splitlab.core.studies.processes import Processes
from splitlab.core.studies.remote import job_text

AFFINITY = hasattr(os, "sched_getaffinity")
PLUGIN = """
from splitlab.core import hookimpl

class Faulty:
    "Does what no plugin does."

    @hookimpl
    def step_end(self) -> None:
        print("what a plugin prints")
        import os
        os._exit(7)
"""


@pytest.fixture
def undisturbed(make_jobs: Any, heard: Any, numbers: Any, tmp_path: Path) -> Any:
    """What the jobs come to, in this process."""

    def perform(**options: Any) -> list[Any]:
        jobs = make_jobs(tmp_path / "undisturbed", **options)
        Inside().perform(jobs, type(heard)(), lambda: False)
        return [*map(numbers, jobs)]

    return perform


def workers(parent: int) -> list[int]:
    """Return the processes that perform jobs for this one."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, by, args in lines if int(by) == parent and "studies.worker" in args]


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_results_are_those_of_this_process(
    make_jobs: Any, heard: Any, numbers: Any, undisturbed: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path / "study")
    Processes(2).perform(jobs, heard, lambda: False)
    assert heard.states == ["finished"] * 4
    assert [*map(numbers, jobs)] == undisturbed()
    assert heard.outcomes[3].summary.seed == 0
    assert heard.notes[1][0] == (0.0, "starting")
    assert [path.name for path in (tmp_path / "study").glob("*/*") if path.is_file()] == []


@pytest.mark.long
def test_the_server_may_be_in_a_process_too(
    make_jobs: Any, heard: Any, numbers: Any, undisturbed: Any, tmp_path: Path
) -> None:
    [job, _] = make_jobs(tmp_path / "study", stacks=["topk"], transport="tcp")
    Processes(1).perform([job], heard, lambda: False)
    assert heard.states == ["finished"]
    log, _, training, _ = numbers(job)
    assert (log, training) == undisturbed(stacks=["topk"])[0][::2]


@pytest.mark.long
def test_a_worker_that_is_killed_fails_its_job_only(
    make_jobs: Any, heard: Any, numbers: Any, undisturbed: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path / "study", stacks=["topk"], slow=True, budget="steps=20")
    jobs[1] = make_jobs(tmp_path / "other", stacks=["topk"])[1]
    killed: list[int] = []

    def kill() -> bool:
        if not killed and 1 in heard.begun:
            killed.extend(workers(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)
        return False

    Processes(1).perform(jobs, heard, kill)
    assert len(killed) == 1
    assert heard.states == ["failed", "finished"]
    reason = "its process was killed by SIGKILL; the machine may be out of memory"
    assert heard.outcomes[1].error == reason
    assert failure(jobs[0].folder) == Outcome("failed", reason)
    assert "a step is done\n" in (jobs[0].folder / "worker.log").read_text()

    note_failure(jobs[0], None)
    again = type(heard)()
    Processes(1).perform(jobs, again, lambda: False)
    assert again.states == ["finished", "finished"]
    assert failure(jobs[0].folder) is None
    assert numbers(jobs[0]) == undisturbed(stacks=["topk"], budget="steps=20")[0]


def test_a_worker_that_ends_by_itself_is_told_with_its_last_words(
    make_jobs: Any, heard: Any, tmp_path: Path
) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(PLUGIN)
    [job, _] = make_jobs(tmp_path, stacks=[f"{file}:Faulty"])
    Processes(1).perform([job], heard, lambda: False)
    assert heard.outcomes[1].state == "failed"
    assert heard.outcomes[1].error.startswith("its process ended with status 7: ")


def test_a_run_that_another_has_in_hand_is_left_alone(
    make_jobs: Any, heard: Any, tmp_path: Path
) -> None:
    [job, _] = make_jobs(tmp_path, stacks=["none"])
    with hold(job.folder.parent, job.folder.name):
        Processes(1).perform([job], heard, lambda: False)
    assert heard.states == ["busy"]
    assert not job.folder.exists()


@pytest.mark.long
def test_what_is_interrupted_goes_on(
    make_jobs: Any, heard: Any, numbers: Any, undisturbed: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path / "study", stacks=["topk"], slow=True, budget="steps=20")
    with pytest.raises(Interrupted, match="interrupted in 1 runs, before 1"):
        Processes(1).perform(jobs, heard, lambda: bool(heard.begun))
    assert heard.states == ["interrupted"]
    assert heard.outcomes[1].error.startswith("interrupted after step ")
    again = type(heard)()
    Inside().perform(jobs, again, lambda: False)
    assert again.states == ["finished"] * 2
    assert [*map(numbers, jobs)] == undisturbed(stacks=["topk"], budget="steps=20")


def test_nothing_is_begun_when_it_is_to_stop(make_jobs: Any, heard: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="in 0 runs, before 4"):
        Processes(2).perform(make_jobs(tmp_path), heard, lambda: True)
    assert heard.states == []


PROGRAM = """
import sys
from splitlab.core.command.stop import StopAsked
from splitlab.core.studies.job import JobReporter
from splitlab.core.studies.processes import Processes
from splitlab.core.studies.remote import job_from

class Saying(JobReporter):
    def progress(self, job, share, note):
        print(job.number, note, flush=True)

Processes(2).perform([job_from(line) for line in sys.stdin], Saying(), StopAsked())
"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["once", "twice", "kill"])
def test_however_it_ends_no_process_stays_and_nothing_is_lost(
    how: str, make_jobs: Any, heard: Any, numbers: Any, undisturbed: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path / "study", stacks=["topk"], slow=True, budget="steps=30")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as study:
        assert study.stdin is not None
        assert study.stdout is not None
        study.stdin.write("".join(job_text(job) + "\n" for job in jobs))
        study.stdin.close()
        begun: set[str] = set()
        while len(begun) < 2:
            number, _, note = study.stdout.readline().partition(" ")
            assert number, "it ended"
            begun |= {number} if note.startswith("step") else set()
        mine = workers(study.pid)
        assert len(mine) == 2
        if how == "kill":
            study.kill()
        else:
            study.send_signal(signal.SIGINT)
        if how == "twice":
            time.sleep(0.02)
            study.send_signal(signal.SIGINT)
        study.stdout.read()  # to its end
    wait_for(lambda: not any(map(alive, mine)), 20)
    states = [json.loads((job.folder / "state.json").read_text()) for job in jobs]
    assert [state["state"] for state in states] == ["interrupted"] * 2
    if how != "twice":  # which writes no checkpoints
        kept = [
            job.folder / f"checkpoints/step-{state['step']:08}"
            for job, state in zip(jobs, states, strict=True)
        ]
        assert all(path.is_dir() for path in kept)
    Inside().perform(jobs, heard, lambda: False)
    assert heard.states == ["finished"] * 2
    assert [*map(numbers, jobs)] == undisturbed(stacks=["topk"], budget="steps=30")


# What a worker has of the machine.


@pytest.mark.skipif(not AFFINITY, reason="this system binds no process to cores")
def test_cores_are_divided(make_jobs: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 5, 6, 7})
    jobs = make_jobs(tmp_path)
    assert [[*place.cores] for place in processes._places(2, jobs)] == [[1, 2], [5, 6, 7]]
    shared = [[*place.cores] for place in processes._places(7, jobs)]
    assert {core for cores in shared for core in cores} == {1, 2, 5, 6, 7}
    assert all(len(cores) == 1 for cores in shared)


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", "0,1", [None, None, None]),
        ("cuda:1", "0,1", [None, None, None]),
        ("cuda", "0,3", ["0", "3", "0"]),
        ("auto", "GPU-a", ["GPU-a"] * 3),
        ("auto", "", [None, None, None]),
        ("auto", None, ["0", "1", "0"]),
    ],
)
def test_gpus_go_round(
    device: str,
    visible: str | None,
    expected: list[Any],
    make_jobs: Any,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    jobs = make_jobs(tmp_path, device=device)
    assert [place.gpu for place in processes._places(3, jobs)] == expected


@pytest.mark.parametrize(
    ("device", "number", "mps", "told"),
    [
        ("cpu", 3, True, ""),
        ("auto", 2, True, ""),
        ("auto", 3, False, "up to 2 runs at a time share a GPU, in turns: there is no MPS"),
        ("cuda", 3, True, "up to 2 runs at a time share a GPU, side by side, by MPS"),
    ],
)
def test_how_a_gpu_is_shared_is_said(
    device: str, number: int, mps: bool, told: str, make_jobs: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))
    if mps:
        (tmp_path / "mps").mkdir()
        (tmp_path / "mps/control").touch()
    jobs = [*make_jobs(tmp_path, device=device)] * 3
    said = processes.Processes(number).sharing(jobs)
    assert said.startswith(told)
    assert bool(said) == bool(told)
