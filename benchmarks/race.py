"""Contestants take turns, so that a machine's moods hit all of them alike; medians are compared.

On a GPU a call returns before its work is done: the clock is read when the device has caught up,
around several calls where one is short.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["race", "timed", "wait_for"]


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Return the seconds of a call, the mean of so many."""
    wait_for(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    wait_for(device)
    return (time.perf_counter() - started) / calls


def race(
    contestants: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    calls: int = 1,
    warm_up: int = 2,
    seconds: float = float("inf"),
) -> dict[str, float]:
    """Return the median seconds of a call, by contestant.

    Args:
        contestants: what to time.
        device: where it computes.
        rounds: turns of each; fewer if the time is up, at least one.
        calls: in a turn.
        warm_up: turns before the first that counts.
        seconds: when no further round begins.
    """
    for _ in range(warm_up):
        for work in contestants.values():
            timed(work, device, calls)
    until = time.perf_counter() + seconds
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        if number and time.perf_counter() > until:
            break
        for name, work in contestants.items():
            times[name].append(timed(work, device, calls))
    return {name: statistics.median(found) for name, found in times.items()}
