"""Rows and their names: runs with the same effective settings are a row, whoever wrote them how.

A row is called by its stack and by those options in which the rows differ; of a plugin's settings,
by those that the user set and those that differ. So two rows never have the same name, and a
default that matters here is named, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitlab.core.catalogue.binding import brief
from splitlab.core.catalogue.tables import Loadable
from splitlab.core.contract.settings import ACCESS, shown
from splitlab.core.report.members import Member, differing, members_of
from splitlab.core.report.results import Axis, Point, Row, RunResult
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.config import LABELS, Config, by_group, flag
from splitlab.core.runs.records import Summary

__all__ = ["Named", "meant", "name_all", "option", "plan_key", "rows_of"]

_APART = ("plugins", "seed", "output", *LABELS)
"""Fields that are no settings of a row: the stack is looked at more closely."""
_OF_THE_PLACE = (
    *("device", "deterministic", "threads", "compile", "workers", "worker_kind", "cache"),
    *("timeout", "checkpoint_every", *ACCESS),
)
"""Fields that are not meant to decide a number."""
_WITH_SETTINGS: Mapping[str, Loadable] = {
    "model": "models",
    "transport": "transports",
    "links": "links",
    "probes": "probes",
}
"""Fields that name what has settings, besides the plugins."""

_TAKEN = frozenset(
    name
    for kind in (Config, Summary, Point, RunResult)
    for spec in dataclasses.fields(kind)
    for name in (spec.name, spec.name.replace("_", "-"))
) | {"stack", "row", "method", "note", "test", "p", "difference", "bold"}
"""What tables have columns of: a plugin's setting that is called so is told with its plugin."""


@dataclass(frozen=True)
class Named:
    """What a configuration is called among others.

    Attributes:
        title: see `Row`; so are the others.
        method: see there.
        settings: by the name of the axis.
    """

    title: str
    method: str
    settings: Mapping[str, Any]


def option(field: str) -> str:
    """Return what tables call an option: ``batch_size`` → ``batch-size``."""
    return flag(field).removeprefix("--")


