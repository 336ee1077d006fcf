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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("deit_tiny_patch16_224:image_size=100", "no multiple of the patch, 16 pixels; take 96 or"),
        ("deit_tiny_patch16_224:image_size=3", "no multiple of the patch, 16 pixels; take 16 or"),
        ("deit_tiny_patch16_224:image_size=0", "size of 0 is not allowed; take 224, which deit_"),
        ("resnet18:image_size=0", "size of 0 is not allowed; take 224, which resnet18 was made"),
        ("resnet18:image_size=-5", "size of -5 is not allowed; take 224"),
        ("resnet18:image_size=100000", "image_size=100000 is not allowed; from 1 to 4096"),
        ("vit:image_size=100000", "image_size=100000 is not allowed; from 1 to 4096"),
        ("vit:image_size=0", "size of 0 is no multiple of the patch, 16 pixels; take 16 or 32"),
        ("vit-mini:image_size=30", "no multiple of the patch, 4 pixels; take 28 or 32"),
        ("vgg11:image_size=16", "size of 16 does not fit vgg11: its stages fail .*; take 32$"),
        ("convnext_atto:image_size=28", "28 does not fit convnext_atto: its stages .*; take 32$"),
        ("convnext_atto:image_size=66", "first layer leaves the last 2 pixels .*; take 64 or 96$"),
        ("vit_tiny_r_s16_p8_224:image_size=70", "cannot be built: .*; it was made for .* 224 pix"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_and_one_that_does_is_named(
    text: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        describe(text)
    for size in told.partition("; take ")[2].rstrip("$").split(" or "):
        if size.isdecimal() and size != "224":
            describe(text.partition(":")[0], image_size=int(size))


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "edgenext_xx_small"])
@pytest.mark.parametrize("size", [64, 66, 67])
def test_every_pixel_reaches_the_model_or_the_size_is_refused(name: str, size: int) -> None:
    try:
        model = build(name, image_size=size)
    except ConfigError as error:
        if "leaves the last" not in str(error):
            raise
        return
    module = model.module.eval()
    with torch.no_grad():
        for row in ((..., -1), (..., -1, slice(None))):
            image = torch.zeros(1, 3, size, size)
            image[row] = torch.nan
            assert module(image).isnan().any()


def test_a_hybrid_is_built_for_the_size() -> None:
    with isolated_rng(0, "model", device=torch.device("cpu")):
        model = timm_model(classes=5, name="vit_tiny_r_s16_p8_224", image_size=64)
    assert model.layout(1).tokens == 5


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
