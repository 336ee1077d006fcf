"""The tables of the catalogue: what is called how, and who brings it. Nothing is imported here.

``registry.toml`` names what ships. The user's own registry adds names: a ``registry.toml`` in the
folder where splitlab is started, or the file that ``$SPLITLAB_REGISTRY`` names. Packages of others
add theirs by entry points of the groups ``splitlab.plugins``, ``splitlab.transports``,
``splitlab.links``, ``splitlab.probes``, ``splitlab.loggers`` and ``splitlab.models``.

A name that two of them take is refused when it is used; everything else works. A table of the
user's that cannot be used spoils only its own name. A file that the user named must be a registry;
one that merely lies in the folder may be somebody else's, and ends no command.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, Literal, get_args

from splitlab.core.contract.errors import ConfigError, unknown_name

__all__ = [
    "LOADABLE",
    "OPTION",
    "ROOT",
    "SINGULAR",
    "Entry",
    "Kind",
    "Loadable",
    "catalogue",
    "entries",
    "installed",
    "notices",
]

# Not importlib.resources: it does not find a package without __init__.py in an editable install.
ROOT: Final = Path(__file__).resolve().parents[2]

Loadable = Literal["plugins", "transports", "links", "probes", "loggers", "models"]
Kind = Loadable | Literal["stacks", "datasets", "studies"]

LOADABLE: Final[tuple[Loadable, ...]] = get_args(Loadable)

SINGULAR: Final[Mapping[Kind, str]] = {
    "plugins": "plugin",
    "stacks": "stack",
    "transports": "transport",
    "links": "link",
    "probes": "probe",
    "loggers": "logger",
    "models": "model",
    "datasets": "data set",
    "studies": "study",
}
"""One of each kind, as messages call it."""

OPTION: Final[Mapping[Kind, str]] = {
    **{kind: f"--{SINGULAR[kind]}" for kind in LOADABLE},
    "stacks": "--plugin",
    "datasets": "--dataset",
    "loggers": "--log",
    "studies": "splitlab study",
}
"""What takes one of each kind: an option of a run, or a command."""

_FILE = "registry.toml"
_VARIABLE = "SPLITLAB_REGISTRY"

_NEEDED: Final[Mapping[Kind, tuple[str, ...]]] = {
    "plugins": ("target",),
    "stacks": ("plugins",),
    "transports": ("target",),
    "links": ("target", "preset"),
    "probes": ("target",),
    "loggers": ("target",),
    "models": ("target", "preset"),
    "datasets": (),  # `splitlab.core.data.entry` checks them
    "studies": (),  # `splitlab.core.studies.definition` does
}
"""Exactly one of these keys is in each table of the kind."""

_TYPES: Final = {
    "target": (str, "a text"),
    "preset": (str, "a text"),
    "plugins": (list, "a list of plugins"),
    "stacks": (list, "a list of stacks"),
    "summary": (str, "a text"),
    "paper": (str, "a text"),
    "weights": (str, "a text"),
    "cut": (int, "a whole number"),
    "reconstruction": (bool, "true or false"),
    "unnamed": (bool, "true or false"),
}


@functools.cache
def catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the ``registry.toml`` that ships as it stands: table by name by kind."""
    with (ROOT / _FILE).open("rb") as file:
        return tomllib.load(file)


@dataclass(frozen=True)
class Entry:
    """One name of the catalogue.

    Attributes:
        name: as users type it.
        target: ``module:Class`` or ``FILE.py:Class``; of a stack, its plugins joined by ``" + "``;
            of a preset, the model or link with its settings; of a data set, where its images are;
            of a study, its stacks.
        summary: one sentence; empty for entry points, which are not imported to be listed.
        source: ``"splitlab"``, the package that brings it, or the user's registry file.
        facts: the other keys of its table.
        folder: what file names among the facts are relative to.
        problem: why it cannot be used, if that is known without importing it.
    """

    name: str
    target: str
    summary: str
    source: str
    facts: Mapping[str, Any]
    folder: Path = ROOT
    problem: str | None = None


def entries(kind: Kind) -> dict[str, Entry]:
    """Return everything known of the kind, by name, without importing any of it.

    Raises:
        ConfigError: the file that ``$SPLITLAB_REGISTRY`` names is no registry.
    """
    brought = "plugins" if kind == "stacks" else kind
    return dict(_entries(kind, _own(), installed(f"splitlab.{brought}")))


