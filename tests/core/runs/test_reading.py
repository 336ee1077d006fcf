"""Records are read typed, and whatever is wrong with a file names it and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.runs.reading import VERSION, check_version, naming, typed, words


@dataclass(frozen=True)
class Thing:
    count: int
    share: float
    flag: bool = False
    note: str | None = None


@pytest.mark.parametrize(
    "values",
    [
        {"count": 1, "share": 0.5},
        {"count": 1, "share": 1},  # JSON writes a whole float so
        {"count": 1, "share": 0.5, "flag": True, "note": "x"},
        {"count": 1, "share": 0.5, "note": None},
    ],
)
def test_a_record_of_the_right_types(values: dict[str, Any]) -> None:
    assert typed(Thing, values) == Thing(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"count": 1.5, "share": 0.5},
        {"count": True, "share": 0.5},
        {"count": 1, "share": "0.5"},
        {"count": 1, "share": 0.5, "flag": 1},
        {"count": 1},
        {"count": 1, "share": 0.5, "more": 1},
    ],
)
def test_a_record_of_wrong_types(values: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        typed(Thing, values)


def test_words() -> None:
    assert words(["a", "b"]) == ("a", "b")
    for wrong in ("ab", [1], None):
        with pytest.raises(TypeError, match="is no list of words"):
            words(wrong)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (VERSION + 1, f"is of version {VERSION + 1}; this splitlab reads 1 to {VERSION}"),
        (0, r"is damaged \(ValueError: its version is 0\)"),
        ("1", "is damaged"),
        (True, "is damaged"),
    ],
)
def test_versions(version: object, told: str, tmp_path: Path) -> None:
    with naming(tmp_path):
        check_version(1)
        check_version(VERSION)
    with pytest.raises(ConfigError, match=told), naming(tmp_path / "x"):
        check_version(version)


def test_what_is_wrong_names_the_file(tmp_path: Path) -> None:
    for wrong, told in (
        (tmp_path / "gone", "does not exist; name the folder of a run"),
        (tmp_path, "cannot be read: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=told) as caught, naming(wrong):
            wrong.read_text()
        assert str(caught.value).startswith(str(wrong))
