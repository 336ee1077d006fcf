"""One image: opened, augmented, and turned into a tensor. The only user of ``torchvision``.

Shapes: C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from splitlab.core.data.source import Encoded

__all__ = [
    "Augmentation",
    "drawing_from",
    "open_image",
    "paper_augmentation",
    "scale_deep",
    "to_pixels",
]

Augmentation = Callable[[Image.Image, torch.Generator], Image.Image]
"""Takes an image of any size, draws from the generator alone, returns a square of one size."""


_UPRIGHT = {  # by EXIF's orientation, what turns the image back
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(encoded: Encoded, mode: str) -> Image.Image:
    """Return an image upright and in Pillow's mode ``RGB`` or ``L``; 16 bits of grey become 8.

    Raises ValueError if it is missing or of a depth without a known white, and whatever Pillow's
    decoders raise.
    """
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    if isinstance(encoded, Image.Image):
        return encoded.convert(mode)
    if encoded is None:
        raise ValueError("the image is missing")
    data, path = encoded["bytes"], encoded["path"]
    if data is None and path is None:
        raise ValueError("the image is missing")
    with Image.open(path if data is None else io.BytesIO(data)) as image:
        image.load()  # what a PNG says of its orientation may stand behind the pixels
        turn = _UPRIGHT.get(_orientation(image))
        pixels = _to_eight_bits(image)
        return (pixels if turn is None else pixels.transpose(turn)).convert(mode)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(0x0112)
    # Damaged EXIF is answered with errors of several types, and the pixels are whole.
    except Exception:  # noqa: BLE001
        return None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    # Pillow has called 16 bits of grey I;16 and, in these formats, I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(scale_deep(np.asarray(image)))
    # convert() would clip to white what is above 255.
    raise ValueError(f"mode {image.mode}, not 8 or 16 bits of grey")


def scale_deep(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return values of 16 bits as 8, of the same shape: 65,535, their white, becomes 255."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


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
        with drawing_from(draws):
            return steps(image)  # type: ignore[no-any-return]

    return augment


class drawing_from(TorchFunctionMode):  # noqa: N801
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
