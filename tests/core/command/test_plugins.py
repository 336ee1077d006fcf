"""``splitlab plugins``: what it lists, what it explains, and what it says of what is broken."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.catalogue import tables
from splitlab.core.catalogue.tables import catalogue, entries
from splitlab.core.command.main import main
from splitlab.core.contract.hooks import HookSpecs

DATA_HOOKS = [name for name in vars(HookSpecs) if not name.startswith("_")][:5]


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    text = capsys.readouterr().out
    for name in catalogue()["plugins"]:
        assert re.search(rf"^\s*{name}\b", text, re.MULTILINE)
    assert main(["plugins", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {*catalogue()["plugins"]}


@pytest.mark.parametrize("name", [*catalogue()["plugins"]])
def test_every_plugin_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["summary"]
    assert facts["description"]
    listed = entries("plugins")[name].facts["hooks"]
    assert [hook for hook in facts["hooks"] if hook in DATA_HOOKS] == listed
    assert main(["plugins", name]) == 0
    text = capsys.readouterr().out
    assert all(parameter["name"] in text for parameter in facts["parameters"])
    assert f"splitlab run --plugin {name}" in text


def test_a_stack_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "tsflora"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tsflora-recon: ")
    assert re.search(r"^ *plugins +\S+ \+ \S+", text, re.MULTILINE)
    assert re.search(r"^ *reconstruction +rebuilt from the abstract", text, re.MULTILINE)


def test_broken_packages_are_listed_as_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = importlib.metadata.EntryPoint("gone", "a_package_not_there:X", "splitlab.plugins")
    monkeypatch.setattr(
        tables, "installed", lambda group: (point,) if group == point.group else ()
    )
    assert main(["plugins"]) == 0
    text = capsys.readouterr().out
    assert "broken" in text
    assert "ModuleNotFoundError" in text
    assert "adc-batch-merge" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    def __init__(self) -> None: raise ValueError('no')", "cannot be built: ValueError"),
        ("    def traits(self): return 3", "not marked as one"),
        ("    @hookimpl\n    def traits(self): return 3", "must return Traits"),
    ],
)
def test_a_plugin_that_breaks_is_explained_in_one_line(
    tmp_path: Path, body: str, words: str, fails: Callable[..., str]
) -> None:
    file = tmp_path / "mine.py"
    traits = "" if "def traits" in body else "    @hookimpl\n    def traits(self): ...\n"
    file.write_text(f"from splitlab.core import hookimpl\nclass Mine:\n{body}\n{traits}")
    assert words in fails("plugins", f"{file}:Mine")
