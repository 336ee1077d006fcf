"""How a run and a listing look: the only module that knows rich.

On a terminal a live display; elsewhere (a file, a pipe, CI) plain lines, one an evaluation and one
every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from splitlab.core.run.config import Config
    from splitlab.core.run.loop import Progress, Result
    from splitlab.core.run.trace import Trace
    from splitlab.core.study.results import Comparison, Contender, Outcome
    from splitlab.core.testing.report import Report
    from splitlab.core.wire.ledger import Ledger

__all__ = [
    "LiveComparison",
    "LiveReporter",
    "PlainComparison",
    "PlainReporter",
    "human_bytes",
    "print_table",
    "show_comparison",
    "show_plugin",
    "show_plugins",
    "show_result",
    "show_trace",
]

_PLAIN_SECONDS = 5.0


def human_bytes(count: float) -> str:
    """Return a size in decimal units: ``1536`` → ``"1.54 kB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table; the last column takes the room that is left."""
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def show_plugins(rows: Sequence[dict[str, Any]]) -> None:
    """Print all plugins, all stacks, and below them what is broken and why."""
    well = [row for row in rows if not row["problem"]]
    print_table(
        ("plugin", "paper", "summary"),
        [(r["title"], r.get("paper", ""), _brought(r)) for r in well if r["kind"] == "plugin"],
    )
    print()
    print_table(
        ("stack", "plugins", "summary"),
        [(r["name"], " + ".join(r["plugins"]), _brought(r)) for r in well if r["kind"] == "stack"],
    )
    broken = [(row["name"], row["problem"]) for row in rows if row["problem"]]
    if broken:
        print()
        print_table(("broken", "why"), broken)
    print(
        "\nsplitlab plugins NAME explains one; --plugin FILE.py:Class takes one from a file. "
        "A method called …-recon was\nrebuilt from what its abstract says; type its name without "
        "the suffix."
    )


def _brought(row: dict[str, Any]) -> str:
    return f"{row['summary']}" + ("" if row["source"] == "splitlab" else f" (from {row['source']})")


def show_plugin(facts: dict[str, Any]) -> None:
    """Print all that is known of one plugin, or of one named stack."""
    console = _console()
    console.print(
        Text.assemble((facts.get("title", facts["name"]), "bold"), f": {facts['summary']}")
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, text in _plugin_lines(facts):
        table.add_row(name, Text(text))
    console.print(table)
    rest = facts.get("description", "").partition("\n\n")[2]
    if rest:
        console.print("\n" + rest, highlight=False, markup=False)
    if facts.get("parameters"):
        print()
        print_table(
            ("parameter", "type", "default", "meaning"),
            [(p["name"], p["type"], p["default_text"], p["meaning"]) for p in facts["parameters"]],
        )
    print(f"\nexample: {facts['example']}")


def _plugin_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("paper", facts["paper"])]
    if facts.get("reconstruction"):
        lines.append(
            ("reconstruction", "rebuilt from the abstract; its full text was not available")
        )
    lines.append(("plugins", " + ".join(facts.get("plugins", ()))))
    lines.append(("sends", facts.get("sends", "")))
    lines.append(("hooks", ", ".join(facts.get("hooks", ()))))
    traits = facts.get("traits")
    if traits:
        lines += [
            ("needs", ", ".join(traits["needs"])),
            ("changes", ", ".join(traits["changes"])),
            ("gradient", traits["gradient"]),
            ("evaluation", "acts on it, too" if traits["evaluation"] else "leaves it alone"),
            ("state", "kept over steps" if traits["stateful"] else ""),
        ]
    return [(name, text) for name, text in lines if text]


def _console() -> Console:
    # Where there is no terminal there is no width to fit into; rich would assume 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=140)


class _State:
    """What both reporters keep."""

    def __init__(self) -> None:
        self._total: Callable[[], float] = lambda: 0.0
        self._stack = ""
        self._evaluation: dict[str, Any] = {}
        self._nominal = 0.0
        self._first: tuple[float, int] | None = None

    def loading(self, part: str, done: int, total: int) -> None:
        """Say nothing of images that are decoded at once."""

    def _speed(self, progress: Progress) -> float:
        """Return training samples per second of this session."""
        spent = progress.client_seconds + progress.server_seconds + progress.link_seconds
        if self._first is None:
            self._first = (spent, progress.samples)
        seconds, samples = self._first
        elapsed = spent - seconds
        return (progress.samples - samples) / elapsed if elapsed > 0 else 0.0


