"""One image: opened, augmented, and turned into a tensor. The only user of ``torchvision``.

Shapes: C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image, ImageOps
from torch.overrides import TorchFunctionMode

from splitlab.core.data.source import Encoded

__all__ = ["AUGMENTATIONS", "Augmentation", "open_image", "paper_augmentation", "to_pixels"]

Augmentation = Callable[[Image.Image, torch.Generator], Image.Image]
"""Takes an image of any size, draws from the generator alone, returns a square of one size."""


def open_image(encoded: Encoded, mode: str) -> Image.Image:
    """Return an image upright and in Pillow's mode ``RGB`` or ``L``.

    Raises ValueError if it is missing or deeper than 8 bits, and whatever Pillow's decoders raise.
    """
    if isinstance(encoded, Image.Image):
        return encoded.convert(mode)
    if encoded is None:
        raise ValueError("the image is missing")
    data = encoded["bytes"]
    with Image.open(encoded["path"] if data is None else io.BytesIO(data)) as image:
        if image.mode.startswith(("I", "F")):
            # convert() would clip to white what is above 255.
            raise ValueError(f"mode {image.mode}, not 8 bits per channel")
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert(mode)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Return an image of 8 bits per channel as (C, H, W) uint8."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def paper_augmentation(size: int) -> Augmentation:
    """Return RandAugment(2, 9) at the image's own size, ColorJitter(0.4, 0.4, 0.4), resize, flip.

    Args:
        size: in pixels, of the square that it returns.
    """
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.RandAugment(num_ops=2, magnitude=9),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
            transforms.Resize((size, size)),
            transforms.RandomHorizontalFlip(),
        ]
    )

    def augment(image: Image.Image, draws: torch.Generator) -> Image.Image:
        with _DrawsFrom(draws):
            return steps(image)  # type: ignore[no-any-return]

    return augment


AUGMENTATIONS: Mapping[str, Callable[[int], Augmentation] | None] = {
    "none": None,
    "paper": paper_augmentation,
}
"""By name, what makes an augmentation for an image size in pixels; None only resizes."""


class _DrawsFrom(TorchFunctionMode):
    """Inside, torchvision's random draws come from one generator, not from torch's global one.

    It holds for the thread that enters it; seeding the global one would disturb other threads.
    """

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()
        self._draws = draws

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.rand, torch.randint, torch.randperm, torch.Tensor.uniform_):
            kwargs["generator"] = self._draws
        return func(*args, **kwargs)
