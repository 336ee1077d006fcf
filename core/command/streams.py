"""What the terminal can show: every stream takes every text, and no text commands the terminal.

A stream that is not UTF-8 gets words of ASCII for the signs that the field writes with: ``xi`` for
ξ, ``+/-`` for ±; what has no such word becomes its escape, as in ``\\u4e2d``. Control characters of
file names, or of what another peer says, are shown as their escapes too.
"""

from __future__ import annotations

import codecs
import re
import sys
import unicodedata

__all__ = ["prepare", "say", "visible"]

_WORDS = {
    "±": "+/-",
    "×": "x",
    "·": "*",
    "…": "...",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "‖": "||",
    "–": "-",
    "—": "-",
    "−": "-",
    "⁄": "/",
    "→": "->",
    "↦": "->",
    "←": "<-",
    "►": ">",
    "◄": "<",
    "≤": "<=",
    "≥": ">=",
    "≫": ">>",
    "≈": "~",
    "∂": "d",
    "∈": "in",
    "∘": "o",
    "⊛": "*",
    "√": "sqrt ",
    "⌈": "ceil(",
    "⌉": ")",
    "⌊": "floor(",
    "⌋": ")",
    "⟨": "<",
    "⟩": ">",
    **dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)),
}
# Also those that turn the direction of what follows.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def prepare() -> None:
    """Let stdout and stderr print every text; a stream that is not Python's own stays as it is."""
    codecs.register_error("splitlab", _words)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="splitlab")


def say(line: str) -> None:
    """Print a line that users or the other peer have words in, at once: a pipe may be read."""
    print(visible(line), flush=True)


def visible(text: str) -> str:
    r"""Return the text with its control characters, but for tab and line feed, as escapes.

    >>> visible("\x1b[31mred\n")
    '\\x1b[31mred\n'
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _words(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_word, error.object[error.start : error.end])), error.end


def _word(sign: str) -> str:
    """Return how a sign is written in ASCII."""
    if sign.isascii() or sign in _WORDS:
        return _WORDS.get(sign, sign)
    if unicodedata.combining(sign):
        return ""
    name = unicodedata.name(sign, "")
    if name.startswith("GREEK "):  # GREEK SMALL LETTER XI
        letter = name.split()[-1]
        return letter.lower() if "SMALL" in name else letter.capitalize()
    if name.startswith("BOX DRAWINGS "):
        return {"HORIZONTAL": "-", "VERTICAL": "|"}.get(name.split()[-1], "+")
    plain = unicodedata.normalize("NFKD", sign)
    if plain != sign:  # ² is a form of 2, é is e and an accent
        return "".join(map(_word, plain))
    return sign.encode("ascii", "backslashreplace").decode()