def _measured(progress: Progress, ledger: Ledger) -> float:
    crossed = ledger.total("up", "training") + ledger.total("down", "training")
    return crossed / progress.base_bytes if progress.base_bytes else 0.0


class PlainReporter(_State):
    """Lines of text, for output that is no terminal.

    Args:
        alone: False in a comparison, which says itself what runs and what came of it.
    """

    def __init__(self, alone: bool = True) -> None:
        super().__init__()
        self._alone = alone
        self._last = 0.0

    def begin(self, config: Config, folder: Path, stack: str, total: Callable[[], float]) -> None:
        """Print what runs and where it is written."""
        self._total = total
        if not self._alone:
            return
        print(
            f"run    {stack} on {config.dataset or config.data_dir}, {config.model}, "
            f"cut {config.cut}"
        )
        print(f"link   {config.transport}, budget {config.budget}, folder {folder}", flush=True)

    def loading(self, part: str, done: int, total: int) -> None:
        """Print how many images are decoded, if it takes long."""
        self._now_and_then(f"load   {part}: {done:,} of {total:,} images")

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        """Print a line, if the last one is some seconds old."""
        up, down = ledger.total("up", "training"), ledger.total("down", "training")
        self._now_and_then(
            f"step   {progress.step}: {min(1.0, self._total()):.0%} of the budget, "
            f"loss {loss:.4f}, {self._speed(progress):.0f} images/s, "
            f"up {human_bytes(up)}, down {human_bytes(down)}"
        )

    def evaluating(self, done: int, total: int) -> None:
        """Print how far a long evaluation is."""
        self._now_and_then(f"eval   {done:,} of {total:,} images")

    def evaluated(self, record: dict[str, Any]) -> None:
        """Print the accuracy."""
        both = record.get("accuracy_uncompressed")
        more = f", uncompressed {both:.4f}" if both is not None else ""
        print(
            f"eval   step {record['step']}: accuracy {record['accuracy']:.4f}{more}, "
            f"loss {record['loss']:.4f}, "
            f"{human_bytes(record['training_bytes'])} of training traffic",
            flush=True,
        )

    def end(self, result: Result | None) -> None:
        """Print the result."""
        if result is not None and self._alone:
            show_result(result)

    def _now_and_then(self, line: str) -> None:
        now = time.monotonic()
        self._last = self._last or now
        if now - self._last >= _PLAIN_SECONDS:
            self._last = now
            print(line, flush=True)


class LiveReporter(_State):
    """A display that is drawn anew a few times a second.

    Args:
        comparison: in whose display this run is shown; by itself by default.
    """

    def __init__(self, comparison: LiveComparison | None = None) -> None:
        super().__init__()
        self._comparison = comparison
        self._live = comparison.live if comparison else _live()
        self._title = Text()
        self._note = "starting"
        self._numbers: list[tuple[str, str]] = []
        self._live.start()
        self._draw()

    def begin(self, config: Config, folder: Path, stack: str, total: Callable[[], float]) -> None:
        """Show what runs and where it is written."""
        self._total = total
        self._title = Text.assemble(
            (stack, "bold"),
            f"  {config.dataset or config.data_dir} · {config.model} · cut {config.cut} · "
            f"{config.transport} · {folder}",
        )
        self._note = f"budget {config.budget}"
        self._draw()

    def loading(self, part: str, done: int, total: int) -> None:
        """Show how many images are decoded."""
        self._note = f"loading {part}: {done:,} of {total:,} images"
        self._draw()

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        """Show all numbers anew."""
        self._note = ""
        spent = progress.client_seconds + progress.server_seconds + progress.link_seconds or 1.0
        share = {
            name: f"{name} {seconds:.1f} s ({seconds / spent:.0%})"
            for name, seconds in (
                ("client", progress.client_seconds),
                ("server", progress.server_seconds),
                ("link", progress.link_seconds),
            )
        }
        nominal = progress.nominal / progress.samples
        accuracy = self._evaluation.get("accuracy")
        self._numbers = [
            ("step", f"{progress.step:,}   {self._speed(progress):,.0f} images/s"),
            ("loss", f"{loss:.4f}"),
            ("accuracy", "—" if accuracy is None else f"{accuracy:.4f}"),
            ("up", human_bytes(ledger.total("up", "training"))),
            ("down", human_bytes(ledger.total("down", "training"))),
            ("ratio", f"measured {_measured(progress, ledger):.4f}   nominal ξ {nominal:.4f}"),
            ("time", "   ".join(share.values())),
        ]
        self._draw()

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        self._note = f"evaluating {done:,} of {total:,} images"
        self._draw()

    def evaluated(self, record: dict[str, Any]) -> None:
        """Keep the accuracy, and leave a line above the display."""
        self._evaluation = record
        self._note = ""
        if self._comparison is None:
            self._live.console.print(
                f"step {record['step']:>6,}   accuracy {record['accuracy']:.4f}   "
                f"loss {record['loss']:.4f}   {human_bytes(record['training_bytes'])}",
                highlight=False,
            )
        self._draw()

    def end(self, result: Result | None) -> None:
        """Take the display away and print the result."""
        if self._comparison is not None:
            return
        self._live.stop()
        if result is not None:
            show_result(result)

    def _draw(self) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right")
        table.add_column()
        for name, value in self._numbers:
            table.add_row(name, value)
        done = min(1.0, self._total())
        above = [self._comparison.bar(done)] if self._comparison else []
        self._live.update(Group(*above, self._title, _bar(done, self._note), table))


