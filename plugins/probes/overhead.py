"""What the client spends for the model, and what each plugin adds: FLOPs, seconds, peak memory.

    splitlab run --plugin adc --plugin quantize --probe overhead
    splitlab run --plugin adc --probe overhead:every=10

In the third training step and in every n-th behind it ``metrics.jsonl`` holds, under ``overhead``,
``"model FLOPs"`` and ``"model seconds"`` of the client's part, forward, backward and optimizer, the
same of each plugin under its label (``"adc FLOPs"``), and ``"peak memory"`` in bytes. The FLOPs are
those of the step before, since counting would be in the seconds. The server's numbers are in
``server-metrics.jsonl``. When the run has ended, ``probes/overhead/overhead.csv`` has the median of
every number, and its share of the model's, and ``overhead.png`` shows them.

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

from splitlab.core import Peer, hookimpl, picture
from splitlab.plugins.probes.counting import MODEL, Counting
from splitlab.plugins.probes.sampled import bars, curves

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
    def metrics(self, step: int) -> Mapping[str, float]:
        """Return what the step took, if it was timed."""
        if not self.complete():
            return {}
        found: dict[str, float] = {}
        for label in {MODEL: None, **self.flops, **self.seconds}:
            found[f"{label} FLOPs"] = self.flops.get(label, 0)
            found[f"{label} seconds"] = self.seconds.get(label, 0.0)
        found["peak memory"] = peak_memory(self.peer)
        self._history.append({"step": step + 1, **found})
        return found

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return what a resumed run needs for its report."""
        return {"history": self._history, "flops": dict(self.flops)}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the report."""
        self._history = [dict(each) for each in state["history"]]
        self.flops = dict(state["flops"])

    @hookimpl
    def report(self, folder: Path) -> str:
        """Write the medians, and what each is of the model's; draw them."""
        median = _medians(self._history)
        with (folder / "overhead.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("what", "median of a step", "of the model's"))
            for name, value in median.items():
                share = _share(median, name)
                rows.writerow((name, value, "" if share is None else f"{share:.6f}"))
        if not self._history:
            return "the run was over before its third step, in which it looks first"
        labels = [name.removesuffix(" FLOPs") for name in median if name.endswith(" FLOPs")]
        self._draw(folder / "overhead.png", median, labels)
        told = [f"peak memory {median['peak memory'] / 1e6:,.0f} MB"]
        for label in labels[1:]:
            shares = [_share(median, f"{label} {unit}") or 0.0 for unit in ("FLOPs", "seconds")]
            told.append(
                f"{label} {shares[0]:.2%} of the model's FLOPs, {shares[1]:.1%} of its seconds"
            )
        return "; ".join(told)

    def _draw(self, path: Path, median: Mapping[str, float], labels: Sequence[str]) -> None:
        """Draw the medians of the model and of each plugin, and seconds over steps."""
        with picture(path, 6.9, max(2.0, 0.9 + 0.25 * len(labels))) as figure:
            flops, seconds, steps = figure.subplots(1, 3)
            for axes, what, unit in ((flops, "FLOPs", "FLOP"), (seconds, "seconds", "s")):
                values = {label: median[f"{label} {what}"] for label in labels}
                bars(axes, values, unit, f"{what} of a step, median")
            seconds.set_yticklabels([])
            curves(steps, self._history, {f"{label} seconds": label for label in labels}, "seconds")
            steps.set_ylim(bottom=0)


def peak_memory(peer: Peer) -> int:
    """Return the most bytes that were in use so far, where this peer computes."""
    if peer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(peer.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _medians(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of every number over the steps that were looked at."""
    names = dict.fromkeys(name for numbers in history for name in numbers if name != "step")
    return {n: statistics.median(each.get(n, 0.0) for each in history) for n in names}


def _share(median: Mapping[str, float], name: str) -> float | None:
    """Return what a number is of the model's; None where there is none to compare with."""
    whole = median.get(f"{MODEL} {name.rpartition(' ')[2]}")
    return median[name] / whole if whole else None
