"""Curves: means at the steps that all runs evaluated, and at their ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.curves import accuracy_curve
from splitlab.core.runs.folder import append
from splitlab.core.runs.records import METRICS, EvaluationRecord, version_line


def folder(path: Path, *evaluations: tuple[int, int, float]) -> Path:
    """Write a log of (step, training bytes, accuracy)."""
    path.mkdir()
    (path / METRICS).write_text(version_line())
    for step, size, accuracy in evaluations:
        append(path / METRICS, EvaluationRecord(step, accuracy, 1.0, False, 1, 1, size))
    return path


def test_one_run_is_its_own_curve(tmp_path: Path) -> None:
    curve = accuracy_curve("a", [folder(tmp_path / "r", (2, 10, 0.25), (4, 20, 0.5))])
    assert (curve.label, list(curve.x), list(curve.y)) == ("a", [10, 20], [0.25, 0.5])
    assert curve.spread is None


def test_means_are_over_the_steps_that_all_have(tmp_path: Path) -> None:
    runs = [
        folder(tmp_path / "a", (2, 10, 0.25), (4, 20, 0.5), (6, 30, 0.75)),
        folder(tmp_path / "b", (2, 14, 0.75), (5, 20, 0.5), (6, 34, 0.25)),
    ]
    curve = accuracy_curve("a", runs)
    assert (list(curve.x), list(curve.y)) == ([12, 32], [0.5, 0.5])
    assert curve.spread == pytest.approx([0.125**0.5, 0.125**0.5])


def test_runs_that_end_at_other_steps_end_in_the_mean_of_their_ends(tmp_path: Path) -> None:
    runs = [
        folder(tmp_path / "a", (2, 10, 0.25), (4, 20, 0.5)),
        folder(tmp_path / "b", (2, 10, 0.25), (7, 30, 0.75)),
    ]
    curve = accuracy_curve("a", runs)
    assert (list(curve.x), list(curve.y)) == ([10, 25], [0.25, 0.625])


def test_a_run_without_an_evaluation_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"r is damaged \(it holds no evaluation\); delete the run"
    ):
        accuracy_curve("a", [folder(tmp_path / "r")])
