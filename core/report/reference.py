"""Which row another one is measured against: the reference of all, or its namesake at its settings.

A reference is the title of a row, or the method of several: of ``none`` at every cut, a row is
measured against the one at its own cut. Or it is a title with settings left out: of
``adc:select=norm`` at every ratio, a row is measured against the one at its own ratio, whatever it
selects by.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from splitlab.core.contract.errors import ConfigError
from splitlab.core.report.axes import OF_THE_METHOD
from splitlab.core.report.results import Results, Row
from splitlab.core.runs.listing import stack_title

__all__ = ["context_of", "reference_named", "reference_of", "references"]

_UNCOMPRESSED = "none"


def references(results: Results) -> tuple[Row, ...]:
    """Return the rows that others are tested against; none if no reference is named.

    Raises:
        ConfigError: there is no row of that title or method.
    """
    if results.reference is None:
        return ()
    name = reference_named(results.rows, results.reference)
    if name is None:
        known = list(dict.fromkeys(n for row in results.rows for n in (row.title, row.method)))
        near = difflib.get_close_matches(results.reference, known, n=3, cutoff=0.0)
        raise ConfigError(
            f"no row is called {results.reference!r}, so it cannot be the reference; name a row or "
            f"a method, such as {' or '.join(map(repr, near))}"
        )
    return _called(results, name)


def reference_named(rows: Sequence[Row], text: str) -> str | None:
    """Return the title, part of one, or method that is meant; None if it is no row's.

    Args:
        rows: all of them.
        text: where spaces do not count; or a stack as the user types it.
    """
    known = {_plain(name): name for row in rows for name in (row.method, row.title)}
    whole = known.get(_plain(text)) or known.get(_plain(stack_title((text,))))
    return whole or (text if any(_has(row, text) for row in rows) else None)


def _plain(name: str) -> str:
    return "".join(name.split())


def reference_of(results: Results, row: Row) -> Row | None:
    """Return the row that this one is tested against; None of a reference itself, and of no one."""
    found = references(results)
    return None if row in found else _at_its_settings(found, row, results.reference)


def context_of(results: Results, row: Row) -> Row | None:
    """Return the row that figures show behind this one: its reference, or the uncompressed."""
    found = references(results) or _called(results, _UNCOMPRESSED)
    return None if row in found else _at_its_settings(found, row, results.reference)


def _called(results: Results, name: str) -> tuple[Row, ...]:
    titled = tuple(row for row in results.rows if row.title == name)
    meant = titled or tuple(row for row in results.rows if row.method == name)
    return meant or tuple(row for row in results.rows if _has(row, name))


def _has(row: Row, text: str) -> bool:
    """Return whether a row has the members of a stack, each with its settings at least."""
    own = [_told(member) for member in row.title.partition(", ")[0].split(" + ")]
    asked = [_told(member.strip()) for member in text.split(" + ")]
    return len(own) == len(asked) and all(
        head == wanted and settings >= some
        for (head, settings), (wanted, some) in zip(own, asked, strict=True)
    )


def _told(member: str) -> tuple[str, set[str]]:
    head, _, told = member.partition(":")
    return head, {*told.split(",")} - {""}


def _at_its_settings(candidates: tuple[Row, ...], row: Row, name: str | None) -> Row | None:
    """Return the one of them that has the row's settings, but for those that it has not itself.

    Settings that the reference's name has are no matter: they are what it is measured by.
    """
    if len(candidates) == 1:
        return candidates[0]
    members = (name or "").split(" + ")
    said = {each.partition("=")[0] for member in members for each in _told(member)[1]}
    found = [
        each
        for each in candidates
        if all(
            value is None or value == row.settings.get(axis)
            for axis, value in each.settings.items()
            if axis != OF_THE_METHOD and axis.rpartition(".")[2] not in said
        )
    ]
    return found[0] if len(found) == 1 else None
