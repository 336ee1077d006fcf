"""Run folders at a glance: what is known of a run without starting anything.

Nothing here imports torch or a plugin, and of a finished run no log is read: hundreds of runs are
looked at in a fraction of a second. A folder that is damaged is a run like the others, in the state
``damaged``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.binding import split_stack
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import LABELS, Config, flag
from splitlab.core.runs.disk import holder
from splitlab.core.runs.filters import Filter, in_order
from splitlab.core.runs.folder import CONFIG
from splitlab.core.runs.records import (
    LEDGER,
    METRICS,
    STATE,
    SUMMARY,
    EvaluationRecord,
    Summary,
    read_counts,
    read_evaluations,
    read_state,
    read_summary,
)

__all__ = [
    "STATES",
    "Run",
    "Runs",
    "differing",
    "find_runs",
    "is_run",
    "keys",
    "load_runs",
    "read_run",
    "stack_title",
]

STATES = ("running", "finished", "interrupted", "failed", "diverged", "damaged")

_ORIGIN = "run.json"
_BESIDE = (_ORIGIN, STATE, SUMMARY, METRICS)
"""What a run folder holds besides its configuration: one of them at least."""

_TAIL = 1 << 16


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: absolute.
        config: of the run; None if it cannot be read.
        state: one of `STATES`. A run that was killed is ``interrupted``: nobody holds its folder.
        step: training steps done, as far as they were logged.
        error: why it failed or diverged, what interrupted it, or what is damaged.
        summary: what it ended with; None unless it is finished.
        id: drawn when it began; empty in folders of older versions.
        begun: seconds since the epoch.
        newest: the last evaluation of a run that has no summary.
        sent: training bytes of a run that has no summary until its last checkpoint: up and down.
    """

    folder: Path
    config: Config | None
    state: str
    step: int = 0
    error: str = ""
    summary: Summary | None = None
    id: str = ""
    begun: float = 0.0
    newest: EvaluationRecord | None = None
    sent: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What lists call it: its own name, or its folder's."""
        return (self.config and self.config.name) or self.folder.name

    @property
    def tags(self) -> tuple[str, ...]:
        """What it was tagged with."""
        return self.config.tags if self.config else ()

    @property
    def stack(self) -> str:
        """Its plugins as tables call them, see `stack_title`; empty if it is damaged."""
        return stack_title(self.config.plugins) if self.config else ""

    @property
    def data(self) -> str:
        """Name of its data set, or of the folder of its data."""
        if self.config is None:
            return ""
        return self.config.dataset or Path(self.config.data_dir or "").name

    @property
    def seed(self) -> int | None:
        """Of everything; None if it is damaged."""
        return self.config.seed if self.config else None

    @property
    def accuracy(self) -> float | None:
        """Of the last evaluation, 0 to 1; None before the first."""
        last = self.summary or self.newest
        return last.accuracy if last else None

    @property
    def bytes_up(self) -> int | None:
        """Training bytes that the client sent, as far as they were written."""
        return self.summary.bytes_up if self.summary else self.sent and self.sent[0]

    @property
    def bytes_down(self) -> int | None:
        """Training bytes that the server sent, as far as they were written."""
        return self.summary.bytes_down if self.summary else self.sent and self.sent[1]

    @property
    def bytes(self) -> int | None:
        """Training bytes of both directions, as far as they were written."""
        up, down = self.bytes_up, self.bytes_down
        return None if up is None or down is None else up + down

    def evaluations(self) -> list[EvaluationRecord]:
        """Return its evaluations, in their order; none of a run that has no log.

        Raises:
            ConfigError: the log is damaged.
        """
        return read_evaluations(self.folder) if (self.folder / METRICS).exists() else []

    def settings(self) -> dict[str, Any]:
        """Return what it is and how it stands as one flat mapping of texts and numbers.

        Every run's has the same keys, those of `Config` among them; what is not known is None.
        Lists are texts: members of a stack, probes and links are joined by ``+``, tags by commas.
        """
        config: dict[str, Any] = dict.fromkeys(Config.__dataclass_fields__)
        if self.config is not None:
            config = dataclasses.asdict(self.config)
        for name, value in config.items():
            config[name] = "+".join(value) if isinstance(value, tuple) else value
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.begun))
        return {
            "folder": str(self.folder),
            "id": self.id,
            "begun": begun,
            **config,
            "name": self.name,
            "tags": ",".join(self.tags),
            "stack": self.stack,
            "data": self.data,
            "state": self.state,
            "error": self.error,
        }

    def record(self) -> dict[str, Any]:
        """Return its `settings`, and its figures in the same way."""
        last = self.summary or self.newest
        figures = {name: getattr(last, name, None) for name in _FIGURES}
        return {
            **self.settings(),
            **figures,
            "steps": self.step,
            "accuracy": self.accuracy,
            "bytes": self.bytes,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


_FIGURES = (
    "loss",
    "accuracy_uncompressed",
    "loss_uncompressed",
    "epochs",
    "seconds",
    "client_seconds",
    "server_seconds",
    "link_seconds",
    "ratio_nominal",
    "ratio_measured",
    "budget_used",
    "images_per_second",
    "data_share",
)
"""Fields of `Summary` that a record of a run has besides those that every run has."""


class Runs(list[Run]):
    """Runs, in the order in which they began unless they were sorted."""

    def where(self, *filters: str) -> Runs:
        """Return those that pass all filters, such as ``"state=finished"`` or ``"accuracy>0.8"``.

        Raises:
            ConfigError: a filter that cannot be read, see `splitlab.core.runs.filters`.
        """
        wanted = [Filter.parse(text, keys()) for text in filters]
        records = ((run, run.record()) for run in self)
        return Runs(run for run, record in records if all(each.keeps(record) for each in wanted))

    def by(self, key: str) -> Runs:
        """Return them sorted by ``KEY``, or by ``-KEY`` falling; those without such a value last.

        Raises:
            ConfigError: an unknown key.
        """
        return Runs(in_order(self, Run.record, key, keys()))

    def table(self) -> list[dict[str, Any]]:
        """Return one record a run, see `Run.record`; pandas makes a frame of it as it is."""
        return [run.record() for run in self]

    def evaluations(self) -> list[dict[str, Any]]:
        """Return one record an evaluation: the run's `Run.settings` and what was found.

        That is every field of `EvaluationRecord`; bytes of the evaluation itself are called
        ``evaluation_bytes_up`` and ``evaluation_bytes_down``.

        Raises:
            ConfigError: a log is damaged.
        """
        found = []
        for run in self:
            settings = run.settings()
            for evaluation in run.evaluations():
                figures = dataclasses.asdict(evaluation)
                for way in ("bytes_up", "bytes_down"):
                    figures[f"evaluation_{way}"] = figures.pop(way)
                found.append({**settings, **figures})
        return found


def keys() -> tuple[str, ...]:
    """Return what a run's record holds, by which runs are filtered and sorted."""
    return tuple(Run(Path(), None, "damaged").record())


def load_runs(*places: str | Path) -> Runs:
    """Return the runs in these folders, at any depth, in the order in which they began.

    ``pandas.DataFrame(load_runs("runs").table())`` is a frame of them.

    Raises:
        ConfigError: a place is no folder.
    """
    return Runs(find_runs(*(Path(place) for place in places)))


def differing(runs: Sequence[Run]) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return the options in which runs differ, and their figures: by name, a value of each run.

    Figures that are known of none are left out; so is what runs are called.

    Raises:
        ConfigError: the configuration of one cannot be read.
    """
    damaged = next((run for run in runs if run.config is None), None)
    if damaged is not None:
        raise ConfigError(damaged.error)
    records = [run.record() for run in runs]
    found = {key: [record[key] for record in records] for key in records[0]}
    options = [name for name in Config.__dataclass_fields__ if name not in (*LABELS, "output")]
    settings = {flag(name): found[name] for name in options if len(set(found[name])) > 1}
    names = ("state", "steps", "accuracy", "bytes", "bytes_up", "bytes_down", *_FIGURES)
    figures = {key: found[key] for key in names if any(v is not None for v in found[key])}
    return settings, figures


def find_runs(*places: Path) -> list[Run]:
    """Return the runs in these folders, at any depth, in the order in which they began.

    A place may be a run itself. Folders whose names begin with a dot are not looked into.

    Raises:
        ConfigError: a place is no folder.
    """
    folders: dict[Path, Path] = {}
    for place in places:
        if not place.expanduser().is_dir():
            raise ConfigError(f"{place} is no folder; name a run, or a folder of runs")
        folders |= {path.resolve(): path for path in _below(place.expanduser().absolute())}
    found = [read_run(path) for path in folders.values()]
    return sorted(found, key=lambda run: (run.begun, str(run.folder)))


def is_run(folder: Path) -> bool:
    """Return whether a folder is one that a run made: not just one with a ``config.toml``."""
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in _BESIDE)


def read_run(folder: Path) -> Run:
    """Return what is known of a run; of a damaged one, or of no run at all, what is wrong."""
    folder = folder.absolute()
    config = summary = newest = sent = None
    said, step, error = "", 0, ""
    try:
        config = Config.from_toml(folder / CONFIG)
        if (state := read_state(folder)) is not None:
            said, step, error = state.state, state.step, state.error
        if (folder / SUMMARY).exists():
            summary = read_summary(folder)
            step = summary.steps
            if not summary.finite:  # of an older version
                summary, said, error = None, "diverged", "the summary holds no finite result"
        if summary is None:
            newest, sent = _newest(folder), _sent(folder)
            step = max(step, _last_step(folder))
        said, error = _stands(folder, said, error, summary)
    except ConfigError as damage:
        said, error = "damaged", str(damage)
    id, begun = _id(folder), _begun(folder)
    return Run(folder, config, said, step, error, summary, id, begun, newest, sent)


def stack_title(plugins: tuple[str, ...]) -> str:
    """Return what tables call a stack, of what was typed: no plugin is imported.

    >>> stack_title(("adc:ratio=0.05", "quantize:bits=8")), stack_title(())
    ('adc:ratio=0.05 + quantize:bits=8', 'none')
    """
    try:
        members = [each for text in plugins for each in split_stack(text)]
    except ConfigError:
        members = list(plugins)
    return " + ".join(map(_title, members)) or "none"


def _title(member: str) -> str:
    """Return a plugin without the folder of its file, and marked where it is a reconstruction."""
    name, colon, settings = re.sub(r".*\.py:", "", member).partition(":")
    mark = "-recon" if ".py:" not in member and _is_rebuilt(name) else ""
    return f"{name}{mark}{colon}{settings}"


@functools.cache
def _is_rebuilt(name: str) -> bool:
    with suppress(ConfigError):  # a registry that cannot be read
        entry = (entries("plugins") | entries("stacks")).get(name)
        return entry is not None and bool(entry.facts.get("reconstruction"))
    return False


def _below(place: Path) -> Iterator[Path]:
    for path, folders, _ in os.walk(place):
        if is_run(Path(path)):
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _stands(folder: Path, said: str, error: str, summary: Summary | None) -> tuple[str, str]:
    """Return the state of a run, and why it is in it."""
    if summary is not None:
        return ("diverged", error) if said == "diverged" else ("finished", "")
    if holder(folder, "client"):
        return "running", ""
    if said in ("", "running", "finished"):
        return "interrupted", "its process is gone" if said == "running" else error
    return said, error


def _newest(folder: Path) -> EvaluationRecord | None:
    found = read_evaluations(folder) if (folder / METRICS).exists() else []
    return found[-1] if found else None


def _sent(folder: Path) -> tuple[int, int] | None:
    """Return training bytes up and down of the ledger, which is as old as the last checkpoint."""
    if not (folder / LEDGER).exists():
        return None
    counts = read_counts(folder)
    try:
        up, down = (sum(counts["training"][way].values()) for way in ("up", "down"))
        return int(up), int(down)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise ConfigError(f"{folder / LEDGER} is damaged; delete the run to run it again") from None


def _last_step(folder: Path) -> int:
    """Return the step of the last whole line of the log; 0 if there is none."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            *lines, _ = file.read().split(b"\n")
        return int(json.loads(lines[-1]).get("step", 0))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0


def _id(folder: Path) -> str:
    try:
        return str(json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _begun(folder: Path) -> float:
    """Return when the oldest file was written that a run writes at its beginning."""
    times = []
    for name in ("environment.json", _ORIGIN, CONFIG):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return min(times, default=0.0)
