"""A split: its samples in the order of an epoch, normalised, in batches.

Every random draw (order of the samples, augmentation) comes from a generator of its own, derived
from the seed, the epoch and the sample; global random state is neither read nor changed.

Shapes: N samples of a split, B samples of a batch, C channels, S image size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import generator
from splitlab.core.data.decode import Decoder, Kept
from splitlab.core.data.images import Augmentation
from splitlab.core.data.source import Source

__all__ = ["Loading", "Split"]

DECODED_LIMIT = 512 << 20  # bytes of decoded images up to which a split is kept decoded
DECODED_AHEAD = 6_000  # images up to which such a split is decoded before the first step
DECODED_AT_ONCE = 500  # images between two calls of a Loading

Loading = Callable[[str, int, int], None]
"""Called with the split's name, the images decoded so far, and all of them."""


class Split:
    """The training or the test part of a data set; `load_data` makes it.

    Images are decoded once and kept as uint8 where they fit in `DECODED_LIMIT` and are the same in
    every epoch: all of them at once, so that a damaged one is known at the start, or each when its
    turn first comes, where they are more than `DECODED_AHEAD`. Otherwise each batch is decoded when
    its turn comes. `workers` threads work ahead.

    Attributes:
        classes: their names, by class id.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        classes: tuple[str, ...],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        augment: Augmentation | None,
        workers: int,
        loading: Loading | None,
    ) -> None:
        self.classes = classes
        self._name = name
        self._targets = source.labels
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)
        self._seed = seed
        mode = "RGB" if len(mean) == 3 else "L"
        decoder = Decoder(source, mode, image_size, seed, augment, workers)
        shape = (len(source.labels), len(mean), image_size, image_size)
        self._images: Decoder | Kept = decoder
        if augment is None and math.prod(shape) <= DECODED_LIMIT:
            self._images = Kept(decoder, shape)
            if len(self) <= DECODED_AHEAD:
                self._decode_all(loading)

    def __len__(self) -> int:
        return len(self._targets)

    def balanced(self, count: int) -> torch.Tensor:
        """Return (count,) rows of this split, of every class as many as of the others, or all.

        The labels alone decide them, and those of a smaller count are among them.
        """
        turn = torch.empty_like(self._targets)  # the first of each class, then the second of each
        for label in range(len(self.classes)):
            rows = (self._targets == label).nonzero().flatten()
            draws = generator(0, "balanced", label)
            turn[rows[torch.randperm(len(rows), generator=draws)]] = torch.arange(len(rows))
        order = torch.argsort(turn * len(self.classes) + self._targets)
        return order[:count].sort().values

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        skip: int = 0,
        shuffle: bool = False,
        rows: torch.Tensor | None = None,
    ) -> Iterator[Batch]:
        """Iterate over one epoch; the last batch may be smaller.

        Args:
            batch_size: samples per batch, at least 1.
            epoch: decides, with the seed, the order and the augmentation; nothing else does.
            skip: how many batches of this epoch are done; their images are not decoded.
            shuffle: mix the samples, instead of taking them as they lie.
            rows: the samples to take, (N,), in this order; the others are not decoded. All by
                default.

        Raises ConfigError for an impossible size at once, and, naming file or row, when it comes to
        an image that cannot be read.
        """
        if batch_size < 1 or skip < 0:
            raise ConfigError(f"batch size {batch_size} with skip {skip}: at least 1 and 0 are due")
        order = torch.arange(len(self)) if rows is None else rows
        if shuffle:
            draws = generator(self._seed, "order", self._name, epoch)
            order = order[torch.randperm(len(order), generator=draws)]
        starts = range(skip * batch_size, len(order), batch_size)
        return self._iterate([order[at : at + batch_size] for at in starts], epoch)

    def _iterate(self, parts: Sequence[torch.Tensor], epoch: int) -> Iterator[Batch]:
        for rows, pixels in zip(parts, self._images.pixels(parts, epoch), strict=True):
            images = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
            yield Batch(images, self._targets[rows], rows)

    def _decode_all(self, loading: Loading | None) -> None:
        starts = range(0, len(self), DECODED_AT_ONCE)
        parts = [torch.arange(at, min(at + DECODED_AT_ONCE, len(self))) for at in starts]
        for rows, _ in zip(parts, self._images.pixels(parts, epoch=0), strict=True):
            if loading is not None:
                loading(self._name, int(rows[-1]) + 1, len(self))
