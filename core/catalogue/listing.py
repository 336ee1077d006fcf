"""What there is, as facts: the listings of the command line and the tables of the documentation.

Nothing is imported to list what ships; packages of others are, to tell which of them are broken.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from splitlab.core.catalogue.registry import Entry, bind_plugin, broken, catalogue, entries, load
from splitlab.core.contract.errors import ConfigError, SplitlabError
from splitlab.core.contract.hooks import HookSpecs
from splitlab.core.contract.settings import parameters

__all__ = [
    "dataset_rows",
    "model_rows",
    "plugin_facts",
    "plugin_rows",
    "stack_facts",
    "transport_rows",
]

Row = dict[str, Any]


def plugin_rows() -> list[Row]:
    """Return name, title, summary, paper, source and problem of every plugin and named stack."""
    plugins = [(entry, broken("plugins", entry)) for entry in entries("plugins").values()]
    stacks = [(entry, broken("stacks", entry)) for entry in entries("stacks").values()]
    return [_row("plugin", *pair) for pair in plugins] + [_row("stack", *pair) for pair in stacks]


def _row(kind: str, entry: Entry, problem: str | None) -> Row:
    return {
        **entry.facts,
        "name": entry.name,
        "title": _title(entry),
        "kind": kind,
        "summary": entry.summary or ("" if problem or kind == "stack" else _first_line(entry)),
        "source": entry.source,
        "problem": problem,
    }


def _title(entry: Entry) -> str:
    return f"{entry.name}-recon" if entry.facts.get("reconstruction") else entry.name


def _first_line(entry: Entry) -> str:
    return (inspect.getdoc(load("plugins", entry.name)) or "").partition("\n")[0]


def plugin_facts(name: str) -> Row:
    """Return everything that is known of one plugin, or of ``FILE.py:Class``. Imports it.

    Raises:
        ConfigError: no such plugin.
        PluginError: it cannot be imported.
    """
    entry = entries("plugins").get(name)
    bound = None if entry else bind_plugin(name)
    if bound and bound.given:
        raise ConfigError(f"{name} has settings; explain the plugin without them")
    factory = bound.factory if bound else load("plugins", name)
    known = parameters(factory)
    description, meanings = _parsed(inspect.getdoc(factory) or "")
    listed = dict(entry.facts) if entry else {}
    return {
        "name": name,
        "title": _title(entry) if entry else name,
        "summary": entry.summary if entry and entry.summary else description.partition("\n")[0],
        "paper": listed.get("paper", ""),
        "reconstruction": bool(listed.get("reconstruction")),
        "sends": _sends(inspect.getdoc(sys.modules[factory.__module__]) or ""),
        "hooks": [
            hook for hook in vars(HookSpecs) if not hook.startswith("_") and hasattr(factory, hook)
        ],
        "traits": _traits(name, factory),
        "parameters": [
            {
                "name": p.name,
                "type": p.kind,
                "default": None if p.required else p.default,
                "default_text": p.default_text,
                "required": p.required,
                "meaning": meanings.get(p.name, ""),
            }
            for p in known.values()
        ],
        "description": description,
        "example": f"splitlab run --plugin {name}{_setting(name, list(known.values()))}",
    }


def _setting(name: str, known: list[Any]) -> str:
    """Return settings for an example: what is needed, or else the ratio or the first parameter."""
    needed = [f"{p.name}=…" for p in known if p.required]
    shown = next((p for p in known if p.name == "ratio"), known[0] if known else None)
    if needed or shown is None:
        return ":" + ",".join(needed) if needed else ""
    value = "0.1" if shown.name == "ratio" and shown.default is None else shown.default_text
    try:
        bind_plugin(f"{name}:{shown.name}={value}").build()
    except SplitlabError:
        return ""  # it takes other values; without settings it works
    return "" if value == "none" else f":{shown.name}={value}"


def _traits(name: str, factory: Any) -> Row | None:
    """Return what the plugin declares with its default parameters; None where there are none."""
    from splitlab.core.engine.stack import Stack

    if any(p.required for p in parameters(factory).values()) or not hasattr(factory, "traits"):
        return None
    [declared] = Stack([bind_plugin(name)]).traits().values()
    return {
        "needs": sorted(declared.needs),
        "changes": sorted(declared.changes),
        "gradient": declared.gradient,
        "evaluation": declared.evaluation,
        "stateful": declared.stateful,
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


def transport_rows() -> list[Row]:
    """Return name, summary and source of every transport, and what it lacks here."""
    rows = []
    for entry in entries("transports").values():
        try:
            missing = load("transports", entry.name)().unavailable()
        except Exception as error:  # noqa: BLE001 (an outside package that is broken)
            missing = f"{type(error).__name__}: {error}"
        facts = {"name": entry.name, "summary": entry.summary, "source": entry.source}
        rows.append({**facts, "works_here": missing is None, "missing": missing})
    return rows


def dataset_rows() -> list[Row]:
    """Return the tables of all data sets known by name."""
    return [{"name": name, **table} for name, table in catalogue()["datasets"].items()]


def model_rows(part: str = "") -> list[Row]:
    """Return name and summary of every model with this in its name.

    Raises:
        ConfigError: there is none.
    """
    from splitlab.core.models.model import list_models

    rows = [
        {"name": name, "summary": table["summary"]} for name, table in catalogue()["models"].items()
    ]
    rows += [{"name": name, "summary": "timm"} for name in list_models()]
    rows = [row for row in rows if part in row["name"]]
    if not rows:
        raise ConfigError(f"no model has {part!r} in its name; `splitlab models` lists all")
    return rows