def plan_key(config: Config, besides: Iterable[str] = (), *, as_written: bool = False) -> str:
    """Return 10 hexadecimal digits that change with whatever decides numbers, but for the seed.

    Args:
        config: decided, so that the same run has the same key however it was asked for.
        besides: fields that count, although they are not meant to decide a number.
        as_written: the key that older versions gave, in which settings count as they are typed.
    """
    ignored = {*_APART, *_OF_THE_PLACE} - {*besides}
    settings: dict[str, Any] = {"stack": [member.identity for member in members_of(config.plugins)]}
    usual = meant(Config())
    settings |= {
        name: value
        for name, value in meant(config, as_written=as_written).items()
        # What is not given is left out: a new option leaves the keys of older runs as they are.
        if name not in ignored and value != usual[name]
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def meant(config: Config, *, as_written: bool = False) -> dict[str, Any]:
    """Return the options by field, those that mean the same with the same value.

    Args:
        config: whose options.
        as_written: leave settings of models, links and so on as they are typed.
    """
    budget = Budget.parse(config.budget)
    amount = int(budget.amount) if budget.amount.is_integer() else budget.amount
    values = {spec.name: getattr(config, spec.name) for spec in dataclasses.fields(Config)}
    values |= {"budget": f"{budget.unit}={amount}", "train": tuple(sorted(config.trains))}
    if as_written:
        return values
    for field, kind in _WITH_SETTINGS.items():
        value = values[field]
        one = isinstance(value, str)
        values[field] = brief(kind, value) if one else tuple(brief(kind, each) for each in value)
    return values | {"lr_schedule": config.rate.brief}


def rows_of(
    runs: Sequence[tuple[Config, RunResult]],
) -> tuple[tuple[Axis, ...], tuple[Row, ...]]:
    """Group runs into rows, in the order in which they come, and name these.

    Args:
        runs: each with its configuration, decided.
    """
    groups: dict[str, list[tuple[Config, RunResult]]] = {}
    for config, result in runs:
        groups.setdefault(plan_key(config), []).append((config, result))
    axes, names = name_all([members[0][0] for members in groups.values()])
    rows = [
        Row(
            named.title,
            named.method,
            named.settings,
            tuple(sorted((result for _, result in members), key=lambda result: result.seed)),
        )
        for named, members in zip(names, groups.values(), strict=True)
    ]
    return axes, tuple(rows)


def name_all(
    configs: Sequence[Config], known: Sequence[tuple[Member, ...]] = ()
) -> tuple[tuple[Axis, ...], tuple[Named, ...]]:
    """Name every one of some configurations among all of them.

    Args:
        configs: decided.
        known: the members of each one's stack; asked of the plugins by default.
    """
    stacks = known or [members_of(config.plugins) for config in configs]
    kinds = [tuple(member.label for member in stack) for stack in stacks]
    alike: dict[tuple[str, ...], list[tuple[Member, ...]]] = {}
    for kind, stack in zip(kinds, stacks, strict=True):
        alike.setdefault(kind, []).append(stack)
    apart = {kind: differing(members) for kind, members in alike.items()}
    options = [
        spec
        for spec in by_group()
        if spec.name not in _APART
        and len({str(getattr(config, spec.name)) for config in configs}) > 1
    ]
    whole = _ambiguous(apart.values(), [*_TAKEN, *(option(spec.name) for spec in options)])
    found: list[Named] = []
    for config, kind, stack in zip(configs, kinds, stacks, strict=True):
        keys = apart[kind]
        settings: dict[str, Any] = {"stack": " + ".join(kind) or "none"}
        for label, member, own in zip(_distinct(kind), stack, keys, strict=True):
            settings |= {f"{label}.{k}" if k in whole else k: member.params.get(k) for k in own}
        chosen = {option(spec.name): _plain(spec, config) for spec in options}
        members = [*zip(stack, keys, strict=True)]
        title = " + ".join(member.title(own) for member, own in members) or "none"
        title = ", ".join([title, *(f"{name} {shown(value)}" for name, value in chosen.items())])
        if any(title == named.title for named in found):  # files with classes of one name
            title = f"{title} [{plan_key(config)}]"
        method = " + ".join(member.title((), without=own) for member, own in members) or "none"
        found.append(Named(title, method, settings | chosen))
    return _axes(found)


def _axes(found: Sequence[Named]) -> tuple[tuple[Axis, ...], tuple[Named, ...]]:
    """Return in what all of them differ, and them with their values there alone."""
    every = dict.fromkeys(name for named in found for name in named.settings)
    axes = [
        Axis(name, tuple(dict.fromkeys(named.settings.get(name) for named in found)))
        for name in every
    ]
    axes = [axis for axis in axes if len(axis.values) > 1]
    return tuple(axes), tuple(
        dataclasses.replace(
            named, settings={axis.name: named.settings.get(axis.name) for axis in axes}
        )
        for named in found
    )


def _ambiguous(kinds: Iterable[Sequence[Sequence[str]]], options: Collection[str]) -> set[str]:
    """Return the parameters that need their plugin's name before them.

    Args:
        kinds: of every kind of stack, the parameters in which it differs, for every member.
        options: names that are taken.
    """
    found = {*options}
    for members in kinds:
        keys = [key for own in members for key in own]
        found |= {key for key in keys if keys.count(key) > 1}
    return found


def _plain(spec: dataclasses.Field[Any], config: Config) -> Any:
    """Return the value of an option as a cell holds it."""
    value = getattr(config, spec.name)
    if isinstance(value, tuple):  # without a word, all is trained, and there is no probe
        return " ".join(value) or spec.metadata.get("unset") or "none"
    return value


def _distinct(labels: Sequence[str]) -> list[str]:
    """Return labels of which none comes twice: the second ``quantize`` is ``quantize#2``."""
    return [
        label if labels.count(label) == 1 else f"{label}#{labels[:i].count(label) + 1}"
        for i, label in enumerate(labels)
    ]
