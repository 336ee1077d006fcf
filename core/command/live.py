"""The displays of a run and of a study on a terminal, drawn anew a few times a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from splitlab.core.command.progress import RunState, StudyState, ending
from splitlab.core.command.show import human_bytes, near
from splitlab.core.command.streams import visible

if TYPE_CHECKING:
    from splitlab.core.runs.plan import Plan
    from splitlab.core.runs.records import EvaluationRecord
    from splitlab.core.runs.reporter import Progress, Result
    from splitlab.core.studies.job import Job, Outcome
    from splitlab.core.wire.ledger import Ledger

__all__ = ["LiveReporter", "LiveStudy"]


class LiveReporter(RunState):
    """A run as a display.

    Args:
        study: in whose display this run is shown; by itself by default.
        job: the run, if it is a study's.
    """

    def __init__(self, study: LiveStudy | None = None, job: Job | None = None) -> None:
        super().__init__(study.told if study else None)
        self._study = study
        self._job = job
        self._live = study.live if study else _live()
        self._title = Text()
        self._note = "starting"
        self._numbers: list[tuple[str, str]] = []
        self._accuracy = "—"
        self._live.start()
        self._draw()

    def begin(self, plan: Plan, folder: Path, used: Callable[[], float]) -> None:
        """Show what runs and where it is written, and what of the data is left out."""
        self.total, self.test = used, plan.data.test
        for notice in self.news(plan):
            self._live.console.print(_plain(f"note: {notice}"))
        config = plan.config
        self._title = Text.assemble(
            (visible(" + ".join(plan.titles) or "none"), "bold"),
            _plain(
                f"  {config.dataset or config.data_dir} · {config.model} · cut {config.cut} · "
                f"{config.link} · {near(folder)}"
            ),
        )
        self._note = f"budget {config.budget}"
        self._draw()

    def starting(self, what: str) -> None:
        """Show what is done before the first step."""
        self._note = what
        self._draw()

    def loading(self, part: str, done: int, total: int) -> None:
        """Show how many images are decoded."""
        self._note = f"loading {part}: {done:,} of {total:,} images"
        self._draw()

    def accepted(self, changes: Sequence[str]) -> None:
        """Leave lines above the display that say what has changed since the run began."""
        for change in changes:
            self._live.console.print(_plain(f"accepted: {change}"))

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        """Show all numbers anew."""
        self._note = ""
        spent = progress.training_seconds or 1.0
        shares = (
            f"{name} {seconds:.1f} s ({seconds / spent:.0%})"
            for name, seconds in (
                ("client", progress.client_seconds),
                ("server", progress.server_seconds),
                ("link", progress.link_seconds),
            )
        )
        up, down = ledger.total("up", "training"), ledger.total("down", "training")
        measured = (up + down) / progress.base_bytes if progress.base_bytes else 0.0
        nominal = progress.nominal / progress.samples
        self._numbers = [
            ("step", f"{progress.step:,}   {self.speed(progress):,.0f} images/s"),
            ("loss", f"{loss:.4f}"),
            ("accuracy", self._accuracy),
            ("up", human_bytes(up)),
            ("down", human_bytes(down)),
            ("ratio", f"measured {measured:.4f} of fp32   nominal ξ {nominal:.4f}"),
            ("time", "   ".join(shares)),
        ]
        self._draw()

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        self._note = f"evaluating {done:,} of {total:,} images"
        self._draw()

    def evaluated(self, record: EvaluationRecord) -> None:
        """Keep the accuracy, and leave a line above the display."""
        self._accuracy = f"{record.accuracy:.4f}"
        self._note = ""
        if self._study is None:
            self._live.console.print(
                f"step {record.step:>6,}   accuracy {record.accuracy:.4f}   "
                f"loss {record.loss:.4f}   {human_bytes(record.training_bytes)}"
                f"{self.among(record)}",
                highlight=False,
            )
        self._draw()

    def probed(self, said: Mapping[str, str]) -> None:
        """Leave what probes say in the end above the display."""
        for label, line in said.items():
            self._live.console.print(_plain(f"probe {label}: {line}"))

    def end(self, result: Result | None) -> None:
        """Take the display away, if it is this run's alone."""
        if self._study is None:
            self._live.stop()

    def _draw(self) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right")
        table.add_column()
        for name, value in self._numbers:
            table.add_row(name, value)
        done = min(1.0, self.total())
        shown = (self._title, _bar(done, self._note or self.left()), table)
        if self._study and self._job:
            self._study.shares[self._job.number] = done
            self._study.draw(*shown)
        else:
            self._live.update(Group(*shown))


class LiveStudy(StudyState):
    """A study as a display: a bar of the whole, and what goes on below it.

    Attributes:
        live: the display; a run of this process draws into it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = _live()
        self._here = ""
        self._elsewhere: dict[int, tuple[str, float, str]] = {}

    def run(self, job: Job) -> LiveReporter:
        """Show which run begins in this process."""
        self._here = self.what(job)
        return LiveReporter(self, job)

    def progress(self, job: Job, share: float, note: str) -> None:
        """Show how far a run in another process is."""
        super().progress(job, share, note)
        self._elsewhere[job.number] = f"{job.title}, seed {job.config.seed}", share, note
        self.live.start()
        self.draw()

    def draw(self, *below: RenderableType) -> None:
        """Draw the bar of the whole, and below it the run of this process, or those elsewhere."""
        rows = [_bar(share, f"{what}: {note}") for what, share, note in self._elsewhere.values()]
        here = (_plain(self._here), *below) if below else rows
        self.live.update(Group(_bar(self.share(), self.standing()), *here))

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Leave a line above the display."""
        self.over(job)
        self._elsewhere.pop(job.number, None)
        self.live.console.print(_plain(f"{self.what(job)}: {ending(outcome)}"))

    def end(self) -> None:
        """Take the display away."""
        self.live.stop()


def _live() -> Live:
    return Live(console=Console(), refresh_per_second=6, transient=True)


def _bar(done: float, note: str) -> Table:
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=1.0, completed=done, width=30), f"{done:.0%}", _plain(note))
    return bar


def _plain(text: str) -> Text:
    """Return a text with names of folders and plugins, which are no markup and no commands."""
    return Text(visible(text))
