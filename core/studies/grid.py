"""From a study's definition to its rows: every combination, decided, each once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from splitlab.core.catalogue.binding import bind_stack, split_stack
from splitlab.core.catalogue.loading import split
from splitlab.core.contract.errors import ConfigError, SplitlabError
from splitlab.core.models.build import ModelFacts, describe
from splitlab.core.report.members import members_of
from splitlab.core.report.naming import plan_key
from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Decided
from splitlab.core.studies.definition import RATIO, Definition, called, shown_key
from splitlab.core.studies.study import Cell

__all__ = ["cells"]


def cells(definition: Definition) -> tuple[Cell, ...]:
    """Return every combination once, in the order of stacks and axes.

    A combination that changes nothing, as a ratio of a stack that takes none, is the one without.

    Raises:
        ConfigError: one that cannot be run; the message names it.
        PluginError: a plugin that cannot be built.
    """
    found: dict[str, Cell] = {}
    stacks: dict[str, str] = {}
    named = {key for axis in definition.axes for choice in axis for key in choice}
    looks = functools.cache(describe)
    for text in definition.stacks:
        for choices in itertools.product(*definition.axes):
            chosen = {key: value for choice in choices for key, value in choice.items()}
            cell = _cell(definition, text, chosen, named, looks)
            first = stacks.setdefault(cell.key, text)
            if first != text:
                raise ConfigError(f"the stacks {first} and {text} are the same; drop one")
            found.setdefault(cell.key, cell)
    _check_meant(definition, found.values())
    return tuple(found.values())


def _cell(
    definition: Definition,
    text: str,
    chosen: Mapping[str, Any],
    named: set[str],
    looks: Callable[..., ModelFacts],
) -> Cell:
    settings = {key: value for key, value in chosen.items() if key.startswith("plugin.")}
    members = tuple(_with_settings(member, settings) for member in split_stack(text))
    ratio = chosen.get(RATIO)
    plugins = members if ratio is None else _with_ratio(members, ratio)
    remark = f"takes no {RATIO}" if ratio is not None and plugins == members else ""
    options = {key: value for key, value in chosen.items() if key != RATIO and key not in settings}
    told = ", ".join(f"{shown_key(key)} {value}" for key, value in chosen.items())
    try:
        asked = Config.from_mapping({**definition.base, **options, "plugins": plugins})
        decided = Decided.of(asked.placed(), looks).config
    except SplitlabError as error:
        raise type(error)(f"{text}{told and ' with '}{told}: {error}") from error
    decided = replace(decided, seed=definition.seeds[0], output=None)
    return Cell(plan_key(decided, named), decided, remark, members_of(decided.plugins))


def _with_settings(member: str, settings: Mapping[str, Any]) -> str:
    """Return a member with those settings that are meant for it, in place of its own."""
    mine = {
        key.split(".")[2]: value
        for key, value in settings.items()
        if key.split(".")[1] == called(member)
    }
    if not mine:
        return member
    head, given = split("plugins", member)
    return f"{head}:{','.join(f'{key}={value}' for key, value in {**given, **mine}.items())}"


def _with_ratio(members: Sequence[str], ratio: float) -> tuple[str, ...]:
    """Give the ratio to the first plugin that takes one, unless the user set anything of it."""
    for i, member in enumerate(members):
        takes = next((p for p in bind_stack([member]) if RATIO in p.params), None)
        if takes is not None:
            head, given = split("plugins", member)
            settings = {**given, RATIO: repr(ratio)}
            told = ",".join(f"{key}={value}" for key, value in settings.items())
            return (*members[:i], member if takes.given else f"{head}:{told}", *members[i + 1 :])
    return tuple(members)


def _check_meant(definition: Definition, found: Any) -> None:
    """Refuse a ratio that reaches nobody."""
    ratios = [choice for axis in definition.axes for choice in axis if RATIO in choice]
    if ratios and all(cell.remark for cell in found):
        raise ConfigError(
            f"ratio {ratios[0][RATIO]:g} is not allowed here: in no stack the first plugin that "
            "takes a ratio is written without settings; drop it"
        )
