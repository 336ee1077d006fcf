"""A study from what is asked for to its last run: found or made, grown, run."""

from __future__ import annotations

import math
import os
import re
import shlex
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from splitlab.core.catalogue.binding import split_stack
from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.errors import ConfigError, Interrupted, Notice
from splitlab.core.contract.settings import ACCESS
from splitlab.core.report.naming import meant
from splitlab.core.runs.config import Config, differences, flag
from splitlab.core.runs.disk import HeldError, hold
from splitlab.core.runs.folder import failure_note
from splitlab.core.runs.plan import Decided, make
from splitlab.core.runs.repeating import repeating
from splitlab.core.studies.definition import (
    Choice,
    Definition,
    axis_of_columns,
    seeds_of,
    shown_key,
)
from splitlab.core.studies.executors import executor as executor_of
from splitlab.core.studies.find import definition_of
from splitlab.core.studies.grid import cells
from splitlab.core.studies.job import Job, JobReporter, note_failure
from splitlab.core.studies.perform import release
from splitlab.core.studies.study import Cell, Study

__all__ = ["StudyReporter", "prepare", "study"]

_PLANNING_SECONDS = 300.0
"""How long another process may take to plan the same study."""

_EVAL_POINTS = 20
_FREE = ("budget", "timeout", "reconnect", "workers", "worker_kind", "cache", "loggers", *ACCESS)
"""Options that a study may be given anew."""
_NO_OPTIONS = {
    "plugins": "it takes stacks",
    "output": "output is the folder of the study",
    "name": "its definition has one, and its runs are called by their rows",
    "tags": "tag its runs when they are there: splitlab runs label --add TAG RUN",
}
"""Fields of `Config` that are no options of a study, and why."""


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
    seconds: float | None = None,
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
        seconds: that it may take; then no run is begun any more, and those under way stop after
            their step, with checkpoints. What is left goes on when it is called again.
        reporter: is told how it goes.
        should_stop: asked after every step; True ends it with checkpoints and `Interrupted`.
        options: fields of `Config`, on top of the definition's base.

    Raises:
        ConfigError: what can be known before the first run.
        Interrupted: stopped by ``should_stop`` or Ctrl-C; all that is done is kept.
    """
    reporter = reporter or StudyReporter()
    performer = executor_of(executor, ray_address=ray_address)
    limit = _Limit(seconds, should_stop)
    try:
        found = prepare(what, stacks=stacks, over=over, seeds=seeds, output=output, options=options)
        jobs = found.jobs()
        left = [job for job in jobs if found.left(job, retry)]
        for job in left:
            _want_again(job)
        reporter.begin(found, len(jobs), len(jobs) - len(left))
        try:
            performer.perform(left, reporter, limit.should_stop)
        except (Interrupted, KeyboardInterrupt) as reason:
            if not limit.is_over or isinstance(reason, KeyboardInterrupt):
                raise _interrupted(found, jobs, retry) from None
        return found
    finally:
        reporter.end()


class _Limit:
    """How long a study may take, if somebody said so.

    Attributes:
        is_over: whether it stops for that, and not because somebody else asked it to.
    """

    def __init__(self, seconds: float | None, asked: Callable[[], bool]) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self._asked = asked
        self.is_over = False

    def should_stop(self) -> bool:
        """Return whether to stop now."""
        asked = self._asked()
        self.is_over = not asked and time.monotonic() >= self._end
        return asked or self.is_over


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
            definition = known.definition.grown(stacks, axes, chosen, _placed(base))
            before = known.cells
        given = str(output) if output is not None else os.path.relpath(folder)
        found = Study(folder, definition, cells(definition), given)
        if not dry:
            if first := next(filter(found.left, found.jobs()), None):
                _check_what_all_share(first)
            found.take_over(before)
            found.write()
        if left := found.left_behind(before):
            _tell_left_behind(found, left)
        return found


def _tell_left_behind(found: Study, left: Sequence[Path]) -> None:
    """Say in a `Notice` which runs are there that the grown study does not count any more."""
    folders = [path.relative_to(found.folder) for path in left]
    more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    rows, its = ("1 row is", "its") if len(left) == 1 else (f"{len(left)} rows are", "their")
    see = shlex.join(["splitlab", "runs", *(str(found.given / each) for each in folders[:3])])
    warnings.warn(
        f"{rows} not of the study any more; {its} runs stay in {found.folder}, unused: "
        f"{', '.join(map(str, folders[:3]))}{more}; see them with: {see}",
        Notice,
        stacklevel=3,
    )


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
    return replace(
        definition,
        stacks=tuple(stacks) or tuple(map(_placed_stack, definition.stacks)),
        axes=(*kept, *axes),
        seeds=chosen,
        base=_placed({**usual, **base}),
    )


def _placed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a definition keeps them: with absolute paths, and lists."""
    placed = Config.from_mapping(options).placed()
    values = {key: getattr(placed, key) for key in options}
    return {key: [*value] if isinstance(value, tuple) else value for key, value in values.items()}


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
    for name, reason in _NO_OPTIONS.items():
        if name in options:
            raise ConfigError(f"{name} is no option of a study; {reason}")


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
        if key == "seed" and said.seed == known.definition.seeds[0]:
            continue
        if key not in _FREE and meant(base)[key] != meant(said)[key]:
            ignored = Config.__dataclass_fields__.keys() - {key}
            told = differences(said, base, ignored)[0]
            raise ConfigError(
                f"{known.folder} holds a study with other options: {told}; give the same, or name "
                "another folder with --output"
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
    transport = load_transport(job.config.transport, job.config.access)
    if transport.place == "beside" and transport.launched():
        raise ConfigError(
            "a study starts a server for every run itself; start it without a launcher"
        )
    with repeating(job.config):  # this may be the first to use a GPU here
        make(Decided.of(job.config))[2].close()
    release()


def _want_again(job: Job) -> None:
    """Forget how a job failed, so that it is performed again."""
    if failure_note(job.folder).exists():
        with suppress(HeldError), hold(job.folder.parent, job.folder.name):
            note_failure(job, None)


def _interrupted(found: Study, jobs: Sequence[Job], retry: bool) -> Interrupted:
    finished = sum(not found.left(job, True) for job in jobs)
    return Interrupted(
        f"interrupted: {finished} of {len(jobs)} runs are finished; go on with: splitlab study "
        f"--output {shlex.quote(str(found.folder))}{' --retry' * retry}"
    )
