"""``splitlab transports``: what it lists, and what it says is missing."""

from __future__ import annotations

import json
import re

import pytest

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.command.main import main


def test_transports_say_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transports", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {*catalogue()["transports"]}
    assert all(row["works_here"] == (row["missing"] is None) for row in rows)
    assert main(["transports"]) == 0
    text = capsys.readouterr().out
    for row in rows:
        here = "yes" if row["works_here"] else "no: "
        assert re.search(rf"^ *{row['name']} +{here}", text, re.MULTILINE)
