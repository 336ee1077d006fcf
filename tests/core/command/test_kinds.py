"""A kind is listed with what is wrong or lacking, or one of it explained with all that is known."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import pytest

from splitlab.core.command.kinds import list_or_explain, show_facts

ROWS = [
    {"name": "well", "summary": "does it", "source": "splitlab", "problem": None},
    {"name": "ill", "summary": "would do it", "source": "a file", "problem": "two are called so"},
]


def ask(rows: list[dict[str, Any]], name: str | None = None, *, as_json: bool = False) -> int:
    def explained(name: str) -> dict[str, Any]:
        return {"name": name, "summary": "does it", "example": f"splitlab run --thing {name}"}

    arguments = argparse.Namespace(name=name, json=as_json)
    return list_or_explain(arguments, "thing", lambda: rows, explained, "that is all")


def test_a_problem_stands_in_the_place_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(ROWS) == 0
    text = capsys.readouterr().out
    assert re.search(r"^ *thing +summary +from *$", text, re.MULTILINE)
    assert re.search(r"^ *well +does it +splitlab *$", text, re.MULTILINE)
    assert re.search(r"^ *ill +two are called so +a file *$", text, re.MULTILINE)
    assert text.endswith("\n\nthat is all\n")


def test_what_may_not_work_here_says_whether_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    works = [{"works_here": True, "missing": None}, {"works_here": False, "missing": "no card"}]
    assert ask([row | more for row, more in zip(ROWS, works, strict=True)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^ *thing +works here +summary +from *$", text, re.MULTILINE)
    assert re.search(r"^ *well +yes +does it", text, re.MULTILINE)
    assert re.search(r"^ *ill +no: no card +two are", text, re.MULTILINE)


def test_json_is_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(ROWS, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == ROWS
    assert ask(ROWS, "well", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["example"] == "splitlab run --thing well"


def test_one_is_explained_by_what_is_known_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(ROWS, "well") == 0
    assert capsys.readouterr().out == "well: does it\n\nexample: splitlab run --thing well\n"
    known = {
        "description": "Does it.\n\nAnd how.",
        "hooks": ["a", "b"],
        "parameters": [{"name": "ms", "type": "int", "default_text": "3", "meaning": "how long"}],
    }
    show_facts({"name": "n", "title": "N", "summary": "does it", "example": "e", **known})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert ["hooks", "a,", "b"] in lines
    assert ["And", "how."] in lines
    assert ["ms", "int", "3", "how", "long"] in lines
    assert lines[0] == ["N:", "does", "it"]
