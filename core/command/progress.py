"""How a run and a study are followed: in lines of text, or on a terminal in a `live` display.

A reporter shows how things go; what came of them is shown by the command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitlab.core.command.show import human_bytes, near
from splitlab.core.command.streams import say

if TYPE_CHECKING:
    from splitlab.core.runs.plan import Plan
    from splitlab.core.runs.records import EvaluationRecord
    from splitlab.core.runs.reporter import Progress, Result
    from splitlab.core.studies.job import Job, Outcome
    from splitlab.core.studies.study import Study
    from splitlab.core.wire.ledger import Ledger

__all__ = [
    "PlainReporter",
    "PlainStudy",
    "RunState",
    "StudyState",
    "ending",
    "reporter",
    "study_reporter",
]

# Lines of text come one an evaluation, and besides one every so many seconds.
_PLAIN_SECONDS = 5.0


def reporter() -> Any:
    """Return the reporter of a run that suits the output."""
    if not sys.stdout.isatty():
        return PlainReporter()
    from splitlab.core.command.live import LiveReporter

    return LiveReporter()


def study_reporter(quiet: bool) -> Any:
    """Return the reporter of a study that suits the output."""
    from splitlab.core.studies.conduct import StudyReporter

    if quiet:
        return StudyReporter()
    if not sys.stdout.isatty():
        return PlainStudy()
    from splitlab.core.command.live import LiveStudy

    return LiveStudy()


class RunState:
    """What both reporters of a run keep.

    Attributes:
        total: returns the share of the budget that is used.
        test: how many test images there are.

    Args:
        told: what was said of the data before, by other runs of a study.
    """

    def __init__(self, told: set[str] | None = None) -> None:
        self.total: Callable[[], float] = lambda: 0.0
        self.test = 0
        self._told = set() if told is None else told
        self._first: tuple[float, int] | None = None
        self._begun: tuple[float, float] | None = None

    def left(self) -> str:
        """Return how long the run will take yet, going by its share of the budget until now.

        ``"4:05 left"``, ``"1:00:12 left"``; empty as long as that cannot be told.
        """
        now, used = time.monotonic(), self.total()
        if self._begun is None:
            self._begun = now, used
        started, before = self._begun
        if used <= before or used >= 1:
            return ""
        return f"{_clock((now - started) * (1 - used) / (used - before))} left"

    def among(self, record: EvaluationRecord) -> str:
        """Return on how many of the test images an evaluation was: `` on 40 of 1,000 images``.

        Empty if it was on all of them.
        """
        if record.samples in (None, self.test):
            return ""
        return f" on {record.samples:,} of {self.test:,} images"

    def news(self, plan: Plan) -> list[str]:
        """Return what of the data is left out, unless it was told before."""
        new = [notice for notice in plan.data.notices if notice not in self._told]
        self._told.update(new)
        return new

    def speed(self, progress: Progress) -> float:
        """Return training samples per second of this session."""
        spent = progress.training_seconds
        if self._first is None:
            self._first = (spent, progress.samples)
        seconds, samples = self._first
        elapsed = spent - seconds
        return (progress.samples - samples) / elapsed if elapsed > 0 else 0.0


def _clock(seconds: float) -> str:
    """Return a time in hours, minutes and seconds: ``1:00:12``, ``4:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainReporter(RunState):
    """Lines of text, for output that is no terminal.

    Args:
        alone: False in a study, which says itself what runs.
        told: as in `RunState`.
    """

    def __init__(self, alone: bool = True, told: set[str] | None = None) -> None:
        super().__init__(told)
        self._alone = alone
        self._last = 0.0

    def begin(self, plan: Plan, folder: Path, used: Callable[[], float]) -> None:
        """Print what runs and where it is written, and what of the data is left out."""
        self.total, self.test = used, plan.data.test
        for notice in self.news(plan):
            say(f"note   {notice}")
        if not self._alone:
            return
        config, stack = plan.config, " + ".join(plan.titles) or "none"
        say(
            f"run    {stack} on {config.dataset or config.data_dir}, {config.model}, "
            f"cut {config.cut}"
        )
        say(f"link   {config.link}, budget {config.budget}, folder {near(folder)}")

    def starting(self, what: str) -> None:
        """Print what is done before the first step."""
        if self._alone:
            say(f"start  {what}")

    def loading(self, part: str, done: int, total: int) -> None:
        """Print how many images are decoded, if it takes long."""
        self._now_and_then(f"load   {part}: {done:,} of {total:,} images")

    def accepted(self, changes: Sequence[str]) -> None:
        """Print what has changed since the run began."""
        for change in changes:
            say(f"accept {change}")

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        """Print a line, if the last one is some seconds old."""
        up, down = ledger.total("up", "training"), ledger.total("down", "training")
        left = self.left()
        left = f"{left}, " if left else ""
        self._now_and_then(
            f"step   {progress.step}: {min(1.0, self.total()):.0%} of the budget, {left}"
            f"loss {loss:.4f}, {self.speed(progress):.0f} images/s, "
            f"up {human_bytes(up)}, down {human_bytes(down)}"
        )

    def evaluating(self, done: int, total: int) -> None:
        """Print how far a long evaluation is."""
        self._now_and_then(f"eval   {done:,} of {total:,} images")

    def evaluated(self, record: EvaluationRecord) -> None:
        """Print the accuracy."""
        both = record.accuracy_uncompressed
        more = f", uncompressed {both:.4f}" if both is not None else ""
        say(
            f"eval   step {record.step}: accuracy {record.accuracy:.4f}{more}"
            f"{self.among(record)}, "
            f"loss {record.loss:.4f}, "
            f"{human_bytes(record.training_bytes)} of training traffic",
        )

    def probed(self, said: Mapping[str, str]) -> None:
        """Print what probes say in the end."""
        for label, line in said.items():
            say(f"probe  {label}: {line}")

    def end(self, result: Result | None) -> None:
        """Do nothing: every line is printed."""

    def _now_and_then(self, line: str) -> None:
        now = time.monotonic()
        self._last = self._last or now
        if now - self._last >= _PLAIN_SECONDS:
            self._last = now
            say(line)


