"""The catalogue: what is called how, where it lives, and how it is loaded and built.

``registry.toml`` names what ships. A ``registry.toml`` in the folder where splitlab is started (or
the file that ``$SPLITLAB_REGISTRY`` names) adds the user's own, packages of others add to it by
entry points of the groups ``splitlab.plugins`` and ``splitlab.transports``, and a plugin may also
be named as ``FILE.py:Class``. Everything is loaded the same way, and nothing is imported before it
is used. A name that two of them take is refused when it is used; everything else works.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from splitlab.core.contract.errors import ConfigError, PluginError, SplitlabError, unknown_name
from splitlab.core.contract.settings import Bound, parameters

__all__ = [
    "ROOT",
    "Entry",
    "bind_plugin",
    "bind_stack",
    "broken",
    "catalogue",
    "entries",
    "load",
]

# Not importlib.resources: it does not find a package without __init__.py in an editable install.
ROOT = Path(__file__).resolve().parents[2]

Group = Literal["plugins", "transports"]
Kind = Literal["plugins", "transports", "stacks"]

_USERS = "registry.toml"
_VARIABLE = "SPLITLAB_REGISTRY"
_NEEDED = {"plugins": "target", "transports": "target", "stacks": "plugins"}
"""What a user's registry may hold: kind of table, and the key that each of its tables needs."""


@functools.cache
def catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the ``registry.toml`` that ships as it stands: table by name by kind."""
    with (ROOT / "registry.toml").open("rb") as file:
        return tomllib.load(file)


@dataclass(frozen=True)
class Entry:
    """One name of the catalogue.

    Attributes:
        name: as users type it.
        target: ``module:Class`` or ``FILE.py:Class``; of a stack, its plugins joined by ``" + "``.
        summary: one sentence; empty for entry points, which are not imported to be listed.
        source: ``"splitlab"``, the package that brings it, or the user's registry file.
        facts: the other keys of its table.
        problem: why it cannot be used, if that is known without importing it.
    """

    name: str
    target: str
    summary: str
    source: str
    facts: Mapping[str, Any]
    problem: str | None = None


def entries(kind: Kind) -> dict[str, Entry]:
    """Return everything known of the kind, by name, without importing any of it.

    Raises:
        ConfigError: the user's own registry is not one.
    """
    found: list[Entry] = []
    for name, table in catalogue().get(kind, {}).items():
        found.append(_entry(kind, name, table, "splitlab"))
    path, tables = _users_registry()
    for name, table in tables.get(kind, {}).items():
        found.append(_entry(kind, name, table, str(path)))
    if kind in ("plugins", "transports"):
        for point in sorted(entry_points(group=f"splitlab.{kind}"), key=lambda point: point.name):
            source = point.dist.name if point.dist else "entry point"
            found.append(Entry(point.name, point.value, "", source, {}))
    if kind == "stacks":
        plugins = entries("plugins")
        found += [plugins[entry.name] for entry in found if entry.name in plugins]
    named: dict[str, Entry] = {}
    for entry in found:
        first = named.setdefault(entry.name, entry)
        if first is not entry:
            problem = (
                f"two {kind} are called {entry.name!r}: {first.target} (from {first.source}) and "
                f"{entry.target} (from {entry.source}); rename or remove one of them"
            )
            named[entry.name] = replace(first, problem=problem)
    return named


def _entry(kind: Kind, name: str, table: Mapping[str, Any], source: str) -> Entry:
    needed = table[_NEEDED[kind]]
    target = " + ".join(needed) if kind == "stacks" else needed
    facts = {key: value for key, value in table.items() if key not in ("target", "summary")}
    return Entry(name, target, table.get("summary", ""), source, facts)


def _users_registry() -> tuple[Path, dict[str, dict[str, dict[str, Any]]]]:
    """Return the user's own registry and its path; empty if there is none."""
    named = os.environ.get(_VARIABLE)
    path = Path(named or _USERS).resolve()
    if path == ROOT / _USERS or (not named and not path.is_file()):
        return path, {}
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"${_VARIABLE}: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the registry {path} is not TOML: {error}") from None
    for kind, group in tables.items():
        if kind not in _NEEDED:
            unknown = unknown_name("table", kind, _NEEDED)
            raise ConfigError(
                f"the registry {path}: {unknown}; if the file is not splitlab's, start in another "
                f"folder or name yours in ${_VARIABLE}"
            )
        for name, table in group.items() if isinstance(group, dict) else [("", None)]:
            if not isinstance(table, dict) or _NEEDED[kind] not in table:
                raise ConfigError(
                    f"the registry {path}: [{kind}.{name or 'NAME'}] needs the key "
                    f"{_NEEDED[kind]!r}"
                )
            value = table[_NEEDED[kind]]
            texts = value if isinstance(value, list) else [value]
            fits = isinstance(value, list) is (kind == "stacks") and texts
            if not fits or not all(isinstance(text, str) for text in texts):
                what = "a list of plugins" if kind == "stacks" else "a text"
                raise ConfigError(
                    f"the registry {path}: {_NEEDED[kind]} of [{kind}.{name}] must be {what}"
                )
            # A file is where the registry says, wherever splitlab is started.
            placed = [str(path.parent / text) if ".py:" in text else text for text in texts]
            table[_NEEDED[kind]] = placed if kind == "stacks" else placed[0]
    return path, tables


