"""From a model's name to the whole model: settings, first numbers, weights, looks."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from splitlab.core.catalogue.binding import bind, bind_as
from splitlab.core.catalogue.loading import find, load, split, takes_classes
from splitlab.core.catalogue.tables import Entry, entries
from splitlab.core.contract.errors import ConfigError, SplitlabError
from splitlab.core.contract.part import Layout
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.settings import Bound, parameters, shown
from splitlab.core.contract.traits import Ground
from splitlab.core.models.freeze import freeze
from splitlab.core.models.segments import Segmented
from splitlab.core.models.timm_models import check_name, timm_model
from splitlab.core.models.weights import load_weights, weights_file

__all__ = ["ModelFacts", "bind_model", "build_model", "describe", "fingerprint"]

_ANY_CLASSES = 10
_MOST_PIXELS = 4096
"""Height and width of an image, at most."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model that is cut somewhere, without its numbers.

    Attributes:
        name: as the user wrote it.
        identity: what both peers compare: the name, and settings that are not those of the name;
            of a file or of a name that does not ship, what stands behind it and every setting.
        family: what kind of model it is: ``"vit"``, ``"cnn"``, ``"segments"``.
        channels: of the images that it takes.
        image_size: their height and width in pixels.
        cut: behind which segment it is cut.
        last_cut: cuts are 0 to this one.
        cut_noun: what a cut counts, in the plural.
        layouts: what plugins see at every cut.
        ground: what a stack of plugins can stand on there.
        client_parameters: how many numbers the client trains.
        server_parameters: how many the server trains.
        normalisation: mean and standard deviation of the images that published weights expect, by
            channel; None if nobody says.
    """

    name: str
    identity: str
    family: str
    channels: int
    image_size: int
    cut: int
    last_cut: int
    cut_noun: str
    layouts: tuple[Layout, ...]
    ground: Ground
    client_parameters: int
    server_parameters: int
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def layout(self) -> Layout:
        """What plugins see at the cut."""
        return self.layouts[self.cut]


def bind_model(text: str) -> Bound:
    """Bind ``NAME[:key=value,…]``: of the catalogue, a file's, or else one of timm's.

    Raises:
        ConfigError: an unknown name, key or value, or what makes no model.
    """
    head, _ = split("models", text)
    if ".py:" in text or head in entries("models"):
        if not takes_classes(load("models", head)):
            raise ConfigError(
                f"model {head!r} takes no parameter 'classes', the width of its head; a model is a "
                "function: def my_model(*, classes: int, …) -> Segments"
            )
        bound = bind("models", text)
        preset = entries("models").get(head)
        if preset and bound.factory is timm_model:
            try:
                check_name(str(bound.params["name"]), entries("models"))
            except ConfigError as error:
                way = f" (preset {preset.target})" if "preset" in preset.facts else ""
                raise ConfigError(f"model {head!r}{way}: {error}") from error
        return bound
    check_name(head, entries("models"))
    return bind_as("models", text, "timm", name=head)


def _entry(text: str) -> Entry | None:
    """Return the catalogue's table of the model; None for one of timm's or of a file."""
    return entries("models").get(split("models", text)[0])


def _identity(text: str, bound: Bound) -> str:
    """Return what both peers compare: the same for the same settings, however they are written."""
    entry = _entry(text)
    if (entry.source != "splitlab") if entry else (".py:" in text):
        return bound.agreement()  # a name of somebody's own may mean another thing elsewhere
    takes = parameters(bound.factory)
    preset = find("models", entry.name).settings if entry else {}
    usual = {key: takes[key].default for key in bound.params}
    usual |= {key: takes[key].parse(bound.label, value) for key, value in preset.items()}
    own = {key: bound.params[key] for key in bound.params if key in bound.given}
    changed = [f"{key}={shown(value)}" for key, value in own.items() if value != usual[key]]
    return f"{bound.label}:{','.join(changed)}" if changed else bound.label


def build_model(
    name: str,
    *,
    classes: int,
    seed: int,
    image_size: int | None = None,
    pretrained: bool = False,
    weights: str = "default",
    drop_path: float = 0.0,
    train: Sequence[str] = (),
) -> Segmented:
    """Build a whole model, the same at both peers for the same arguments.

    Args:
        name: of the catalogue with settings, ``FILE.py:function``, or any timm model that can be
            cut.
        classes: C, width of the new head.
        seed: of the initial numbers; global random state is left as it was.
        image_size: input height and width in pixels; None for the model's own.
        pretrained: take timm's published weights (a download).
        weights: a safetensors file or what ``torch.save`` wrote, ``"default"`` for what ships with
            the model (nothing for a timm name), or ``"none"``. A head for another number of classes
            is left out.
        drop_path: probability with which training drops the last residual branch; earlier ones are
            dropped with less. It changes no initial number.
        train: what alone is trained, by names as in `freeze`; nothing for all of it.

    Raises:
        ConfigError: an unknown name or setting, a model that cannot be cut, weights that do not fit
            or cannot be had, or a model without branches to drop.
    """
    bound = bind_model(name)
    file = weights_file(name, weights)
    more: dict[str, Any] = {"pretrained": True} if pretrained else {}
    if not more.keys() <= parameters(bound.factory).keys():
        raise ConfigError(f"nobody publishes weights for {name!r}; leave --pretrained out")
    if drop_path:
        if "drop_path" not in parameters(bound.factory):
            raise ConfigError(
                f"model {name!r} takes no drop path; leave --drop-path out, or give its function a "
                "parameter drop_path: float = 0.0"
            )
        more["drop_path"] = drop_path
    with isolated_rng(seed, "model", device=torch.device("cpu")):
        model = _built(bound, classes, image_size, more)
    if file is not None:
        load_weights(model, *file)
    if train:
        freeze(model, train)
    return model


def describe(
    name: str,
    *,
    image_size: int | None = None,
    cut: int | None = None,
    classes: int | None = None,
    weights: str = "default",
) -> ModelFacts:
    """Return what a model looks like when it is cut, without drawing its numbers.

    Args:
        name: as in `build_model`.
        image_size: as in `build_model`.
        cut: behind which segment; None for the model's own choice.
        classes: C; without it, the head's parameters are those of ten classes.
        weights: as in `build_model`; whether there is such a file is looked at.

    Raises:
        ConfigError: as `build_model`; or a cut outside of the model.
    """
    bound = bind_model(name)
    weights_file(name, weights)
    classes = classes or _ANY_CLASSES
    with isolated_rng(0, "model", device=torch.device("cpu")), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `build_model` lets them be heard
        try:
            with torch.device("meta"):
                model = _built(bound, classes, image_size)
        except SplitlabError as error:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            if isinstance(first, SplitlabError) or not isinstance(first, Exception):
                raise  # no number would mend it
            model = _built(bound, classes, image_size)  # one that cannot do without numbers
    entry = _entry(name)
    if cut is None:
        cut = _own_cut(model, entry, bound)
    model.check_cut(cut)
    sizes = [0, 0]
    for parameter, tensor in model.module.named_parameters():
        sizes[model.segment_of(parameter) > cut] += tensor.numel()
    layouts = tuple(map(model.layout, range(model.last_cut + 1)))
    client = model.part(0, (cut,), torch.device("meta"))
    return ModelFacts(
        name,
        _identity(name, bound),
        model.family,
        model.channels,
        model.image_size,
        cut,
        model.last_cut,
        model.cut_noun,
        layouts,
        Ground.of(layouts[cut], client.unable),
        sizes[0],
        sizes[1],
        model.normalisation,
    )


def _own_cut(model: Segmented, entry: Entry | None, bound: Bound) -> int:
    """Return where the model is cut if the user names no cut."""
    if entry is None or "cut" not in entry.facts:
        return model.default_cut
    cut = int(entry.facts["cut"])
    if 0 <= cut <= model.last_cut:
        return cut
    if bound.given:  # the user made it shallower than the catalogue knows it
        return model.default_cut
    raise ConfigError(
        f"cut = {cut} of [models.{entry.name}] (from {entry.source}) is outside the model; "
        f"allowed: 0 to {model.last_cut} ({model.cut_noun})"
    )


def _built(
    bound: Bound,
    classes: int,
    image_size: int | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Segmented:
    known = parameters(bound.factory)
    given = bound.given.get("image_size")
    if image_size is not None and "image_size" in known:
        if given not in (None, image_size):
            raise ConfigError(
                f"--image-size {image_size} and image_size={given} of the model exclude each "
                "other; keep one of them"
            )
        bound = dataclasses.replace(bound, params={**bound.params, "image_size": image_size})
    size = bound.params.get("image_size")
    if isinstance(size, int) and size > _MOST_PIXELS:
        raise ConfigError(f"image_size={size} is not allowed; from 1 to {_MOST_PIXELS}")
    model: Any = bound.build(classes=classes, **more)
    if not isinstance(model, Segmented):
        raise ConfigError(
            f"model {bound.label!r} returned a {type(model).__name__}; it must return Segments, or "
            "an instance of a subclass of Segmented, both of splitlab.core"
        )
    if image_size not in (None, model.image_size):
        raise ConfigError(
            f"--image-size {image_size} is not allowed: model {bound.label!r} takes images of "
            f"{model.image_size} pixels, and has no setting image_size"
        )
    try:
        model.check(classes)
    except ConfigError as error:
        raise ConfigError(f"model {str(bound)!r}: {error}") from error.__cause__
    return model


def fingerprint(module: nn.Module) -> str:
    """Return a short hash of all names, shapes, dtypes and numbers of a model."""
    digest = hashlib.sha256()
    state: Mapping[str, torch.Tensor] = module.state_dict()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()[:16]