@functools.lru_cache(maxsize=32)
def _entries(kind: Kind, own: _Own, points: tuple[EntryPoint, ...]) -> Mapping[str, Entry]:
    shipped = _shipped(kind)
    found = [*shipped.values()]
    mine = own.entries.get(kind, {})
    found += [entry for entry in mine.values() if not _ships(entry, shipped)]
    if kind in LOADABLE:
        for point in sorted(points, key=lambda point: point.name):
            source = point.dist.name if point.dist else "entry point"
            found.append(Entry(point.name, point.value, "", source, {}))
    if kind == "stacks":
        plugins = _entries("plugins", own, points)
        found += [plugins[entry.name] for entry in found if entry.name in plugins]
    named: dict[str, Entry] = {}
    for entry in found:
        first = named.setdefault(entry.name, entry)
        if first is not entry:
            problem = (
                f"two {SINGULAR[kind]}s are called {entry.name!r}: {_described(first)} and "
                f"{_described(entry)}; rename or remove one of them"
            )
            named[entry.name] = replace(first, problem=problem)
    return named


def notices() -> list[str]:
    """Return what the user should hear of their own registry, one line each; most often nothing.

    Raises:
        ConfigError: as `entries`.
    """
    own = _own()
    told = [*own.notices]
    for kind, tables in own.entries.items():
        shipped = _shipped(kind)
        for name, entry in tables.items():
            if _ships(entry, shipped) and entry.facts != shipped[name].facts:
                told.append(
                    f"the registry {own.path}: [{kind}.{name}] is one that ships, and the table "
                    "that ships is taken; give yours another name to have what it changes"
                )
    return [" ".join(notice.split()) for notice in told]


