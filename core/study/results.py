"""What came of a comparison: its record on disk, its table, its curves. Runs nothing.

``DIR/STACK/seed-S`` are ordinary run folders; beside them stand

results.json   what was compared, and how every run ended; what makes a folder a comparison
table.md       the table, for people
table.csv      the same in full precision
accuracy.png   accuracy against the training bytes that crossed the link
accuracy.pdf   the same
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from splitlab.core.contract.errors import ConfigError
from splitlab.core.report.figure import Curve, draw_curves
from splitlab.core.run.config import Config, flag

__all__ = ["Comparison", "Contender", "Outcome", "Row", "Spread", "Table", "XScale", "differs"]

RECORD = "results.json"
FIGURES = ("accuracy.png", "accuracy.pdf")
_FORMAT = 1

PER_RUN = ("plugins", "seed", "output")
"""Fields of `Config` in which the runs of a comparison differ."""
_DECIDED_BY_DATA = ("eval_every", "checkpoint_every")
"""Fields that a run decides when it sees its data, if they are not given."""

_SUMMARISED = (
    "accuracy",
    "bytes_up",
    "bytes_down",
    "ratio_nominal",
    "ratio_measured",
    "client_seconds",
    "server_seconds",
    "link_seconds",
    "epochs",
    "steps",
)
"""What the table takes of every ``summary.json``."""

XScale = Literal["linear", "log"]


@dataclass(frozen=True)
class Contender:
    """One of the stacks that are compared.

    Attributes:
        name: as the user wrote it: its members, joined by ``+``.
        title: what tables call it: all plugins, and named stacks, with what the user set;
            ``-recon`` marks the reconstruction of a method.
        folder: of its runs, below the comparison's.
        plugins: what a run of it is given: the members, with the comparison's ratio put in.
        agreement: what both peers must have in common: identities and all parameters.
        remark: what a reader of its row should know.
    """

    name: str
    title: str
    folder: str
    plugins: tuple[str, ...]
    agreement: str
    remark: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Attributes:
        folder: of the contender.
        seed: of the run.
        summary: content of its ``summary.json``; None unless it is finished.
        error: why it failed; empty unless it did.
    """

    folder: str
    seed: int
    summary: dict[str, Any] | None = None
    error: str = ""

    @property
    def state(self) -> Literal["finished", "failed", "missing"]:
        """``missing`` is a run that was not started, or did not come to its end."""
        return "finished" if self.summary is not None else "failed" if self.error else "missing"


