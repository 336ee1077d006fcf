"""A study on disk: what it is to run, how every run stands, and what came of them.

STUDY/study.json          what was asked for, and every row with its configuration
STUDY/ROW-KEY/seed-S      an ordinary run folder; KEY is the row's, whatever it is called
STUDY/ROW-KEY/seed-S.failed.json   why a run failed or diverged, until it is run again

How a run stands is read from its folder alone: what was killed, or is run by another process, needs
no word here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.binding import bind_stack
from splitlab.core.catalogue.tables import ROOT
from splitlab.core.contract.errors import ConfigError, Notice
from splitlab.core.contract.jsonable import json_text
from splitlab.core.report.collect import common, result_of
from splitlab.core.report.members import Member, members_of
from splitlab.core.report.naming import Named, name_all, plan_key
from splitlab.core.report.published import Published, published, read_curves
from splitlab.core.report.reference import reference_named
from splitlab.core.report.results import Axis, Results, Row, RunResult
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.config import Config
from splitlab.core.runs.disk import LOCKS, hold, write_whole, writing
from splitlab.core.runs.folder import CONFIG
from splitlab.core.runs.listing import is_run, read_run
from splitlab.core.studies.definition import Definition
from splitlab.core.studies.job import Job, failure

__all__ = ["RECORD", "Cell", "Study"]

RECORD = "study.json"
_FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One combination: runs of it differ in their seed alone.

    Attributes:
        key: `plan_key` of the configuration; its runs lie under it.
        config: decided, but for the seed.
        remark: what a reader of its row should know.
        members: of its stack, see `members_of`.
    """

    key: str
    config: Config
    remark: str = ""
    members: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study, and where it is.

    Attributes:
        folder: absolute.
        definition: what was asked for, until now.
        cells: its rows.
        given: the folder, as the user named it last.
    """

    folder: Path
    definition: Definition
    cells: tuple[Cell, ...]
    given: str = ""

    @classmethod
    def read(cls, folder: Path) -> Study | None:
        """Return the study in a folder; None where there is nothing yet.

        Raises:
            ConfigError: the folder holds something else.
        """
        path = folder / RECORD
        if not folder.exists() or (folder.is_dir() and not _things(folder)):
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["splitlab_study"] != _FORMAT:
                raise ConfigError("it is of another version of splitlab")
            rows = tuple(_cell(row) for row in record["rows"])
            if not rows:
                raise ConfigError("it has no rows")
            given = record.get("output", folder.name)  # which older ones lack
            if not isinstance(given, str):
                raise ConfigError(f"output is {given!r}")
            return cls(folder, Definition.of_record(record["definition"]), rows, given)
        except OSError:
            raise ConfigError(
                f"{folder} is no study (it has no {RECORD}); name another folder"
            ) from None
        except ConfigError as error:
            raise ConfigError(f"{path} cannot be used: {error}; name another folder") from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{path} is damaged ({reason}); name another folder") from None

    def write(self) -> None:
        """Write what it is to run, and make the folders of its rows.

        They are made now: what grows the study later may call the rows otherwise, and finds them.
        """
        record = {
            "splitlab_study": _FORMAT,
            "output": self.given,
            "definition": self.definition.as_table(),
            "rows": [
                {
                    "key": cell.key,
                    "remark": cell.remark,
                    "config": _set(cell.config),
                    "members": [dataclasses.asdict(member) for member in cell.members],
                }
                for cell in self.cells
            ],
        }
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / RECORD, json_text(record, indent=2) + "\n")
        for place in self._places(self._titles()):
            with writing(place):
                place.mkdir(exist_ok=True)

    # Its runs.

    def jobs(self) -> list[Job]:
        """Return every run that there is to be, seed by seed, so that all rows grow alike."""
        titles = self._titles()
        places = self._places(titles)
        found: list[Job] = []
        for seed in self.definition.seeds:
            for cell, title, place in zip(self.cells, titles, places, strict=True):
                folder = str(place / f"seed-{seed}")
                config = replace(cell.config, seed=seed, output=folder)
                found.append(Job(len(found) + 1, title, config))
        return found

    def left(self, job: Job, retry: bool = False) -> bool:
        """Return whether a run is still to be made.

        Args:
            job: of `jobs`.
            retry: one that failed or diverged is.
        """
        state = result(job.folder, job.config.budget, job.config.seed, logs=False).state
        return state not in ("finished", *(() if retry else ("failed", "diverged")))

    def _titles(self) -> list[str]:
        return [named.title for named in self._named()[1]]

    def _named(self) -> tuple[tuple[Axis, ...], tuple[Named, ...]]:
        return name_all([c.config for c in self.cells], [c.members for c in self.cells])

    def _places(self, titles: Sequence[str]) -> list[Path]:
        """Return the folder of every row: the one with its key, whatever it was called before."""
        known = self._folders()
        return [
            known.get(cell.key) or self.folder / f"{_slug(title)}-{cell.key}"
            for cell, title in zip(self.cells, titles, strict=True)
        ]

    def _folders(self) -> dict[str, Path]:
        """Return what may be folders of rows, by their keys; of two with one key the first."""
        with suppress(OSError):
            found = sorted(self.folder.glob("*-*"), reverse=True)
            return {path.name.rpartition("-")[2]: path for path in found}
        return {}

    def take_over(self, before: Sequence[Cell]) -> None:
        """Let runs that were made to a smaller budget go on to the new one, where that is the same.

        Args:
            before: rows that are the study's no more.

        Raises:
            HeldError: another process has one of these runs in hand.
        """
        moves = [*self._moves(before)]
        for source, _ in moves:  # all or none
            with self._holding(source):
                pass
        for source, target in moves:
            with self._holding(source), writing(source):
                source.rename(target)
                for lock in target.glob(f"seed-*{LOCKS}"):  # ours, which have moved along
                    lock.unlink()

    def _moves(self, before: Sequence[Cell]) -> Iterator[tuple[Path, Path]]:
        """Yield the folders of those rows that go on as rows of this study, from where to where."""
        wanted, known = {cell.key: cell for cell in self.cells}, self._folders()
        named = {key for axis in self.definition.axes for choice in axis for key in choice}
        budgets = list(dict.fromkeys(cell.config.budget for cell in self.cells))
        for old in before:
            if old.key in wanted or old.key not in known:
                continue
            if old.key not in {
                plan_key(old.config, besides, as_written=as_written)
                for besides in ((), named)
                for as_written in (False, True)
            }:
                continue  # a plugin's file does something else than it did
            for budget in budgets:
                new = wanted.get(plan_key(replace(old.config, budget=budget), named))
                if new and new.key not in known and _goes_on(old.config, new.config):
                    source = known[old.key]
                    target = source.with_name(source.name.removesuffix(old.key) + new.key)
                    known[new.key] = target
                    yield source, target
                    break

    def left_behind(self, before: Sequence[Cell]) -> list[Path]:
        """Return the folders of those rows that are no more and have runs, which nobody counts.

        Args:
            before: the study's rows until now; what of them goes on is not left behind.
        """
        known, going_on = self._folders(), {source for source, _ in self._moves(before)}
        gone = {cell.key for cell in before} - {cell.key for cell in self.cells}
        places = [known[key] for key in gone if key in known and known[key] not in going_on]
        return sorted(place for place in places if any(map(is_run, place.glob("seed-*"))))

    @contextmanager
    def _holding(self, place: Path) -> Iterator[None]:
        """Keep everybody from the runs of a row, also from those that are not there yet."""
        with ExitStack() as all_of_them:
            for seed in self.definition.seeds:
                all_of_them.enter_context(hold(place, f"seed-{seed}"))
            yield

    # What came of it.

    def results(self) -> Results:
        """Return what came of it until now, read from the run folders."""
        definition = self.definition
        axes, names = self._named()
        places = self._places([named.title for named in names])
        rows = []
        for cell, named, place in zip(self.cells, names, places, strict=True):
            runs = tuple(
                result(place / f"seed-{seed}", cell.config.budget, seed)
                for seed in definition.seeds
            )
            rows.append(Row(named.title, named.method, named.settings, runs, cell.remark))
        shared = tuple(common([cell.config for cell in self.cells]))
        return Results(
            name=definition.name,
            summary=definition.summary,
            paper=definition.paper,
            common=shared,
            command=definition.command(self.given),
            axes=axes,
            rows=tuple(rows),
            seeds=definition.seeds,
            draw=definition.draw,
            reference=_reference(definition.reference, rows),
            published=_published(definition.published, shared),
        )


def result(folder: Path, budget: str, seed: int, *, logs: bool = True) -> RunResult:
    """Return how a run of a study stands, and what came of it.

    Args:
        folder: of the run.
        budget: that it is to have.
        seed: of the run.
        logs: read its evaluations, too.
    """
    failed = failure(folder)
    if not (folder / CONFIG).is_file():
        if failed:
            return RunResult(folder, seed, failed.state, failed.error)
        return RunResult(folder, seed, "missing")
    run = read_run(folder)
    found = result_of(run) if logs else RunResult(folder, seed, run.state, run.error, run.summary)
    made_to = Budget.parse(run.config.budget) if run.config else None
    if made_to != Budget.parse(budget):
        return replace(found, seed=seed, state="interrupted", error="", summary=None)
    if failed and run.state != "finished":
        return replace(found, state=failed.state, error=failed.error)
    return found


def _goes_on(old: Config, new: Config) -> bool:
    """Return whether a run goes on with another budget as one that had it from the beginning.

    Not where a step depends on how many there are to be, or where a run may have ended early.
    """
    was, wanted = Budget.parse(old.budget), Budget.parse(new.budget)
    by_share = new.lr_schedule != "constant" or 0 < new.warmup < 1 or new.patience is not None
    by_share |= any(bound.pieces > 1 for bound in bind_stack(new.plugins))
    more = was.unit == wanted.unit and was.amount < wanted.amount
    return was == wanted or (more and not by_share)


def _slug(title: str) -> str:
    """Return the title of a row as the name of a folder."""
    short = re.sub(r"[^\s+]*/(?=[^+/]*\.py:)", "", title)
    return re.sub(r"[^\w.+=]+", "-", short)[:80].strip("-.") or "row"


def _reference(asked: str, rows: Sequence[Row]) -> str | None:
    """Return the row or method that others are tested against; by default what sends all.

    One that is not among the rows is told in a `Notice`.

    Args:
        asked: as the user writes a stack, or a title; may be empty.
        rows: all of them.
    """
    usual = reference_named(rows, "none")
    wanted = reference_named(rows, asked) if asked else None
    if asked and wanted is None:
        others = f"rows are tested against {usual}" if usual else "no row is tested"
        told = f"no row is called {asked!r}, the study's reference; {others}"
        warnings.warn(told, Notice, stacklevel=3)
    return wanted or usual


def _published(file: str, shared: Sequence[tuple[str, str]]) -> Published:
    """Return what to draw beside rows; a file that cannot be used is told in a `Notice`.

    Args:
        file: absolute, or in the package; may be empty.
        shared: what all runs have in common.
    """
    if not file:
        return Published()
    try:
        return published(read_curves(ROOT / file), shared)
    except ConfigError as error:
        warnings.warn(f"no published curve is drawn: {error}", Notice, stacklevel=3)
        return Published()


def _cell(row: Mapping[str, Any]) -> Cell:
    """Read a row as it was written; its key is part of a path."""
    if not re.fullmatch(r"[0-9a-f]{4,64}", row["key"]) or not isinstance(row["remark"], str):
        raise ConfigError(f"the row {row['key']!r} is not as it was written")
    config = Config.from_mapping(row["config"])
    if "members" in row:
        members = tuple(map(Member.of_record, row["members"]))
    else:  # of an older version
        members = members_of(config.plugins)
    return Cell(row["key"], config, row["remark"], members)


def _set(config: Config) -> dict[str, Any]:
    """Return the options that are not as they are by default."""
    return {
        spec.name: getattr(config, spec.name)
        for spec in dataclasses.fields(Config)
        if getattr(config, spec.name) != spec.default
    }


def _things(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.suffix not in (".lock", ".tmp")]
