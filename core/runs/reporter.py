"""What a run tells while it goes, and what it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitlab.core.runs.reading import typed
from splitlab.core.runs.records import EvaluationRecord, Summary

if TYPE_CHECKING:  # they import torch, and who looks at runs does not wait for that
    from splitlab.core.runs.plan import Plan
    from splitlab.core.wire.ledger import Ledger

__all__ = ["Progress", "Reporter", "Result"]


@dataclass
class Progress:
    """How far a run is; kept in its checkpoints.

    Attributes:
        step: training steps done.
        samples: training samples seen.
        nominal: nominal communication so far, in uncompressed samples.
        base_bytes: what uncompressed activations and gradients of the same samples would weigh.
        seconds: wall time, evaluations included; `client_seconds` (with data), `server_seconds`
            and `link_seconds` (with encoding) are the parts of its training steps.
        data_seconds: of the client's, those in which a step waited for its batch; None where an
            older version began the run, which did not tell.
    """

    step: int = 0
    samples: int = 0
    nominal: float = 0.0
    base_bytes: int = 0
    seconds: float = 0.0
    client_seconds: float = 0.0
    server_seconds: float = 0.0
    link_seconds: float = 0.0
    data_seconds: float | None = 0.0

    @property
    def training_seconds(self) -> float:
        """What client, server and link took for the training steps."""
        return self.client_seconds + self.server_seconds + self.link_seconds

    @classmethod
    def read(cls, values: Any, step: int) -> Progress:
        """Return what a checkpoint of this step holds.

        Raises:
            ValueError, TypeError: it does not hold the progress of that step.
        """
        known = {"data_seconds": None, **values}
        found = typed(cls, known)
        if (
            vars(found) != known
            or found.step != step
            or not all(0 <= n < math.inf for n in known.values() if n is not None)
        ):
            raise ValueError(f"its progress is {values}")
        return found


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        folder: the run folder.
        summary: the content of ``summary.json``.
        ledger: bytes by phase, direction and kind, as in ``ledger.json``: its ``counts``.
    """

    folder: Path
    summary: Summary
    ledger: Ledger


class Reporter:
    """Is told how a run goes. This one stays silent; the command line's show."""

    def starting(self, what: str) -> None:
        """This is done before the run begins: ``"reading the data"``."""

    def begin(self, plan: Plan, folder: Path, used: Callable[[], float]) -> None:
        """The run begins; ``used()`` is the share of the budget that is used, 0 to 1."""

    def loading(self, part: str, done: int, total: int) -> None:
        """So many images of a part of the data set are decoded."""

    def accepted(self, changes: Sequence[str]) -> None:
        """The run goes on although this has changed since it began."""

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        """A training step is done."""

    def evaluating(self, done: int, total: int) -> None:
        """An evaluation has come this far, in samples."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """An evaluation is done."""

    def probed(self, said: Mapping[str, str]) -> None:
        """Probes say this of a run that is complete, a line each, by label."""

    def end(self, result: Result | None) -> None:
        """The run is over; None if it failed."""
