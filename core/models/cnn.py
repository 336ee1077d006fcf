"""timm's convolutional networks, cut between their stages.

Nothing of timm is re-typed. timm's convention, on which its own feature extraction stands, is that
the modules of such a network run in the order in which they are registered, and that what follows
the features is ``forward_head``. A network is taken apart by that convention, and compared with its
own ``forward`` before it is used: one that runs otherwise is refused.

Cut 0 lies behind the stem, cut c behind stage c. Batch statistics belong to the part that has the
layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.models.crossing import Leaving
from splitlab.core.models.segments import Segment, Segmented, tried

__all__ = ["StagedCNN"]

_CONTAINERS = ("blocks", "stages", "features")
"""Children that hold the stages."""
_STAGE = re.compile(r"(layer|stage|level|block|s)\d+")
"""Children that are a stage each."""
_HEAD = ("global_pool", "pre_logits", "head", "head_drop", "classifier", "fc")
"""Children with which ``forward_head`` begins."""


class StagedCNN(Segmented):
    """A convolutional network of timm (a `splitlab.core.contract.part.Model`).

    Args:
        name: for messages.
        module: timm's model.
        channels: of the images.
        image_size: their height and width in pixels.

    Raises:
        ConfigError: it has no stages, or does not run its modules one after another.
    """

    cut_noun = "stages"
    family = "cnn"

    def __init__(self, name: str, module: nn.Module, *, channels: int, image_size: int) -> None:
        self.module = module
        self.channels = channels
        self.image_size = image_size
        classifier = getattr(module, "default_cfg", {}).get("classifier", "fc")
        self.heads = (f"{classifier}.",)
        self._names = _in_order(name, module)
        self.last_cut = len(self._names) - 2
        self.default_cut = min(max(1, round(self.last_cut / 4)), self.last_cut)
        try:
            self._left = tried(self)
        except ConfigError as error:
            raise _refused(name, str(error)) from error
        self._check(name)

    def segments(self, module: nn.Module) -> Sequence[Segment]:
        """Return stem, stages, and the rest with the head."""
        found: list[Segment] = [
            nn.Sequential(*map(module.get_submodule, names)) for names in self._names[:-1]
        ]
        rest = nn.Sequential(*map(module.get_submodule, self._names[-1]))
        head: Any = module.forward_head
        return [*found, lambda x: head(rest(x))]

    def segment_of(self, name: str) -> int:
        """Return the segment that holds the module of this tensor."""
        for number, names in enumerate(self._names):
            if any(name.startswith(f"{own}.") for own in names):
                return number
        return len(self._names) - 1

    def shape(self, cut: int) -> tuple[int, ...]:
        """Return (D, H, W)."""
        return self._left[cut].shape

    def leaving(self, cut: int) -> Leaving:
        """Return what leaves a segment, and how it lies in memory in the whole model."""
        return self._left[cut]

    @torch.no_grad()
    def _check(self, name: str) -> None:
        """Compare the segments with the whole network on one image."""
        if any(len(left.shape) != 3 for left in self._left[:-1]):
            raise _refused(name, "what leaves its stages is no image (B, D, H, W)")
        if next(self.module.parameters()).is_meta:
            return  # it has no numbers to compare
        size = (1, self.channels, self.image_size, self.image_size)
        image = torch.linspace(-1, 1, size[1] * size[2] * size[3]).view(size)
        was = self.module.training
        self.module.eval()
        x = image
        for segment in self.segments(self.module):
            x = segment(x)
        same = torch.equal(x, self.module(image))
        self.module.train(was)
        if not same:
            raise _refused(name, "it does not run its modules one after another")


def _in_order(name: str, module: nn.Module) -> list[list[str]]:
    """Return the names of the modules of every segment: stem, stages, what follows them."""
    if not hasattr(module, "forward_head"):
        raise _refused(name, "it has no forward_head")
    stem: list[str] = []
    stages: list[str] = []
    rest: list[str] = []
    for child, inner in module.named_children():
        if child in _HEAD:
            break
        if child in _CONTAINERS and isinstance(inner, nn.Sequential) and not stages:
            stages += [f"{child}.{number}" for number, _ in inner.named_children()]
        elif _STAGE.fullmatch(child) and not rest:
            stages.append(child)
        else:
            (rest if stages else stem).append(child)
    if not stages:
        raise _refused(name, "it has no stages")
    if not stem:
        stem, stages = stages[:1], stages[1:]
    return [stem, *([stage] for stage in stages), rest]


def _refused(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"model {name!r} cannot be cut: {reason}; `splitlab models` lists those that can"
    )