def installed(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of the group. Packages are looked through once for a `sys.path`."""
    return _installed(group, tuple(sys.path))


@functools.lru_cache(maxsize=32)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _shipped(kind: Kind) -> dict[str, Entry]:
    tables = catalogue().get(kind, {})
    return {name: _entry(kind, name, table, "splitlab", ROOT) for name, table in tables.items()}


def _ships(entry: Entry, shipped: Mapping[str, Entry]) -> bool:
    """Whether an entry of the user's stands for what the shipped one of its name stands for."""
    twin = shipped.get(entry.name)
    return bool(twin and entry.target and twin.target == entry.target)


def _described(entry: Entry) -> str:
    return f"{entry.target or 'a table that cannot be used'} (from {entry.source})"


def _entry(kind: Kind, name: str, table: Mapping[str, Any], source: str, folder: Path) -> Entry:
    if kind == "datasets":
        files = table.get("files")
        places = files.values() if isinstance(files, Mapping) else ()
        target = str(table.get("hub", ", ".join(map(str, places))))
    elif kind == "studies":
        target = ", ".join(map(str, table.get("stacks", ())))
    else:
        target = next(table[key] for key in _NEEDED[kind] if key in table)
        target = " + ".join(target) if kind == "stacks" else target
    taken = ("summary",) if kind == "datasets" else ("target", "summary")
    facts = {key: value for key, value in table.items() if key not in taken}
    return Entry(name, target, table.get("summary", ""), source, facts, folder)


# The user's own registry.


@dataclass(frozen=True, eq=False)
class _Own:
    """The user's own registry, as far as it can be used.

    Attributes:
        path: where it is.
        entries: by name by kind.
        notices: what the user should hear of it.
        problem: why nothing of it can be used.
        foreign: whether it holds nothing that could be meant for splitlab.
    """

    path: Path
    entries: Mapping[Kind, Mapping[str, Entry]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    problem: str = ""
    foreign: bool = False


def _own() -> _Own:
    """Return the user's own registry; an empty one if there is none."""
    named = os.environ.get(_VARIABLE)
    if named:
        try:
            path = Path(os.path.realpath(named))
            if path == ROOT / _FILE:
                return _Own(path)
            own = _read(path, path.read_bytes())
        except OSError as error:
            raise ConfigError(f"${_VARIABLE}: cannot read {named}: {error.strerror}") from None
        if own.problem:
            raise ConfigError(f"${_VARIABLE}: the registry {path} {own.problem}")
        return own
    try:
        path = Path(os.path.realpath(_FILE))
        if not stat.S_ISREG(path.stat().st_mode) or path == ROOT / _FILE or _is_checkout(path):
            return _Own(path)
        own = _read(path, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):  # also where the folder itself is gone
        return _Own(Path(_FILE))
    except OSError as error:
        own = _Own(Path(_FILE), problem=f"cannot be read: {error.strerror}")
    if own.problem and not own.foreign:
        return replace(own, notices=(f"the registry {own.path} {own.problem}; it is ignored",))
    return own


def _is_checkout(path: Path) -> bool:
    """Whether the file is the shipped registry of another checkout of splitlab."""
    try:
        return bool(_project((path.parent / "pyproject.toml").read_bytes()) == "splitlab")
    except OSError:
        return False


@functools.lru_cache(maxsize=8)
def _project(content: bytes) -> Any:
    """Return the name that a ``pyproject.toml`` gives its project; None if it gives none."""
    try:
        project = tomllib.loads(content.decode("utf-8-sig")).get("project")
    except (ValueError, RecursionError):
        return None
    return project.get("name") if isinstance(project, dict) else None


@functools.lru_cache(maxsize=8)
def _read(path: Path, content: bytes) -> _Own:
    try:
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return _Own(path, problem=f"is not TOML: {error}")
    ours = [kind for kind in _NEEDED if isinstance(tables.get(kind), dict)]
    if tables and not ours:
        other = next((kind for kind in tables if kind not in _NEEDED), None)
        reason = (
            unknown_name("table", other, _NEEDED) if other else "write [plugins.NAME] and so on"
        )
        return _Own(path, problem=f"has no table of splitlab's: {reason}", foreign=True)
    told = []
    for kind in tables:
        if kind not in _NEEDED:
            unknown = unknown_name("table", kind, _NEEDED)
            told.append(f"the registry {path}: {unknown}; it is ignored")
        elif kind not in ours:
            told.append(f"the registry {path}: {kind} must be tables, as in [{kind}.NAME]")
    found: dict[Kind, dict[str, Entry]] = {kind: {} for kind in ours}
    for kind in ours:
        for name, table in tables[kind].items():
            entry = _own_entry(kind, name, table, path)
            found[kind][name] = entry
            if entry.problem:
                told.append(entry.problem)
    return _Own(path, found, tuple(told))


def _own_entry(kind: Kind, name: str, table: Any, path: Path) -> Entry:
    """Return the entry of a table of the user's; what is wrong with it is its problem."""
    wrong = next(_wrong(kind, name, table), None)
    if wrong:
        problem = f"the registry {path}: {wrong}"
        return Entry(name, "", "", str(path), {}, path.parent, problem)
    placed = dict(table)
    for key in (*_NEEDED[kind], "stacks"):
        value = placed.get(key)
        if isinstance(value, list):
            placed[key] = [_placed(str(text), path.parent) for text in value]
        elif isinstance(value, str):
            placed[key] = _placed(value, path.parent)
    return _entry(kind, name, placed, str(path), path.parent)


def _placed(text: str, folder: Path) -> str:
    """A file is where the registry says, wherever splitlab is started."""
    return str(folder / text) if ".py:" in text else text


def _wrong(kind: Kind, name: str, table: Any) -> Iterator[str]:
    """Yield what makes the table unusable."""
    where = f"[{kind}.{name}]"
    if not isinstance(table, dict):
        yield f"{where} must be a table"
        return
    if not re.fullmatch(r"[^\s:,=]+", name):
        yield f"{where} is a name that nobody could type; leave out blanks and : , ="
    needed = _NEEDED[kind]
    given = [key for key in needed if key in table]
    if needed and not given:
        yield f"{where} needs the key {' or '.join(map(repr, needed))}"
    if len(given) > 1:
        yield f"{where} has the keys {' and '.join(map(repr, given))}; give one of them"
    for key, value in table.items():
        wanted, words = _TYPES.get(key, (type(value), ""))
        fits = type(value) is wanted  # not isinstance: true is no number
        if key in ("plugins", "stacks"):
            fits = fits and bool(value) and all(isinstance(text, str) for text in value)
        if not fits:
            yield f"{key} of {where} must be {words}"
        elif key == "target" and not all(value.partition(":")):
            yield f"{key} of {where} must be 'module:Class' or 'FILE.py:Class', not {value!r}"
