"""A study from what is asked for to its last run: found or made, grown, run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from splitlab.core.catalogue.binding import split_stack
from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.errors import ConfigError, Interrupted
from splitlab.core.runs.config import Config, flag
from splitlab.core.runs.disk import hold
from splitlab.core.runs.plan import Decided, make
from splitlab.core.studies.definition import (
    Choice,
    Definition,
    axis_of_columns,
    seeds_of,
    shown_key,
)
from splitlab.core.studies.executors import executor as executor_of
from splitlab.core.studies.find import definition_of
from splitlab.core.studies.grid import Cell, cells
from splitlab.core.studies.job import Job, JobReporter
from splitlab.core.studies.study import Study

__all__ = ["StudyReporter", "prepare", "study"]

_PLANNING_SECONDS = 300.0
"""How long another process may take to plan the same study."""

_EVAL_POINTS = 20
_FREE = ("budget", "timeout", "workers")
"""Options that a study may be given anew."""


class StudyReporter(JobReporter):
    """Is told how a study goes. This one stays silent; the command line's show."""

    def begin(self, study: Study, runs: int, finished: int) -> None:
        """It begins: so many runs there are, of which so many are finished already."""

    def end(self) -> None:
        """It is over, however it went."""


def study(
    what: str | Path | Definition | None = None,
    *,
    stacks: Sequence[str] = (),
    over: Mapping[str, Sequence[Any]] | Sequence[tuple[Choice, ...]] = (),
    seeds: int | str | Sequence[int] | None = None,
    output: str | Path | None = None,
    executor: str = "inside",
    ray_address: str | None = None,
    retry: bool = False,
    reporter: StudyReporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Study:
    """Run what is missing of a study, and return it: `Study.results` is what came of it.

    A new study is made of a definition and what is said on top; one that is in the folder already
    goes on, and takes in what is said.

    Args:
        what: name of a study of the catalogue, a TOML file, or a definition; None for one that is
            said here, or that is in the folder.
        stacks: whole stacks, members joined by ``+``: instead of the definition's, or more.
        over: values by axis, as ``{"cut": [1, 2], "plugin.adc.ratio": [0.1, 0.2]}``; instead of
            the definition's values on that axis, or more of them.
        seeds: how many, from ``seed`` on, or which ones.
        output: the folder; ``studies/NAME`` by default.
        executor: who performs the runs: ``inside``, ``processes:N``, ``ray``.
        ray_address: of a cluster.
        retry: run again what failed or diverged.
        reporter: is told how it goes.
        should_stop: asked after every step; True ends it with checkpoints and `Interrupted`.
        options: fields of `Config`, on top of the definition's base.

    Raises:
        ConfigError: what can be known before the first run.
        Interrupted: stopped by ``should_stop`` or Ctrl-C; all that is done is kept.
    """
    reporter = reporter or StudyReporter()
    performer = executor_of(executor, ray_address=ray_address)
    try:
        found = prepare(what, stacks=stacks, over=over, seeds=seeds, output=output, options=options)
        jobs = found.jobs()
        left = [job for job in jobs if found.left(job, retry)]
        reporter.begin(found, len(jobs), len(jobs) - len(left))
        try:
            performer.perform(left, reporter, should_stop)
        except (Interrupted, KeyboardInterrupt):
            raise _interrupted(found, jobs) from None
        return found
    finally:
        reporter.end()


def prepare(
    what: str | Path | Definition | None,
    *,
    stacks: Sequence[str] = (),
    over: Mapping[str, Sequence[Any]] | Sequence[tuple[Choice, ...]] = (),
    seeds: int | str | Sequence[int] | None = None,
    output: str | Path | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    dry: bool = False,
) -> Study:
    """Return the study that is in the folder, grown by what is said, or a new one; writes it.

    Args:
        what: as in `study`, and so are the others.
        dry: write nothing.

    Raises:
        ConfigError: a definition, an axis, a combination or a folder that cannot be used.
    """
    _check_options(options)
    stacks = [_placed_stack(text) for text in ([stacks] if isinstance(stacks, str) else stacks)]
    axes = _axes(over)
    asked = definition_of(what) if what is not None else None
    folder = _folder(asked, output)
    with nullcontext() if dry else hold(folder, "study", _PLANNING_SECONDS):
        known = Study.read(folder)
        if known is None:
            definition = _new(asked, stacks, axes, seeds, options)
            before: Sequence[Cell] = ()
        else:
            if asked is not None and asked.name != known.definition.name:
                raise ConfigError(
                    f"{folder} holds the study {known.definition.name!r}, not {asked.name!r}; "
                    "name another folder with --output"
                )
            _check_same(known, options)
            chosen = () if seeds is None else seeds_of(seeds, known.definition.seeds[0])
            base = {key: value for key, value in options.items() if key in _FREE}
            definition = known.definition.grown(stacks, axes, chosen, base)
            before = known.cells
        found = Study(folder, definition, cells(definition))
        if not dry:
            if first := next(filter(found.left, found.jobs()), None):
                _check_what_all_share(first)
            found.take_over(before)
            found.write()
        return found


def _new(
    asked: Definition | None,
    stacks: Sequence[str],
    axes: Sequence[tuple[Choice, ...]],
    seeds: int | str | Sequence[int] | None,
    options: Mapping[str, Any],
) -> Definition:
    """Return the definition of a new study: what is said replaces what it says of the same."""
    definition = asked or Definition("study", stacks=tuple(stacks))
    said = {key for axis in axes for key in axis[0]}
    kept = tuple(axis for axis in definition.axes if not said & axis[0].keys())
    base = {**definition.base, **options}
    first = base.pop("seed", definition.seeds[0])
    chosen = definition.seeds
    if seeds is not None:
        listed = not isinstance(seeds, int) and not str(seeds).strip().isdecimal()
        if "seed" in options and listed:
            raise ConfigError("--seed and a list of --seeds exclude each other; keep one of them")
        chosen = seeds_of(seeds, first)
    elif "seed" in options:
        chosen = seeds_of(len(chosen), first)
    keys = {*base, *said, *(key for axis in kept for key in axis[0])}
    usual = {"threads": 1}  # results depend on it: not on who runs the study where
    if not keys & {"eval_points", "eval_every"}:
        usual["eval_points"] = _EVAL_POINTS
    placed = Config.from_mapping({**usual, **base}).placed()
    base = {key: getattr(placed, key) for key in {**usual, **base}}
    return replace(
        definition,
        stacks=tuple(stacks) or tuple(map(_placed_stack, definition.stacks)),
        axes=(*kept, *axes),
        seeds=chosen,
        base={key: [*value] if isinstance(value, tuple) else value for key, value in base.items()},
    )


def _axes(
    over: Mapping[str, Sequence[Any]] | Sequence[tuple[Choice, ...]],
) -> tuple[tuple[Choice, ...], ...]:
    if isinstance(over, Mapping):
        return tuple(axis_of_columns({key: _listed(values)}) for key, values in over.items())
    return tuple(over)


def _listed(values: Any) -> Any:
    """Return a list of what comes one by one; anything else is refused where it is used."""
    return [*values] if isinstance(values, Iterable) and not isinstance(values, str) else values


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no study takes, and what no run would."""
    Config.from_mapping(options)
    per_run = sorted({"plugins", "output"} & options.keys())
    if per_run:
        raise ConfigError(f"{per_run[0]} is no option of a study; it takes stacks and a folder")


def _check_same(known: Study, options: Mapping[str, Any]) -> None:
    """Refuse options that would make other runs of those that are there."""
    said = Config.from_mapping(options).placed()
    base = Config.from_mapping(known.definition.base)
    on_axes = {key for axis in known.definition.axes for key in axis[0]}
    for key in options:
        if key in on_axes:
            raise ConfigError(
                f"{flag(key)} is an axis of the study in {known.folder}; give it more values with "
                f"--over {shown_key(key)}=…"
            )
        was, now = getattr(base, key), getattr(said, key)
        if key == "seed" and now == known.definition.seeds[0]:
            continue
        if key not in _FREE and was != now:
            raise ConfigError(
                f"{known.folder} holds a study with other options: {flag(key)} was {was} and is "
                f"now {now}; give the same, or name another folder with --output"
            )


def _placed_stack(text: str) -> str:
    """Return a stack with the absolute paths of its files."""
    return "+".join(Config(plugins=split_stack(text)).placed().plugins)


def _folder(asked: Definition | None, output: str | Path | None) -> Path:
    if output is not None:
        return Path(output).expanduser().absolute()
    if asked is None:
        raise ConfigError(
            "which study? name one of `splitlab studies`, a TOML file, or the folder of one with "
            "--output"
        )
    parts = re.sub(r"[^\w.+=,/-]+", "-", asked.name).split("/")
    return Path("studies", *(part for part in parts if part not in ("", ".", ".."))).absolute()


def _check_what_all_share(job: Job) -> None:
    """Say once, before the first run, what every run would stumble over."""
    transport = load_transport(job.config.transport)
    if transport.place == "beside" and transport.launched():
        raise ConfigError(
            "a study starts a server for every run itself; start it without a launcher"
        )
    make(Decided.of(job.config))


def _interrupted(found: Study, jobs: Sequence[Job]) -> Interrupted:
    finished = sum(not found.left(job, True) for job in jobs)
    return Interrupted(
        f"interrupted: {finished} of {len(jobs)} runs are finished; go on with: splitlab study "
        f"--output {shlex.quote(str(found.folder))}"
    )
