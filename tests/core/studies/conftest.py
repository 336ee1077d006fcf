"""What the tests of executors share: jobs that take no time, who is told, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config
from splitlab.core.studies.job import Job, JobReporter, Outcome

TINY = {
    "model": "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2",
    "weights": "none",
    "device": "cpu",
    "threads": 1,
    "batch_size": 8,
    "budget": "steps=6",
    "eval_every": 3,
}
SLOW = """
import time
from splitlab.core import hookimpl

class Slow:
    "Lets a step take long."

    @hookimpl
    def step_end(self) -> None:
        print("a step is done")
        time.sleep(0.05)
"""


class Heard(JobReporter):
    """Keeps what it is told.

    Attributes:
        notes: of jobs that are under way, by number.
        outcomes: by number.
    """

    def __init__(self) -> None:
        self.notes: dict[int, list[tuple[float, str]]] = {}
        self.outcomes: dict[int, Outcome] = {}

    def progress(self, job: Job, share: float, note: str) -> None:
        self.notes.setdefault(job.number, []).append((share, note))

    def ended(self, job: Job, outcome: Outcome) -> None:
        assert job.number not in self.outcomes
        self.outcomes[job.number] = outcome

    @property
    def begun(self) -> set[int]:
        """Numbers of jobs that have made a step."""
        return {
            number
            for number, notes in self.notes.items()
            if any(note.startswith("step") for _, note in notes)
        }

    @property
    def states(self) -> list[str]:
        return [self.outcomes[number].state for number in sorted(self.outcomes)]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def make_jobs(small_data: str) -> Callable[..., list[Job]]:
    """Return the maker of jobs in a folder: every stack with every seed."""

    def make(
        folder: Path, stacks: Any = ("none", "topk"), *, slow: bool = False, **options: Any
    ) -> Any:
        pairs = [(stack, seed) for stack in stacks for seed in range(2)]
        if slow:
            probe = folder / "slow.py"
            folder.mkdir(parents=True)
            probe.write_text(SLOW)
            options["probes"] = [f"{probe}:Slow"]
        values = TINY | {"data_dir": small_data} | options
        return [
            Job(
                number,
                stack,
                Config.from_mapping(
                    values
                    | {"plugins": [stack], "seed": seed}
                    | {"output": str(folder / str(seed) / f"run-{number}")}
                ),
            )
            for number, (stack, seed) in enumerate(pairs, start=1)
        ]

    return make


@pytest.fixture
def numbers() -> Callable[[Job], Any]:
    """Return what reads the numbers of a run that must be the same wherever it is performed.

    All but seconds, and the bytes of handshakes: one that goes on shakes hands once more.
    """

    def read(job: Job) -> Any:
        log = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((job.folder / "summary.json").read_text())
        ledger = json.loads((job.folder / "ledger.json").read_text())
        timeless = {
            key: value
            for key, value in summary.items()
            if "second" not in key and key != "data_share"
        }
        return log, timeless, ledger["training"], ledger["evaluation"]

    return read


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray seem to be installed."""
    monkeypatch.setattr("splitlab.core.studies.ray.find_spec", lambda name: name)
