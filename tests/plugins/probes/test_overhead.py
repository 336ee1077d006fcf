"""The probe of overhead: a transformer's FLOPs by formula, each plugin's, and what is reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import run
from splitlab.plugins.probes.counting import MODEL
from splitlab.plugins.probes.overhead import Overhead, peak_memory

D, N, DEPTH, B, PATCH = 32, 17, 2, 8, 7
VIT = f"vit:image_size=28,patch={PATCH},channels=1,width={D},depth=3,heads=2"


def trained(data: str, folder: Path, **options: Any) -> tuple[list[dict[str, float]], Any]:
    given: dict[str, Any] = {
        "model": VIT,
        "cut": DEPTH,
        "data_dir": data,
        "budget": "steps=3",
        "batch_size": B,
        "weights": "none",
        "threads": 1,
        "device": "cpu",
        "probes": ["overhead:every=2"],
    }
    result = run(output=str(folder), **given | options)
    lines = map(json.loads, (result.folder / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "train"]
    return [step.get("metrics", {}).get("overhead", {}) for step in steps], result


def test_the_models_flops_are_those_of_a_transformer(small_images: str, tmp_path: Path) -> None:
    first, second, third = trained(small_images, tmp_path / "r")[0]
    assert first == second == {}  # counted in the second step, timed in the third
    # Linear layers of a block: 24 N D² forward, and twice that back. Attention: 4 N² D, and back
    # two or two and a half times that. Patches: forward, and back to the weights alone.
    linear, attention, patches = 24 * N * D**2, 4 * N**2 * D, 2 * (N - 1) * PATCH**2 * D
    rest = B * (3 * DEPTH * linear + 2 * patches)
    assert third["model FLOPs"] in (
        rest + B * DEPTH * 3.0 * attention,
        rest + B * DEPTH * 3.5 * attention,
    )
    assert third["model seconds"] > 0
    assert third["peak memory"] > 1e6


def test_what_a_plugin_adds_stands_beside_it(small_images: str, tmp_path: Path) -> None:
    stack = ["adc:ratio=0.5", "quantize"]
    steps, result = trained(small_images, tmp_path / "r", plugins=stack)
    assert {"adc FLOPs", "adc seconds", "quantize FLOPs", "quantize seconds"} <= steps[2].keys()
    assert 0 < steps[2]["adc FLOPs"] < steps[2]["model FLOPs"]
    assert steps[2]["quantize FLOPs"] == 0  # no product of matrices is in it
    assert 0 < steps[2]["quantize seconds"] < 60
    with (result.folder / "probes" / "overhead" / "overhead.csv").open(newline="") as file:
        rows = {row["what"]: row for row in csv.DictReader(file)}
    assert rows.keys() == steps[2].keys()
    assert float(rows["adc FLOPs"]["median of a step"]) == steps[2]["adc FLOPs"]
    share = float(rows["adc FLOPs"]["of the model's"])
    assert share == pytest.approx(steps[2]["adc FLOPs"] / steps[2]["model FLOPs"], abs=1e-6)
    assert rows["peak memory"]["of the model's"] == ""
    server = (result.folder / "server-metrics.jsonl").read_text()
    assert '"model FLOPs"' in server
    for name in ("overhead", "overhead-server"):
        folder = result.folder / "probes" / name
        assert (folder / "overhead.csv").is_file()
        assert (folder / "overhead.png").read_bytes().startswith(b"\x89PNG")
    said = (result.folder / "probes" / "overhead" / "said.txt").read_text()
    assert f"adc {share:.2%} of the model's FLOPs" in said


def test_a_resumed_run_reports_all_of_it(tmp_path: Path) -> None:
    probe = Overhead(every=1)
    numbers = {"model seconds": 1.0, "peak memory": 1e6}
    history = [{"step": n, "model FLOPs": 10.0 * n, **numbers} for n in (1, 3)]
    probe.load_state_dict({"history": history, "flops": {"model": 7}})
    again = Overhead(every=1)
    again.load_state_dict(json.loads(json.dumps(probe.state_dict())))
    assert again.flops == {"model": 7}  # of a step that is not timed yet
    assert again.report(tmp_path) == "peak memory 1 MB"
    text = (tmp_path / "overhead.csv").read_text()
    assert text.startswith("what,median of a step,of the model's\nmodel FLOPs,20.0,1.000000\n")


def test_a_run_too_short_to_count_says_so(tmp_path: Path) -> None:
    assert "over before its third step" in Overhead().report(tmp_path)
    assert (tmp_path / "overhead.csv").read_text() == "what,median of a step,of the model's\n"


def test_peak_memory_is_in_bytes(tiny: Any) -> None:
    assert 10e6 < peak_memory(tiny.peer()) < 1e12
    assert MODEL == "model"
