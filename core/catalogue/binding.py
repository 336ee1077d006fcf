"""A text of the user's becomes something to build: its class, with every parameter checked."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from splitlab.core.catalogue.loading import find, known, split
from splitlab.core.catalogue.tables import LOADABLE, SINGULAR, Entry, Kind, Loadable, entries
from splitlab.core.contract.errors import ConfigError, PluginError, SplitlabError, unknown_name
from splitlab.core.contract.settings import ACCESS, Bound, Parameter, Piecewise, parameters, shown

__all__ = ["bind", "bind_as", "bind_stack", "brief", "broken", "settable", "split_stack"]

_NOT_SETTINGS: Mapping[Loadable, Mapping[str, str]] = {
    "models": {
        "classes": "the data decide it",
        "pretrained": "--pretrained decides it",
        "drop_path": "--drop-path decides it",
    },
    "transports": {name: f"--{name.replace('_', '-')} decides it" for name in ACCESS},
}
"""Parameters that are not the user's to set, and why: `Bound.build` is given them."""


def bind(kind: Loadable, text: str) -> Bound:
    """Bind ``NAME[:key=value,…]`` or ``FILE.py:Name[:key=value,…]``.

    A preset is the model that it names, with the preset's settings and the user's on top.

    Raises:
        ConfigError: unknown name, key, value or file.
        PluginError: what is named cannot be imported.
    """
    return _bind(kind, *split(kind, text))


def bind_as(kind: Loadable, text: str, target: str, /, **fixed: Any) -> Bound:
    """Bind ``LABEL[:key=value,…]``, where the label is no name, but stands for one and more.

    Args:
        kind: what it is.
        text: as the user wrote it; messages and peers know it by this label.
        target: the name that the label stands for.
        fixed: parameters that the label decides, so that the user cannot set them.

    Raises:
        ConfigError, PluginError: as `bind`.
    """
    label, settings = split(kind, text)
    bound = _bind(kind, target, settings, label, fixed)
    return replace(bound, identity=label)


def bind_stack(texts: Iterable[str]) -> list[Bound]:
    """Bind the plugins of a stack, in order; the name of a stack stands for its plugins.

    Each text may be several members, joined by ``+``. A setting of a named stack goes to the first
    of its plugins that takes it.

    Raises:
        ConfigError, PluginError: as `bind`.
    """
    bound: list[Bound] = []
    stacks = entries("stacks")
    for text in itertools.chain.from_iterable(map(split_stack, texts)):
        head, given = split("plugins", text)
        if head not in stacks:
            bound.append(_bind("plugins", head, given))
            continue
        stack = stacks[head]
        if stack.problem:
            raise ConfigError(stack.problem)
        members = [split("plugins", member) for member in stack.facts["plugins"]]
        nested = next((name for name, _ in members if name in stacks), None)
        if nested is not None:
            raise ConfigError(
                f"stack {head!r} names the stack {nested!r}; a stack is made of plugins: write "
                f"{stacks[nested].target.replace(' + ', ', ')} instead"
            )
        taken = [settable("plugins", name, find("plugins", name).factory) for name, _ in members]
        for key, value in given.items():
            owner = next((i for i, own in enumerate(taken) if key in own), None)
            if owner is None:
                error = unknown_name("parameter", key, {key for own in taken for key in own})
                raise ConfigError(f"stack {head!r} ({stack.target}): {error}")
            members[owner][1][key] = value
        bound += [_bind("plugins", name, settings) for name, settings in members]
    return bound


def brief(kind: Loadable, text: str) -> str:
    """Return a text with the settings alone that are no defaults, in the order of the parameters.

    So two texts that mean the same are one. A name without settings is as it was, and imports
    nothing; of what cannot be bound, the settings are sorted.
    """
    head, given = split(kind, text)
    if not given:
        return text
    try:
        usual, bound = _bind(kind, head, {}, partial=True).params, _bind(kind, head, given)
        told = {k: shown(v) for k, v in bound.params.items() if k in given and v != usual[k]}
    except SplitlabError:  # a file that is gone, or a model that another library names
        told = dict(sorted(given.items()))
    return f"{head}:{','.join(f'{key}={value}' for key, value in told.items())}" if told else head


