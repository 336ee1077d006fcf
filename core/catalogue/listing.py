"""What there is, as facts: the listings of the command line and the tables of the documentation.

Nothing is imported to list what ships; packages of others are, to tell which of them are broken.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from splitlab.core.catalogue import links, loggers
from splitlab.core.catalogue.binding import bind, broken, settable
from splitlab.core.catalogue.loading import find, load, split
from splitlab.core.catalogue.tables import OPTION, SINGULAR, Entry, Loadable, entries
from splitlab.core.contract.errors import FAULTS, ConfigError, PluginError, SplitlabError, reason
from splitlab.core.contract.marks import HOOKS, forgotten, marked
from splitlab.core.contract.settings import Parameter, parameters

__all__ = [
    "described",
    "link_facts",
    "link_rows",
    "logger_facts",
    "logger_rows",
    "plugin_facts",
    "plugin_rows",
    "probe_facts",
    "probe_rows",
    "stack_facts",
    "transport_facts",
    "transport_rows",
]

Row = dict[str, Any]


# All of a kind.


def plugin_rows() -> list[Row]:
    """Return name, title, summary, paper, source and problem of every plugin and named stack."""
    kinds: tuple[Literal["plugins", "stacks"], ...] = ("plugins", "stacks")
    return [
        {**entry.facts, **_row(kind, entry), "title": _title(entry), "kind": SINGULAR[kind]}
        for kind in kinds
        for entry in entries(kind).values()
    ]


def probe_rows() -> list[Row]:
    """Return name, summary, source and problem of every probe."""
    return [_row("probes", entry) for entry in entries("probes").values()]


def link_rows() -> list[Row]:
    """Return name, summary, source and problem of every link wrapper."""
    return [_row("links", entry) for entry in entries("links").values()]


def transport_rows() -> list[Row]:
    """Return name, summary and source of every transport, and what it lacks here."""
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "source": entry.source,
            **_works(links.lacks(entry.name)),
        }
        for entry in entries("transports").values()
    ]


def logger_rows() -> list[Row]:
    """Return name, summary, source and problem of every logger, and what it lacks here."""
    return [
        {**_row("loggers", entry), **_works(loggers.lacks(entry.name))}
        for entry in entries("loggers").values()
    ]


def _works(missing: str | None) -> Row:
    return {"works_here": missing is None, "missing": missing}


def _row(kind: Loadable | Literal["stacks"], entry: Entry) -> Row:
    problem = broken(kind, entry)
    summary = entry.summary
    if not (summary or problem or kind == "stacks"):
        made = find(kind, entry.name, entry=entry).factory
        summary = (inspect.getdoc(made) or "").partition("\n")[0]
    return {"name": entry.name, "summary": summary, "source": entry.source, "problem": problem}


def _title(entry: Entry) -> str:
    return f"{entry.name}-recon" if entry.facts.get("reconstruction") else entry.name


# One of a kind.


def plugin_facts(name: str) -> Row:
    """Return everything that is known of one plugin, or of ``FILE.py:Class``. Imports it.

    Raises:
        ConfigError: no such plugin.
        PluginError: it cannot be imported, or breaks the contract of its hooks.
    """
    known = _facts("plugins", name)
    factory = load("plugins", name)
    entry = entries("plugins").get(name)
    listed: Mapping[str, Any] = entry.facts if entry else {}
    return {
        **known,
        "title": _title(entry) if entry else name,
        "paper": listed.get("paper", ""),
        "reconstruction": bool(listed.get("reconstruction")),
        "sends": _sends(inspect.getdoc(sys.modules[factory.__module__]) or ""),
        "hooks": _hooks("plugins", name, factory),
        "traits": _traits(name, factory),
    }


def probe_facts(name: str) -> Row:
    """Return everything that is known of one probe, or of ``FILE.py:Class``. Imports it.

    Raises:
        ConfigError, PluginError: as `plugin_facts`.
    """
    known = _facts("probes", name)
    return {**known, "hooks": _hooks("probes", name, load("probes", name))}


def link_facts(name: str) -> Row:
    """Return everything that is known of one link wrapper, or of ``FILE.py:Class``. Imports it.

    Raises:
        ConfigError: no such link wrapper.
        PluginError: it cannot be imported.
    """
    return _facts("links", name)


def transport_facts(name: str) -> Row:
    """Return everything that is known of one transport, or of ``FILE.py:Class``. Imports it.

    Raises:
        ConfigError: no such transport.
        PluginError: it cannot be imported.
    """
    return {**_facts("transports", name), **_works(links.lacks(name))}


def logger_facts(name: str) -> Row:
    """Return everything that is known of one logger, or of ``FILE.py:Class``. Imports it.

    Raises:
        ConfigError: no such logger.
        PluginError: it cannot be imported.
    """
    return {**_facts("loggers", name), **_works(loggers.lacks(name))}


def stack_facts(name: str) -> Row:
    """Return everything that is known of one named stack."""
    entry = entries("stacks")[name]
    if entry.problem:
        raise ConfigError(entry.problem)
    return {
        "name": name,
        "title": _title(entry),
        "summary": entry.summary,
        "paper": entry.facts.get("paper", ""),
        "reconstruction": bool(entry.facts.get("reconstruction")),
        "plugins": list(entry.facts["plugins"]),
        "example": f"splitlab run --plugin {name}",
    }


def _facts(kind: Loadable, name: str) -> Row:
    """Return what is known of one of any kind."""
    head, given = split(kind, name)
    if given:
        raise ConfigError(f"{name} has settings; explain the {SINGULAR[kind]} without them")
    loaded = find(kind, head)
    factory = loaded.factory
    entry = entries(kind).get(head)
    told, settings = described(factory), settable(kind, name, factory)
    told["parameters"] = [row for row in told["parameters"] if row["name"] in settings]
    for row in told["parameters"]:  # a preset's are its defaults
        if row["name"] in loaded.settings:
            row["default"] = row["default_text"] = loaded.settings[row["name"]]
    first = told["description"].partition("\n")[0]
    example = f"splitlab run {OPTION[kind]} {name}{_setting(kind, name, settings)}"
    summary = entry.summary if entry and entry.summary else first
    return {"name": name, "summary": summary, **told, "example": example}


def described(factory: Any) -> Row:
    """Return what a class or function says of itself: its parameters, and its description."""
    description, meanings = _parsed(inspect.getdoc(factory) or "")
    return {
        "parameters": [
            {
                "name": p.name,
                "type": p.kind,
                "default": None if p.required else p.default,
                "default_text": p.default_text,
                "required": p.required,
                "meaning": meanings.get(p.name, ""),
            }
            for p in parameters(factory).values()
        ],
        "description": description,
    }


def _setting(kind: Loadable, name: str, takes: Mapping[str, Parameter]) -> str:
    """Return settings for an example: what is needed, or else the ratio or the first parameter."""
    needed = [f"{p.name}=…" for p in takes.values() if p.required]
    shown = takes.get("ratio", next(iter(takes.values()), None))
    if needed or shown is None:
        return ":" + ",".join(needed) if needed else ""
    value = "0.1" if shown.name == "ratio" and shown.default is None else shown.default_text
    try:
        bind(kind, f"{name}:{shown.name}={value}").build()
    except SplitlabError:
        return ""  # it takes other values; without settings it works
    return "" if value == "none" else f":{shown.name}={value}"


def _hooks(kind: Loadable, name: str, factory: Any) -> list[str]:
    """Return the hooks that a class implements, in the order of the menu."""
    if fault := forgotten(factory):
        raise PluginError(f"{SINGULAR[kind]} {name!r}: {fault}")
    has = marked(factory)
    return [hook for hook in HOOKS if hook in has]


def _traits(name: str, factory: Any) -> Row | None:
    """Return what the plugin declares with its default parameters; None where there are none."""
    from splitlab.core.contract.traits import Traits  # imports torch, as this plugin has

    if any(p.required for p in parameters(factory).values()) or not hasattr(factory, "traits"):
        return None
    plugin = bind("plugins", name).build()
    try:
        declared = plugin.traits()
    except SplitlabError:
        raise
    except FAULTS as error:
        raise PluginError(f"plugin {name!r} failed in traits: {reason(error, plugin)}") from error
    if not isinstance(declared, Traits | None):
        raise PluginError(
            f"plugin {name!r} failed in traits: it must return Traits, and returns {declared!r}"
        )
    declared = declared or Traits()
    return {
        "needs": sorted(declared.needs),
        "changes": sorted(declared.changes),
        "gradient": declared.gradient,
        "evaluation": declared.evaluation,
        "stateful": declared.stateful,
        "last": declared.last,
        "waits": declared.waits,
    }


def _sends(doc: str) -> str:
    """Return the paragraphs of a module's docstring that say what is on the wire."""
    paragraphs = [" ".join(text.split()) for text in doc.split("\n\n")]
    begins = re.compile(r"(Up|Down|On the wire)\b[^:.]*[:,]")
    return " ".join(t for t in paragraphs if begins.match(t) and not t.endswith(":"))


def _parsed(doc: str) -> tuple[str, dict[str, str]]:
    """Return a class docstring without its ``Args:``, and the meaning of every parameter."""
    text, _, arguments = doc.partition("\nArgs:\n")
    arguments, _, rest = arguments.partition("\n\n")
    meanings: dict[str, str] = {}
    for match in re.finditer(r"^    (\w+): (.*(?:\n     +.*)*)", arguments, re.MULTILINE):
        meanings[match[1]] = " ".join(match[2].split())
    return "\n\n".join(filter(None, (text.strip(), rest.strip()))), meanings
