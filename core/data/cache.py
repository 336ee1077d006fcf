"""Images that are decoded once and kept: as uint8, in memory or on the client's device.

What is the same in every epoch is kept at the size that the model, or the crop on the device, takes
(`Kept`); what is augmented as it was stored is kept as it was stored (`Originals`). Either is
filled as its images are first asked for, and changes no number. Nothing is written to a disk: a run
that goes on fills it anew.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from splitlab.core.contract.errors import ConfigError, Notice
from splitlab.core.contract.transfer import upload

__all__ = [
    "CACHES",
    "Kept",
    "Originals",
    "Pixels",
    "PixelsOfParts",
    "kept_on",
    "room_for_originals",
]

CACHES = ("auto", "none", "memory", "gpu")
ALWAYS = 512 << 20  # bytes of decoded images up to which auto keeps a part, whatever is free
AUTO_SHARE = 0.1  # of the free memory that auto takes: many runs may share a machine
ASKED_SHARE = 0.75  # of it that is taken at most where it was asked for

PixelsOfParts = Generator[torch.Tensor, None, None]
"""(B, C, H, H) uint8 for the rows of each part that was asked for."""


class Pixels(Protocol):
    """What yields the images of a part."""

    def pixels(self, parts: Sequence[torch.Tensor], epoch: int) -> PixelsOfParts:
        """Yield (B, C, H, H) uint8 for the rows of each part."""


class Kept:
    """Images that are the same in every epoch: decoded when they are first asked for, then kept.

    Args:
        decoder: of the images, without augmentation.
        shape: (N, C, H, H), of all of them.
        device: where they are kept.
    """

    def __init__(
        self,
        decoder: Pixels,
        shape: Sequence[int],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        self._decoder = decoder
        self._images = torch.empty(tuple(shape), dtype=torch.uint8, device=device)
        self._done = torch.zeros(shape[0], dtype=torch.bool)

    def pixels(self, parts: Sequence[torch.Tensor], epoch: int) -> PixelsOfParts:
        """Yield (B, C, H, H) uint8 for the rows of each part, on the device; errors are the
        decoder's.
        """
        device = self._images.device
        due = [part[~self._done[part]] for part in parts]
        decoded = self._decoder.pixels([rows for rows in due if len(rows)], epoch)
        for part, rows in zip(parts, due, strict=True):
            if len(rows):
                self._images[upload(rows, device)] = upload(next(decoded), device)
                self._done[rows] = True
            yield self._images[upload(part, device)]


class Originals:
    """Images as they were stored, opened and converted, as many as there is room for.

    Args:
        part: of the data set, as messages call it.
        total: how many images there are.
        room: in bytes.
    """

    def __init__(self, part: str, total: int, room: float) -> None:
        self._part = part
        self._total = total
        self._room = room
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}
        self._full = False
        self._lock = threading.Lock()

    def get(self, row: int) -> npt.NDArray[np.uint8] | None:
        """Return an image (H, W) or (H, W, 3), if it is kept."""
        return self._kept.get(row)

    def keep(self, row: int, image: npt.NDArray[np.uint8]) -> None:
        """Keep an image, if there is room; that others are not kept is told once, in a `Notice`."""
        with self._lock:
            if row in self._kept or self._full:
                return
            if image.nbytes <= self._room:
                self._room -= image.nbytes
                self._kept[row] = image
                return
            self._full = True
            held = sum(each.nbytes for each in self._kept.values())
        warnings.warn(
            f"--cache memory keeps {len(self._kept):,} of {self._total:,} {self._part} images, "
            f"{_size(held)}: {ASKED_SHARE:.0%} of the memory that was free; the others are decoded "
            "in every epoch, to the same numbers",
            Notice,
            stacklevel=2,
        )


def kept_on(
    cache: str, parts: Mapping[str, Sequence[int]], device: torch.device
) -> Mapping[str, torch.device | None]:
    """Return where the images of each part are kept; None if nowhere.

    ``auto`` keeps a part in memory if it takes at most `ALWAYS` bytes, or if all of them together
    take at most `AUTO_SHARE` of the free memory.

    Args:
        cache: one of `CACHES`.
        parts: shape (N, C, H, H) of those that are the same in every epoch, by name.
        device: where the client computes; ``gpu`` means it, and on the CPU the same as ``memory``.

    Raises:
        ConfigError: they do not fit where they were asked for.
    """
    where = device if cache == "gpu" else torch.device("cpu")
    sizes = {name: math.prod(shape) for name, shape in parts.items()}
    total, free = sum(sizes.values()), free_bytes(where)
    if cache == "auto":
        fit = free is not None and total <= AUTO_SHARE * free
        return {name: where if fit or size <= ALWAYS else None for name, size in sizes.items()}
    if cache == "none":
        return dict.fromkeys(parts)
    if free is not None and total > ASKED_SHARE * free:
        images = " and ".join(f"{shape[0]:,} {name}" for name, shape in parts.items())
        C, H = next(iter(parts.values()))[1:3]
        other = "memory or --cache none" if where.type != "cpu" else "none"
        raise ConfigError(
            f"--cache {cache}: {images} images of {C} × {H} × {H} bytes take {_size(total)}, and "
            f"{ASKED_SHARE:.0%} of the {_size(free)} that are free {_place(where)} may be taken; "
            f"take --cache {other}, or a smaller --image-size"
        )
    return dict.fromkeys(parts, where)


def room_for_originals(parts: Mapping[str, Sequence[int]]) -> float:
    """Return how many bytes of images may be kept as they were stored.

    Args:
        parts: as of `kept_on`, which are kept in memory, too, and have not taken it yet.
    """
    free = free_bytes(torch.device("cpu"))
    return math.inf if free is None else ASKED_SHARE * free - sum(map(math.prod, parts.values()))


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory of a device is free; None where nobody tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept  # torch gives it out again
    if device.type != "cpu":
        return None
    return min([*_of_the_machine(), *_of_the_container()], default=None)


def _of_the_machine(file: Path = Path("/proc/meminfo")) -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in file.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) << 10


def _of_the_container(folder: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield what a limit leaves; what the files there hold can be taken from them at any time."""
    with suppress(OSError, ValueError):  # no such limit, or ``max``
        limit, used = (
            int((folder / name).read_text()) for name in ("memory.max", "memory.current")
        )
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        files = sum(int(n) for name, n in lines if name in ("active_file", "inactive_file"))
        yield max(limit - used + files, 0)


def _place(device: torch.device) -> str:
    return "in memory" if device.type == "cpu" else f"on {device}"


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
