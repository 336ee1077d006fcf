"""What the client spends for the model, and what each plugin adds: FLOPs, seconds, peak memory.

    splitlab run --plugin adc --plugin quantize --probe overhead
    splitlab run --plugin adc --probe overhead:every=10

In the second training step and in every n-th behind it ``metrics.jsonl`` holds, under ``overhead``,
``"model FLOPs"`` and ``"model seconds"`` of the client's part, forward, backward and optimizer, the
same of each plugin under its label (``"adc FLOPs"``), and ``"peak memory"`` in bytes. The server's
are in ``server-metrics.jsonl``. When the run has ended, ``probes/overhead/overhead.csv`` has the
median of every number, and its share of the model's.

FLOPs count as `splitlab.plugins.probes.counting` says. Peak memory is that of the tensors on a GPU
(`torch.cuda.max_memory_allocated`), and on a CPU that of the whole process, in which the server is,
too, unless it is one of its own (``--transport tcp``).
"""

from __future__ import annotations

import csv
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from splitlab.core import Peer, hookimpl
from splitlab.plugins.probes.counting import MODEL, Counting

__all__ = ["Overhead", "peak_memory"]


class Overhead(Counting):
    """FLOPs and seconds of the model's part and of each plugin, and peak memory.

    Args:
        every: steps between two that are counted; counting slows a step down.
    """

    def __init__(self, *, every: int = 100) -> None:
        super().__init__(every)
        self._history: list[dict[str, float]] = []

    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        """Return what the step took, if it was counted."""
        if not self.counted():
            return {}
        found: dict[str, float] = {}
        for label in {MODEL: None, **self.flops}:
            found[f"{label} FLOPs"] = self.flops.get(label, 0)
            found[f"{label} seconds"] = self.seconds.get(label, 0.0)
        found["peak memory"] = peak_memory(self.peer)
        self._history.append(found)
        return found

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return what a resumed run needs for its report."""
        return {"history": self._history}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the report."""
        self._history = [dict(each) for each in state["history"]]

    @hookimpl
    def report(self, folder: Path) -> None:
        """Write the medians, and what each is of the model's."""
        with (folder / "overhead.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("what", "median of a step", "of the model's"))
            rows.writerows(_rows(self._history))


def peak_memory(peer: Peer) -> int:
    """Return the most bytes that were in use so far, where this peer computes."""
    if peer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(peer.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _rows(history: Sequence[Mapping[str, float]]) -> list[tuple[str, float, str]]:
    """Return name, median, and share of the model's, where there is one to compare with."""
    names = list(dict.fromkeys(name for numbers in history for name in numbers))
    median = {n: statistics.median(each.get(n, 0.0) for each in history) for n in names}
    found = []
    for name in names:
        whole = median.get(f"{MODEL} {name.rpartition(' ')[2]}")
        found.append((name, median[name], f"{median[name] / whole:.6f}" if whole else ""))
    return found
