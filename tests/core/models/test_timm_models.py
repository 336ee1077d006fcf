"""Every model of timm that can be cut: what is listed, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.models.build import build_model, describe
from splitlab.core.models.cnn import StagedCNN
from splitlab.core.models.timm_models import timm_model, timm_names
from splitlab.core.models.vit import ViT


def build(name: str, **arguments: Any) -> Any:
    return build_model(name, **{"classes": 5, "seed": 0} | arguments)


def test_listed_models_are_timms_of_their_family() -> None:
    names = timm_names()
    assert {"deit_tiny_patch16_224", "vit_base_patch14_dinov2"} <= set(names["vit"])
    assert {"resnet18", "mobilenetv3_small_100", "convnext_atto"} <= set(names["cnn"])
    assert not set(names["vit"]) & set(names["cnn"])
    for family in names.values():
        assert family == sorted(set(family))
    for name in names["vit"][:: len(names["vit"]) // 5]:
        with isolated_rng(0, "listed", device=torch.device("cpu")):
            kind = type(timm.create_model(name, depth=1, embed_dim=24, num_heads=2))
        assert issubclass(kind, VisionTransformer), name


@pytest.mark.parametrize(
    "name",
    ["densenet121", "regnetx_002", "vgg11", "ghostnet_050", "rexnet_100", "cs3darknet_s"],
)
def test_listed_networks_can_be_cut(name: str) -> None:
    facts = describe(name, image_size=64)
    assert facts.family == "cnn"
    assert facts.last_cut >= 1
    assert all(not layout.any_tokens for layout in facts.layouts)


def test_the_family_is_read_from_the_model() -> None:
    assert isinstance(build("deit_tiny_patch16_224", image_size=32), ViT)
    assert isinstance(build("resnet18", image_size=32), StagedCNN)


def test_channels_and_size_are_the_users() -> None:
    with torch.device("meta"):
        model = timm_model(classes=5, name="resnet18", image_size=32, channels=1)
        larger = timm_model(classes=5, name="mobilenetv3_small_100")
    assert (model.channels, model.image_size) == (1, 32)
    assert model.module.get_submodule("conv1").in_channels == 1
    assert larger.image_size == 224


@pytest.mark.parametrize(
    "name", ["vit_relpos_small_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"]
)
def test_models_of_another_kind_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^model '{name}' cannot be cut: .*`splitlab models`"):
        build(name)


def test_a_model_that_timm_cannot_build_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(timm, "create_model", broken)
    told = "^model 'deit_tiny_patch16_224' cannot be built: no such thing$"
    with pytest.raises(ConfigError, match=told):
        build("deit_tiny_patch16_224")


def test_oblong_images_need_a_size() -> None:
    with pytest.raises(ConfigError, match=r"takes .* images; choose --image-size"):
        build(_oblong())


def _oblong() -> str:
    for name in timm.list_models():
        made_for = timm.get_pretrained_cfg(name)
        if made_for and made_for.input_size[1] != made_for.input_size[2]:
            return str(name)
    pytest.skip("timm has no model for oblong images")


def test_without_the_hub_weights_come_from_its_cache(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub("no route")
    name = "test_vit.r160_in1k"
    lacking = "hub's, and .* cannot be reached: no route; it is not in the cache; .* --weights FILE"
    with pytest.raises(ConfigError, match=lacking):
        build(name, pretrained=True)

    with isolated_rng(0, "published", device=torch.device("cpu")):
        published = timm.create_model(name)
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1234")
    (repository / "snapshots" / "1234").mkdir(parents=True)
    save_file(published.state_dict(), repository / "snapshots" / "1234" / "model.safetensors")
    model = build(name, pretrained=True)
    torch.testing.assert_close(
        model.module.patch_embed.proj.weight, published.patch_embed.proj.weight, rtol=0, atol=0
    )
