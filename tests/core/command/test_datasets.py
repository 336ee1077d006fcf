"""``splitlab datasets``: what it lists."""

from __future__ import annotations

import json
import re

import pytest

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.command.main import main
from splitlab.core.data.words import FORMS


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == {*catalogue()["datasets"]}
    assert main(["datasets"]) == 0
    text = capsys.readouterr().out
    for row in rows:
        assert re.search(rf"^ *{row['name']} +{row['classes']} ", text, re.MULTILINE)
    assert "--data-dir DIR takes" in text
    for form, _ in FORMS:
        assert form in text
