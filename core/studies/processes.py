"""Several jobs at a time, in processes of this machine.

A process performs one job after the other (`splitlab.core.studies.worker`), on its share of the
cores and with one of the GPUs. Neither decides any number: how many threads a run computes with is
in its configuration.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from splitlab.core.contract.errors import Interrupted
from splitlab.core.runs.disk import HeldError, hold, writing
from splitlab.core.runs.records import read_summary
from splitlab.core.studies.job import Job, JobReporter, Outcome, note_failure
from splitlab.core.studies.printed import keep_log, log_file
from splitlab.core.studies.remote import job_text

__all__ = ["Processes"]

_TICK = 0.2  # seconds between two looks whether to stop
_PARTING_SECONDS = 5.0


class Processes:
    """Performs so many jobs at a time, each in a process of its own.

    A process that dies takes its job with it, which has failed then, and another takes its place.
    If this process dies, the others stop after their step, with checkpoints.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def perform(
        self, jobs: Sequence[Job], reporter: JobReporter, should_stop: Callable[[], bool]
    ) -> None:
        """Perform every job, see `Executor`."""
        waiting, interrupted, stopping = deque(jobs), 0, False
        workers = [_Worker(place) for place in _places(min(self.number, len(jobs)), jobs)]
        try:
            while True:
                if not stopping and should_stop():
                    stopping = True
                    for worker in workers:
                        worker.dismiss()
                for worker in workers:
                    if worker.job is None and waiting and not stopping:
                        job = waiting.popleft()
                        reporter.progress(job, 0.0, "starting")
                        worker.begin(job)
                    elif worker.job is None:
                        worker.dismiss()
                busy: dict[Any, _Worker] = {w.pipe: w for w in workers if w.job is not None}
                if not busy:
                    break
                for pipe in wait(busy, _TICK):
                    interrupted += busy[pipe].hear(reporter) == "interrupted"
        finally:
            _end(workers)
        if waiting or interrupted:
            raise Interrupted(f"interrupted in {interrupted} runs, before {len(waiting)}")

    def sharing(self, jobs: Sequence[Job]) -> str:
        """Return how many runs share a GPU, and whether they do so side by side."""
        places = _places(min(self.number, len(jobs)), jobs)
        runs = Counter(place.gpu for place in places if place.gpu is not None)
        most = max(runs.values(), default=0)
        if most < 2:
            return ""
        how = "side by side, by" if _mps_runs() else "in turns: there is no"
        return f"up to {most} runs at a time share a GPU, {how} MPS of NVIDIA's"


@dataclass(frozen=True)
class _Place:
    """What a worker has of the machine.

    Attributes:
        cores: their numbers; none where the system tells none.
        gpu: as ``$CUDA_VISIBLE_DEVICES`` names it; None leaves that as it is.
    """

    cores: Sequence[int]
    gpu: str | None


def _places(number: int, jobs: Sequence[Job]) -> list[_Place]:
    """Divide the machine; where there are fewer cores or GPUs than workers, several share one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = _gpus([job.config.device for job in jobs])
    found = []
    for i in range(number):
        share = cores[len(cores) * i // number : len(cores) * (i + 1) // number]
        alone = [cores[i % len(cores)]] if cores else []
        found.append(_Place(share or alone, gpus[i % len(gpus)] if gpus else None))
    return found


def _gpus(devices: Sequence[str]) -> list[str]:
    """Return the GPUs to hand out: none, if no run wants any, or one wants a certain one."""
    if all(device == "cpu" for device in devices) or any(":" in device for device in devices):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _mps_runs() -> bool:
    """Whether NVIDIA's Multi-Process Service is there; CUDA then takes it by itself.

    Its daemon listens in this folder. Who starts and ends it is not for us to say.
    """
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    return os.path.exists(os.path.join(folder, "control"))


class _Worker:
    """A place for jobs, and the process that performs them there, while there is one.

    Attributes:
        job: in hand; None if it is idle.
        pipe: the descriptor where it tells how that goes.
    """

    def __init__(self, place: _Place) -> None:
        self.job: Job | None = None
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self.pipe = -1
        self._heard = b""

    def begin(self, job: Job) -> None:
        """Let it perform a job; starts its process, if there is none."""
        self.job = job
        if self._process is None:
            self._start(job)
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which is heard next
            self._process.stdin.write(job_text(job).encode() + b"\n")
            self._process.stdin.flush()

    def _start(self, job: Job) -> None:
        with writing(job.folder):
            printed = log_file(job.folder).open("ab")
        self._heard = b""
        self.pipe, theirs = os.pipe()
        environment = {"GOMP_SPINCOUNT": "1000", **os.environ}  # as the command line's own
        if self._place.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._place.gpu
        cores = ",".join(map(str, self._place.cores))
        with printed:
            # A session of its own: Ctrl-C reaches this process only, which decides for all.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "splitlab.core.studies.worker", str(theirs), cores],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                env=environment,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        os.close(theirs)

    def hear(self, reporter: JobReporter) -> str:
        """Pass on what it tells; returns the state of its job if that has ended, or nothing."""
        assert self.job is not None
        job, told = self.job, os.read(self.pipe, 65536)
        if not told:
            outcome = _lost(job, self._last_words(job))
            keep_log(job.folder)
            self._forget()
            return self._ended(reporter, outcome)
        *lines, self._heard = (self._heard + told).split(b"\n")
        state = ""
        for values in map(json.loads, lines):
            if "state" in values:
                done = values["state"] == "finished"
                summary = read_summary(job.folder) if done else None
                state = self._ended(reporter, Outcome(**values, summary=summary))
            else:
                reporter.progress(job, values["share"], values["note"])
        return state

    def _ended(self, reporter: JobReporter, outcome: Outcome) -> str:
        assert self.job is not None
        job, self.job = self.job, None
        reporter.ended(job, outcome)
        return outcome.state

    def _last_words(self, job: Job) -> str:
        """Return why the process has ended."""
        assert self._process is not None
        try:
            status = self._process.wait(_PARTING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if status < 0:
            by = signal.Signals(-status).name
            why = "; the machine may be out of memory" if by == "SIGKILL" else ""
            return f"its process was killed by {by}{why}"
        return f"its process ended with status {status}: {_last_line(log_file(job.folder))}"

    def dismiss(self) -> None:
        """Let it stop after its step, with a checkpoint, and then end. Allowed twice."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def end(self, until: float) -> None:
        """Wait until it has ended, and end it if it has not by then.

        Args:
            until: by the monotonic clock.
        """
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._forget()

    def terminate(self) -> None:
        """Let it end at once."""
        if self._process is not None:
            self._process.terminate()

    def _forget(self) -> None:
        self.dismiss()
        os.close(self.pipe)
        self._process, self.pipe = None, -1


def _end(workers: Sequence[_Worker]) -> None:
    """End all processes; the idle ones end by themselves, others have been left by an error."""
    for worker in workers:
        worker.dismiss()
        if worker.job is not None:
            worker.terminate()
    until = time.monotonic() + _PARTING_SECONDS
    for worker in workers:
        worker.end(until)


def _lost(job: Job, reason: str) -> Outcome:
    """Return how a job ended whose process died, and keep it for those who come later."""
    outcome = Outcome("failed", reason)
    with suppress(HeldError), hold(job.folder.parent, job.folder.name):
        note_failure(job, outcome)
    return outcome


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it printed nothing"
