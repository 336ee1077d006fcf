"""Jobs as tasks of a Ray cluster: a real one, of two nodes on this machine.

It is started by a program of its own: Ray leaves threads, and its warnings are its own affair.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.studies.inside import Inside
from splitlab.core.studies.ray import Ray, _line, _room, perform_there
from splitlab.core.studies.remote import job_text

PROGRAM = """
import json, os, signal, sys
from ray.cluster_utils import Cluster
from splitlab.core.command.stop import StopAsked
from splitlab.core.contract.errors import Interrupted
from splitlab.core.studies.job import JobReporter
from splitlab.core.studies.ray import Ray
from splitlab.core.studies.remote import job_from

MEMORY = 80 * 2**20

class Heard(JobReporter):
    begun = set()
    def progress(self, job, share, note):
        if note.startswith("step"):
            self.begun.add(job.number)
    def ended(self, job, outcome):
        self.begun.discard(job.number)
        told.append([job.number, outcome.state, outcome.error])

told, dead, how = [], [], sys.argv[1]
heard, asked = Heard(), StopAsked()
jobs = [job_from(line) for line in sys.stdin]
quiet = {"object_store_memory": MEMORY, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1} | quiet)
others = []

def disturb():
    if not others:  # by now this process is connected to the first, which must stay
        others.append(cluster.add_node(num_cpus=1, object_store_memory=MEMORY))
    if len(heard.begun) == 2 and not dead:  # two are under way: one on each node
        dead.append(True)
        if how == "kill":
            cluster.remove_node(others[0], allow_graceful=False)
        else:
            os.kill(os.getpid(), signal.SIGINT)
    return asked()

interrupted = ""
try:
    Ray(address=cluster.address).perform(jobs, heard, disturb)
except Interrupted as reason:
    interrupted = str(reason)
finally:
    cluster.shutdown()
print(json.dumps({"dead": dead, "told": told, "interrupted": interrupted}))
"""


@pytest.fixture
def on_two_nodes() -> Callable[..., Any]:
    """Return what performs jobs on a cluster that is disturbed when a run is on each node."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")

    def perform(jobs: Any, how: str) -> Any:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, how],
            input="".join(job_text(job) + "\n" for job in jobs),
            capture_output=True,
            text=True,
            timeout=160,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return perform


@pytest.mark.slow
def test_a_node_dies_and_the_results_are_those_of_one_process(
    on_two_nodes: Any, make_jobs: Any, heard: Any, numbers: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path / "study", slow=True, budget="steps=20")
    went = on_two_nodes(jobs, "kill")
    assert went["dead"]
    assert sorted(went["told"]) == [[n, "finished", ""] for n in (1, 2, 3, 4)]
    alone = make_jobs(tmp_path / "alone", budget="steps=20")
    Inside().perform(alone, heard, lambda: False)
    assert [*map(numbers, jobs)] == [*map(numbers, alone)]
    assert "a step is done\n" in (jobs[0].folder / "worker.log").read_text()
    left = [path.name for path in (tmp_path / "study").glob("[01]/*")]
    assert sorted(left) == ["run-1", "run-2", "run-3", "run-4"]  # no lock, no log, no half folder


@pytest.mark.slow
def test_what_is_interrupted_comes_back_and_goes_on(
    on_two_nodes: Any, make_jobs: Any, heard: Any, numbers: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path / "study", slow=True, budget="steps=40")
    went = on_two_nodes(jobs, "stop")
    assert went["interrupted"] == "interrupted in 3 runs, before 1"
    told = {number: error for number, state, error in went["told"] if state == "interrupted"}
    begun = [number for number, error in told.items() if error.startswith("interrupted after step")]
    assert len(begun) == 2
    assert len(told) == 3
    for job in jobs:
        assert job.folder.is_dir() == (job.number in begun)
        if job.folder.is_dir():
            state = json.loads((job.folder / "state.json").read_text())
            assert state["state"] == "interrupted"
            assert state["error"].endswith(f"--resume {job.folder}")
    Inside().perform(jobs, heard, lambda: False)
    alone = make_jobs(tmp_path / "alone", budget="steps=40")
    Inside().perform(alone, type(heard)(), lambda: False)
    assert [*map(numbers, jobs)] == [*map(numbers, alone)]


# What needs no cluster.


def test_a_certain_gpu_cannot_be_had(
    with_ray: None, make_jobs: Any, heard: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path, device="cuda:1")
    with pytest.raises(ConfigError, match=r"--device cuda:1 is not allowed .*; give --device cuda"):
        Ray().perform(jobs, heard, lambda: False)


def test_what_a_task_takes(with_ray: None, make_jobs: Any, tmp_path: Path) -> None:
    [job, *_], [any_device, *_] = (
        make_jobs(tmp_path, threads=3),
        make_jobs(tmp_path, device="auto"),
    )
    has = {"CPU": 8.0, "GPU": 2.0}
    assert Ray()._needs(job, has) == {"cpus": 3, "gpus": 0}
    assert Ray()._needs(any_device, has) == {"cpus": 1, "gpus": 1}
    assert Ray()._needs(any_device, {"CPU": 8.0}) == {"cpus": 1, "gpus": 0}
    assert Ray(0.5, 0.25)._needs(job, has) == {"cpus": 0.5, "gpus": 0.25}


def test_so_many_tasks_are_out_as_there_is_room_for_and_one_more() -> None:
    has = {"CPU": 8.0, "GPU": 2.0}
    assert _room({"cpus": 3, "gpus": 0}, has) == 3
    assert _room({"cpus": 1, "gpus": 0.25}, has) == 9
    assert _room({"cpus": 1, "gpus": 1}, has) == 3
    assert _room({"cpus": 1, "gpus": 1}, {}) == 1


def test_errors_of_ray_are_one_line() -> None:
    assert _line(RuntimeError("first\n  second\n")) == "RuntimeError: first"
    task = RuntimeError("a task\nTraceback\n  ...\nValueError: 3")
    task.cause = ValueError(3)  # type: ignore[attr-defined]
    assert _line(task) == "RuntimeError: ValueError: 3"
    assert _line(RuntimeError()) == "RuntimeError: "


def test_a_node_with_another_version_says_so(make_jobs: Any, tmp_path: Path) -> None:
    [job, *_] = make_jobs(tmp_path)
    place = {"folder": str(tmp_path), "registry": ""}
    state, error, parcel = perform_there(job_text(job), b"", "0.0", place, None)
    assert (state, parcel) == ("failed", b"")
    assert error.endswith("this is 0.0; install the same")
