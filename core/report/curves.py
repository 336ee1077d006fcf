"""Curves over the training bytes of several runs, from their evaluations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from splitlab.core.contract.errors import ConfigError
from splitlab.core.report.figure import Curve
from splitlab.core.report.table import Spread
from splitlab.core.runs.records import read_evaluations

__all__ = ["accuracy_curve"]


def accuracy_curve(label: str, run_folders: Sequence[Path]) -> Curve:
    """Return means at the steps that all runs evaluated; at the end, means of their last ones.

    Raises:
        ConfigError: a run has no evaluation, or its log is damaged.
    """
    logs = [_evaluations(folder) for folder in run_folders]
    points = [[log[step] for log in logs] for step in sorted(set(logs[0]).intersection(*logs))]
    ends = [log[max(log)] for log in logs]
    if points[-1:] != [ends]:
        points.append(ends)
    x = [statistics.fmean(size for size, _ in point) for point in points]
    spreads = [Spread.of([accuracy for _, accuracy in point]) for point in points]
    known = [spread.std for spread in spreads if spread.std is not None]
    return Curve(label, x, [spread.mean for spread in spreads], known or None)


def _evaluations(run_folder: Path) -> dict[int, tuple[int, float]]:
    """Return training bytes and accuracy of every evaluation, by step."""
    found = {
        r.step: (r.training_bytes, r.accuracy)
        for r in read_evaluations(run_folder)
        if math.isfinite(r.accuracy)
    }
    if not found:
        raise ConfigError(
            f"{run_folder} is damaged (it holds no evaluation); delete the run to run it again"
        )
    return found
