"""Every model of timm that can be cut, by timm's name.

Which family a name belongs to is read from the model that timm builds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import timm
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from splitlab.core.catalogue.hub import hub_or_cache
from splitlab.core.catalogue.loading import check_kind
from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.models.cnn import StagedCNN
from splitlab.core.models.segments import Segmented
from splitlab.core.models.vit import ViT

__all__ = ["WELL_KNOWN", "check_name", "is_timms", "timm_model", "timm_names"]

WELL_KNOWN = (
    "deit_tiny_patch16_224",
    "vit_base_patch16_224",
    "resnet18",
    "mobilenetv3_small_100",
    "convnext_atto",
)
"""Names that a listing shows before anybody asks for more."""

_VITS = ("vision_transformer", "deit")
_SIZED = (*_VITS, "vision_transformer_hybrid", "vitamin")
"""Modules of timm whose models are built for one image size."""
_CNNS = (
    "convnext",
    "cspnet",
    "densenet",
    "edgenext",
    "efficientnet",
    "fasternet",
    "ghostnet",
    "mobilenetv3",
    "nfnet",
    "regnet",
    "resnet",
    "resnetv2",
    "rexnet",
    "vgg",
)
"""Modules of timm whose models are listed; others are tried when they are named."""


def timm_names() -> dict[str, list[str]]:
    """Return timm's names of the models that can be cut, by family."""
    return {
        "vit": sorted(name for module in _VITS for name in timm.list_models(module=module)),
        "cnn": sorted(name for module in _CNNS for name in timm.list_models(module=module)),
    }


def timm_model(
    *,
    classes: int,
    name: str,
    image_size: int | None = None,
    channels: int = 3,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Segmented:
    """A model of timm, by timm's name.

    Args:
        classes: C, width of the new head.
        name: timm's, with or without the tag of a set of weights.
        image_size: height and width of an image, in pixels; none for what the model was made for.
        channels: of an image, 1 or 3.
        pretrained: whether to take timm's published weights (a download).
        drop_path: timm's ``drop_path_rate``.

    Raises:
        ConfigError: an unknown name, a model that cannot be cut, weights that cannot be had, a drop
            path where there is none.
    """
    check_name(name)
    made_for = timm.get_pretrained_cfg(name)
    _, height, width = made_for.input_size if made_for else (3, 224, 224)
    if image_size is None and height != width:
        raise ConfigError(f"model {name!r} takes {height}x{width} images; choose --image-size")
    size = height if image_size is None else image_size
    if size < 1:
        raise ConfigError(
            f"an image size of {size} is not allowed; take {height}, which {name} was made for"
        )
    options: dict[str, Any] = {} if channels == 3 else {"in_chans": channels}
    if size != height and _takes_image_size(name):
        options["img_size"] = size
    if drop_path:
        options["drop_path_rate"] = drop_path
    with hub_or_cache() if pretrained else nullcontext("") as absent:
        try:
            module: Any = timm.create_model(
                name, pretrained=pretrained, num_classes=classes, **options
            )
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if "drop_path_rate" in reason:
                raise _without_drop_path(name) from error
            if absent and isinstance(error, FileNotFoundError):
                reason = f"its weights are the hub's, and {absent}"
            way_out = "" if size == height else f"; it was made for images of {height} pixels"
            if pretrained:
                way_out = "; download the file elsewhere and pass it with --weights FILE"
            raise ConfigError(f"model {name!r} cannot be built: {reason[:300]}{way_out}") from error
    if drop_path and not any(isinstance(inner, DropPath) for inner in module.modules()):
        raise _without_drop_path(name)
    model: Segmented
    if isinstance(module, VisionTransformer):
        model = ViT(module, channels=channels, image_size=size)
    else:
        model = _staged(name, module, channels, size, height)
    if made_for:
        model.normalisation = tuple(made_for.mean), tuple(made_for.std)
    return model


def _without_drop_path(name: str) -> ConfigError:
    return ConfigError(
        f"model {name!r} has no residual branches that timm can drop; leave --drop-path out, or "
        "choose a Vision Transformer or a ConvNeXt"
    )


def _staged(name: str, module: nn.Module, channels: int, size: int, made_for: int) -> StagedCNN:
    """Return a convolutional network on images of this size; `ConfigError` if it takes others."""

    def at(size: int) -> StagedCNN:
        if left_out := _left_out(module, size):
            raise ConfigError(f"its first layer leaves the last {left_out} pixels of a row out")
        return StagedCNN(name, module, channels=channels, image_size=size)

    def fits(size: int) -> bool:
        try:
            return bool(at(size))
        except ConfigError:
            return False

    try:
        return at(size)
    except ConfigError as error:
        if size == made_for:
            raise
        stages: Any = getattr(module, "feature_info", None)
        step = int(stages[-1]["reduction"]) if stages else 32
        below = size - size % step
        near = [other for other in (below, below + step) if other > 0 and fits(other)]
        if not near:
            raise  # it is not the size
        reason = str(error) if _left_out(module, size) else "its stages fail on such images"
        raise ConfigError(
            f"an image size of {size} does not fit {name}: {reason}; take "
            f"{' or '.join(map(str, near))}"
        ) from None


def _left_out(module: nn.Module, size: int) -> int:
    """Return how many pixels at the border of such images the first layer never reads."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    # timm's own kinds of convolution pad as they need.
    if type(first) is not nn.Conv2d or isinstance(first.padding, str):
        return 0
    kernel, stride, padding = first.kernel_size[0], first.stride[0], int(first.padding[0])
    rest = (size + 2 * padding - first.dilation[0] * (kernel - 1) - 1) % stride
    return max(0, rest - padding)


def _takes_image_size(name: str) -> bool:
    return any(name.partition(".")[0] in timm.list_models(module=module) for module in _SIZED)


def is_timms(name: str) -> bool:
    """Return whether timm has a model of this name, with or without the tag of a set of weights."""
    return bool(timm.is_model(name.partition(".")[0]))


def check_name(name: str, own: Iterable[str] = ()) -> None:
    """Raise `ConfigError` unless timm has a model of this name; says so if it is a plugin's.

    Args:
        name: with or without the tag of a set of weights.
        own: names of other models, which the message offers too.
    """
    if is_timms(name):
        return
    check_kind("models", name)
    known = [*own, *(timms for names in timm_names().values() for timms in names)]
    near = {*own, *difflib.get_close_matches(name, known, n=8)}
    raise unknown_name(
        "model",
        name,
        near,
        "; `splitlab models` lists all, or name a file: path/to/file.py:function",
    )
