"""``splitlab transports``: what it lists, explains, and says is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

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


def test_one_is_explained_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transports", "tcp"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"tcp: {catalogue()['transports']['tcp']['summary']} works here yes ")
    assert "nodelay bool true whether a message leaves at once;" in text
    assert text.endswith("example: splitlab run --transport tcp:nodelay=true")
    assert main(["transports", "tcp", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["works_here"], facts["missing"]) == (True, None)
    assert [parameter["name"] for parameter in facts["parameters"]] == ["nodelay"]


def test_one_of_a_file_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pigeon.py").write_text(
        "class Pigeon:\n"
        '    """Slow, and sure."""\n\n'
        "    def unavailable(self) -> str:\n"
        "        return 'no birds'\n"
    )
    assert main(["transports", f"{tmp_path}/pigeon.py:Pigeon"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Slow, and sure." in text
    assert "works here no: no birds" in text
    assert text.endswith(f"splitlab run --transport {tmp_path}/pigeon.py:Pigeon")


def test_no_such_name(fails: Callable[..., str]) -> None:
    assert "unknown transport 'nothing-like-it'" in fails("transports", "nothing-like-it")
