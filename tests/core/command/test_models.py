"""``splitlab models``: what it lists, and what the filter keeps."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from splitlab.core.catalogue.tables import entries
from splitlab.core.command.main import main
from splitlab.core.models.build import describe
from splitlab.core.models.timm_models import timm_names


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
    assert [row["name"] for row in facts["models"]] == [*entries("models")]
    assert facts["timm"] == {family: len(names) for family, names in timm_names().items()}
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in entries("models"))
    assert all(f"{count:,} of family {name}" in text for name, count in facts["timm"].items())


def test_a_name_that_matches_exactly_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vit-mini", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    facts = describe("vit-mini")
    assert row["parameters"] == facts.client_parameters + facts.server_parameters
    assert (row["image_size"], row["channels"]) == (28, 1)
    assert (row["cut"], row["last_cut"]) == (3, facts.last_cut)
    assert (row["tokens"], row["width"]) == (50, 64)
    assert main(["models", "vit-mini"]) == 0
    text = capsys.readouterr().out
    for words in (f"{row['parameters']:,}", "1×28×28", f"0 to {facts.last_cut}"):
        assert words in text
    assert "cut 3: 50 tokens × 64" in text


def test_many_names_are_only_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vit_", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 8
    assert all(row.keys() == {"name", "family"} for row in rows)


def test_no_such_name(fails: Callable[..., str]) -> None:
    assert "no model has 'nothing-like-it' in its name" in fails("models", "nothing-like-it")