class StudyState:
    """What both reporters of a study keep.

    Attributes:
        told: what was said of the data.
        runs: how many there are.
        shares: how far every run is that goes on, 0 to 1, by its number.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.runs = 0
        self.shares: dict[int, float] = {}
        self._folder = Path()
        self._finished = 0
        self._ended = 0
        self._left = 0
        self._started = time.monotonic()

    def begin(self, study: Study, runs: int, finished: int) -> None:
        """Keep where it is and how many runs there are."""
        self._folder = study.folder
        self.runs, self._finished, self._left = runs, finished, runs - finished
        self._started = time.monotonic()

    def progress(self, job: Job, share: float, note: str) -> None:
        """Keep how far a run is."""
        self.shares[job.number] = share

    def over(self, job: Job) -> None:
        """Keep that a run has ended."""
        self.shares.pop(job.number, None)
        self._ended += 1

    def share(self) -> float:
        """Return which share of all runs is done, 0 to 1."""
        return (self._finished + self._ended + sum(self.shares.values())) / max(self.runs, 1)

    def left(self) -> str:
        """Return how long the study will take yet, going by the runs until now; may be empty."""
        done = self._ended + sum(self.shares.values())
        spent = time.monotonic() - self._started
        if done < 0.05 or spent < 1:  # too little to go by
            return ""
        return f"{_clock(spent * (self._left - done) / done)} left"

    def standing(self) -> str:
        """Return in words how the study stands."""
        counted = f"{self._finished + self._ended} of {self.runs} runs"
        return ", ".join(filter(None, (counted, self.left(), near(self._folder))))

    def what(self, job: Job) -> str:
        """Return in words which run this is."""
        return f"run {job.number} of {self.runs}: {job.title}, seed {job.config.seed}"


class PlainStudy(StudyState):
    """A study in lines of text, for output that is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.monotonic()

    def begin(self, study: Study, runs: int, finished: int) -> None:
        """Print what there is to do."""
        super().begin(study, runs, finished)
        before = f", {finished} of them finished before" if finished else ""
        say(f"study  {runs} runs in {near(study.folder)}{before}")

    def run(self, job: Job) -> PlainReporter:
        """Print which run begins."""
        say(self.what(job))
        return PlainReporter(alone=False, told=self.told)

    def progress(self, job: Job, share: float, note: str) -> None:
        """Print how the study stands, now and then."""
        if job.number not in self.shares:
            say(self.what(job))
        super().progress(job, share, note)
        if time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            say(f"study  {self.standing()}")

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Print how a run ended, and how long the others will take."""
        self.over(job)
        left = self.left()
        say(f"{ending(outcome)} ({self.what(job)}{left and ', '}{left})")

    def end(self) -> None:
        """Do nothing: every line is printed."""


def ending(outcome: Outcome) -> str:
    """Return in words how a run of a study ended."""
    summary = outcome.summary
    if summary is None:
        return f"{outcome.state} {outcome.error}"
    return (
        f"done   accuracy {summary.accuracy:.4f}, {summary.steps:,} steps, "
        f"up {human_bytes(summary.bytes_up)}, down {human_bytes(summary.bytes_down)}"
    )
