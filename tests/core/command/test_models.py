"""``splitlab models``: what it lists, and what the filter keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.catalogue.tables import entries
from splitlab.core.command.main import main
from splitlab.core.models.build import describe
from splitlab.core.models.timm_models import WELL_KNOWN, timm_names


def test_names_that_contain_the_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "deit_tiny", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert "deit_tiny_patch16_224" in names
    assert all("deit_tiny" in name for name in names)
    assert main(["models", "deit_tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *names]


def test_the_catalogue_and_how_many_timm_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["models"]] == [*entries("models"), *WELL_KNOWN]
    described = {row["name"]: row for row in facts["models"] if "problem" not in row}
    assert described.keys() == {"vit", "vit-mini", *WELL_KNOWN}
    assert described["resnet18"]["family"] == "cnn"
    assert (described["resnet18"]["tokens"], described["resnet18"]["width"]) == (56 * 56, 64)
    assert facts["timm"] == {family: len(names) for family, names in timm_names().items()}
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in entries("models"))
    assert all(f"{count:,} of family {name}" in text for name, count in facts["timm"].items())


def test_every_name_that_a_run_takes_is_explained_or_refused_as_there(
    capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    outside = "dla34"
    assert not any(outside in names for names in timm_names().values())
    for name in ("resnet18.a1_in1k", outside):
        assert main(["models", name, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["name"], told["last_cut"]) == (name, describe(name).last_cut)
    assert "model 'mixer_s32_224' cannot be cut: " in fails("models", "mixer_s32_224")


@pytest.mark.parametrize("name", ["vit-mini", "vit-mini:depth=9", "resnet18"])
def test_one_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    facts = describe(name)
    assert told["name"] == name
    assert told["parts"] == {"client": facts.client_parameters, "server": facts.server_parameters}
    assert told["parameters"] == facts.client_parameters + facts.server_parameters
    assert (told["image_size"], told["channels"]) == (facts.image_size, facts.channels)
    assert (told["cut"], told["last_cut"]) == (facts.cut, facts.last_cut)
    assert [each["tokens"] for each in told["every_cut"]] == [one.tokens for one in facts.layouts]
    assert told["lacks"].keys() == facts.ground.lacks.keys()
    assert main(["models", name]) == 0
    text = capsys.readouterr().out
    for words in (f"{facts.server_parameters:,}", f"of 0 to {facts.last_cut} {facts.cut_noun}"):
        assert words in text
    assert f"{facts.layout.tokens} tokens × {facts.layout.width}" in text
    assert f"--model {name}" in text


def test_settings_are_those_of_the_preset_and_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vit-mini:depth=9", "--json"]) == 0
    settings = {p["name"]: p["value"] for p in json.loads(capsys.readouterr().out)["settings"]}
    assert (settings["depth"], settings["width"], settings["image_size"]) == ("9", "64", "28")
    assert "classes" not in settings


def test_a_function_of_a_file_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\nfrom splitlab.core import Segments\n"
        "def flat(*, classes: int):\n"
        "    parts = [nn.Flatten(), nn.Linear(12, classes)]\n"
        "    return Segments(parts, channels=3, image_size=2)\n"
    )
    assert main(["models", f"{file}:flat"]) == 0
    text = capsys.readouterr().out
    assert "it has no docstring" in text
    assert "1 tokens × 12" in text


def test_many_names_are_only_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vit_", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 8
    assert all(row.keys() == {"name", "family"} for row in rows)


def test_no_such_name(fails: Callable[..., str]) -> None:
    assert "unknown model 'nothing-like-it'; known: " in fails("models", "nothing-like-it")
    assert "unknown model 'vit-mni' (did you mean 'vit-mini'?)" in fails("models", "vit-mni")
    assert "or name a file: path/to/file.py:function" in fails("models", "vit-mni")
    assert "name the function too, as in mine.py:my_model" in fails("models", "mine.py")


def test_the_summary_of_ones_own_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = tmp_path / "registry.toml"
    registry.write_text(
        "[models.small]\npreset = 'vit-mini:depth=2'\nsummary = 'two blocks of it'\n"
        "[models.off]\npreset = 'gone'\nsummary = 'what is gone'\n"
    )
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(registry))
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^ *small +two blocks of it *$", text, re.MULTILINE)
    assert re.search(
        r"^ *off +model 'off' \(preset gone\): unknown model 'gone'", text, re.MULTILINE
    )
    for name in ("small", "small:depth=3"):
        assert main(["models", name]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: two blocks of it\n")
    assert main(["models", "small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == "two blocks of it"