def _live() -> Live:
    return Live(console=Console(), refresh_per_second=6, transient=True)


def _bar(done: float, note: str) -> Table:
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=1.0, completed=done, width=40), f"{done:.0%}", note)
    return bar


class _Runs:
    """What both displays of a comparison keep."""

    def __init__(self) -> None:
        self._folder = Path()
        self._runs = 0

    def begin(self, folder: Path, runs: int, finished: int) -> None:
        """Keep where it is and how many runs there are."""
        self._folder = folder
        self._runs = runs

    def _what(self, number: int, contender: Contender, seed: int) -> str:
        return f"run {number} of {self._runs}: {contender.title}, seed {seed}"


class PlainComparison(_Runs):
    """A comparison in lines of text, for output that is no terminal."""

    def begin(self, folder: Path, runs: int, finished: int) -> None:
        """Print what there is to do."""
        super().begin(folder, runs, finished)
        before = f", {finished} of them finished before" if finished else ""
        print(f"compare {runs} runs in {folder}{before}", flush=True)

    def run(self, number: int, contender: Contender, seed: int) -> PlainReporter:
        """Print which run begins."""
        print(self._what(number, contender, seed), flush=True)
        return PlainReporter(alone=False)

    def ended(self, contender: Contender, outcome: Outcome) -> None:
        """Print how a run ended."""
        print(_ended(outcome), flush=True)

    def end(self) -> None:
        """Do nothing: every line is printed."""


