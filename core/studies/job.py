"""One run of a study: where it belongs, what it is given, and how it ended.

An executor is told what to perform and where, and tells how it goes; what a job is, which ones are
missing and what came of them is the study's. `perform` is what every executor calls in the end,
in whatever process: it claims the run, goes on with it if it was begun, and never raises what is a
run's own fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from splitlab.core.contract.errors import Diverged, Interrupted, SplitlabError
from splitlab.core.contract.jsonable import json_text
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.config import Config
from splitlab.core.runs.disk import HeldError, hold, write_whole, writing
from splitlab.core.runs.folder import CONFIG, failure_note
from splitlab.core.runs.records import SUMMARY, Summary, read_summary
from splitlab.core.runs.reporter import Reporter
from splitlab.core.runs.run import run

__all__ = [
    "Executor",
    "Job",
    "JobReporter",
    "Outcome",
    "failure",
    "note_failure",
    "perform",
    "told",
]


@dataclass(frozen=True)
class Job:
    """One run that is to be.

    Attributes:
        number: from 1, of all runs of the study.
        title: of its row.
        config: of the run, seed and threads decided; ``output`` is where its folder is to be.
    """

    number: int
    title: str
    config: Config

    @property
    def folder(self) -> Path:
        """Where the run belongs: an absolute path."""
        assert self.config.output is not None
        return Path(self.config.output)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: ``finished``, ``failed``, ``diverged``, ``interrupted``, or ``busy``: another process
            has the run in hand.
        error: why, unless it is finished.
        summary: what it ended with, if it is finished.
    """

    state: Literal["finished", "failed", "diverged", "interrupted", "busy"]
    error: str = ""
    summary: Summary | None = None


class JobReporter:
    """Is told how jobs go, always in the process that started the executor. This one is silent."""

    def run(self, job: Job) -> Reporter:
        """A job begins in this process; returns who is told how it goes."""
        return Reporter()

    def progress(self, job: Job, share: float, note: str) -> None:
        """A job that runs in another process has come so far of its budget, 0 to 1."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended."""


class Executor(Protocol):
    """Performs jobs, in whatever order and place; results do not depend on which executor."""

    def perform(
        self, jobs: Sequence[Job], reporter: JobReporter, should_stop: Callable[[], bool]
    ) -> None:
        """Perform every job, and tell the reporter as each begins, goes on and ends.

        Raises:
            Interrupted: ``should_stop()`` became true; everything begun is stopped after its step,
                with a checkpoint, and its folder is where it belongs.
        """

    def sharing(self, jobs: Sequence[Job]) -> str:
        """Return how runs at the same time share a GPU, in words; empty if they do not."""


def perform(
    job: Job, reporter: Reporter, should_stop: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run a job to its end, from the beginning or from where it was left.

    What ends a run as its own fault is its outcome, and stays beside its folder until the job is
    performed again (`failure`).

    Raises:
        Interrupted: by ``should_stop``.
    """
    try:
        with hold(job.folder.parent, job.folder.name):
            note_failure(job, None)
            outcome = _performed(job, reporter, should_stop)
            note_failure(job, outcome)
            return outcome
    except HeldError as error:
        return Outcome("busy", str(error))


def _performed(job: Job, reporter: Reporter, should_stop: Callable[[], bool]) -> Outcome:
    folder = job.folder
    try:
        if not (folder / CONFIG).is_file():
            result = run(job.config, reporter=reporter, should_stop=should_stop)
            return Outcome("finished", summary=result.summary)
        more: dict[str, Any] = {}
        was = Config.from_toml(folder / CONFIG).budget
        if Budget.parse(was) != Budget.parse(job.config.budget):
            more = {"budget": job.config.budget}
        elif (folder / SUMMARY).is_file():  # another process was faster
            return Outcome("finished", summary=read_summary(folder))
        result = run(resume=folder, reporter=reporter, should_stop=should_stop, **more)
        return Outcome("finished", summary=result.summary)
    except Interrupted:
        raise
    except Diverged as reason:
        return Outcome("diverged", told(reason))
    except SplitlabError as reason:
        return Outcome("failed", told(reason))
    except (RuntimeError, MemoryError, OSError) as reason:  # no memory, a full disk
        return Outcome("failed", " ".join(f"{type(reason).__name__}: {reason}".split()))


def told(error: SplitlabError) -> str:
    """Return an error without the way to go on with the run, which is the study's to say."""
    return str(error).partition("; go on from")[0]


def note_failure(job: Job, outcome: Outcome | None) -> None:
    """Keep why a job failed beside its folder, which may not be there; None forgets it."""
    path = failure_note(job.folder)
    if outcome is not None and outcome.state in ("failed", "diverged"):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json_text({"state": outcome.state, "error": outcome.error}) + "\n")
    else:
        with writing(path):
            path.unlink(missing_ok=True)


def failure(folder: Path) -> tuple[str, str] | None:
    """Return state and reason of a job that failed or diverged, by the folder of its run."""
    try:
        values = json.loads(failure_note(folder).read_text(encoding="utf-8"))
        return str(values["state"]), str(values["error"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        return "failed", f"{failure_note(folder)} cannot be read ({error})"
