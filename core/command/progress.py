"""How a run and a comparison are followed: in lines of text, or on a terminal in a `live` display.

A reporter shows how things go; what came of them is shown by the command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitlab.core.command.show import human_bytes, near
from splitlab.core.command.streams import say

if TYPE_CHECKING:
    from splitlab.core.runs.plan import Plan
    from splitlab.core.runs.records import EvaluationRecord
    from splitlab.core.runs.reporter import Progress, Result
    from splitlab.core.study.comparison import Contender, Outcome
    from splitlab.core.wire.ledger import Ledger

__all__ = [
    "ComparisonState",
    "PlainComparison",
    "PlainReporter",
    "RunState",
    "comparison_reporter",
    "ending",
    "reporter",
]

# Lines of text come one an evaluation, and besides one every so many seconds.
_PLAIN_SECONDS = 5.0


def reporter() -> Any:
    """Return the reporter of a run that suits the output."""
    if not sys.stdout.isatty():
        return PlainReporter()
    from splitlab.core.command.live import LiveReporter

    return LiveReporter()


def comparison_reporter(quiet: bool) -> Any:
    """Return the reporter of a comparison that suits the output."""
    from splitlab.core.study.compare import ComparisonReporter

    if quiet:
        return ComparisonReporter()
    if not sys.stdout.isatty():
        return PlainComparison()
    from splitlab.core.command.live import LiveComparison

    return LiveComparison()


class RunState:
    """What both reporters of a run keep.

    Attributes:
        total: returns the share of the budget that is used.
        test: how many test images there are.

    Args:
        told: what was said of the data before, by other runs of a comparison.
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
        spent = progress.client_seconds + progress.server_seconds + progress.link_seconds
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
        alone: False in a comparison, which says itself what runs.
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

    def end(self, result: Result | None) -> None:
        """Do nothing: every line is printed."""

    def _now_and_then(self, line: str) -> None:
        now = time.monotonic()
        self._last = self._last or now
        if now - self._last >= _PLAIN_SECONDS:
            self._last = now
            say(line)


class ComparisonState:
    """What both reporters of a comparison keep.

    Attributes:
        folder: the comparison's.
        runs: how many there are.
        told: what was said of the data.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.folder = Path()
        self.runs = 0

    def begin(self, folder: Path, runs: int, finished: int) -> None:
        """Keep where it is and how many runs there are."""
        self.folder = folder
        self.runs = runs

    def what(self, number: int, contender: Contender, seed: int) -> str:
        """Return in words which run this is."""
        return f"run {number} of {self.runs}: {contender.title}, seed {seed}"


class PlainComparison(ComparisonState):
    """A comparison in lines of text, for output that is no terminal."""

    def begin(self, folder: Path, runs: int, finished: int) -> None:
        """Print what there is to do."""
        super().begin(folder, runs, finished)
        before = f", {finished} of them finished before" if finished else ""
        say(f"compare {runs} runs in {near(folder)}{before}")

    def run(self, number: int, contender: Contender, seed: int) -> PlainReporter:
        """Print which run begins."""
        say(self.what(number, contender, seed))
        return PlainReporter(alone=False, told=self.told)

    def ended(self, contender: Contender, outcome: Outcome) -> None:
        """Print how a run ended."""
        say(ending(outcome))

    def end(self) -> None:
        """Do nothing: every line is printed."""


def ending(outcome: Outcome) -> str:
    """Return in words how a run of a comparison ended."""
    summary = outcome.summary
    if summary is None:
        return f"{outcome.state} {outcome.error}"
    return (
        f"done   accuracy {summary.accuracy:.4f}, {summary.steps:,} steps, "
        f"up {human_bytes(summary.bytes_up)}, down {human_bytes(summary.bytes_down)}"
    )
