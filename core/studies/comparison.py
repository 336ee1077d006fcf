"""What came of a comparison: its record on disk, its table, its curves. Runs nothing.

``DIR/STACK/seed-S`` are ordinary run folders; beside them stand

results.json   what was compared, and how every run ended; what makes a folder a comparison
table.md       the table, for people
table.csv      the same in full precision
accuracy.png   accuracy against the training bytes that crossed the link
accuracy.pdf   the same
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.jsonable import json_text
from splitlab.core.report.curves import accuracy_curve
from splitlab.core.report.figure import Curve, draw_curves
from splitlab.core.report.table import LEGEND, Row, Table, comma_separated
from splitlab.core.runs.config import Config, differences
from splitlab.core.runs.disk import LOCKS, write_whole, writing
from splitlab.core.runs.records import SUMMARY, Summary, read_state, read_summary

__all__ = ["Comparison", "Contender", "Outcome", "XScale", "differs"]

RECORD = "results.json"
FIGURES = ("accuracy.png", "accuracy.pdf")
_FORMAT = 1

PER_RUN = ("plugins", "seed", "output")
"""Fields of `Config` in which the runs of a comparison differ."""
_DECIDED_BY_DATA = ("eval_every", "checkpoint_every")
"""Fields that a run decides when it sees its data, if they are not given."""

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
        summary: what it ended with; None unless it is finished.
        error: why it failed or diverged; empty unless it did.
        diverged: whether a loss, gradient or evaluation of it was not finite.
    """

    folder: str
    seed: int
    summary: Summary | None = None
    error: str = ""
    diverged: bool = False

    @property
    def state(self) -> Literal["finished", "failed", "diverged", "missing"]:
        """``missing`` is a run that was not started, or did not come to its end."""
        if self.summary is not None:
            return "finished"
        return "diverged" if self.diverged else "failed" if self.error else "missing"


@dataclass
class Comparison:
    """What is compared, and what came of it so far.

    Attributes:
        folder: the comparison's.
        config: what all runs have in common, decided.
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
        if not folder.exists() or (
            folder.is_dir() and all(each.suffix == LOCKS for each in folder.iterdir())
        ):
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
            error, diverged = errors.get(key, ""), False
            if (folder / "config.toml").is_file():
                self._check_run(folder, self.run_config(contender, seed))
                if (folder / SUMMARY).is_file():
                    summary, error = read_summary(folder), ""
                state = read_state(folder)
                if summary is not None and not summary.finite:  # of an older version
                    summary, error, diverged = None, "the summary holds no finite result", True
                elif state is not None and state.state == "diverged":
                    summary, error, diverged = None, state.error, True
            self.outcomes[key] = Outcome(*key, summary, error, diverged)

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
        return [
            Row.of(
                contender.title,
                [o.summary for o in self.of(contender) if o.summary is not None],
                len(self.seeds),
                "; ".join(_notes(contender, self.of(contender))),
                sum(o.state == "diverged" for o in self.of(contender)),
            )
            for contender in self.contenders
        ]

    def curves(self) -> list[Curve]:
        """Return accuracy over training bytes of every stack with a run that ended.

        Runs that diverged are not in the means, and the label says so; if all did, it stands alone.
        """
        found = []
        for contender in self.contenders:
            states = {o.seed: o.state for o in self.of(contender)}
            finished = [seed for seed, state in states.items() if state == "finished"]
            diverged = sum(state == "diverged" for state in states.values())
            label = contender.title
            if diverged:
                label += f" ({diverged} of {len(states)} diverged)"
            if finished:
                folders = [self.run_folder(contender, seed) for seed in finished]
                found.append(accuracy_curve(label, folders))
            elif diverged:
                found.append(Curve(label, [], []))
        return found

    def failures(self) -> list[str]:
        """Return a line for every run that failed: which one, and why."""
        return [
            f"{contender.title}, seed {outcome.seed}: {outcome.error}"
            for contender in self.contenders
            for outcome in self.of(contender)
            if outcome.state in ("failed", "diverged")
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
                {
                    "folder": outcome.folder,
                    "seed": outcome.seed,
                    "summary": outcome.summary.as_dict() if outcome.summary else None,
                    "error": outcome.error,
                    "state": outcome.state,
                }
                for outcome in self.outcomes.values()
            ],
        }
        self._write(RECORD, json_text(record, indent=2) + "\n")

    def write(self, x_scale: XScale = "linear") -> None:
        """Write record, tables and figures."""
        self.write_record()
        self.draw(x_scale)

    def draw(self, x_scale: XScale = "linear") -> None:
        """Write tables and figures."""
        self._write("table.md", self._markdown())
        self._write("table.csv", comma_separated(self.rows()))
        draw_curves(
            self.curves(),
            [self.folder / name for name in FIGURES],
            x_label="training bytes over the link, both directions",
            y_label="test accuracy",
            x_unit="B",
            x_scale=x_scale,
        )

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)

    def _markdown(self) -> str:
        table = Table.of(self.rows())
        rule = ["---" if name in ("stack", "note") else "---:" for name in table.header]
        lines = [table.header, rule, *table.rows]
        escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        return "\n".join([self.description(), "", *(f"| {line} |" for line in escaped), "", LEGEND])

    def description(self) -> str:
        """Return what all runs have in common, in one line."""
        c = self.config
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"{c.dataset or c.data_dir}, {c.model} cut at {c.cut}, batch size "
            f"{c.batch_size}, {c.optimizer} with learning rate {c.lr:g}, budget {c.budget}, "
            f"transport {c.link}, seed{'s' * (len(self.seeds) > 1)} {seeds}."
        )


def differs(now: Config, was: Config, ignore: Sequence[str] = PER_RUN) -> str:
    """Return the first option in which two configurations differ, with both values, or ``""``."""
    return next(iter(differences(now, was, ignore)), "")


def _notes(contender: Contender, outcomes: Sequence[Outcome]) -> Iterator[str]:
    reasons: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes:
        if outcome.state in ("failed", "diverged"):
            reasons.setdefault((outcome.state, outcome.error), []).append(outcome.seed)
    for (state, reason), seeds in reasons.items():
        left_out = " and not in the means" if state == "diverged" else ""
        yield f"{_seeds(seeds)} {state}{left_out}: {reason}"
    missing = [outcome.seed for outcome in outcomes if outcome.state == "missing"]
    if missing:
        yield f"{_seeds(missing)} not finished"
    if contender.remark:
        yield contender.remark


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
