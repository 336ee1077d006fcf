"""What a run costs before its first step: whole processes, beside one that imports torch and timm.

They take turns, and the ratio of their medians counts: of a run of one step in one process at most
1.3, in two processes at most 1.8. Seconds of the CPU are printed, too: others may use the machine.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TURNS = 5
RUN = [sys.executable, "-m", "splitlab", "run", "--quiet", "--budget", "steps=1"]


def spent(command: list[str]) -> tuple[float, float]:
    """Return the seconds that passed, and those of the CPU, its children's among them."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True)
    after, passed = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("transport", "most"), [("inprocess", 1.3), ("tcp", 1.8)])
def test_a_run_of_one_step(benchmark: Any, transport: str, most: float, tmp_path: Path) -> None:
    imports: list[tuple[float, float]] = []
    runs: list[tuple[float, float]] = []

    def turn() -> None:
        imports.append(spent([sys.executable, "-c", "import torch, timm"]))
        output = tmp_path / str(len(runs))
        runs.append(spent([*RUN, "--transport", transport, "--output", str(output)]))

    benchmark.pedantic(turn, rounds=TURNS, warmup_rounds=1)
    medians = [
        [statistics.median(column) for column in zip(*rows[1:], strict=True)]
        for rows in (imports, runs)
    ]
    (base, base_cpu), (run, run_cpu) = medians
    print(
        f"\n{transport}: import {base:.2f} s, run {run:.2f} s, ratio {run / base:.2f}; "
        f"CPU {base_cpu:.2f} s and {run_cpu:.2f} s, ratio {run_cpu / base_cpu:.2f}"
    )
    assert run / base <= most
