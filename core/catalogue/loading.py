"""What a name stands for: the class or function, imported when it is asked for.

What ships, what the user's own registry names, what packages of others bring and what stands in a
file, ``FILE.py:Name``, all come through this door. A model is a function or a class; everything
else is a class.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from splitlab.core.catalogue.tables import OPTION, SINGULAR, Entry, Kind, Loadable, entries
from splitlab.core.contract.errors import (
    FAULTS,
    ConfigError,
    PluginError,
    SplitlabError,
    reason,
    unknown_name,
)

__all__ = ["Loaded", "check_kind", "find", "known", "load", "split", "takes_classes"]

_EXAMPLES: Mapping[Loadable, str] = {
    "plugins": "MyMethod",
    "transports": "MyTransport",
    "links": "MyLink",
    "probes": "MyProbe",
    "loggers": "MyLogger",
    "models": "my_model",
}


class _Uncached(SourceFileLoader):
    """Runs a file as it is: what Python keeps compiled may be of one that was edited since.

    It tells them apart by size and second.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


@dataclass(frozen=True)
class Loaded:
    """What a name stands for.

    Attributes:
        factory: the class or function.
        identity: what both peers compare: the name, and what stands behind it where that is a file
            (its content, not its place) or another name.
        settings: what presets set, as text.
    """

    factory: Any
    identity: str
    settings: Mapping[str, str]


def split(kind: Loadable, text: str) -> tuple[str, dict[str, str]]:
    """Return what stands in front of the settings, and the settings as text.

    Args:
        kind: what the text names.
        text: ``NAME[:key=value,…]`` or ``FILE.py:Name[:key=value,…]``; ``key=value,…`` alone where
            the catalogue has one of the kind that such settings mean.

    Raises:
        ConfigError: a file without the name in it, or settings that are not of that form.
    """
    what = SINGULAR[kind]
    head, separator, tail = text.partition(".py:")
    if separator:
        name, _, settings = tail.partition(":")
        head = f"{head}.py:{name}"
    else:
        head, _, settings = text.partition(":")
        if "=" in head and (owner := _unnamed(kind)):  # no name holds such a sign
            head, settings = owner, text
        if head.endswith(".py"):
            raise ConfigError(
                f"{what} file {head!r}: name the {_noun(kind)} too, as in {head}:{_EXAMPLES[kind]}"
            )
    given: dict[str, str] = {}
    items = list(filter(None, settings.split(",")))
    if not settings.strip(" ,") and text != head:
        raise ConfigError(
            f"{what} {head!r}: nothing stands behind the colon; write {head}:key=value, or {head} "
            "alone"
        )
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(
                f"{what} {head!r}: {item!r} is not a setting; write {head}:key=value,key=value"
            )
        if key in given:
            raise ConfigError(f"{what} {head!r}: {key} is given twice; give it once")
        given[key] = value.strip()
    return head, given


def _unnamed(kind: Loadable) -> str | None:
    """Return the name that settings without one mean, if there is one of this kind."""
    return next((e.name for e in entries(kind).values() if e.facts.get("unnamed")), None)


def load(kind: Loadable, name: str) -> Any:
    """Import and return the class, or the model's function, that the name or file stands for.

    Raises:
        ConfigError: no such name, two of that name, or no such file.
        PluginError: it is known, but cannot be imported; says why.
    """
    return find(kind, name).factory


def check_kind(kind: Kind, name: str) -> None:
    """Raise `ConfigError` if the name is not of this kind, but of another."""
    for other in SINGULAR:
        if other != kind and name in entries(other):
            raise ConfigError(
                f"{name!r} is a {SINGULAR[other]}, not a {SINGULAR[kind]}; {OPTION[other]} {name} "
                "takes it"
            )


def known(kind: Loadable, name: str) -> Entry:
    """Return the entry of this name; `ConfigError` if there is none, or none that can be used."""
    found = entries(kind)
    if name not in found:
        check_kind(kind, name)
        names = [*found, *entries("stacks")] if kind == "plugins" else [*found]
        remedy = f"; or name a file: path/to/file.py:{'function' if kind == 'models' else 'Class'}"
        raise unknown_name(SINGULAR[kind], name, names, remedy)
    if found[name].problem:
        raise ConfigError(found[name].problem)
    return found[name]


