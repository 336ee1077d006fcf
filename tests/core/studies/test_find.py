"""Definitions by name, or of a TOML file; and that torch is not waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.studies.find import definition_of

TABLE = '[studies.mine]\nstacks = ["adc"]\nseeds = 2\nbase = { budget = "steps=2" }\n'


@pytest.mark.parametrize("text", [TABLE, TABLE.partition("\n")[2]])
def test_of_a_file(text: str, runs: Any, tmp_path: Path) -> None:
    Path("mine.toml").write_text(text)
    found = definition_of("mine.toml")
    assert (found.name, found.stacks, found.seeds) == ("mine", ("adc",), (0, 1))


def test_plugins_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('stacks = ["none", "method.py:Mine"]')
    found = definition_of(tmp_path / "mine.toml")
    assert found.stacks == ("none", f"{tmp_path / 'method.py'}:Mine")


def test_published_curves_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('stacks = ["none"]\npublished = "theirs.csv"')
    assert definition_of(tmp_path / "mine.toml").published == str(tmp_path / "theirs.csv")
    assert definition_of("adc/ratios").published == "core/assets/adc_published.csv"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stacks = [", "is not TOML"),
        ('stack = ["adc"]', "unknown key 'stack'"),
        ("[studies.a]\n[studies.b]\n", "has several studies"),
        ("studies = 3", "has several studies"),
        ("[studies]\na = 3", r"\[studies.a\] must be a table"),
    ],
)
def test_files_that_are_none(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        definition_of(tmp_path / "x.toml")


def test_unknown_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown study 'method' \(did you mean 'methods'"):
        definition_of("method")
    with pytest.raises(ConfigError, match=r"cannot read the configuration nowhere\.toml"):
        definition_of("nowhere.toml")


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from splitlab.core.studies.find import definition_of; "
        "definition_of('methods'); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
