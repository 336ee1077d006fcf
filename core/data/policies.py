"""timm's training augmentations for one image: crop, flips, colour jitter, and its policies.

timm draws from Python's ``random``, from numpy's and from torch's global generators. Here its two
modules of transforms see thread-local stand-ins of the first two: in a thread that augments, they
draw from generators of the sample; anywhere else they are the modules that they stand for. Global
random state is neither read nor changed, and threads do not wait for each other.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, transforms
from timm.data.transforms_factory import transforms_imagenet_train

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.images import Augmentation, drawing_from

__all__ = ["timm_augmentation"]

_SECTION = re.compile(r"[a-z]+\d+(\.\d+)?|minf|mstdinf|t[a-z0-9]+")
"""A section of a policy behind the first; timm reads past what is none, without a word."""
_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")
_SETTINGS = {
    "scale": (0.08, 1e-3, 1.0),
    "ratio": (0.75, 1e-2, 1.0),
    "hflip": (0.5, 0.0, 1.0),
    "vflip": (0.0, 0.0, 1.0),
    "color_jitter": (0.4, 0.0, 10.0),
}
"""By name: the usual value, which is timm's, the least and the most."""
_FORM = "timm:POLICY[,key=value…], such as timm:rand-m9-mstd0.5-inc1,scale=0.3 or timm:none,hflip=0"

_current = threading.local()


def timm_augmentation(text: str) -> Callable[[int], Augmentation]:
    """Return what makes an augmentation for an image size in pixels.

    Args:
        text: ``POLICY[,key=value…]``: ``none`` or one of timm's strings, such as
            ``rand-m9-mstd0.5-inc1``, ``augmix-m3-w3`` or ``original-mstd0.5``; ``scale`` is the
            least share of the image that a crop keeps, ``ratio`` the least of its aspect ratios
            (the largest is 1 / ratio), ``hflip`` and ``vflip`` are probabilities, and
            ``color_jitter`` acts where no policy does, as in timm.

    Raises:
        ConfigError: timm knows no such policy, or a setting is none.
    """
    policy, settings = _parsed(text)
    _make(policy, settings, 32)  # timm checks it when it builds it

    def make(size: int) -> Augmentation:
        steps = _make(policy, settings, size)

        def augment(image: Image.Image, draws: torch.Generator) -> Image.Image:
            with drawing_from(draws), _numbers_from(draws):
                done: Image.Image = steps(image.convert("RGB"))
            return done.convert(image.mode)

        return augment

    return make


def _parsed(text: str) -> tuple[str | None, dict[str, float]]:
    policy, *pairs = text.split(",")
    name, *sections = policy.split("-")
    known = policy == "none" or (
        name in _POLICIES and all(_SECTION.fullmatch(section) for section in sections)
    )
    if not known:
        raise ConfigError(
            f"--augment timm:{text}: {policy!r} is no policy; none, or one of "
            f"{', '.join(_POLICIES)} with sections of timm's; write {_FORM}"
        )
    settings = {key: usual for key, (usual, _, _) in _SETTINGS.items()}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in _SETTINGS:
            raise ConfigError(
                f"--augment timm:{text}: unknown setting {key!r}; allowed: {', '.join(_SETTINGS)}; "
                f"write {_FORM}"
            )
        _, low, high = _SETTINGS[key]
        try:
            settings[key] = float(value)
        except ValueError:
            settings[key] = low - 1
        if not low <= settings[key] <= high:
            raise ConfigError(
                f"--augment timm:{text}: {key}={value} is not allowed; from {low:g} to {high:g}"
            )
    return (None if policy == "none" else policy), settings


def _make(policy: str | None, settings: dict[str, float], size: int) -> Callable[..., Any]:
    _stand_in()
    try:
        first, second, _ = transforms_imagenet_train(
            size,
            scale=(settings["scale"], 1.0),
            ratio=(settings["ratio"], 1 / settings["ratio"]),
            hflip=settings["hflip"],
            vflip=settings["vflip"],
            color_jitter=settings["color_jitter"],
            auto_augment=policy,
            separate=True,
        )
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--augment timm:{policy}: timm cannot read this policy "
            f"({error or 'it is malformed'}); write {_FORM}"
        ) from error
    return lambda image: second(first(image))


class _StandIn:
    """A module for everybody, but for a thread that augments."""

    def __init__(self, module: Any, mine: str) -> None:
        self._module = module
        self._mine = mine

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(_current, self._mine, None) or self._module, name)


class _Numpy:
    """numpy, with a stand-in for ``numpy.random``."""

    def __init__(self) -> None:
        self.random = _StandIn(np.random, "numpys")

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _stand_in() -> None:
    """Give timm's modules the stand-ins, once."""
    modules: tuple[ModuleType, ...] = (auto_augment, transforms)
    for module in modules:
        for name, real, put in (
            ("random", random, _StandIn(random, "pythons")),
            ("np", np, _Numpy()),
        ):
            if getattr(module, name, None) is real:
                setattr(module, name, put)


@contextmanager
def _numbers_from(draws: torch.Generator) -> Iterator[None]:
    """Let timm draw, in this thread, what follows from one generator."""
    seeds = torch.randint(2**32, (2,), generator=draws).tolist()
    _current.pythons, _current.numpys = random.Random(seeds[0]), np.random.RandomState(seeds[1])
    try:
        yield
    finally:
        del _current.pythons, _current.numpys
