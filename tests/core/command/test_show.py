"""What is printed: sizes, tables that keep their numbers whole, and texts as they are."""

from __future__ import annotations

import re

import pytest

from splitlab.core.command.show import (
    human_bytes,
    print_facts,
    print_line,
    print_table,
    width,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.54 kB"),
        (2_000_000, "2 MB"),
        (3.21e9, "3.21 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert human_bytes(count) == text


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines printed since the last look, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the output a terminal of 40 columns; in a test, where it is what is captured."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")  # a dumb one has 80 columns, whatever it says
    monkeypatch.setenv("COLUMNS", "40")


def test_width(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)
    assert width() == 40


def test_elsewhere_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    assert width() == 140
    print_line("word " * 20)
    assert capsys.readouterr().out == "word " * 20 + "\n"


def test_texts_are_taken_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]x[/bold] {1: 'a'} runs/x-1"
    print_line(text, (" [y]", "bold"))
    print_facts([("name", text)])
    print_table(("a", "b"), [(text, ("[z]", "dim"))])
    out = capsys.readouterr().out
    assert out.count(text) == 3
    assert "[y]" in out
    assert "[z]" in out
    assert "\x1b" not in out


def test_numbers_are_flush_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "bytes"), [("a", "1"), ("long", "12,345")], title="of all", numbers=(1,))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["of all", " name   bytes", " a          1", " long  12,345"]


def test_words_are_folded_and_what_is_to_be_whole_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(monkeypatch)
    words = "several words that do not fit into what is left"
    print_table(("name", "summary", "ms"), [("a-long-name", words, "12.34")], numbers=(2,))
    lines = printed(capsys)
    assert len(lines) > 2
    assert lines[1].split()[0] == "a-long-name"
    assert lines[1].split()[-1] == "12.34"
    print_line("word " * 20)
    assert len(printed(capsys)) > 2
    long = " ".join(["word"] * 20)
    print_line(long, wrap=False)
    assert printed(capsys) == [long]


def test_what_is_too_long_goes_on_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(monkeypatch)
    path = "/".join(["folder"] * 12)
    print_facts([("run folder", path)])
    found = [line.split()[-1] for line in printed(capsys)]
    assert "".join(found) == path  # nothing of it is cut off
