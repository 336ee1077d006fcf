"""A run that is logged, one that makes steps once more, and what they logged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import run
from splitlab.core.runs.loggers import numbers_of
from splitlab.core.runs.records import read_records

Points = dict[str, list[tuple[int, float]]]
"""Step and number, by name."""

PROBE = """
from splitlab.core import hookimpl

class Probe:
    @hookimpl
    def metrics(self, step):
        return {"of (a #): %": 0.1 * step}
"""


@pytest.fixture
def log(small_images: str, tmp_path: Path) -> Callable[..., Path]:
    """Return what trains four steps, which a logger is told of, and returns the run folder."""
    (tmp_path / "probe.py").write_text(PROBE)

    def logs(logger: str, **options: Any) -> Path:
        return run(
            model="vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2",
            plugins=["quantize"],
            probes=[f"{tmp_path}/probe.py:Probe"],
            data_dir=small_images,
            loggers=[logger],
            output=str(tmp_path / "r"),
            **{"budget": "steps=4", "eval_every": 2, "weights": "none", "batch_size": 8},
            **{"threads": 1, "device": "cpu", "name": "a run", "tags": ("a tag", "b")},
            **options,
        ).folder

    return logs


@pytest.fixture
def again() -> Callable[..., None]:
    """Return what goes on with a run from its checkpoint of step 2, to step 5."""

    def goes_on(folder: Path) -> None:
        run(resume=folder, from_step=2, budget="steps=5")

    return goes_on


@pytest.fixture
def logged() -> Callable[[Path], Points]:
    """Return what reads the points of a run from its folder, the summary's at the last step."""

    def reads(folder: Path) -> Points:
        found: Points = {}
        for record in read_records(folder):
            for name, number in numbers_of(record).items():
                found.setdefault(name, []).append((record.step, number))
        summary = json.loads((folder / "summary.json").read_text())
        for name, value in summary.items():
            if type(value) in (int, float) and name != "version":
                found[f"summary/{name}"] = [(summary["steps"], value)]
        return found

    return reads


@pytest.fixture
def id_of() -> Callable[[Path], str]:
    """Return what reads the id of a run from its folder."""
    return lambda folder: str(json.loads((folder / "run.json").read_text())["id"])