def load(group: Group, name: str) -> Any:
    """Import and return the class that the name stands for.

    Raises:
        ConfigError: no such name, or two of that name.
        PluginError: it is known, but cannot be imported; says why.
    """
    known = entries(group)
    if name not in known:
        remedy = "; or name a file: path/to/file.py:Class" if group == "plugins" else ""
        names = [*known, *entries("stacks")] if group == "plugins" else known
        raise unknown_name(group.removesuffix("s"), name, names, remedy)
    entry = known[name]
    if entry.problem:
        raise ConfigError(entry.problem)
    if ".py:" in entry.target:
        return _load_file(entry.target)[0]
    what = f"{group.removesuffix('s')} {name!r} ({entry.target}, from {entry.source})"
    module, _, attribute = entry.target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except SplitlabError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise PluginError(f"{what} is a {type(found).__name__}; it must be a class")
    return found


def broken(kind: Kind, entry: Entry) -> str | None:
    """Return why the entry cannot be used, or None. Imports it, unless it ships with splitlab."""
    if entry.problem or entry.source == "splitlab":
        return entry.problem
    try:
        if kind == "stacks":
            bind_stack([entry.name])
        else:
            load(kind, entry.name)
    except SplitlabError as error:
        return str(error)
    return None


def bind_stack(texts: Iterable[str]) -> list[Bound]:
    """Resolve the plugins of a stack, in order; the name of a stack stands for its plugins.

    A setting of a named stack goes to the first of its plugins that takes it.

    Raises:
        ConfigError: as `bind_plugin`.
    """
    bound: list[Bound] = []
    stacks = entries("stacks")
    for text in texts:
        head, given = _split(text)
        if head not in stacks:
            bound.append(bind_plugin(text))
            continue
        stack = stacks[head]
        if stack.problem:
            raise ConfigError(stack.problem)
        members = [_split(member) for member in stack.facts["plugins"]]
        nested = next((name for name, _ in members if name in stacks), None)
        if nested is not None:
            raise ConfigError(
                f"stack {head!r} names the stack {nested!r}; a stack is made of plugins: write "
                f"{', '.join(stacks[nested].facts['plugins'])} instead"
            )
        takes = [parameters(_resolve(name)[0]) for name, _ in members]
        for key, value in given.items():
            owner = next((i for i, known in enumerate(takes) if key in known), None)
            if owner is None:
                error = unknown_name("parameter", key, {key for known in takes for key in known})
                raise ConfigError(f"stack {head!r} ({stack.target}): {error}")
            members[owner][1][key] = value
        bound += [_bind(name, settings) for name, settings in members]
    return bound


def bind_plugin(text: str) -> Bound:
    """Resolve ``NAME[:key=value,…]`` or ``FILE.py:Class[:key=value,…]``.

    Raises:
        ConfigError: unknown name, key, value or file.
    """
    return _bind(*_split(text))


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Return what is in front of the settings, and the settings as text."""
    head, separator, tail = text.partition(".py:")
    if separator:
        class_name, _, settings = tail.partition(":")
        head = f"{head}.py:{class_name}"
    else:
        head, _, settings = text.partition(":")
        if head.endswith(".py"):
            raise ConfigError(f"plugin file {head!r}: name the class too, as in {head}:MyMethod")
    given: dict[str, str] = {}
    for item in filter(None, settings.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(
                f"plugin {head!r}: {item!r} is not a setting; write {head}:key=value,key=value"
            )
        if key in given:
            raise ConfigError(f"plugin {head!r}: {key} is given twice; give it once")
        given[key] = value.strip()
    return head, given


def _resolve(head: str) -> tuple[Any, str]:
    """Return the class and its identity."""
    if ".py:" in head:
        return _load_file(head)
    factory = load("plugins", head)
    target = entries("plugins")[head].target
    return (factory, f"{head}={_load_file(target)[1]}") if ".py:" in target else (factory, head)


def _bind(head: str, settings: Mapping[str, str]) -> Bound:
    factory, identity = _resolve(head)
    entry = None if ".py:" in head else entries("plugins")[head]
    label = entry.name if entry else head.partition(".py:")[2]
    known = parameters(factory)
    given: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            error = unknown_name("parameter", key, known)
            raise ConfigError(f"plugin {label!r}: {error}")
        given[key] = known[key].parse(f"plugin {label!r}", value)
    missing = [key for key, p in known.items() if p.required and key not in given]
    if missing:
        raise ConfigError(
            f"plugin {label!r} needs {', '.join(missing)}; write {label}:{missing[0]}=…"
        )
    defaults = {key: p.default for key, p in known.items() if key not in given}
    params = {key: (defaults | given)[key] for key in known}
    reconstruction = bool(entry and entry.facts.get("reconstruction"))
    return Bound(label, identity, factory, params, given, reconstruction)


def _load_file(target: str) -> tuple[Any, str]:
    """Return the class that ``FILE.py:Class`` names, and its name with the file's hash."""
    head, _, class_name = target.partition(".py:")
    path = Path(head + ".py")
    if not path.is_file():
        raise ConfigError(f"plugin file {str(path)!r} does not exist")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ConfigError(f"cannot read the plugin file {path}: {error.strerror}") from None
    module_name = f"splitlab_file_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and type hints look their module up
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise PluginError(
                f"plugin file {str(path)!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
    factory = getattr(module, class_name, None)
    if not isinstance(factory, type):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module_name]
        raise unknown_name(f"class in {path.name}:", class_name, own)
    return factory, f"{class_name}@{digest}"
