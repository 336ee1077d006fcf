"""``splitlab studies``: the list, one explained, and what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.command.main import main

OWN = """
[studies.mine]
summary = "a grid"
paper = "arXiv 1, figure 2"
stacks = ["none", "adc"]
over = { cut = [1, 2] }
zip = [{ lr = [0.1, 0.2], batch-size = [8, 16] }]
seeds = [4, 5]
base = { budget = "steps=3", cut = 3 }
draw = ["frontier"]
[studies.bad]
stacks = ["adc"]
over = { cuts = [1] }
"""


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("registry.toml").write_text(OWN)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {*catalogue()["studies"], "mine", "bad"}
    assert rows["mine"]["runs"] == 2 * 2 * 2 * 2
    assert rows["mine"]["paper"] == "arXiv 1, figure 2"
    assert "unknown axis 'cuts' (did you mean 'cut'?)" in rows["bad"]["problem"]
    assert all(not row["problem"] for name, row in rows.items() if name != "bad")
    assert main(["studies"]) == 0
    assert "a grid" in capsys.readouterr().out


def test_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", "mine"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "mine: a grid"
    for line in ("cut 1, 2", "lr 0.1, 0.2", "zip batch-size 8, 16", "seeds 4, 5", "budget steps=3"):
        assert line in lines
    assert "runs at most 16; --dry-run of the study lists its rows" in lines
    assert "cut 3" not in lines  # the axis says otherwise
    assert lines[-1] == "example: splitlab study mine"
    assert main(["studies", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == [4, 5]


def test_the_example_of_a_file_runs_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text('stacks = ["none", "adc"]\nover = { cut = [1, 2] }\n')
    assert main(["studies", "own.toml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "example: splitlab study own.toml"


def test_bad_ones(fails: Callable[..., str]) -> None:
    assert "unknown study 'mime' (did you mean 'mine'?)" in fails("studies", "mime")
    assert "unknown axis 'cuts'" in fails("studies", "bad")
    assert "cannot read the configuration x.toml" in fails("studies", "x.toml")
