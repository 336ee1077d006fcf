"""``splitlab models``: what it lists, and what the filter keeps."""

from __future__ import annotations

import json

import pytest

from splitlab.core.command.main import main


def test_names_that_contain_the_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "deit_tiny", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert "deit_tiny_patch16_224" in names
    assert all("deit_tiny" in name for name in names)
    assert main(["models", "deit_tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *names]
