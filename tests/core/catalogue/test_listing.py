"""What there is, as facts: for the command line and the documentation."""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError, PluginError
from splitlab.core.catalogue import registry as registry_module
from splitlab.core.command.main import main
from splitlab.core.catalogue.listing import plugin_facts, plugin_rows, stack_facts, transport_rows
from splitlab.core.catalogue.registry import bind_stack, catalogue
from splitlab.core.engine.stack import Stack
from splitlab.core.catalogue.links import working_transports


@pytest.mark.parametrize("name", catalogue()["plugins"])
def test_the_example_of_every_plugin_can_be_built(name: str) -> None:
    command = shlex.split(plugin_facts(name)["example"])
    assert command[:3] == ["splitlab", "run", "--plugin"]
    assert list(Stack(bind_stack(command[3:])).traits()) == [name]


@pytest.mark.parametrize("name", catalogue()["plugins"])
def test_every_plugin_says_what_it_sends_and_what_its_parameters_mean(name: str) -> None:
    facts = plugin_facts(name)
    assert len(facts["sends"]) > 20
    assert facts["traits"] is not None
    assert [p["name"] for p in facts["parameters"] if not p["meaning"]] == []


def test_a_reconstruction_says_so_in_rows_and_facts() -> None:
    titles = {row["name"]: row["title"] for row in plugin_rows()}
    for name, table in (catalogue()["plugins"] | catalogue()["stacks"]).items():
        marked = bool(table.get("reconstruction"))
        assert titles[name] == (f"{name}-recon" if marked else name)
    assert stack_facts("tsflora")["title"] == "tsflora-recon"
    assert plugin_facts("nsc-sl")["title"] == "nsc-sl-recon"


def test_a_plugin_of_a_file_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        '"""Up: nothing at all."""\n'
        "class Mine:\n"
        '    """A method.\n\n    Args:\n        ratio: how much\n            of it.\n    """\n'
        "    def __init__(self, *, ratio: float = 0.5) -> None: ...\n"
    )
    facts = plugin_facts(f"{file}:Mine")
    assert facts["summary"] == "A method."
    assert facts["sends"] == "Up: nothing at all."
    assert facts["parameters"][0]["meaning"] == "how much of it."
    assert facts["example"].endswith(":Mine:ratio=0.5")
    assert facts["traits"] is None
    with pytest.raises(ConfigError, match="has settings; explain the plugin without them"):
        plugin_facts(f"{file}:Mine:ratio=0.1")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    def __init__(self) -> None: raise ValueError('no')", "cannot be built: ValueError"),
        ("    def traits(self): return 3", "not marked as one"),
        ("    @hookimpl\n    def traits(self): return 3", "must return Traits"),
    ],
)
def test_a_plugin_that_breaks_is_explained_in_one_line(
    tmp_path: Path, body: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    traits = "" if "def traits" in body else "    @hookimpl\n    def traits(self): ...\n"
    file.write_text(f"from splitlab.core import hookimpl\nclass Mine:\n{body}\n{traits}")
    with pytest.raises(PluginError, match=words):
        plugin_facts(f"{file}:Mine")
    assert main(["plugins", f"{file}:Mine"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


class Explodes:
    """A transport that raises when it is made."""

    def __init__(self) -> None:
        raise RuntimeError("no driver")


def test_a_transport_that_explodes_is_listed_with_the_reason_and_the_others_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = importlib.metadata.EntryPoint("odd", f"{__name__}:Explodes", "splitlab.transports")

    def points(group: str) -> list[Any]:
        return [point] if group == point.group else []

    monkeypatch.setattr(registry_module, "entry_points", points)
    rows = {row["name"]: row for row in transport_rows()}
    assert rows["odd"]["missing"] == "RuntimeError: no driver"
    assert rows["inprocess"]["works_here"]
    assert "inprocess" in working_transports()
    assert "odd" not in working_transports()


def test_broken_packages_are_listed_as_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = importlib.metadata.EntryPoint("gone", "a_package_not_there:X", "splitlab.plugins")
    monkeypatch.setattr(
        registry_module, "entry_points", lambda group: [point] if group == point.group else []
    )
    assert main(["plugins"]) == 0
    text = capsys.readouterr().out
    assert "broken" in text
    assert "ModuleNotFoundError" in text
    assert "adc-batch-merge" in text
