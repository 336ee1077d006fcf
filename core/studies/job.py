"""One run of a study: where it belongs, what it is given, and how it ended.

An executor is told what to perform and where, and tells how it goes; what a job is, which ones are
missing and what came of them is the study's. `splitlab.core.studies.perform` is what every executor
calls in the end, in whatever process. Who looks at a study only imports no torch here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from splitlab.core.contract.errors import SplitlabError
from splitlab.core.contract.jsonable import json_text
from splitlab.core.runs.config import Config
from splitlab.core.runs.disk import write_whole, writing
from splitlab.core.runs.folder import failure_note
from splitlab.core.runs.records import Summary
from splitlab.core.runs.reporter import Reporter

__all__ = [
    "Executor",
    "Job",
    "JobReporter",
    "Outcome",
    "failure",
    "note_failure",
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


def failure(folder: Path) -> Outcome | None:
    """Return how a job failed or diverged, by the folder of its run; None if it did not."""
    try:
        values = json.loads(failure_note(folder).read_text(encoding="utf-8"))
        diverged, error = values["state"] == "diverged", str(values["error"])
        return Outcome("diverged" if diverged else "failed", error)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Outcome("failed", f"{failure_note(folder)} cannot be read ({error})")
