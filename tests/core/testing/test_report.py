"""A report counts, prints and raises."""

from __future__ import annotations

import pytest

from splitlab.core import ConfigError
from splitlab.core.testing import ConformanceError
from splitlab.core.testing.report import Check, Failed, Skipped, Warned, run_checks


def test_a_report_counts_prints_and_raises() -> None:
    def fail(subject: str) -> None:
        raise Failed(f"{subject} is wrong;\n  mend it")

    def skip(subject: str) -> None:
        raise Skipped("not here")

    def crash(subject: str) -> None:
        raise KeyError("x")

    checks: list[Check[str]] = [
        Check("A", "is right", lambda subject: None),
        Check("B", "is odd", lambda subject: Warned("odd")),
        Check("C", "is there", skip),
        Check("D", "is sound", fail),
        Check("E", "does not crash", crash),
    ]
    report = run_checks("it", "subject", checks)
    assert not report.ok
    assert report.failed() == ["D", "E"]
    assert report.counts() == "2 failed, 1 warning, 1 passed, 1 skipped"
    assert report.as_dict()["rows"][3] == {
        "check": "D",
        "title": "is sound",
        "outcome": "failed",
        "reason": "subject is wrong; mend it",
    }
    assert report.rows[4].reason == "KeyError: 'x' (test_report.py:20)"
    with pytest.raises(ConformanceError, match="failed  D  is sound: subject is wrong; mend it"):
        report.raise_if_failed()
    assert issubclass(ConformanceError, AssertionError)
    assert run_checks("it", "subject", checks, only=["C", "A"]).ok
    with pytest.raises(ConfigError, match="unknown check 'a'; known: A, B, C, D, E"):
        run_checks("it", "subject", checks, only=["a"])
