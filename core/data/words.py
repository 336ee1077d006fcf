"""Words that the error messages of this room share."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["brief", "listing"]


def brief(error: BaseException) -> str:
    """Return the first line of an error, of bounded length, with its type if it says nothing."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."


def listing(names: Collection[str]) -> str:
    """Return the first few names, sorted, and how many more there are."""
    shown = ", ".join(sorted(names)[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
