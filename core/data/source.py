"""A source: one split as it lies on disk, before any image is decoded.

What reads a kind of file (`tables`, `folders`, `arrays`) returns a source; what uses it (`load`,
`decode`) asks no further where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import generator
from splitlab.core.data.words import plain

__all__ = ["Encoded", "Source"]

Encoded = Image.Image | npt.NDArray[np.uint8] | Mapping[str, Any] | None
"""An image as its source has it; a mapping holds ``bytes`` of a file, or else its ``path``, and an
array is one that was opened before and kept."""


@dataclass(frozen=True)
class Source:
    """One split before decoding: labels in memory, images by row.

    Attributes:
        origin: what error messages call it.
        labels: (N,) int64, for N samples.
        classes: their names; None where the labels are bare numbers.
        read: takes rows, returns their images as they are stored.
        contents: a cheap digest of the images, such as of their files' names and sizes.
        notices: what was left out, one line each.
        numbers: (N,) what messages call the rows; their own numbers if None.
    """

    origin: str
    labels: torch.Tensor
    classes: tuple[str, ...] | None
    read: Callable[[list[int]], Sequence[Encoded]]
    contents: str = ""
    notices: tuple[str, ...] = ()
    numbers: torch.Tensor | None = None

    def place(self, row: int, encoded: Encoded = None) -> str:
        """Name a sample: the image's file if it has one, else the row."""
        if isinstance(encoded, Mapping) and encoded["bytes"] is None and encoded["path"]:
            return plain(encoded["path"])
        return f"{self.origin}, row {row if self.numbers is None else int(self.numbers[row])}"

    def divide(self, share: float) -> tuple[Source, Source]:
        """Return two parts, to train and to test on; the labels alone decide the rows.

        Runs of every seed are tested on the same images. Of each class, the share goes to the test
        part, rounded, but at least one image; at least one stays in the training part, too, and
        before that if there is only one.

        Raises ConfigError if no class has two images.
        """
        if not len(self.labels):
            raise ConfigError(f"{self.origin} holds no images, so that nothing can be divided off")
        test = torch.zeros(len(self.labels), dtype=torch.bool)
        labels = self.labels.numpy()
        sizes = np.unique(labels, return_counts=True)[1]
        for found in np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1]):
            rows = torch.from_numpy(found)
            count = min(max(round(share * len(rows)), 1), len(rows) - 1)
            draws = generator(0, "test share", int(self.labels[rows[0]]))
            test[rows[torch.randperm(len(rows), generator=draws)[:count]]] = True
        if not test.any():
            raise ConfigError(
                f"{self.origin}: no class has two images, one of them for a test part of "
                f"{share:g}; add images, or name the part to test on with --test-split"
            )
        return self._only(~test), replace(self._only(test), notices=())

    def _only(self, chosen: torch.Tensor) -> Source:
        numbers = chosen.nonzero().flatten()

        def read(rows: list[int]) -> Sequence[Encoded]:
            return self.read(numbers[rows].tolist())

        return replace(self, labels=self.labels[numbers], read=read, numbers=numbers)
