"""A split: its samples in the order of an epoch, normalised, in batches.

Every random draw (order of the samples, augmentation) comes from a generator of its own, derived
from the seed, the epoch and the sample; global random state is neither read nor changed.

Shapes: N samples of a split, B samples of a batch, C channels, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import generator
from splitlab.core.data.augment import Augmenting
from splitlab.core.data.cache import Kept, Originals, Pixels
from splitlab.core.data.decode import Decoder
from splitlab.core.data.fleet import Fleet
from splitlab.core.data.source import Source
from splitlab.core.data.upload import CudaLane, uploaded

__all__ = ["Handling", "Loading", "Split", "decoded_size"]

DECODED_AHEAD = 6_000  # images up to which a split that is kept is decoded before the first step
DECODED_AT_ONCE = 500  # images between two calls of a Loading

Loading = Callable[[str, int, int], None]
"""Called with the split's name, the images decoded so far, and all of them."""


@dataclass(frozen=True)
class Handling:
    """How images are handled, which changes no number.

    Attributes:
        workers: threads that decode; 0 decodes in the caller's thread.
        fleet: processes that decode for them.
        originals: bytes of images that may be kept as they were stored; None keeps none.
        device: where batches are to be.
        loading: told how far the decoding at load time has come.
    """

    workers: int = 0
    fleet: Fleet | None = None
    originals: float | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    loading: Loading | None = None


def decoded_size(policy: Augmenting, image_size: int) -> int:
    """Return the height and width to which images are decoded, in pixels."""
    batch = policy.of_batch
    return image_size if batch is None else batch.stored_size(image_size)


class Split:
    """The training or the test part of a data set; `load_data` makes it.

    Images that are the same in every epoch are decoded once and kept as uint8 where there is a
    place for them (see `cache`): all of them at once, so that a damaged one is known at the start,
    or each when its turn first comes, where they are more than `DECODED_AHEAD`. Otherwise each
    batch is decoded when its turn comes. Workers decode ahead, and for a GPU batches are made ready
    and copied up ahead.

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
        policy: Augmenting,
        place: torch.device | None,
        handling: Handling,
    ) -> None:
        self.classes = classes
        self._name = name
        self._targets = source.labels
        self._device = handling.device
        self._mean, self._std = (
            torch.tensor(values).view(-1, 1, 1).to(self._device) for values in (mean, std)
        )
        # In memory of the device: a GPU multiplies by the inverse of what is in the CPU's.
        self._white = torch.tensor(255.0, device=self._device)
        self._seed = seed
        self._size = image_size
        self._batchwise = policy.of_batch
        self._drawn: tuple[int, torch.Tensor] | None = None
        size = decoded_size(policy, image_size)
        self._shape = len(mean), size, size
        augment = None if policy.of_image is None else policy.of_image(image_size)
        decoder = Decoder(
            source,
            "RGB" if len(mean) == 3 else "L",
            size,
            seed,
            augment,
            handling.workers,
            handling.fleet,
            policy.text if augment else "none",
            Originals(name, len(source.labels), handling.originals)
            if augment and handling.originals is not None
            else None,
        )
        self._images: Pixels = decoder
        if place is not None:
            self._images = Kept(decoder, (len(source.labels), *self._shape), place)
            if len(self) <= DECODED_AHEAD:
                self._decode_all(handling.loading)
        uploads = self._device.type == "cuda" and place != self._device
        # One for all epochs: torch keeps memory by stream, and would have some of each one's.
        self._lane = CudaLane(self._device) if uploads else None

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
    ) -> Generator[Batch, None, None]:
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

    def _iterate(self, parts: Sequence[torch.Tensor], epoch: int) -> Generator[Batch, None, None]:
        found = self._images.pixels(parts, epoch)
        if self._lane is not None:
            found = uploaded(found, parts, self._shape, self._lane)
        with closing(found):
            for rows, pixels in zip(parts, found, strict=True):
                images = self._finished(pixels, rows, epoch)
                yield Batch(images, self._targets[rows], rows)

    def _finished(self, pixels: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        """Augment and normalise a batch on its device."""
        pixels, batchwise = pixels.to(self._device), self._batchwise
        if batchwise is None:
            return self._normalised(pixels)
        drawn = self._numbers(epoch)[rows]
        images = self._normalised(batchwise.cropped(pixels, drawn, self._size))
        return batchwise.erased(images, drawn)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(torch.float32).div_(self._white).sub_(self._mean).div_(self._std)

    def _numbers(self, epoch: int) -> torch.Tensor:
        """Return the random numbers of every sample in an epoch."""
        assert self._batchwise is not None
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._batchwise.draw(len(self), self._seed, epoch)
        return self._drawn[1]

    def _decode_all(self, loading: Loading | None) -> None:
        starts = range(0, len(self), DECODED_AT_ONCE)
        parts = [torch.arange(at, min(at + DECODED_AT_ONCE, len(self))) for at in starts]
        for rows, _ in zip(parts, self._images.pixels(parts, epoch=0), strict=True):
            if loading is not None:
                loading(self._name, int(rows[-1]) + 1, len(self))