class LiveComparison(_Runs):
    """A comparison as a display that is drawn anew a few times a second.

    Attributes:
        live: the display; its runs draw into it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = _live()
        self._number = 0
        self._now = ""

    def run(self, number: int, contender: Contender, seed: int) -> LiveReporter:
        """Show which run begins."""
        self._number, self._now = number, self._what(number, contender, seed)
        return LiveReporter(self)

    def bar(self, share: float) -> Table:
        """Return the bar of the whole comparison, of whose present run this share is done."""
        return _bar((self._number - 1 + share) / max(self._runs, 1), f"{self._now}, {self._folder}")

    def ended(self, contender: Contender, outcome: Outcome) -> None:
        """Leave a line above the display."""
        self.live.console.print(f"{self._now}: {_ended(outcome)}", highlight=False, markup=False)

    def end(self) -> None:
        """Take the display away."""
        self.live.stop()


def _ended(outcome: Outcome) -> str:
    summary = outcome.summary
    if summary is None:
        return f"failed {outcome.error}"
    return (
        f"done   accuracy {summary['accuracy']:.4f}, {summary['steps']:,} steps, "
        f"up {human_bytes(summary['bytes_up'])}, down {human_bytes(summary['bytes_down'])}"
    )


def reporter(quiet: bool) -> Any:
    """Return the reporter that suits the output."""
    from splitlab.core.run.loop import Reporter

    if quiet:
        return Reporter()
    return LiveReporter() if sys.stdout.isatty() else PlainReporter()


def comparison_reporter(quiet: bool) -> Any:
    """Return the reporter of a comparison that suits the output."""
    from splitlab.core.study.compare import ComparisonReporter

    if quiet:
        return ComparisonReporter()
    return LiveComparison() if sys.stdout.isatty() else PlainComparison()


def show_comparison(comparison: Comparison) -> None:
    """Print the table of a comparison, and where it is written."""
    from splitlab.core.study.results import Table as Cells

    cells = Cells.of(comparison)
    console = _console()
    print()
    print(comparison.description())
    # Numbers are never folded: where they do not all fit beside each other, two tables do.
    numbers = [i for i, name in enumerate(cells.header) if name not in ("stack", "note")]
    width = 24 + sum(2 + max(len(row[i]) for row in (cells.header, *cells.rows)) for i in numbers)
    half = len(numbers) // 2
    parts = [numbers] if width <= console.width else [numbers[:half], numbers[half:]]
    for part in parts:
        table = Table(box=None, header_style="bold")
        table.add_column("stack", overflow="fold")
        for i in part:
            table.add_column(cells.header[i], justify="right", no_wrap=True)
        for texts in cells.rows:
            table.add_row(Text(texts[0]), *(texts[i] for i in part))
        console.print()
        console.print(table)
    print()
    for row in comparison.rows():
        if row.note:
            console.print(f"{row.title}: {row.note}", highlight=False, markup=False)
    print(f"written: {', '.join(map(str, comparison.files()))}")


def show_trace(trace: Trace) -> None:
    """Print the stages of a step, one line a tensor."""
    console = _console()
    for line in trace.heading():
        console.print(line, highlight=False, markup=False)
    table = Table(box=None, header_style="bold")
    for name in ("peer", "what happens", "tensor", "shape", "dtype"):
        table.add_column(name, overflow="fold")
    for name in ("bytes", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in trace.stages:
        took = "" if stage.milliseconds is None else f"{stage.milliseconds:.2f}"
        for i, cells in enumerate(stage.lines()):
            first, last = ((stage.peer, stage.what), took) if i == 0 else (("", ""), "")
            table.add_row(*map(Text, (*first, *cells, last)))
    console.print()
    console.print(table)
    console.print()
    for line in trace.totals():
        console.print(line, highlight=False, markup=False)


_STYLES = {"failed": "bold red", "warning": "yellow", "passed": "green", "skipped": "dim"}


def show_report(report: Report) -> None:
    """Print what every check found, one line a check."""
    table = Table(box=None, header_style="bold")
    for name in ("", "check", "what is checked", ""):
        table.add_column(name, overflow="fold", no_wrap=name == "check")
    for row in report.rows:
        outcome = Text(row.outcome, _STYLES[row.outcome])
        table.add_row(outcome, row.check, row.title, Text(row.reason))
    print(f"{report.subject}: {report.counts()}\n")
    _console().print(table)


def show_verdict(report: Report, done: int, total: int, seconds: float) -> None:
    """Print one line for a report of many, and one more for every check that failed."""
    console = _console()
    style = _STYLES["passed" if report.ok else "failed"]
    line = f"{report.subject:<24} {report.counts():<34} {seconds:5.1f} s"
    console.print(Text.assemble((f"{done:>3}/{total}  ", "dim"), (line, style)))
    for row in report.rows:
        if row.outcome == "failed":
            console.print(Text(f"         {row.check}  {row.reason}"), soft_wrap=True)


def show_result(result: Result) -> None:
    """Print the table that ends a run."""
    summary, ledger = result.summary, result.ledger
    console = _console()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", justify="right")
    facts.add_column(no_wrap=True)
    facts.add_row("accuracy", Text(f"{summary['accuracy']:.4f}", style="bold"))
    if "accuracy_uncompressed" in summary:
        facts.add_row(
            "uncompressed", f"{summary['accuracy_uncompressed']:.4f} (evaluated without the stack)"
        )
    facts.add_row("steps", f"{summary['steps']:,} ({summary['epochs']:.2f} epochs)")
    facts.add_row(
        "ratio",
        f"measured {summary['ratio_measured']:.4f}, nominal ξ {summary['ratio_nominal']:.4f}",
    )
    parts = ", ".join(
        f"{name} {summary[f'{name}_seconds']:.1f} s" for name in ("client", "server", "link")
    )
    facts.add_row("time", f"{summary['seconds']:.1f} s (training: {parts})")
    facts.add_row("run folder", str(result.folder))

    kinds = ("activation", "gradient", "targets", "side", "prediction", "header")
    shown = [k for k in kinds if any(k in d for phase in ledger.values() for d in phase.values())]
    table = Table(title="bytes that crossed the link", title_justify="left", box=None)
    table.add_column("", no_wrap=True)
    for name in (*shown, "sum"):
        table.add_column(name, justify="right")
    for phase, directions in ledger.items():
        for direction, counts in directions.items():
            cells = [human_bytes(counts[k]) if k in counts else "" for k in shown]
            table.add_row(f"{phase} {direction}", *cells, human_bytes(sum(counts.values())))
    console.print()
    console.print(facts)
    console.print()
    console.print(table)
