"""A job in another process: how it is written, and how that process tells how far it is."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Plan
from splitlab.core.runs.records import EvaluationRecord
from splitlab.core.runs.reporter import Progress, Reporter
from splitlab.core.studies.job import Job
from splitlab.core.wire.ledger import Ledger

__all__ = ["Telling", "job_from", "job_text"]

_SECONDS = 0.25
"""Between two reports: often enough for eyes, too seldom to cost anything."""


def job_text(job: Job) -> str:
    """Return a job in one line, which `job_from` reads."""
    return json.dumps(dataclasses.asdict(job))


def job_from(text: str) -> Job:
    """Return the job that was written."""
    values = json.loads(text)
    return Job(values["number"], values["title"], Config.from_mapping(values["config"]))


class Telling(Reporter):
    """Tells the share of the budget that is used, and in a few words where the run is.

    Args:
        tell: is told both, a few times a second at most.
    """

    def __init__(self, tell: Callable[[float, str], None]) -> None:
        self._tell = tell
        self._used: Callable[[], float] = lambda: 0.0
        self._step, self._accuracy = 0, ""
        self._last = -math.inf

    def starting(self, what: str) -> None:
        """Tell what is done before the run begins."""
        self._now_and_then(what)

    def loading(self, part: str, done: int, total: int) -> None:
        """Tell how many images are decoded."""
        self._now_and_then(f"{part}: {done:,} of {total:,} images")

    def begin(self, plan: Plan, folder: Path, used: Callable[[], float]) -> None:
        """Keep who knows the share that is used."""
        self._used = used

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        """Tell the step."""
        self._step = progress.step
        self._now_and_then(f"step {self._step}{self._accuracy}")

    def evaluating(self, done: int, total: int) -> None:
        """Tell that it is evaluated."""
        self._now_and_then(f"step {self._step}{self._accuracy}, evaluating")

    def evaluated(self, record: EvaluationRecord) -> None:
        """Keep the accuracy."""
        self._accuracy = f", accuracy {record.accuracy:.2f}"

    def _now_and_then(self, note: str) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS:
            self._last = now
            self._tell(min(1.0, self._used()), note)
