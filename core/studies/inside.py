"""Jobs one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from splitlab.core.contract.errors import Interrupted
from splitlab.core.studies.job import Job, JobReporter, Outcome, told
from splitlab.core.studies.perform import perform, release
from splitlab.core.studies.printed import keep_log

__all__ = ["Inside"]


class Inside:
    """Performs jobs here, in their order."""

    def perform(
        self, jobs: Sequence[Job], reporter: JobReporter, should_stop: Callable[[], bool]
    ) -> None:
        """Perform every job, see `Executor`."""
        for done, job in enumerate(jobs):
            if should_stop():
                raise Interrupted(f"interrupted before {len(jobs) - done} runs")
            try:
                outcome = perform(job, reporter.run(job), should_stop)
            except Interrupted as reason:
                reporter.ended(job, Outcome("interrupted", told(reason)))
                raise
            if outcome.state != "busy":
                keep_log(job.folder)  # of a process that had it in hand before
            reporter.ended(job, outcome)
            release()

    def sharing(self, jobs: Sequence[Job]) -> str:
        """Return nothing: one run at a time has what there is."""
        return ""
