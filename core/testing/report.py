"""What a check finds: a `Report` of one row for every check, and how checks are run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from splitlab.core.contract.errors import FAULTS, SplitlabError, reason, unknown_name

__all__ = [
    "Check",
    "ConformanceError",
    "Failed",
    "Report",
    "Row",
    "Skipped",
    "Warned",
    "chosen",
    "run_checks",
]

Outcome = Literal["passed", "warning", "skipped", "failed"]

S = TypeVar("S")


class ConformanceError(AssertionError):
    """A check failed; the text is the whole report."""


class Failed(Exception):
    """Raised by a check: why it failed, and the way out."""


class Skipped(Exception):
    """Raised by a check: why it does not apply here."""


class Warned(str):
    """Returned by a check that passed: what is odd nevertheless."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What one check found.

    Attributes:
        check: its name, which says what holds: ``"bytes-are-real"``.
        title: explains the name.
        outcome: passed, warning (passed, and something is odd), skipped or failed.
        reason: why it failed or was skipped, with a way out; or a measurement.
    """

    check: str
    title: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What all checks found.

    Attributes:
        subject: who was checked, as users type it.
        rows: one for every check, in their order.
    """

    subject: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed()

    def failed(self) -> list[str]:
        """Return the names of the checks that failed."""
        return [row.check for row in self.rows if row.outcome == "failed"]

    def counts(self) -> str:
        """Return how many rows there are of every outcome: ``"9 passed, 1 failed"``."""
        found = Counter(row.outcome for row in self.rows)
        order: tuple[Outcome, ...] = ("failed", "warning", "passed", "skipped")
        return ", ".join(f"{found[outcome]} {outcome}" for outcome in order if found[outcome])

    def raise_if_failed(self) -> None:
        """Raise `ConformanceError`, an AssertionError with the whole report, if a check failed."""
        if not self.ok:
            raise ConformanceError(str(self))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        keys = Row.__slots__
        rows = [{key: getattr(row, key) for key in keys} for row in self.rows]
        return {"subject": self.subject, "ok": self.ok, "rows": rows}

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.counts()}"]
        width = max((len(row.check) for row in self.rows), default=0)
        for row in self.rows:
            reason = f": {row.reason}" if row.reason else ""
            lines.append(f"  {row.outcome:<8}{row.check:<{width}}  {row.title}{reason}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Check(Generic[S]):
    """One check: a function of the subject that returns a remark or nothing, or raises.

    Attributes:
        name: says what holds, in words with hyphens.
        title: explains the name.
        run: raises `Failed` or `Skipped`, or returns what is worth saying.
    """

    name: str
    title: str
    run: Callable[[S], str | None]


def chosen(checks: Sequence[Check[S]], only: Collection[str] | None) -> list[Check[S]]:
    """Return the checks with the names in ``only``, or all.

    Raises:
        ConfigError: a name is unknown.
    """
    known = [check.name for check in checks]
    for wanted in only or ():
        if wanted not in known:
            raise unknown_name("check", wanted, known)
    return [check for check in checks if only is None or check.name in only]


def run_checks(
    name: str, subject: S, checks: Sequence[Check[S]], only: Collection[str] | None = None
) -> Report:
    """Run the checks on the subject, all or those with the names in ``only``.

    Raises:
        ConfigError: a name is unknown.
    """
    return Report(name, tuple(_run(check, subject) for check in chosen(checks, only)))


def _run(check: Check[S], subject: S) -> Row:
    outcome: Outcome = "passed"
    try:
        remark = check.run(subject) or ""
        if isinstance(remark, Warned):
            outcome = "warning"
    except Skipped as skip:
        outcome, remark = "skipped", str(skip)
    except (Failed, SplitlabError) as error:
        outcome, remark = "failed", str(error)
    except FAULTS as error:  # what is checked may raise anything
        outcome, remark = "failed", reason(error)
    return Row(check.name, check.title, outcome, " ".join(remark.split()))
