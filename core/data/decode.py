"""From rows to pixels: decoded when their turn comes, or decoded once and kept.

Shapes: B samples of a part, C channels, S image size in pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import generator
from splitlab.core.data.images import Augmentation, open_image, to_pixels
from splitlab.core.data.source import Encoded, Source
from splitlab.core.data.words import brief

__all__ = ["Decoder", "Kept"]

PARTS_AHEAD = 2  # how many parts the threads decode beyond the one that is due


@dataclass(frozen=True)
class Decoder:
    """Reads, decodes, augments and resizes the images of a source as they are asked for.

    Attributes:
        source: where they lie.
        mode: Pillow's mode to convert them to, ``RGB`` or ``L``.
        size: height and width of the result, in pixels.
        seed: decides the augmentation, with the epoch and the row.
        augment: applied to each image; None only resizes.
        workers: threads that decode; 0 decodes in the caller's thread.
    """

    source: Source
    mode: str
    size: int
    seed: int
    augment: Augmentation | None
    workers: int

    def pixels(self, parts: Sequence[torch.Tensor], epoch: int) -> Iterator[torch.Tensor]:
        """Yield (B, C, S, S) uint8 for the rows of each part; threads end with the iterator.

        Raises ConfigError, naming file or row, when it comes to an image that cannot be read.
        """
        if not self.workers:
            for part in parts:
                yield torch.stack([self._decode(*image, epoch) for image in self._read(part)])
            return
        pool = ThreadPoolExecutor(self.workers)
        ahead: deque[list[Future[torch.Tensor]]] = deque()
        try:
            for part in parts:
                ahead.append(
                    [pool.submit(self._decode, *image, epoch) for image in self._read(part)]
                )
                if len(ahead) > PARTS_AHEAD:
                    yield torch.stack([image.result() for image in ahead.popleft()])
            while ahead:
                yield torch.stack([image.result() for image in ahead.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, part: torch.Tensor) -> Iterator[tuple[int, Encoded]]:
        rows = part.tolist()
        return zip(rows, self.source.read(rows), strict=True)

    def _decode(self, row: int, encoded: Encoded, epoch: int) -> torch.Tensor:
        """Return one image as (C, S, S) uint8, the same for the same seed, epoch and row."""
        try:
            image = open_image(encoded, self.mode)
        # Pillow's decoders answer damaged files with errors of a dozen types.
        except Exception as error:  # noqa: BLE001
            raise ConfigError(
                f"{self.source.place(row, encoded)}: not a readable image ({brief(error)}); "
                "repair it or take it out"
            ) from None
        if self.augment is not None:
            image = self.augment(image, generator(self.seed, "augment", epoch, row))
        elif image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return to_pixels(image)


class Kept:
    """Images that are the same in every epoch: decoded when they are first asked for, then kept.

    Args:
        decoder: of the images, without augmentation.
        shape: (N, C, S, S), of all of them.
    """

    def __init__(self, decoder: Decoder, shape: Sequence[int]) -> None:
        self._decoder = decoder
        self._images = torch.empty(tuple(shape), dtype=torch.uint8)
        self._done = torch.zeros(shape[0], dtype=torch.bool)

    def pixels(self, parts: Sequence[torch.Tensor], epoch: int) -> Iterator[torch.Tensor]:
        """Yield (B, C, S, S) uint8 for the rows of each part; errors are the decoder's."""
        due = [part[~self._done[part]] for part in parts]
        decoded = self._decoder.pixels([rows for rows in due if len(rows)], epoch)
        for part, rows in zip(parts, due, strict=True):
            if len(rows):
                self._images[rows] = next(decoded)
                self._done[rows] = True
            yield self._images[part]
