"""When a run is evaluated, and what follows from its accuracies: the best step, and when to end."""

from __future__ import annotations

from collections.abc import Iterable

from splitlab.core.runs.records import EvaluationRecord

__all__ = ["Standing", "points_reached"]


def points_reached(share: float, points: int) -> int:
    """Return how many of the points are reached: point k at k / points of the budget.

    Args:
        share: of the budget that is used, see `Loop.budget_used`.
        points: how many there are, besides that of the beginning.
    """
    return min(points, int(share * points))


class Standing:
    """How the accuracies of a run's evaluations stand.

    It follows from the log, which a run that goes on has, up to its checkpoint. The evaluation of
    the untrained model, at step 0, does not count; of equal accuracies the first is the best.

    Attributes:
        stale: how many evaluations in a row were not better than the best before them.
    """

    def __init__(self, records: Iterable[EvaluationRecord] = ()) -> None:
        self._improved: list[tuple[int, float]] = []
        self._seen = 0
        self.stale = 0
        for record in records:
            self.add(record.step, record.compared)

    def add(self, step: int, accuracy: float) -> None:
        """Take in the accuracy after so many steps, once."""
        if step == self._seen:
            return
        self._seen = step
        if not self._improved or accuracy > self._improved[-1][1]:
            self._improved.append((step, accuracy))
            self.stale = 0
        else:
            self.stale += 1

    def best(self, until: int | None = None) -> tuple[int, float] | None:
        """Return step and accuracy of the best, of those until a step; None before the first."""
        known = (pair for pair in reversed(self._improved) if until is None or pair[0] <= until)
        return next(known, None)
