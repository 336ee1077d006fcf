"""Every study that ships runs by its name, at small size, to its figures and its page."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import study
from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.contract.errors import Notice
from splitlab.core.report.by_setting import series
from splitlab.core.report.claims import judge, read_claims, samples_of
from splitlab.core.report.draw import file_name
from splitlab.core.report.figures import drawable
from splitlab.core.report.files import write_all
from splitlab.core.studies.conduct import prepare
from splitlab.core.studies.find import definition_of

SMALL: dict[str, Any] = {
    "model": "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2",
    "weights": "none",
    "device": "cpu",
    "threads": 1,
    "batch_size": 16,
    "budget": "steps=1",
    "eval_points": 1,
    "seeds": 1,
}
FEWER: dict[str, dict[str, list[Any]]] = {
    "adc/ratios": {"ratio": [0.1, 0.3]},
    "adc/ablation": {"ratio": [0.2]},
    "adc/balance": {"plugin.adc.tau": [0.2, 0.4], "plugin.adc.kappa": [0.2, 0.4]},
    "adc/allocation": {"plugin.adc.ratio": [0.2]},
    "adc/split-point": {"cut": [1, 2]},
    "adc/criterion": {"plugin.adc.ratio": [0.2]},
    "adc/batch-size": {"batch_size": [16, 24]},
    "adc/clusters": {"plugin.adc.tau": [0.2, 0.4]},
    "lean/convergence": {},
}
"""Values of every axis that do for a look; as many rows as the figures need."""
STACKS = {
    "adc/criterion": ("none", "adc", "adc:criterion=random", "adc:select=norm"),
    "adc/clusters": (
        "adc:alloc=explicit,kappa=0.3",
        "adc:alloc=explicit,kappa=0.3,criterion=class_label",
    ),
    "channels/snr": ("none", "adc+awgn", "quantize:evaluation=true+bit-errors"),
    "privacy/leakage": ("none", "adc"),
    "lean/convergence-search": (
        "none",
        "random-tokens:ratio=0.4+quantize:bits=4,gradient_bits=8+zstd",
    ),
    "lean/search": ("none", "random-tokens:ratio=0.4+quantize:bits=4,per=tensor"),
    "lean/against-adc": ("none", "adc:ratio=0.3", "lean-5"),
}
"""Some of the stacks of a study of many."""
LONG = {"methods"}
"""All methods: each goes through the kit and through all pairs elsewhere."""


def test_no_study_is_forgotten() -> None:
    assert {*FEWER} | {*STACKS} | LONG == {*catalogue()["studies"]}


@pytest.mark.parametrize("name", {**FEWER, **STACKS})
def test_a_study_runs_by_its_name(name: str, small_data: str, tmp_path: Path) -> None:
    asked, over = definition_of(name), FEWER.get(name, {})
    asked = replace(asked, stacks=STACKS.get(name, asked.stacks))
    options = {key: value for key, value in SMALL.items() if key not in over}
    if asked.base.get("probes"):
        options["budget"] = "steps=2"  # a step to learn from, and one to look at
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # of one ratio no row is called as its method
        warnings.filterwarnings("error", "the figure", Notice)
        found = study(asked, output=tmp_path, over=over, data_dir=small_data, **options)
        results = drawable(found.results())
    assert [run.error for row in results.rows for run in row.runs if run.error] == []
    assert all(run.state == "finished" for row in results.rows for run in row.runs)
    assert results.draw == asked.draw
    assert len({row.method for row in results.rows}) <= len(asked.stacks) <= len(results.rows)
    files = write_all(results, tmp_path)
    assert {file.name for file in files} >= {f"{file_name(kind)}.svg" for kind in asked.draw}


@pytest.mark.parametrize("name", catalogue()["studies"])
def test_a_study_says_what_it_answers_and_finds_its_reference(name: str, tmp_path: Path) -> None:
    found = definition_of(name)
    assert found.summary
    assert len(found.seeds) >= 3
    if name.startswith("adc/"):
        assert "2509.15058" in found.paper
    planned = prepare(name, output=tmp_path, dry=True).results()  # a Notice would be an error
    assert not found.reference or planned.reference
    claims = read_claims(ROOT / "docs" / "results" / "claims.toml", name).claims
    assert claims or not name.startswith("adc/")
    for verdict in judge(samples_of(planned), claims):  # of rows that there are
        pairs = verdict.claim.pairs
        assert len(verdict.comparisons) >= len(pairs), verdict.claim.text


def test_the_paper_s_curves_are_drawn_beside_runs_of_its_regime(tmp_path: Path) -> None:
    options = {
        "dataset": "cifar100",
        "model": "deit_tiny_patch16_224",
        "budget": "nominal=10",
        "lr": 1e-4,
        "augment": "paper",
        "weights": "none",
    }
    found = prepare("adc/ratios", output=tmp_path / "alike", dry=True, options=options).results()
    curves = {curve.method: curve.points for curve in found.published.curves}
    assert curves["none"] == ((1.0, 0.825),)
    assert curves["adc"][2] == (0.1, 0.771)
    otherwise = {"bottlenet:variant=adcrepo", "c3sl:evaluation=false"}  # as the paper ran them
    assert {*curves} == {"none", "adc", "topk", "randtopk"} | otherwise
    assert {line.label for line in series(found, "ratio")} >= {*curves} - otherwise
    other = prepare("adc/ratios", output=tmp_path / "other", dry=True).results().published
    assert not other.curves
    assert "the nearest is of dataset cifar100, model deit_tiny_patch16_224" in other.note
