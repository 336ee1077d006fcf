from __future__ import annotations

import pytest
import torch

from splitlab.core import ConfigError
from splitlab.core.models.build import build_model
from splitlab.core.models.freeze import freeze

VIT = "vit:image_size=8,patch=4,width=8,depth=12,heads=2"


def trained(model: str, *names: str, size: int | None = None) -> list[str]:
    """The modules of which something is trained, up to the second dot."""
    built = build_model(model, classes=4, seed=0, image_size=size, train=names)
    named = built.module.named_parameters()
    return sorted({".".join(name.split(".")[:2]) for name, p in named if p.requires_grad})


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["last"], ["head.bias", "head.weight"]),
        (["blocks.1"], ["blocks.1"]),
        (["blocks.1*"], ["blocks.1", "blocks.10", "blocks.11"]),
        (["blocks.1?"], ["blocks.10", "blocks.11"]),
        (["*.bias", "norm"], None),
        (["last", "norm"], ["head.bias", "head.weight", "norm.bias", "norm.weight"]),
        (["cls_token"], ["cls_token"]),
    ],
)
def test_what_is_named_is_trained(names: list[str], wanted: list[str] | None) -> None:
    found = trained(VIT, *names)
    assert found == wanted if wanted else {"head.bias", "norm.weight"} <= {*found}


def test_the_head_of_other_families_is_trained() -> None:
    assert trained("resnet18", "last", size=32) == ["fc.bias", "fc.weight"]


def test_a_model_without_a_named_head_trains_its_last_segment() -> None:
    model = build_model(VIT, classes=4, seed=0)
    model.heads = ()
    freeze(model, ["last"])
    named = model.module.named_parameters()
    assert {n.split(".")[0] for n, p in named if p.requires_grad} == {"norm", "head"}


def test_the_rest_is_frozen_at_both_parts_and_keeps_its_numbers() -> None:
    plain = build_model(VIT, classes=4, seed=0)
    model = build_model(VIT, classes=4, seed=0, train=["blocks.3", "head"])
    for index, wanted in ((0, {"blocks"}), (1, {"head"})):
        part = model.part(index, (4,), torch.device("cpu"))
        found = {n.split(".")[0] for n, p in part.named_parameters() if p.requires_grad}
        assert found == wanted
    pairs = zip(plain.module.parameters(), model.module.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("blocs.1", "the nearest: blocks.1, "),
        ("hea", "the nearest: .*head"),
        ("zzz", "its modules: blocks, cls_token, head, norm, patch_embed, pos_embed"),
    ],
)
def test_what_names_nothing_is_refused_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(
        ConfigError, match=f"--train {name} names no parameter of the model.*{told}"
    ):
        build_model(VIT, classes=4, seed=0, train=["head", name])
