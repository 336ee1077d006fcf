"""The catalogue: what is called how, where it lives, and how it is loaded and built.

``registry.toml`` names what ships; packages of others add to it by entry points of the groups
``splitlab.plugins`` and ``splitlab.transports``; a plugin may also be named as ``FILE.py:Class``.
Everything is loaded the same way, and nothing is imported before it is used: listing reads names.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from splitlab.core.errors import ConfigError, PluginError, SplitlabError, unknown_name

__all__ = [
    "ROOT",
    "BoundPlugin",
    "Entry",
    "Parameter",
    "bind_plugin",
    "catalogue",
    "entries",
    "load",
    "parameters",
]

# Not importlib.resources: it does not find a package without __init__.py in an editable install.
ROOT = Path(__file__).resolve().parent.parent

Group = Literal["plugins", "transports"]


@functools.cache
def catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    """Return ``registry.toml`` as it stands: table by name by kind."""
    with (ROOT / "registry.toml").open("rb") as file:
        return tomllib.load(file)


@dataclass(frozen=True)
class Entry:
    """One line of a listing.

    Attributes:
        name: as users type it.
        target: ``module:Class``.
        summary: one sentence; empty for entry points, which are not imported to be listed.
        source: ``"splitlab"``, or the package that brings it.
        facts: the other keys of its table in ``registry.toml``.
    """

    name: str
    target: str
    summary: str
    source: str
    facts: Mapping[str, Any]


def entries(group: Group) -> dict[str, Entry]:
    """Return everything known of the group, by name, without importing any of it.

    A name of ``registry.toml`` cannot be taken by a package of others.
    """
    found: dict[str, Entry] = {}
    for point in sorted(entry_points(group=f"splitlab.{group}"), key=lambda point: point.name):
        source = point.dist.name if point.dist else "entry point"
        found[point.name] = Entry(point.name, point.value, "", source, {})
    for name, table in catalogue().get(group, {}).items():
        facts = {key: value for key, value in table.items() if key not in ("target", "summary")}
        found[name] = Entry(name, table["target"], table["summary"], "splitlab", facts)
    return found


def load(group: Group, name: str) -> Any:
    """Import and return the class that the name stands for.

    Raises:
        ConfigError: no such name.
        PluginError: it is known, but cannot be imported; says why.
    """
    known = entries(group)
    if name not in known:
        remedy = "; or name a file: path/to/file.py:Class" if group == "plugins" else ""
        raise unknown_name(group.removesuffix("s"), name, known, remedy)
    entry = known[name]
    module, _, attribute = entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except SplitlabError:
        raise
    except Exception as error:
        raise PluginError(
            f"{group.removesuffix('s')} {name!r} ({entry.target}, from {entry.source}) "
            f"cannot be imported: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class BoundPlugin:
    """A plugin with all its parameters, ready to be built once for every peer.

    Attributes:
        label: what messages and tables call it: its name, or the class of a file.
        identity: what both peers compare: the name, or class and content hash of a file.
        factory: the class.
        params: every parameter of the constructor, defaults filled in.
        given: the parameters that the user set, for display.
    """

    label: str
    identity: str
    factory: Any
    params: Mapping[str, Any]
    given: Mapping[str, Any]

    def build(self) -> Any:
        """Return a new instance."""
        try:
            return self.factory(**self.params)
        except SplitlabError as error:
            raise type(error)(f"plugin {self.label!r}: {error}") from error
        except Exception as error:
            raise PluginError(
                f"plugin {self.label!r} cannot be built: {type(error).__name__}: {error}"
            ) from error

    def __str__(self) -> str:
        given = ",".join(f"{key}={_show(value)}" for key, value in self.given.items())
        return f"{self.label}:{given}" if given else self.label

    def agreement(self) -> str:
        """Return what both peers must have in common, in one line."""
        every = ",".join(f"{key}={_show(value)}" for key, value in self.params.items())
        return f"{self.identity}:{every}" if every else self.identity


def bind_plugin(text: str) -> BoundPlugin:
    """Resolve ``NAME[:key=value,…]`` or ``FILE.py:Class[:key=value,…]``.

    Raises:
        ConfigError: unknown name, key, value or file.
    """
    head, separator, tail = text.partition(".py:")
    if separator:
        class_name, _, settings = tail.partition(":")
        factory, identity = _load_file(Path(head + ".py"), class_name)
        label = class_name
    else:
        label, _, settings = text.partition(":")
        if label.endswith(".py"):
            raise ConfigError(f"plugin file {label!r}: name the class too, as in {label}:MyMethod")
        factory, identity = load("plugins", label), label
    known = parameters(factory)
    given: dict[str, Any] = {}
    for item in filter(None, settings.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(
                f"plugin {label!r}: {item!r} is not a setting; write {label}:key=value,key=value"
            )
        if key not in known:
            error = unknown_name("parameter", key, known)
            raise ConfigError(f"plugin {label!r}: {error}")
        if key in given:
            raise ConfigError(f"plugin {label!r}: {key} is given twice; give it once")
        given[key] = known[key].parse(label, value.strip())
    missing = [key for key, p in known.items() if p.required and key not in given]
    if missing:
        raise ConfigError(
            f"plugin {label!r} needs {', '.join(missing)}; write {label}:{missing[0]}=…"
        )
    defaults = {key: p.default for key, p in known.items() if key not in given}
    params = {key: (defaults | given)[key] for key in known}
    return BoundPlugin(label, identity, factory, params, given)


_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One parameter of a plugin's constructor, read from its signature."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is _REQUIRED

    @property
    def kind(self) -> str:
        """The type as users read it: ``float``, ``sqrt | fifth``, ``int | none``."""
        return _describe(self.annotation)

    @property
    def default_text(self) -> str:
        """The default as users would type it."""
        return "(needed)" if self.required else _show(self.default)

    def parse(self, plugin: str, text: str) -> Any:
        """Turn the text into a value of the annotated type, or raise `ConfigError`."""
        try:
            return _parse(self.annotation, text)
        except ValueError:
            default = "" if self.required else f" (default {self.default_text})"
            raise ConfigError(
                f"plugin {plugin!r}: {self.name}={text} is not allowed; "
                f"{self.name} takes {self.kind}{default}"
            ) from None


def parameters(factory: Any) -> dict[str, Parameter]:
    """Return the constructor's parameters by name, with types and defaults.

    Raises:
        PluginError: an annotation names what its module does not define.
    """
    try:
        hints = typing.get_type_hints(factory.__init__)
    except Exception as error:
        raise PluginError(
            f"the types of the parameters of {factory.__name__} cannot be read: "
            f"{type(error).__name__}: {error}"
        ) from error
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        found[name] = Parameter(name, hints.get(name, str), parameter.default)
    return found


def _parse(annotation: Any, text: str) -> Any:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        for choice in typing.get_args(annotation):
            if str(choice) == text:
                return choice
    elif origin in (typing.Union, types.UnionType):
        # "none" is the value none, also where any text is allowed.
        members = typing.get_args(annotation)
        for member in sorted(members, key=lambda member: member is not type(None)):
            try:
                return _parse(member, text)
            except ValueError:
                continue
    elif annotation is type(None):
        if text.lower() == "none":
            return None
    elif annotation is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
    elif annotation in (int, float, str):
        return annotation(text)
    raise ValueError(text)


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(_describe, typing.get_args(annotation)))
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _show(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _load_file(path: Path, class_name: str) -> tuple[Any, str]:
    if not path.is_file():
        raise ConfigError(f"plugin file {str(path)!r} does not exist")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
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
        except Exception as error:
            del sys.modules[module_name]
            raise PluginError(
                f"plugin file {str(path)!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
    factory = getattr(module, class_name, None)
    if not isinstance(factory, type):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module_name]
        raise unknown_name(f"class in {path.name}:", class_name, own)
    return factory, f"{class_name}@{digest}"
