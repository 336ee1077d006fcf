"""A job is performed, in whatever process: claimed, begun or gone on with, and its failure kept.

What is a run's own fault is never raised: it is the outcome.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from splitlab.core.contract.errors import Diverged, Interrupted, SplitlabError
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.config import Config
from splitlab.core.runs.disk import HeldError, hold
from splitlab.core.runs.folder import CONFIG
from splitlab.core.runs.listing import read_run
from splitlab.core.runs.reporter import Reporter
from splitlab.core.runs.run import run
from splitlab.core.studies.job import Job, Outcome, failure, note_failure, told

__all__ = ["done_by_another", "perform", "release"]


def perform(
    job: Job, reporter: Reporter, should_stop: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run a job to its end, from the beginning or from where it was left.

    What ends a run as its own fault is its outcome, and stays beside its folder until somebody
    takes it away who wants the job performed again (`failure`).

    Raises:
        Interrupted: by ``should_stop``.
    """
    try:
        with hold(job.folder.parent, job.folder.name):
            if done := done_by_another(job):
                return done
            outcome = _performed(job, reporter, should_stop)
            note_failure(job, outcome)
            return outcome
    except HeldError as error:
        return Outcome("busy", str(error))


def done_by_another(job: Job) -> Outcome | None:
    """Return how a job has ended since it was listed, by another process; None if it has not."""
    if failed := failure(job.folder):
        return failed
    found = read_run(job.folder)  # one that is damaged goes on, and is whole then
    if found.state == "finished" and _is_to(job, found.config):
        return Outcome("finished", summary=found.summary)
    return None


def _is_to(job: Job, config: Config | None) -> bool:
    """Return whether a run has the budget that it is to have."""
    wanted = Budget.parse(job.config.budget)
    return config is not None and Budget.parse(config.budget) == wanted


def _performed(job: Job, reporter: Reporter, should_stop: Callable[[], bool]) -> Outcome:
    try:
        if not (job.folder / CONFIG).is_file():
            result = run(job.config, reporter=reporter, should_stop=should_stop)
            return Outcome("finished", summary=result.summary)
        begun, more = Config.from_toml(job.folder / CONFIG), dict[str, Any]()
        if not _is_to(job, begun):
            more["budget"] = job.config.budget
        if begun.loggers != job.config.loggers:
            more["loggers"] = job.config.loggers
        result = run(resume=job.folder, reporter=reporter, should_stop=should_stop, **more)
        return Outcome("finished", summary=result.summary)
    except Interrupted:
        raise
    except Diverged as reason:
        return Outcome("diverged", told(reason))
    except SplitlabError as reason:
        return Outcome("failed", told(reason))
    except (RuntimeError, MemoryError, OSError) as reason:  # no memory, a full disk
        return Outcome("failed", " ".join(f"{type(reason).__name__}: {reason}".split()))


def release() -> None:
    """Give back what a run leaves behind: another one may want the memory of the GPU."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU was used
