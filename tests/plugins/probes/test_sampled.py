"""What the sampling probes share: when they look, what they keep, how images become drawable."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Cut, run
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import ROOT
from splitlab.plugins.probes.sampled import Sampled, curves, drawable

NAMES = ["activations", "attention", "clusters", "selection", "gradient-flow"]
STACK = "adc:ratio=0.3"


class Counts(Sampled):
    def __init__(self) -> None:
        super().__init__(3)

    def numbers(self) -> Mapping[str, float]:
        return {"x": 1.0}


def test_the_first_step_and_every_nth_behind_it_are_looked_at() -> None:
    probe = Counts()
    assert [step for step in range(7) if probe.metrics(step)] == [0, 3, 6]
    assert [each["step"] for each in probe.history] == [1, 4, 7]
    cut = Cut(activations=torch.ones(1), targets=torch.zeros(1), step=3, training=False)
    assert not probe.due(cut)
    cut.training = True
    assert probe.due(cut)


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_makes_no_sense_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"every=0 is not allowed; 1 or more"):
        bind("probes", f"{name}:every=0").build()


def test_drawable_images_are_small_and_in_range() -> None:
    images = torch.randn(3, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    made = drawable(images)
    assert made.shape == (3, 96, 96, 3)
    assert (int(made.min()), int(made.max())) == (0, 255)
    assert drawable(images[:, :, :, :50]).shape == (3, 96, 24, 3)
    flat = drawable(torch.ones(1, 1, 4, 4, dtype=torch.bfloat16))
    assert torch.equal(flat, torch.zeros(1, 4, 4, 1, dtype=torch.uint8))


def test_curves_leave_out_what_a_look_lacks() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    curves(axes, [{"step": 1}, {"step": 2, "a": 5.0}], {"a": "word"}, "share")
    assert axes.lines[0].get_xydata().tolist() == [[2.0, 5.0]]


def drawn(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.slow
def test_a_resumed_run_draws_what_was_seen_before(probed: Any) -> None:
    first = probed(STACK, probe=[f"{name}:every=9" for name in NAMES], steps=1)
    folder = first.folder / "probes"
    before = drawn(folder)
    assert {Path(file).parent.name for file in before} == {*NAMES}
    shutil.rmtree(folder)
    assert run(resume=first.folder, budget="steps=2").summary.steps == 2
    assert drawn(folder) == before


@pytest.mark.long
def test_they_sit_at_the_client_and_the_training_stays_as_it_is(
    probed: Any, tmp_path: Path
) -> None:
    plain = probed(STACK, probe=[], steps=2, output=str(tmp_path / "plain"))
    watched = [f"{name}:every=1" for name in NAMES]
    found = probed(STACK, probe=watched, steps=2, transport="tcp")
    assert found.ledger.counts["training"] == plain.ledger.counts["training"]
    assert (found.summary.loss, found.summary.accuracy) == (
        plain.summary.loss,
        plain.summary.accuracy,
    )
    assert {each.name for each in (found.folder / "probes").iterdir()} == {*NAMES}
    assert not (found.folder / "server-metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["quantize", "tome", "adc-batch-merge"])
def test_any_stack_can_be_watched_in_half_precision_and_with_mixed_samples(
    stack: str, probed: Any
) -> None:
    more = {"precision": "bf16", "mixup": 0.5, "accumulate": 2}
    found = probed(stack, probe=[f"{name}:every=1" for name in NAMES], steps=2, **more)
    for name in NAMES:
        said = (found.folder / "probes" / name / "said.txt").read_text()
        assert said.count("\n") == 1


def test_a_convolutional_model_can_be_watched(probed: Any) -> None:
    names = [name for name in NAMES if name != "attention"]
    model = f"{ROOT / 'examples' / 'small_cnn.py'}:small_cnn"
    found = probed("quantize", probe=names, steps=1, model=model, cut=0)
    assert {each.name for each in (found.folder / "probes").iterdir()} == {*names}
