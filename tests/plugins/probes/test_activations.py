"""Effective rank, sparsity, kurtosis and what quantizers lose are what their definitions say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from splitlab.core import Cut
from splitlab.plugins.probes.activations import Activations, effective_rank, lost, singular_values


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_singular_values_are_those_of_the_centred_rows(shape: tuple[int, int]) -> None:
    rows = 3 + noise(*shape)
    torch.testing.assert_close(
        singular_values(rows), torch.linalg.svdvals(rows - rows.mean(0)), rtol=1e-4, atol=1e-4
    )
    rows[0, 0] = math.inf
    assert singular_values(rows).isnan().all()


def test_the_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


def test_what_a_quantizer_loses() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert float(lost(values, 2)) == 0
    assert float(lost(torch.tensor([0.0, 0.4, 1.0]), 1)) == pytest.approx(0.16 / 1.16)
    assert float(lost(torch.full((4,), 5.0), 8)) == 0
    draws = noise(1000)
    assert float(lost(draws, 8)) < float(lost(draws, 4)) < float(lost(draws, 2))


def test_a_run_logs_and_draws(seen: Any, tmp_path: Any) -> None:
    found = seen("quantize", probe="activations:every=2", steps=4)
    assert [*found] == [1, 3]
    for numbers in found.values():
        assert 1 <= numbers["effective rank"] <= 16
        assert 0 <= numbers["zeros"] <= numbers["sparsity"] <= 1
        assert numbers["kurtosis"] >= -2
        assert 0 < numbers["lost at 8 bits"] < numbers["lost at 2 bits"]
    folder = tmp_path / "run" / "probes" / "activations"
    assert (folder / "activations.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "said.txt").read_text().startswith("effective rank ")


def test_moments_of_known_numbers(tiny: Any) -> None:
    probe = Activations(every=1)
    probe.setup(peer=tiny.peer())
    values = torch.tensor([0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 0.001, -0.001]).view(2, 2, 2)
    cut = Cut(activations=values, targets=torch.zeros(2), step=0, training=True)
    for _ in probe.after_client_forward(cut):
        pass
    numbers = probe.metrics(0)
    assert numbers["zeros"] == 0.25
    assert numbers["sparsity"] == 0.5
    assert numbers["kurtosis"] == pytest.approx(2 - 3, abs=1e-4)
    assert probe.metrics(1) == {}


def test_the_rank_is_of_tokens_of_all_places(tiny: Any) -> None:
    """An even stride over 64 tokens a sample would meet every eighth place only."""
    probe = Activations(every=1)
    probe.setup(peer=tiny.peer())
    place_NN = torch.eye(64).expand(64, 64, 64)
    cut = Cut(activations=place_NN, targets=torch.zeros(64), step=0, training=True)
    for _ in probe.after_client_forward(cut):
        pass
    assert probe.metrics(0)["effective rank"] > 56