@dataclass(frozen=True)
class Spread:
    """Mean of some runs, and their sample standard deviation; None of a single run."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {'—' if self.std is None else f'{self.std:.4f}'}"


@dataclass(frozen=True)
class Row:
    """One stack in the table: means over its finished runs, None where there are none.

    Attributes:
        title: of the contender.
        accuracy: on the test images; through the stack where a plugin acts in evaluation.
        uncompressed: the same without the stack; None where no plugin acts in evaluation.
        bytes_up: training bytes that the client sent, as they crossed the link.
        bytes_down: the same of the server.
        nominal: ratio that the papers would charge.
        measured: bytes of both directions over those of the uncompressed float32 tensors.
        client_seconds: of the training steps; so are the next two.
        server_seconds: see there.
        link_seconds: see there.
        epochs: that were trained.
        steps: that were trained.
        finished: how many runs are.
        runs: how many there are to be.
        note: failures with their reasons, what is missing, the contender's remark.
    """

    title: str
    accuracy: Spread | None
    uncompressed: Spread | None
    bytes_up: float | None
    bytes_down: float | None
    nominal: float | None
    measured: float | None
    client_seconds: float | None
    server_seconds: float | None
    link_seconds: float | None
    epochs: float | None
    steps: float | None
    finished: int
    runs: int
    note: str


@dataclass
class Comparison:
    """What is compared, and what came of it so far.

    Attributes:
        folder: the comparison's.
        config: what all runs have in common, resolved.
        contenders: the stacks, in the order of the table.
        seeds: of the runs.
        outcomes: of every run that there is to be, by folder of the contender and seed.
    """

    folder: Path
    config: Config
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    outcomes: dict[tuple[str, int], Outcome] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Comparison | None:
        """Return the comparison in a folder; None where there is nothing yet.

        Raises:
            ConfigError: the folder holds something else, or a run that is not the comparison's.
        """
        path = folder / RECORD
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["splitlab_comparison"] != _FORMAT:
                raise ConfigError(f"{path} is of another version of splitlab; name another folder")
            found = cls(
                folder,
                Config.from_mapping(record["config"]),
                tuple(
                    Contender(**stack | {"plugins": tuple(stack["plugins"])})
                    for stack in record["stacks"]
                ),
                tuple(record["seeds"]),
            )
            errors = {(run["folder"], run["seed"]): run["error"] for run in record["runs"]}
        except OSError:
            raise ConfigError(
                f"--output {folder} is no comparison (it has no {RECORD}); name another folder"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{path} is damaged ({reason}); name another folder") from None
        found.look(errors)
        return found

    def grow(self, contenders: Sequence[Contender], seeds: Sequence[int]) -> None:
        """Take in more contenders and seeds, and look for their runs."""
        self.contenders += tuple(c for c in contenders if c not in self.contenders)
        self.seeds += tuple(seed for seed in seeds if seed not in self.seeds)
        self.look({key: outcome.error for key, outcome in self.outcomes.items()})

    def look(self, errors: dict[tuple[str, int], str]) -> None:
        """Fill in ``outcomes`` from the run folders; ``errors`` says which of the others failed.

        Raises:
            ConfigError: a folder holds another run than it should.
        """
        self.outcomes = {}
        for contender, seed in itertools.product(self.contenders, self.seeds):
            key, folder = (contender.folder, seed), self.run_folder(contender, seed)
            summary = None
            if (folder / "config.toml").is_file():
                self._check_run(folder, self.run_config(contender, seed))
                if (folder / "summary.json").is_file():
                    with _reading(folder / "summary.json") as text:
                        summary = json.loads(text)
                        _ = [summary[key] for key in _SUMMARISED]
            self.outcomes[key] = Outcome(*key, summary, "" if summary else errors.get(key, ""))

    def _check_run(self, folder: Path, wanted: Config) -> None:
        decided = [name for name in _DECIDED_BY_DATA if getattr(wanted, name) is None]
        difference = differs(wanted, Config.from_toml(folder / "config.toml"), ["output", *decided])
        if difference:
            raise ConfigError(
                f"{folder} is another run than this comparison's: {difference}; "
                "move it away, or name another folder with --output"
            )

    def run_config(self, contender: Contender, seed: int) -> Config:
        """Return the configuration of one run."""
        return replace(self.config, plugins=contender.plugins, seed=seed)

    def run_folder(self, contender: Contender, seed: int) -> Path:
        """Return where one run is."""
        return self.folder / contender.folder / f"seed-{seed}"

    # What came of it.

    def of(self, contender: Contender) -> list[Outcome]:
        """Return how the runs of one stack ended, by seed."""
        return [self.outcomes[contender.folder, seed] for seed in self.seeds]

    def rows(self) -> list[Row]:
        """Return the table, one row a stack."""
        return [_row(contender, self.of(contender)) for contender in self.contenders]

    def curves(self) -> list[Curve]:
        """Return accuracy over training bytes of every stack that has a finished run."""
        found = []
        for contender in self.contenders:
            finished = [o.seed for o in self.of(contender) if o.state == "finished"]
            logs = [_evaluations(self.run_folder(contender, seed)) for seed in finished]
            if logs:
                found.append(_curve(contender.title, logs))
        return found

    def failures(self) -> list[str]:
        """Return a line for every run that failed: which one, and why."""
        return [
            f"{contender.title}, seed {outcome.seed}: {outcome.error}"
            for contender in self.contenders
            for outcome in self.of(contender)
            if outcome.state == "failed"
        ]

    def files(self) -> list[Path]:
        """Return where tables and figures are written."""
        return [self.folder / name for name in ("table.md", "table.csv", *FIGURES)]

    # Writing.

    def write_record(self) -> None:
        """Write ``results.json``; makes the folder."""
        config = dataclasses.asdict(self.config)
        record = {
            "splitlab_comparison": _FORMAT,
            "config": {key: value for key, value in config.items() if key not in PER_RUN},
            "seeds": self.seeds,
            "stacks": [dataclasses.asdict(contender) for contender in self.contenders],
            "runs": [
                {**dataclasses.asdict(outcome), "state": outcome.state}
                for outcome in self.outcomes.values()
            ],
        }
        self._write(RECORD, json.dumps(record, indent=2) + "\n")

    def write(self, x_scale: XScale = "linear") -> None:
        """Write record, tables and figures."""
        self.write_record()
        self._write("table.md", self._markdown())
        self._write("table.csv", self._comma_separated())
        draw_curves(
            self.curves(),
            [self.folder / name for name in FIGURES],
            x_label="training bytes over the link, both directions",
            y_label="test accuracy",
            x_unit="B",
            x_scale=x_scale,
        )

    def _write(self, name: str, text: str) -> None:
        temporary = self.folder / f"{name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.folder / name)
        except OSError as error:
            raise ConfigError(f"cannot write {self.folder / name}: {error.strerror}") from None

    def _markdown(self) -> str:
        table = Table.of(self)
        rule = ["---" if name in ("stack", "note") else "---:" for name in table.header]
        lines = [table.header, rule, *table.rows]
        escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        return "\n".join(
            [self.description(), "", *(f"| {line} |" for line in escaped), "", _LEGEND]
        )

    def description(self) -> str:
        """Return what all runs have in common, in one line."""
        c = self.config
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"{c.dataset or c.data_dir}, {c.model} cut after block {c.cut}, batch size "
            f"{c.batch_size}, {c.optimizer} with learning rate {c.lr:g}, budget {c.budget}, "
            f"transport {c.transport}, seed{'s' * (len(self.seeds) > 1)} {seeds}."
        )

    def _comma_separated(self) -> str:
        columns = [spec.name for spec in dataclasses.fields(Row)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        spreads = ("accuracy", "uncompressed")
        names = [(f"{n}_mean", f"{n}_std") if n in spreads else (n,) for n in columns]
        writer.writerow(["stack", *itertools.chain.from_iterable(names[1:])])
        for row in self.rows():
            cells: list[Any] = []
            for name in columns:
                value = getattr(row, name)
                if name in spreads:
                    cells += [value.mean, value.std] if value else [None, None]
                else:
                    cells.append(value)
            writer.writerow(cells)
        return text.getvalue()


def differs(now: Config, was: Config, ignore: Sequence[str] = PER_RUN) -> str:
    """Return the first option in which two configurations differ, with both values, or ``""``."""
    for spec in dataclasses.fields(Config):
        old, new = getattr(was, spec.name), getattr(now, spec.name)
        if spec.name not in ignore and old != new:
            return f"{flag(spec.name)} was {_shown(old)} and is now {_shown(new)}"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value) or "nothing"
    return "not given" if value is None else str(value)


# Rows and curves.


def _row(contender: Contender, outcomes: Sequence[Outcome]) -> Row:
    summaries = [outcome.summary for outcome in outcomes if outcome.summary is not None]

    def mean(key: str) -> float | None:
        return statistics.fmean(s[key] for s in summaries) if summaries else None

    def spread(key: str) -> Spread | None:
        values = [s[key] for s in summaries if key in s]
        return Spread.of(values) if values else None

    return Row(
        title=contender.title,
        accuracy=spread("accuracy"),
        uncompressed=spread("accuracy_uncompressed"),
        bytes_up=mean("bytes_up"),
        bytes_down=mean("bytes_down"),
        nominal=mean("ratio_nominal"),
        measured=mean("ratio_measured"),
        client_seconds=mean("client_seconds"),
        server_seconds=mean("server_seconds"),
        link_seconds=mean("link_seconds"),
        epochs=mean("epochs"),
        steps=mean("steps"),
        finished=len(summaries),
        runs=len(outcomes),
        note="; ".join(_notes(contender, outcomes)),
    )


def _notes(contender: Contender, outcomes: Sequence[Outcome]) -> Iterator[str]:
    reasons: dict[str, list[int]] = {}
    for outcome in outcomes:
        if outcome.state == "failed":
            reasons.setdefault(outcome.error, []).append(outcome.seed)
    for reason, seeds in reasons.items():
        yield f"{_seeds(seeds)} failed: {reason}"
    missing = [outcome.seed for outcome in outcomes if outcome.state == "missing"]
    if missing:
        yield f"{_seeds(missing)} not finished"
    if contender.remark:
        yield contender.remark


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _evaluations(run_folder: Path) -> dict[int, tuple[int, float]]:
    """Return training bytes and accuracy of every evaluation, by step."""
    with _reading(run_folder / "metrics.jsonl") as text:
        # Most lines are training steps, which need not be parsed.
        records = [json.loads(line) for line in text.splitlines() if '"eval"' in line]
        found = {r["step"]: (r["training_bytes"], r["accuracy"]) for r in records}
        if not found:
            raise ValueError("it holds no evaluation")
        return found


@contextmanager
def _reading(path: Path) -> Iterator[str]:
    """Yield the text of a file of a finished run; whatever is wrong with it names the file."""
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{path} is damaged ({reason}); delete the run to run it again") from None


def _curve(label: str, logs: Sequence[dict[int, tuple[int, float]]]) -> Curve:
    """Return means at the steps that all runs evaluated; at the end, means of their last ones."""
    points = [[log[step] for log in logs] for step in sorted(set(logs[0]).intersection(*logs))]
    ends = [log[max(log)] for log in logs]
    if points[-1:] != [ends]:
        points.append(ends)
    x = [statistics.fmean(size for size, _ in point) for point in points]
    spreads = [Spread.of([accuracy for _, accuracy in point]) for point in points]
    known = [spread.std for spread in spreads if spread.std is not None]
    return Curve(label, x, [spread.mean for spread in spreads], known or None)


# The table as text.


@dataclass(frozen=True)
class Table:
    """A header and rows of cells, the bytes in one unit for all rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, comparison: Comparison) -> Table:
        """Write out all rows; an optional column in which nothing stands is left out."""
        rows = comparison.rows()
        largest = max((max(r.bytes_up or 0, r.bytes_down or 0) for r in rows), default=0)
        units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
        unit, size = next((u for u in units if largest >= u[1]), units[-1])
        columns: dict[str, Callable[[Row], str]] = {
            "stack": lambda row: row.title,
            "accuracy": lambda row: _cell(row.accuracy),
            "uncompressed": lambda row: _cell(row.uncompressed),
            f"up {unit}": lambda row: _cell(row.bytes_up, ".4g", size),
            f"down {unit}": lambda row: _cell(row.bytes_down, ".4g", size),
            "nominal": lambda row: _cell(row.nominal, ".4f"),
            "measured": lambda row: _cell(row.measured, ".4f"),
            "client s": lambda row: _cell(row.client_seconds, ".1f"),
            "server s": lambda row: _cell(row.server_seconds, ".1f"),
            "link s": lambda row: _cell(row.link_seconds, ".1f"),
            "epochs": lambda row: _cell(row.epochs, ".2f"),
            "steps": lambda row: _cell(row.steps, ",.0f"),
            "runs": lambda row: f"{row.finished}/{row.runs}",
            "note": lambda row: row.note,
        }
        if not any(row.uncompressed for row in rows):
            del columns["uncompressed"]
        if not any(row.note for row in rows):
            del columns["note"]
        return cls(
            tuple(columns), tuple(tuple(text(row) for text in columns.values()) for row in rows)
        )


def _cell(value: Spread | float | None, form: str = "", unit: float = 1.0) -> str:
    if value is None:
        return "—"
    return str(value) if isinstance(value, Spread) else format(value / unit, form)


_LEGEND = """\
- accuracy: on the test images, mean ± sample standard deviation over the seeds; through the stack
  where a plugin acts in evaluation. uncompressed: the same model evaluated without the stack.
- up, down: training bytes that crossed the link, headers and labels included.
- nominal: the ratio that the methods' papers would charge. measured: up and down over the
  uncompressed float32 activations and gradients of the same samples.
- client s, server s, link s: seconds of the training steps.
- runs: finished of those wanted; every mean is over the finished ones.
"""
