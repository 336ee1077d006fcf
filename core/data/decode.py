"""From rows to pixels, decoded when their turn comes: here, in threads, or in processes.

Shapes: B samples of a part, C channels, S height and width of the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import generator
from splitlab.core.data.augment import augmenting
from splitlab.core.data.cache import Originals, PixelsOfParts
from splitlab.core.data.fleet import Answer, Fleet
from splitlab.core.data.images import Augmentation, open_image, to_pixels
from splitlab.core.data.source import Encoded, Source
from splitlab.core.data.words import brief

__all__ = ["Decoder", "Job", "perform"]

PARTS_AHEAD = 2  # how many parts the workers decode beyond the one that is due
IMAGES_A_JOB = 8  # that a process is asked for at once


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
        fleet: processes that decode for the threads.
        policy: the text that `augment` was made of, for the processes.
        originals: keeps images as they were stored.
    """

    source: Source
    mode: str
    size: int
    seed: int
    augment: Augmentation | None
    workers: int
    fleet: Fleet | None = None
    policy: str = "none"
    originals: Originals | None = None

    def pixels(self, parts: Sequence[torch.Tensor], epoch: int) -> PixelsOfParts:
        """Yield (B, C, S, S) uint8 for the rows of each part; threads end with the iterator.

        Raises ConfigError, naming file or row, when it comes to an image that cannot be read.
        """
        if not self.workers:
            for part in parts:
                yield torch.stack([self._decode(*image, epoch) for image in self._read(part)])
            return
        pool = ThreadPoolExecutor(self.workers)
        begin = self._in_threads if self.fleet is None else self._in_processes
        ahead: deque[list[Future[torch.Tensor]]] = deque()
        try:
            for part in parts:
                ahead.append(begin(pool, part, epoch))
                if len(ahead) > PARTS_AHEAD:
                    yield _joined(ahead.popleft())
            while ahead:
                yield _joined(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _in_threads(
        self, pool: ThreadPoolExecutor, part: torch.Tensor, epoch: int
    ) -> list[Future[torch.Tensor]]:
        return [pool.submit(self._decode, *image, epoch) for image in self._read(part)]

    def _in_processes(
        self, pool: ThreadPoolExecutor, part: torch.Tensor, epoch: int
    ) -> list[Future[torch.Tensor]]:
        images = [*self._read(part)]
        starts = range(0, len(images), IMAGES_A_JOB)
        return [pool.submit(self._ask, images[at : at + IMAGES_A_JOB], epoch) for at in starts]

    def _read(self, part: torch.Tensor) -> Sequence[tuple[int, Encoded]]:
        rows = part.tolist()
        if self.originals is None:
            return [*zip(rows, self.source.read(rows), strict=True)]
        kept: dict[int, Encoded] = {row: self.originals.get(row) for row in rows}
        absent = [row for row, image in kept.items() if image is None]
        kept |= zip(absent, self.source.read(absent) if absent else (), strict=True)
        return [(row, kept[row]) for row in rows]

    def _ask(self, images: Sequence[tuple[int, Encoded]], epoch: int) -> torch.Tensor:
        """Let a process decode images of a part; returns (n, C, S, S)."""
        assert self.fleet is not None
        rows, encoded = zip(*images, strict=True)
        keep = self.originals is not None
        job = Job(self.mode, self.size, self.seed, self.policy, epoch, rows, encoded, keep)
        out = job.room()
        answer = self.fleet.ask(job, out)
        if answer.bad is not None:
            at, why = answer.bad
            raise self._unreadable(rows[at], encoded[at], why)
        if self.originals is not None:
            for at, image in answer.opened:
                self.originals.keep(rows[at], image)
        return torch.from_numpy(out)

    def _unreadable(self, row: int, encoded: Encoded, why: str) -> ConfigError:
        return ConfigError(
            f"{self.source.place(row, encoded)}: not a readable image ({why}); repair it or take "
            "it out"
        )

    def _decode(self, row: int, encoded: Encoded, epoch: int) -> torch.Tensor:
        """Return one image as (C, S, S) uint8, the same for the same seed, epoch and row."""
        try:
            image = open_image(encoded, self.mode)
        # Pillow's decoders answer damaged files with errors of a dozen types.
        except Exception as error:  # noqa: BLE001
            raise self._unreadable(row, encoded, brief(error)) from None
        if self.originals is not None:
            self.originals.keep(row, np.asarray(image))
        return _to_square(image, self.size, self.augment, self.seed, epoch, row)


def _joined(images: Sequence[Future[torch.Tensor]]) -> torch.Tensor:
    """Return (B, C, S, S): what was made one by one (C, S, S), or several at once."""
    done = [image.result() for image in images]
    return torch.stack(done) if done[0].dim() == 3 else torch.cat(done)


def _to_square(
    image: Image.Image, size: int, augment: Augmentation | None, seed: int, epoch: int, row: int
) -> torch.Tensor:
    if augment is not None:
        image = augment(image, generator(seed, "augment", epoch, row))
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return to_pixels(image)


# In a process that decodes.


@dataclass(frozen=True)
class Job:
    """Images that a process is asked for.

    Attributes:
        mode: as in `Decoder`; so are the next three.
        size: see there.
        seed: see there.
        policy: see there.
        epoch: that decides the augmentation, with seed and row.
        rows: of the images.
        encoded: as the source has them.
        keep: whether they are to come back as they were stored, too.
    """

    mode: str
    size: int
    seed: int
    policy: str
    epoch: int
    rows: Sequence[int]
    encoded: Sequence[Encoded]
    keep: bool

    def room(self) -> npt.NDArray[np.uint8]:
        """Return an array for the pixels (n, C, S, S)."""
        channels = Image.getmodebands(self.mode)
        return np.empty((len(self.rows), channels, self.size, self.size), np.uint8)


def perform(job: Job) -> tuple[Answer, npt.NDArray[np.uint8]]:
    """Return what to say of a job, and the pixels (n, C, S, S); what warns is left to the caller.

    Raises whatever an augmentation raises.
    """
    augment = _augmentation(job.policy, job.size)
    pixels = job.room()
    opened = []
    for at, (row, encoded) in enumerate(zip(job.rows, job.encoded, strict=True)):
        try:
            image = open_image(encoded, job.mode)
        # Pillow's decoders answer damaged files with errors of a dozen types.
        except Exception as error:  # noqa: BLE001
            return Answer(bad=(at, brief(error))), pixels
        if job.keep and not isinstance(encoded, np.ndarray):  # else it is kept already
            opened.append((at, np.asarray(image)))
        pixels[at] = _to_square(image, job.size, augment, job.seed, job.epoch, row).numpy()
    return Answer(opened=opened), pixels


@cache
def _augmentation(policy: str, size: int) -> Augmentation | None:
    of_image = augmenting(policy).of_image
    return None if of_image is None else of_image(size)
