"""The embedded weights: what they saw, and what they fit."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import torch

from splitlab.core.catalogue.tables import ROOT
from splitlab.core.data.entry import dataset_entry

ASSETS = ROOT / "core" / "assets"


def test_pretraining_saw_no_image_of_the_subset(script: Any) -> None:
    left = script("make_vit_mini_weights").pretraining_indices()
    subset = pq.read_table(ASSETS / "fashion_mnist_mini-train.parquet")["index"].to_pylist()
    assert len(set(subset)) == 6_000
    assert len(left) == 54_000
    assert sorted([*left.tolist(), *subset]) == list(range(60_000))


def test_the_weights_were_made_with_the_catalogues_normalisation(script: Any) -> None:
    maker, entry = script("make_vit_mini_weights"), dataset_entry("fashion-mnist-mini")
    assert (entry.mean, entry.std) == ([maker.MEAN], [maker.STD])


def test_the_weights_fit_a_timm_model_but_for_its_head(script: Any) -> None:
    from safetensors import safe_open

    with safe_open(ASSETS / "vit_mini.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert "rotation" in file.metadata()["training"]
    with torch.random.fork_rng():
        model = script("make_vit_mini_weights").build_model()
    left = model.load_state_dict(weights, strict=False)
    assert set(left.missing_keys) == {"head.weight", "head.bias"}
    assert not left.unexpected_keys
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert all(weight.isfinite().all() for weight in weights.values())
