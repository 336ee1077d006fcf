"""Augmentation of a whole batch where it lies, on the CPU or on a GPU, in a few operations.

What becomes of a sample is decided on the CPU, by random numbers of its own: the row of the sample
in a table that the seed and the epoch decide. So every device decides alike. Crops by whole pixels,
flips and erasing are exact on every device; a crop that is resampled to another size is float32
arithmetic, equal to a few units in the last place (and to a thousandth where TF32 is allowed).

torchvision's functional operations take one crop for the whole batch, which would be one call an
image; here every sample has its own.

Shapes: B samples of a batch, C channels, H height and width of what was decoded, S of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import generator
from splitlab.core.contract.transfer import upload

__all__ = ["BatchAugmentation"]

_RANGES = {
    "pad": (0, 256),
    "scale": (1e-3, 1.0),
    "ratio": (1e-2, 1.0),
    "hflip": (0.0, 1.0),
    "vflip": (0.0, 1.0),
    "erase": (0.0, 1.0),
    "stored": (1, 4096),
}
_FORM = "device:key=value,…, such as device:pad=4,hflip=0.5 or device:scale=0.35,hflip=0.5"
_ATTEMPTS = 10  # at a box that lies in the image, as torchvision has them
_STORED = 8 / 7  # of the image size, where crops are resampled: the usual 256 for 224
_FLIPS, _PLACE, _ERASING, _HOLE_PLACE = slice(0, 2), slice(2, 4), 4, slice(5, 7)
_BOXES, _HOLES = slice(7, 7 + 2 * _ATTEMPTS), slice(7 + 2 * _ATTEMPTS, 7 + 4 * _ATTEMPTS)
_NUMBERS = _HOLES.stop
"""Where the random numbers of a sample stand in its row, and how many there are."""


@dataclass(frozen=True)
class BatchAugmentation:
    """Crop, flips and erasing; the defaults do nothing.

    Attributes:
        pad: surround the image by so many black pixels and crop anywhere (torchvision's
            RandomCrop with a padding).
        scale: crop at least this share of the image and resample the crop, bilinear and
            antialiased (RandomResizedCrop); 1 crops nothing.
        ratio: the least aspect ratio of such a crop; 1 / ratio is the largest.
        hflip: the probability to mirror left and right.
        vflip: the probability to mirror top and bottom.
        erase: the probability to fill a box of 2 % to 33 % of the image with the mean colour
            (RandomErasing).
        stored: height and width in pixels of what such a crop is taken from; None for 8 / 7 of the
            image size.
    """

    pad: int = 0
    scale: float = 1.0
    ratio: float = 0.75
    hflip: float = 0.0
    vflip: float = 0.0
    erase: float = 0.0
    stored: int | None = None

    @classmethod
    def parse(cls, text: str) -> BatchAugmentation:
        """Read ``key=value,…``.

        Raises:
            ConfigError: an unknown key, a value outside of its range, or settings that exclude each
                other.
        """
        if not text:
            raise ConfigError(f"--augment device: has no setting behind it; write {_FORM}")
        found: dict[str, float] = {}
        for pair in text.split(","):
            key, _, value = pair.partition("=")
            if key not in _RANGES:
                known = ", ".join(_RANGES)
                raise ConfigError(
                    f"--augment device:{text}: unknown setting {key!r}; allowed: {known}; "
                    f"write {_FORM}"
                )
            low, high = _RANGES[key]
            try:
                found[key] = type(low)(value)
            except ValueError:
                found[key] = low - 1
            if not low <= found[key] <= high:
                kind = "whole numbers " if isinstance(low, int) else ""
                raise ConfigError(
                    f"--augment device:{text}: {key}={value} is not allowed; {kind}from {low:g} "
                    f"to {high:g}"
                )
        if "pad" in found and "scale" in found:
            raise ConfigError(
                f"--augment device:{text}: pad and scale are two ways to crop; keep one of them"
            )
        if "scale" not in found and (lone := found.keys() & {"ratio", "stored"}):
            raise ConfigError(
                f"--augment device:{text}: {min(lone)} is of crops that are resampled; give "
                "scale, too"
            )
        return cls(**found)  # type: ignore[arg-type]

    def stored_size(self, size: int) -> int:
        """Return the height and width H to decode to, for results of this size."""
        if self.scale == 1:
            return size
        return self.stored or round(size * _STORED)

    def draw(self, count: int, seed: int, epoch: int) -> torch.Tensor:
        """Return the random numbers of so many samples in an epoch, a row each, in [0, 1)."""
        draws = generator(seed, "augment", epoch)
        return torch.rand(count, _NUMBERS if self._boxes else _BOXES.start, generator=draws)

    @property
    def _boxes(self) -> bool:
        return self.scale < 1 or self.erase > 0

    def cropped(self, pixels: torch.Tensor, drawn: torch.Tensor, size: int) -> torch.Tensor:
        """Crop and flip.

        Args:
            pixels: (B, C, H, H) uint8.
            drawn: rows of `draw` for these samples, on the CPU.
            size: S.

        Returns:
            (B, C, S, S) on the device of the pixels: uint8, or float32 from 0 to 255 where crops
            were resampled.
        """
        flips = drawn[:, _FLIPS] < torch.tensor([self.vflip, self.hflip])
        if self.scale == 1:
            return self._by_pixels(pixels, flips, drawn, size)
        return self._resampled(pixels, flips, drawn, size)

    def _by_pixels(
        self, pixels: torch.Tensor, flips: torch.Tensor, drawn: torch.Tensor, size: int
    ) -> torch.Tensor:
        starts = (drawn[:, _PLACE] * (2 * self.pad + 1)).long()
        line = torch.arange(size).expand(len(pixels), 2, size)
        line = torch.where(flips[..., None], line.flip(-1), line) + starts[..., None]
        rows, columns = upload(line, pixels.device).unbind(1)  # (B, S) each
        padded = F.pad(pixels, [self.pad] * 4) if self.pad else pixels
        samples, channels = (torch.arange(n, device=pixels.device) for n in pixels.shape[:2])
        return padded[
            samples[:, None, None, None],
            channels[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    def _resampled(
        self, pixels: torch.Tensor, flips: torch.Tensor, drawn: torch.Tensor, size: int
    ) -> torch.Tensor:
        H = pixels.shape[2]
        sides, found = _box(drawn[:, _BOXES], (self.scale, 1.0), self.ratio, H, H)
        sides = torch.where(found[:, None], sides, H)
        starts = (drawn[:, _PLACE] * (H + 1 - sides)).long()
        boxes = upload(torch.stack([starts, sides, flips.long()], 2), pixels.device)
        down, across = _weights(boxes, size, H).unbind(1)  # (B, S, H) each
        return down[:, None] @ pixels.to(torch.float32) @ across[:, None].transpose(-1, -2)

    def erased(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Fill boxes with 0, the mean of normalised images (B, C, S, S); they are changed."""
        if not self.erase:
            return images
        S = images.shape[2]
        sides, found = _box(drawn[:, _HOLES], (0.02, 0.33), 0.3, S, S - 1)
        starts = (drawn[:, _HOLE_PLACE] * (S + 1 - sides)).long()
        chosen = found & (drawn[:, _ERASING] < self.erase)
        line = torch.arange(S)
        inside = (line >= starts[..., None]) & (line < (starts + sides)[..., None])
        inside &= chosen[:, None, None]
        rows, columns = upload(inside, images.device).unbind(1)
        return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def _box(
    drawn: torch.Tensor, shares: tuple[float, float], ratio: float, size: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return height and width (B, 2) of the first box that fits, and whether one did (B).

    Args:
        drawn: (B, 20): 10 each, for areas, then for aspect ratios.
        shares: of the image's area, the least and the most.
        ratio: the least aspect ratio.
        size: height and width of the image.
        most: what the sides may measure, in pixels.
    """
    areas, ratios = drawn.double().chunk(2, dim=1)
    low, high = shares
    areas = (low + (high - low) * areas) * size**2
    ratios = torch.exp((2 * ratios - 1) * -math.log(ratio))
    sides = torch.stack([(areas / ratios).sqrt(), (areas * ratios).sqrt()], 2).round().long()
    fitting = ((sides >= 1) & (sides <= most)).all(2)
    first = fitting.int().argmax(1)
    return sides[torch.arange(len(sides)), first], fitting.any(1)


def _weights(boxes: torch.Tensor, size: int, source: int) -> torch.Tensor:
    """Return what every pixel of the source weighs in every one of the result, along both axes.

    Pillow's bilinear filter, which is a triangle as wide as the reduction, at the box's own pixels.

    Args:
        boxes: (B, 2, 3) int64, vertically and horizontally: where the box begins, how many pixels
            it has, and whether it is mirrored.
        size: S.
        source: H.

    Returns:
        (B, 2, S, H) float32.
    """
    starts, sides, flips = boxes[..., None, None].unbind(2)  # (B, 2, 1, 1) each
    line = torch.arange(size, device=boxes.device)[:, None]
    pixel = torch.arange(source, device=boxes.device)
    line = torch.where(flips == 1, size - 1 - line, line)
    step = sides / size  # pixels of the source for one of the result
    centres = starts + (line + 0.5) * step
    weights = (1 - (pixel + 0.5 - centres).abs() / step.clamp(min=1)).clamp(min=0)
    weights *= (pixel >= starts) & (pixel < starts + sides)
    return weights / weights.sum(-1, keepdim=True)
