"""How runs look: in a list, one alone, and side by side; ``runs`` finds them."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import LABELS, Config, flag

if TYPE_CHECKING:
    from splitlab.core.command.show import Cell
    from splitlab.core.runs.listing import Run
    from splitlab.core.runs.records import EvaluationRecord

__all__ = ["json_of", "show_difference", "show_list", "show_one", "spark"]

_STYLES = {"failed": "red", "diverged": "red", "damaged": "red", "running": "bold green"}
_STYLES |= {"interrupted": "yellow", "finished": ""}

_FOLDED = ("name", "stack", "model", "data", "tags")
"""Columns of words, which may go over several lines."""
_NUMBERS = ("seed", "steps", "accuracy", "bytes")
_DISPENSABLE = ("data", "model", "tags", "seed", "steps", "name", "bytes", "stack")
"""What is left out first where there is no room."""
_NARROW = 20
"""Characters that a column of words can do with."""

_MOST_ROWS = 12
_MOST_SIGNS = 60
_SIGNS = "▁▂▃▄▅▆▇█"

T = TypeVar("T")


def show_list(runs: Sequence[Run]) -> None:
    """Print a table of runs, with as many columns as there is room for, and what is damaged."""
    from splitlab.core.command.show import near, print_line, print_table, width

    columns = _columns(runs)
    same = {name: columns.pop(name)[0] for name in ("model", "data") if _all_same(columns[name])}
    for name in _DISPENSABLE:
        if sum(map(_room, columns, columns.values())) <= width():
            break
        columns.pop(name, None)
    header = list(columns)
    whole = {"state"}
    if sum(map(_room, columns, columns.values())) <= width():
        whole.add("run")
    if runs:
        print_table(
            header,
            list(zip(*columns.values(), strict=True)),
            numbers=[i for i, name in enumerate(header) if name in _NUMBERS],
            whole=[i for i, name in enumerate(header) if name in whole],
        )
        print()
    if same:
        print_line(", ".join(f"{name} {said}" for name, said in same.items()), " in all of them")
    for run in runs:
        if run.state == "damaged":
            print_line((f"{near(run.folder)}: ", "red"), run.error)


def _all_same(cells: Sequence[Cell]) -> bool:
    return len(cells) > 1 and len(set(cells)) == 1


def _columns(runs: Sequence[Run]) -> dict[str, list[Cell]]:
    """Return the cells of all columns; names and tags only where there are any."""
    from splitlab.core.command.show import human_bytes, near

    columns: dict[str, list[Cell]] = {"run": [near(run.folder) for run in runs]}
    if any(run.name != run.folder.name for run in runs):
        columns["name"] = [run.name for run in runs]
    columns |= {
        "stack": [run.stack for run in runs],
        "model": [run.config.model if run.config else "" for run in runs],
        "data": [run.data for run in runs],
        "seed": ["" if run.seed is None else str(run.seed) for run in runs],
        "steps": [f"{run.step:,}" for run in runs],
        "accuracy": ["" if run.accuracy is None else f"{run.accuracy:.4f}" for run in runs],
        "bytes": ["" if run.bytes is None else human_bytes(run.bytes) for run in runs],
        "state": [(run.state, _STYLES[run.state]) for run in runs],
    }
    if any(run.tags for run in runs):
        columns["tags"] = [", ".join(run.tags) for run in runs]
    return columns


def _room(name: str, cells: Sequence[Cell]) -> int:
    """Return how many characters a column needs at least."""
    texts = [name, *(cell if isinstance(cell, str) else cell[0] for cell in cells)]
    longest = max(map(len, texts))
    return 2 + (min(longest, _NARROW) if name in _FOLDED else longest)


# One run.


def json_of(run: Run) -> dict[str, Any]:
    """Return all that `show_one` shows."""
    evaluations, problem = _evaluations(run)
    return {
        **run.record(),
        "error": run.error or problem,
        "given": _given(run),
        "evaluations": [dataclasses.asdict(each) for each in evaluations],
        "go_on": _way_on(run),
    }


def show_one(run: Run) -> None:
    """Print what a run is, what came of it, and how it goes on."""
    from splitlab.core.command.show import human_bytes, near, print_facts, print_line, speed

    print_line((run.name, "bold"), ": ", (run.state, _STYLES[run.state]))
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.begun)) if run.begun else "unknown"
    facts: list[tuple[str, Cell]] = [("run folder", near(run.folder)), ("begun", begun)]
    if run.tags:
        facts.append(("tags", ", ".join(run.tags)))
    if run.error:
        facts.append(("why", run.error))
    facts += [("steps", f"{run.step:,}")]
    if run.accuracy is not None:
        facts.append(("accuracy", (f"{run.accuracy:.4f}", "bold")))
    if run.bytes is not None and run.bytes_up is not None and run.bytes_down is not None:
        ways = f"{human_bytes(run.bytes_up)} up, {human_bytes(run.bytes_down)} down"
        facts.append(("training bytes", f"{human_bytes(run.bytes)} ({ways})"))
    if run.summary is not None:
        summary, images = run.summary, run.summary.images_per_second
        facts += [
            (
                "ratio",
                f"measured {summary.ratio_measured:.4f} of fp32, ξ {summary.ratio_nominal:.4f}",
            ),
            ("time", f"{summary.seconds:.1f} s, {summary.epochs:.2f} epochs"),
            *([("speed", speed(images, summary.data_share))] if images is not None else []),
        ]
    print_facts(facts)
    if run.config is not None:
        print_line("\nsettings that are no defaults, or were decided when it began:")
        print_facts(_given(run).items())
    evaluations, problem = _evaluations(run)
    if problem and not run.error:
        print_line("\n", (problem, "red"))
    if evaluations:
        _show_evaluations(evaluations)
    if way := _way_on(run):
        print_line(f"\ngo on: {way}", wrap=False)


def _given(run: Run) -> dict[str, str]:
    """Return the options that are not their defaults, by the flag, as they would be typed."""
    if run.config is None:
        return {}
    default = Config()
    values = {
        name: value
        for name in Config.__dataclass_fields__
        if name not in LABELS and (value := getattr(run.config, name)) != getattr(default, name)
    }
    return {
        flag(name): "+".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }


def _evaluations(run: Run) -> tuple[list[EvaluationRecord], str]:
    """Return the evaluations; or what is wrong with their log."""
    try:
        return run.evaluations(), ""
    except ConfigError as error:
        return [], str(error)


def _show_evaluations(evaluations: Sequence[EvaluationRecord]) -> None:
    from splitlab.core.command.show import human_bytes, print_line, print_table

    shown = _spread(evaluations, _MOST_ROWS)
    rows = [
        (f"{e.step:,}", human_bytes(e.training_bytes), f"{e.accuracy:.4f}", f"{e.loss:.4f}")
        for e in shown
    ]
    print_line()
    print_table(("step", "training bytes", "accuracy", "loss"), rows, numbers=range(4))
    if len(shown) < len(evaluations):
        print_line(f"{len(shown)} of {len(evaluations)} evaluations; --json has them all")
    accuracies = [each.accuracy for each in evaluations if math.isfinite(each.accuracy)]
    if len(accuracies) > 2:
        low, high = min(accuracies), max(accuracies)
        print_line(f"\naccuracy {spark(accuracies)} between {low:.4f} and {high:.4f}")


def spark(values: Sequence[float]) -> str:
    """Return a curve as a line of text, its lowest value as ▁ and its highest as █.

    >>> spark([0.1, 0.3, 0.2, 0.8])
    '▁▃▂█'
    """
    low, high = min(values), max(values)
    top = len(_SIGNS) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(_SIGNS[round((value - low) * scale)] for value in _spread(values, _MOST_SIGNS))


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return some of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (most - 1))] for i in range(most)]


def _way_on(run: Run) -> str:
    """Return the command that goes on with a run, if that can do any good."""
    from splitlab.core.command.show import near

    folder = shlex.quote(near(run.folder))
    if run.state in ("interrupted", "failed"):
        return f"splitlab run --resume {folder}"
    if run.state == "finished" and run.summary is not None and run.config is not None:
        return f"splitlab run --resume {folder} --budget {run.config.budget.partition('=')[0]}=MORE"
    if run.state == "diverged":  # it would again
        return f"splitlab run --config {folder}/config.toml --lr LESS"
    return ""


# Several.


def show_difference(
    runs: Sequence[Run], settings: Mapping[str, Sequence[Any]], figures: Mapping[str, Sequence[Any]]
) -> None:
    """Print what differs between runs, side by side, and of two the difference of figures."""
    from splitlab.core.command.show import near, print_line, print_table, width

    names = [near(run.folder) for run in runs]
    two = len(runs) == 2
    rows = [[name, *map(_said, values)] for name, values in settings.items()]
    numbers = []
    for key, values in figures.items():
        change = [_change(key, *values)] if two else []
        numbers.append([key.replace("_", " "), *(_figure(key, v) for v in values), *change])
    if not settings:
        print_line("no setting differs")
    for head, table, last in (("setting", rows, []), ("figure", numbers, ["change"] * two)):
        if not table:
            continue
        header = [head, *names, *last]
        longest = [max(map(len, column)) for column in zip(header, *table, strict=True)]
        if sum(2 + size for size in longest) > width():  # names of folders may be long
            header[1 : 1 + len(names)] = [f"[{i}]" for i in range(1, len(names) + 1)]
            for i, name in enumerate(names, start=1):
                print_line(f"[{i}] {name}")
        print_table(header, table, numbers=range(1, len(header)) if head == "figure" else ())
        print()


def _said(value: Any) -> str:
    return "not given" if value is None else "none" if value == "" else str(value)


def _figure(key: str, value: Any) -> str:
    from splitlab.core.command.show import human_bytes

    if value is None:
        return ""
    if key.startswith("bytes"):
        return human_bytes(value)
    if key.endswith("seconds"):
        return f"{value:.1f} s"
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _change(key: str, before: Any, after: Any) -> str:
    """Return how a figure changed, with its sign."""
    known = all(isinstance(value, int | float) for value in (before, after))
    if not known or before == after:
        return ""
    text = _figure(key, after - before)
    if not text.strip("-0. s"):  # less than is shown
        return ""
    return text if text.startswith("-") else f"+{text}"
