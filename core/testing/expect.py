"""What a check expects of an action: an error of one kind, an end in time, a name in a text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from splitlab.core.contract.errors import FAULTS, SplitlabError, reason
from splitlab.core.testing.report import Failed

__all__ = ["names", "raises", "within"]


def raises(kind: type[SplitlabError], what: str, action: Callable[[], object]) -> str:
    """Return the text of the error that the action raises; fail if it is none of this kind."""
    try:
        action()
    except kind as error:
        if "\n" in str(error) or not str(error):
            raise Failed(f"{what} raises {kind.__name__} without a text of one line") from None
        return str(error)
    except FAULTS as error:
        raise Failed(f"{what} raises {reason(error)}; it must raise {kind.__name__}") from error
    raise Failed(f"{what} raises nothing; it must raise {kind.__name__}")


@contextmanager
def within(seconds: float, what: str, *, at_least: float = 0.0) -> Iterator[None]:
    """Fail if what is inside takes longer, or less than its own deadline."""
    start = time.monotonic()
    yield
    spent = time.monotonic() - start
    if spent > seconds:
        raise Failed(f"{what} takes {spent:.1f} s; at most {seconds:g} s")
    if spent < at_least:
        raise Failed(f"{what} takes {spent:.2f} s, less than its deadline of {at_least:g} s")


def names(text: str, address: str) -> None:
    """Fail if the text of an error does not name the address."""
    if address not in text:
        raise Failed(f"the text {text!r} does not name {address}")