def split_stack(text: str) -> tuple[str, ...]:
    """Return the members of a stack as a user writes it: ``"a:x=1e+5+b"`` → ``("a:x=1e+5", "b")``.

    A plus in the path of a file that exists is the path's.

    Raises:
        ConfigError: a member is empty.
    """
    path, suffix, rest = text.rpartition(".py:")
    if suffix and "+" in path and os.path.isfile(os.path.expanduser(path + ".py")):
        first, *others = split_stack(f"FILE{rest}")
        return (path + suffix + first.removeprefix("FILE"), *others)
    members = tuple(part.strip() for part in _PLUS.split(text))
    if not all(members):
        what = "has an empty member" if text.strip() else "is empty"
        raise ConfigError(
            f"the stack {text!r} {what}; write plugins joined by '+', as in NAME+NAME:key=value"
        )
    return members


# Not the plus of an exponent, which stands between a digit with an e and a digit.
_PLUS = re.compile(r"\+(?!(?<=[0-9.][eE]\+)[0-9])")


def broken(kind: Kind, entry: Entry) -> str | None:
    """Return why the entry cannot be used, or None. Imports it, unless it ships with splitlab.

    That a setting must be given does not make it broken, unless a stack names it without.
    """
    if entry.problem or entry.source == "splitlab":
        return entry.problem
    try:
        if kind == "stacks":
            bind_stack([entry.name])
        elif kind in LOADABLE:
            loaded = find(kind, entry.name, entry=entry)
            _parsed(kind, entry.name, settable(kind, entry.name, loaded.factory), loaded.settings)
    except SplitlabError as error:
        return str(error)
    return None


def _bind(
    kind: Loadable,
    head: str,
    settings: Mapping[str, str],
    label: str = "",
    fixed: Mapping[str, Any] = MappingProxyType({}),
    partial: bool = False,
) -> Bound:
    entry = None if ".py:" in head else known(kind, head)
    typed = label or head
    label = label or (entry.name if entry else head.partition(".py:")[2])
    loaded = find(kind, head)
    found = settable(kind, label, loaded.factory)
    takes = {key: parameter for key, parameter in found.items() if key not in fixed}
    preset = _parsed(kind, label, takes, loaded.settings)
    given = _parsed(kind, label, takes, settings)
    defaults = {key: parameter.default for key, parameter in takes.items()}
    params = {key: (defaults | preset | given)[key] for key in takes}
    missing = [key for key, p in takes.items() if p.required and params[key] is p.default]
    if missing and not partial:
        raise ConfigError(
            f"{SINGULAR[kind]} {label!r} needs {', '.join(missing)}; write {typed}:{missing[0]}=…"
        )
    return Bound(
        label,
        loaded.identity,
        loaded.factory,
        {**fixed, **params},
        given,
        reconstruction=bool(entry and entry.facts.get("reconstruction")),
        kind=SINGULAR[kind],
    )


def settable(kind: Loadable, label: str, factory: Any) -> dict[str, Parameter]:
    """Return the parameters that users may set."""
    try:
        found = parameters(factory)
    except ValueError as error:  # of a class that is not written in Python
        raise PluginError(
            f"the parameters of {SINGULAR[kind]} {label!r} cannot be read: {error}"
        ) from error
    hidden = _NOT_SETTINGS.get(kind, {})
    return {name: parameter for name, parameter in found.items() if name not in hidden}


def _parsed(
    kind: Loadable, label: str, takes: Mapping[str, Parameter], settings: Mapping[str, str]
) -> dict[str, Any]:
    owner = f"{SINGULAR[kind]} {label!r}"
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in takes:
            if reason := _NOT_SETTINGS.get(kind, {}).get(key):
                raise ConfigError(f"{owner}: {key} is not to be set here; {reason}")
            raise ConfigError(f"{owner}: {unknown_name('parameter', key, takes)}")
        values[key] = takes[key].parse(owner, value, piecewise=kind == "plugins")
    piecewise = {key: value for key, value in values.items() if isinstance(value, Piecewise)}
    if len({len(value.values) for value in piecewise.values()}) > 1:
        told = ", ".join(f"{key}={value}" for key, value in piecewise.items())
        raise ConfigError(
            f"{owner}: {told}: settings that change while a run goes on need as many values each"
        )
    return values