def find(
    kind: Loadable, head: str, through: tuple[str, ...] = (), *, entry: Entry | None = None
) -> Loaded:
    """Import what the name or ``FILE.py:Name`` stands for, through presets to what they set.

    Args:
        kind: what it names.
        head: without settings.
        through: the presets that led here.
        entry: of that name, if it is known.

    Raises:
        ConfigError, PluginError: as `load`.
    """
    if ".py:" in head:
        return Loaded(*_load_file(kind, head), {})
    entry = entry or known(kind, head)
    what = f"{SINGULAR[kind]} {head!r}"
    if kind in ("models", "links") and "preset" in entry.facts:
        if head in through:
            raise ConfigError(f"{what} is a preset of itself: {' -> '.join((*through, head))}")
        base, settings = split(kind, entry.target)
        rest = next((e for e in entries(kind).values() if "others" in e.facts), None)
        if rest and ".py:" not in base and base not in entries(kind):
            base, settings = rest.name, {rest.facts["others"]: base, **settings}
        try:
            inner = find(kind, base, (*through, head))
        except SplitlabError as error:
            if through:
                raise
            raise type(error)(f"{what} (preset {entry.target}): {error}") from error
        return Loaded(inner.factory, f"{head}={inner.identity}", {**inner.settings, **settings})
    if ".py:" in entry.target:
        factory, identity = _load_file(kind, entry.target)
        return Loaded(factory, f"{head}={identity}", {})
    what = f"{what} ({entry.target}, from {entry.source})"
    module, _, attribute = entry.target.partition(":")
    with _importing(what, module):
        factory = getattr(importlib.import_module(module), attribute)
    if not _fits(kind, factory):
        raise PluginError(f"{what} is a {type(factory).__name__}; it must be a {_noun(kind)}")
    return Loaded(factory, head, {})


def _fits(kind: Loadable, factory: Any) -> bool:
    return isinstance(factory, type) or (kind == "models" and inspect.isfunction(factory))


def takes_classes(factory: Any) -> bool:
    """Return whether it has the parameter ``classes``, without which nothing makes a model."""
    try:
        return "classes" in inspect.signature(factory).parameters
    except ValueError:  # a class that is not written in Python
        return False


def _noun(kind: Loadable) -> str:
    return "function" if kind == "models" else "class"


@contextmanager
def _importing(what: str, module: str) -> Iterator[None]:
    """Blame whatever an import raises on what was imported; an error of ours keeps its kind."""
    try:
        yield
    except SplitlabError:
        raise
    except FAULTS as error:
        raise PluginError(f"{what} cannot be imported: {reason(error, module)}") from error


def _load_file(kind: Loadable, target: str) -> tuple[Any, str]:
    """Return what ``FILE.py:Name`` names, and its name with the file's hash."""
    head, _, name = target.partition(".py:")
    path = Path(os.path.expanduser(head + ".py"))
    what = f"{SINGULAR[kind]} file"
    if not path.is_file():
        raise ConfigError(f"{what} {str(path)!r} does not exist")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror}") from None
    module_name = f"splitlab_file_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        loader = _Uncached(module_name, str(path))
        spec = ModuleSpec(module_name, loader, origin=str(path))
        spec.has_location = True  # so that it has a __file__, by which its source is found
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and type hints look their module up
        try:
            with _importing(f"{what} {str(path)!r}", module_name):
                loader.exec_module(module)
        except BaseException:  # an interrupt, too, leaves no half of a module
            del sys.modules[module_name]
            raise
    factory = getattr(module, name, None)
    if not _fits(kind, factory):
        if inspect.isfunction(factory) and takes_classes(factory):
            raise ConfigError(
                f"{name!r} of {path.name} is a model, not a {SINGULAR[kind]}; --model {target} "
                "takes it"
            )
        own = [
            n
            for n, v in vars(module).items()
            if _fits(kind, v) and getattr(v, "__module__", "") == module_name
        ]
        if kind == "models":  # classes and functions of which models are made are none themselves
            own = [n for n in own if takes_classes(getattr(module, n))]
        raise unknown_name(f"{_noun(kind)} in {path.name}:", name, own)
    return factory, f"{name}@{digest}"
