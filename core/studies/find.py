"""The definition of a study by its name in the catalogue, or by a TOML file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.runs.config import read_toml
from splitlab.core.studies.definition import Definition

__all__ = ["definition_of"]


def definition_of(what: str | Path | Definition) -> Definition:
    """Return the definition of a study of the catalogue, or of a TOML file.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    if isinstance(what, Definition):
        return what
    text = str(what)
    known = entries("studies")
    if text in known:
        entry = known[text]
        if entry.problem:
            raise ConfigError(entry.problem)
        where = f"study {text!r}" if entry.source == "splitlab" else f"the registry {entry.source}"
        facts = {**entry.facts, "summary": entry.summary}
        if entry.source != "splitlab":  # what ships is found again wherever the package is
            facts = _published_in(facts, entry.folder)
        return Definition.of_table(text, facts, where)
    if not text.endswith(".toml"):
        raise unknown_name("study", text, known, "; or a TOML file of your own")
    path = Path(text).expanduser()
    tables = read_toml(path)
    if "studies" in tables:
        named = tables["studies"]
        if not isinstance(named, dict) or len(named) != 1:
            raise ConfigError(
                f"{path} has several studies; use it with --registry {path} and name one of them"
            )
        name, table = next(iter(named.items()))
    else:
        name, table = path.stem, tables
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [studies.{name}] must be a table")
    return Definition.of_table(name, _beside(table, path.parent), str(path))


def _beside(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a table whose files are where its own file says."""
    table = _published_in(table, folder)
    stacks = table.get("stacks")
    if not isinstance(stacks, list):
        return {**table}
    placed = [
        str(folder.absolute() / text) if isinstance(text, str) and ".py:" in text else text
        for text in stacks
    ]
    return {**table, "stacks": placed}


def _published_in(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    file = table.get("published")
    if not isinstance(file, str) or not file:
        return {**table}
    return {**table, "published": str(folder.absolute() / Path(file).expanduser())}
