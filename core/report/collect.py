"""Results of any run folders: which runs are alike, what each left, what all have in common."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from splitlab.core.contract.errors import ConfigError, Notice
from splitlab.core.report.naming import option, plan_key, rows_of
from splitlab.core.report.results import Point, Results, RunResult
from splitlab.core.runs.config import LABELS, Config, by_group
from splitlab.core.runs.listing import Run, find_runs
from splitlab.core.runs.records import METRICS, StepRecord, read_records, read_times

__all__ = ["common", "result_of", "results_of"]

_JOULES = "joules"
"""What a probe or plugin calls the energy that a step took, if it measures it."""

_FOUND = "numbers.json"
"""What a probe writes into its folder to have its numbers in tables: see `HookSpecs.report`."""

_ALWAYS = ("dataset", "data_dir", "model", "cut", "batch_size", "optimizer", "lr", "budget")
_NEVER = (
    *("plugins", "seed", "eval_every", "checkpoint_every", "image_size", "timeout"),
    *("output", *LABELS),
)


def results_of(places: Sequence[Path], reference: str | None = None) -> Results:
    """Return what came of the runs in these folders, at any depth; a place may be a run itself.

    Of runs with the same settings and seed one counts: a finished one, and of these the newest. Its
    copies, and what is damaged, are told in a `Notice`.

    Args:
        places: at least one.
        reference: see `Results`.

    Raises:
        ConfigError: a place is no folder, or there is no run in them.
    """
    found = find_runs(*places)
    kept = [*_kept(found)]
    if not kept:
        raise ConfigError(
            f"no run is in {' '.join(map(str, places))}; name run folders, or a folder of them"
        )
    axes, rows = rows_of([(config, result_of(run)) for config, run in kept])
    return Results(
        name=" ".join(place.name or str(place.absolute()) for place in places),
        summary="",
        paper="",
        common=tuple(common([config for config, _ in kept])),
        command="",
        axes=axes,
        rows=rows,
        seeds=tuple(sorted({config.seed for config, _ in kept})),
        reference=reference,
    )


def _kept(runs: Sequence[Run]) -> Iterator[tuple[Config, Run]]:
    """Yield one run of each setting and seed, in their order."""
    alike: dict[tuple[str, int], list[tuple[Config, Run]]] = {}
    for run in runs:
        if run.config is None or run.state == "damaged":
            warnings.warn(f"{run.folder} is left out: {run.error}", Notice, stacklevel=3)
        else:
            alike.setdefault((plan_key(run.config), run.config.seed), []).append((run.config, run))
    for members in alike.values():
        best = max(members, key=lambda member: (member[1].summary is not None, member[1].begun))
        for _, run in members:
            if run is not best[1]:
                warnings.warn(
                    f"{run.folder} is left out: {best[1].folder} has its settings and its seed",
                    Notice,
                    stacklevel=3,
                )
        yield best


def result_of(run: Run) -> RunResult:
    """Return what came of one run, its evaluations included; with a damaged log it has failed."""
    seed = run.config.seed if run.config else 0
    try:
        points, found = points_of(run), _found(run.folder)
    except ConfigError as error:
        return RunResult(run.folder, seed, "failed", str(error))
    return RunResult(run.folder, seed, run.state, run.error, run.summary, points, found)


def points_of(run: Run) -> tuple[Point, ...]:
    """Return the evaluations of a run as reports see them, in their order.

    Raises:
        ConfigError: a log is damaged.
    """
    seconds = {record.step: record.training_seconds for record in read_times(run.folder)}
    joules = _joules(run.folder)
    return tuple(
        Point(
            step=record.step,
            accuracy=record.accuracy,
            loss=record.loss,
            training_bytes=record.training_bytes,
            seconds=seconds.get(record.step),
            joules=joules.get(record.step) if joules else None,
            samples=record.samples,
        )
        for record in run.evaluations()
    )


def _joules(folder: Path) -> dict[int, float]:
    """Return the energy until each step; empty if nobody measured it."""
    log = folder / METRICS
    if not log.exists() or f'"{_JOULES}"'.encode() not in log.read_bytes():
        return {}
    whole, found = 0.0, {0: 0.0}
    for record in read_records(folder):
        if isinstance(record, StepRecord):
            whole += sum(numbers.get(_JOULES, 0.0) for numbers in record.metrics.values())
            found[record.step] = whole
    return found


def _found(folder: Path) -> dict[str, float]:
    """Return the numbers that probes ended with, by the probe's label and their name."""
    found: dict[str, float] = {}
    for file in sorted((folder / "probes").glob(f"*/{_FOUND}")):
        try:
            numbers = json.loads(file.read_text(encoding="utf-8"))
            for name, value in numbers.items():
                number = math.nan if value is None else float(value)
                found[f"{file.parent.name} {name}"] = number
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} holds no numbers by name: {error}") from None
    return found


def common(configs: Sequence[Config]) -> Iterator[tuple[str, str]]:
    """Yield options that all have in common, name and value: those that matter, and what was set.

    Args:
        configs: at least one.
    """
    for spec in by_group():
        values = {str(getattr(config, spec.name)) for config in configs}
        value = getattr(configs[0], spec.name)
        if len(values) > 1 or spec.name in _NEVER or value in (None, ()):
            continue
        if spec.name in _ALWAYS or value != spec.default:
            yield option(spec.name), " + ".join(value) if isinstance(value, tuple) else str(value)
