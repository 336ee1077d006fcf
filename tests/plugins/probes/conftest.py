"""A folder of images that is as small as a run can be, and runs on it with a probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Result, run


@pytest.fixture
def probed(small_images: str, tmp_path: Path) -> Callable[..., Result]:
    """Return what runs a probe for a few steps of a model that is cut in its middle."""

    def go(*plugins: str, probe: str | list[str], steps: int = 4, **more: Any) -> Result:
        options: dict[str, Any] = {
            "weights": "none",
            "model": "vit:image_size=28,patch=7,channels=1,width=16,depth=2,heads=2",
            "cut": 1,
            "batch_size": 8,
            "threads": 1,
            "device": "cpu",
            "output": str(tmp_path / "run"),
            "budget": f"steps={steps}",
        }
        probes = [probe] if isinstance(probe, str) else probe
        return run(plugins=[*plugins], probes=probes, data_dir=small_images, **options | more)

    return go


@pytest.fixture
def seen(probed: Callable[..., Result]) -> Callable[..., dict[int, dict[str, float]]]:
    """Return what a run like `probed` logs of its probe, by step."""

    def look(*plugins: str, probe: str, **more: Any) -> dict[int, dict[str, float]]:
        result = probed(*plugins, probe=probe, **more)
        return logged(result.folder, probe)

    def logged(folder: Path, probe: str) -> dict[int, dict[str, float]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        label = probe.partition(":")[0]
        return {
            line["step"]: line["metrics"][label]
            for line in lines
            if line["kind"] == "train" and label in line.get("metrics", {})
        }

    return look
