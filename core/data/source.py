"""A source: one split as it lies on disk, before any image is decoded.

What reads a kind of file (`local`, `tables`) returns a source; what uses it (`load`, `decode`)
asks no further where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

__all__ = ["Encoded", "Source"]

Encoded = Image.Image | Mapping[str, Any] | None
"""An image as its source has it; a mapping holds ``bytes`` of a file, or else its ``path``."""


@dataclass(frozen=True)
class Source:
    """One split before decoding: labels in memory, images by row.

    Attributes:
        origin: what error messages call it.
        labels: (N,) int64, for N samples.
        classes: their names; None where the labels are bare numbers.
        read: takes rows, returns their images as they are stored.
        contents: a cheap digest of the images, such as of their files' names and sizes.
    """

    origin: str
    labels: torch.Tensor
    classes: tuple[str, ...] | None
    read: Callable[[list[int]], Sequence[Encoded]]
    contents: str = ""

    def place(self, row: int, encoded: Encoded = None) -> str:
        """Name a sample: the image's file if it has one, else the row."""
        if isinstance(encoded, Mapping) and encoded["bytes"] is None and encoded["path"]:
            return str(encoded["path"])
        return f"{self.origin}, row {row}"
