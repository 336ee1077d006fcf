"""Words of error messages: one line, of bounded length."""

from __future__ import annotations

from splitlab.core.data.words import brief, listing, plain


def test_an_error_is_told_in_one_bounded_line() -> None:
    assert brief(ValueError("first\nsecond")) == "first"
    assert brief(ValueError()) == "ValueError"
    assert brief(ValueError("x" * 160)) == "x" * 160
    assert brief(ValueError("x" * 161)) == "x" * 157 + "..."


def test_a_listing_is_sorted_and_bounded() -> None:
    assert listing(["b", "a"]) == "a, b"
    assert listing("hgfedcba") == "a, b, c, d, e, f, g, h"
    assert listing("jihgfedcba") == "a, b, c, d, e, f, g, h and 2 more"


def test_names_stay_in_their_line_and_can_be_printed() -> None:
    assert plain("été 火 $HOME 'x'") == "été 火 $HOME 'x'"
    assert plain("a\nb\udcff\x1b") == "a\\nb\\udcff\\x1b"
    assert listing(["b\n", "a"]) == "a, b\\n"
