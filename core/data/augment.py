"""What ``--augment`` says: something done to every image as it was stored, or to whole batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from splitlab.core.contract.errors import unknown_name
from splitlab.core.data.batchwise import BatchAugmentation
from splitlab.core.data.images import Augmentation, paper_augmentation

__all__ = ["Augmenting", "augmenting"]


@dataclass(frozen=True)
class Augmenting:
    """An augmentation by its text; at most one of the two others is there.

    Attributes:
        text: what was asked for; a worker process makes the same of it.
        of_image: makes for an image size in pixels what is done to a decoded image, on the CPU.
        of_batch: what is done to a batch, where it lies.
    """

    text: str
    of_image: Callable[[int], Augmentation] | None = None
    of_batch: BatchAugmentation | None = None


def augmenting(text: str) -> Augmenting:
    """Read ``none``, ``paper``, ``timm:POLICY[,key=value…]`` or ``device:key=value,…``.

    Raises:
        ConfigError: it is none of them, or its settings cannot be used.
    """
    name, colon, settings = text.partition(":")
    if name == "timm" and colon:
        from splitlab.core.data.policies import timm_augmentation

        return Augmenting(text, of_image=timm_augmentation(settings))
    if name == "device" and colon:
        return Augmenting(text, of_batch=BatchAugmentation.parse(settings))
    if text == "paper":
        return Augmenting(text, of_image=paper_augmentation)
    if text != "none":
        raise unknown_name("augmentation", text, ("none", "paper", "timm:POLICY", "device:…"))
    return Augmenting(text)
