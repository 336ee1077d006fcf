from __future__ import annotations

import io
import sys

import pytest

from splitlab.core.command import streams
from splitlab.core.command.streams import prepare, say, visible


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "nominal ξ 0.1 ± 0.2 — ∂L/∂x", "nominal xi 0.1 +/- 0.2 - dL/dx"),
        ("ascii", "Σ ½ x² ≥ ⌈n⌉ Ẑ é", "Sigma 1/2 x2 >= ceil(n) Z e"),
        ("ascii", "── │ ├ 中 🙂", "-- | + \\u4e2d \\U0001f642"),
        ("cp1252", "ξ ± é …", "xi ± é …"),
        ("latin-1", "a → b", "a -> b"),
        ("utf-8", "ξ ± 中", "ξ ± 中"),
        ("utf-8", "a name of bytes: \udcff", "a name of bytes: \\udcff"),
    ],
)
def test_every_stream_takes_every_text(
    encoding: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    prepare()
    print(text, end="")
    print(text, end="", file=sys.stderr)
    assert raw.getvalue().decode(encoding) == 2 * shown


def test_a_stream_of_somebody_elses_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # as in a notebook
    monkeypatch.setattr(sys, "stderr", None)  # as without a console
    prepare()
    print("ξ")
    assert sys.stdout.getvalue() == "ξ\n"  # type: ignore[attr-defined]


def test_what_the_sources_print_has_words_in_ascii() -> None:
    from splitlab.core.catalogue.tables import ROOT

    folders = ("core/command", "core/report", "core/catalogue", "plugins", "transports")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text() for path in paths if path.name != "latex.py"]  # which prints nothing
    signs = {sign for text in texts for sign in text if not sign.isascii()}
    assert "ξ" in signs
    assert not [sign for sign in signs if not streams._word(sign).isascii()]
    assert not [sign for sign in signs if "\\" in streams._word(sign)], "give it a word"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ξ\n\tas it is", "plain ξ\n\tas it is"),
        ("\x1b[31mred\x07\r\x7f\x9b", "\\x1b[31mred\\x07\\r\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_line_is_printed_with_its_control_characters_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("serving \x1b[31mred")
    assert capsys.readouterr().out == "serving \\x1b[31mred\n"
