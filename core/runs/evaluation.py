"""When a run is evaluated, and what follows from its accuracies: the best step, and when to end."""

from __future__ import annotations

from collections.abc import Iterable

from splitlab.core.data.split import Split
from splitlab.core.runs.plan import Plan
from splitlab.core.runs.records import EvaluationRecord

__all__ = ["Evaluations", "Standing", "points_reached"]


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


class Evaluations:
    """When a run is evaluated and on what, and what follows for its checkpoints and its end.

    Args:
        plan: of the run.
        test: the images to evaluate on.

    Attributes:
        rows: (N,) of them, those of every evaluation; None for all.
        standing: of the accuracies.
    """

    def __init__(self, plan: Plan, test: Split) -> None:
        self._config = plan.config
        self._every = plan.eval_every
        self._checkpoint_every = plan.checkpoint_every
        self._all = len(test)
        self.rows = test.balanced(plan.eval_samples) if plan.eval_samples < len(test) else None
        self.standing = Standing()

    def over(self, share: float) -> bool:
        """Return whether no step is due: the budget is used up, or the patience."""
        patience = self._config.patience
        return share >= 1 or (patience is not None and self.standing.stale >= patience)

    def due(self, before: float, share: float, step: int) -> bool:
        """Return whether one is due after a step.

        Args:
            before: share of the budget that was used before the step.
            share: that is used now.
            step: its number, from 1.
        """
        if self.over(share):
            return True  # before the checkpoint, which then has it
        points = self._config.eval_points
        if points is not None:
            return points_reached(share, points) > points_reached(before, points)
        return self._every is not None and step % self._every == 0

    def ends(self, record: EvaluationRecord, step: int) -> bool:
        """Return whether this is the last evaluation of a run that ends after so many steps."""
        return record.step == step and record.samples in (None, self._all)

    def checkpoint_due(self, step: int, *, evaluated: bool) -> bool:
        """Return whether to save after a step: the best is saved whenever it is found."""
        best = self.best()
        if self._checkpoint_every is None:
            return evaluated
        return step % self._checkpoint_every == 0 or (best is not None and best[0] == step)

    def best(self) -> tuple[int, float] | None:
        """Return step and accuracy of the best, if its checkpoint is kept."""
        return self.standing.best() if self._config.keep == "best" else None

    def to_keep(self, before: int) -> list[int]:
        """Return the steps whose checkpoints are kept beside the newest.

        What was best at the last checkpoint is kept, too: the run goes back to that one if a peer
        is killed before it has the new one.

        Args:
            before: step of the last checkpoint.
        """
        if (best := self.best()) is None:
            return []
        earlier = self.standing.best(until=before)
        return sorted({best[0], (earlier or best)[0]})
