"""The class token's attention by layer and head, and who is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError
from splitlab.plugins.probes.attention import entropies


def test_entropies_are_means_over_samples() -> None:
    even, sharp = torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.0, 0.0])
    attention_BLHN = torch.stack((torch.stack((even, sharp)), torch.stack((even, even))))[:, None]
    torch.testing.assert_close(
        entropies(attention_BLHN), torch.tensor([[math.log(4), math.log(4) / 2]])
    )


def test_a_run_logs_every_layer_and_head_and_draws(seen: Any, tmp_path: Any) -> None:
    model = "vit:image_size=28,patch=7,channels=1,width=16,depth=3,heads=4"
    found = seen("adc", probe="attention:every=2", steps=3, model=model, cut=2)
    assert [*found] == [1, 3]
    for numbers in found.values():
        by_head = [numbers[f"entropy {layer}.{head}"] for layer in (1, 2) for head in (1, 2, 3, 4)]
        assert numbers.keys() == {
            "entropy",
            "self",
            *(f"entropy {i}.{j}" for i in (1, 2) for j in (1, 2, 3, 4)),
        }
        assert all(0 <= each <= math.log(17) + 1e-5 for each in by_head)
        assert numbers["entropy"] == pytest.approx(sum(by_head) / 8, rel=1e-5)
        assert 0 < numbers["self"] < 1
    folder = tmp_path / "run" / "probes" / "attention"
    assert {each.name for each in folder.iterdir()} == {"attention.png", "entropy.png", "said.txt"}


@pytest.mark.parametrize(
    ("model", "cut", "reason"),
    [
        ("vit:image_size=28,patch=7,channels=1,width=16,depth=2,heads=2", 0, "--cut 1 to 2"),
        (
            "vit:image_size=28,patch=7,channels=1,width=16,depth=2,heads=2,class_token=false",
            1,
            "which this model does not have",
        ),
    ],
)
def test_a_model_without_such_attention_is_refused(
    model: str, cut: int, reason: str, probed: Any
) -> None:
    with pytest.raises(ConfigError, match=f"'attention' needs the attention of .*{reason}"):
        probed(probe="attention", model=model, cut=cut)
