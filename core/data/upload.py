"""Batches on their way to a GPU: made ready in a thread and copied up while the step before runs.

A part of the images is at one of three places: in the making (in the thread, into pinned memory),
on its way (a copy on a stream of its own), or due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from splitlab.core.data.cache import PixelsOfParts

__all__ = ["CudaLane", "Lane", "uploaded"]

MAKING = 2  # parts that are made ready beyond those that are on their way
ON_THEIR_WAY = 1  # parts that are copied up beyond the one that is due


class Lane(Protocol):
    """A way to a device. The thread that computes calls it, and no other."""

    def room(self, shape: Sequence[int]) -> torch.Tensor:
        """Return memory of the host that can be copied from in the background, uint8."""

    def send(self, host: torch.Tensor) -> Any:
        """Begin to copy; returns what `receive` takes."""

    def receive(self, sent: Any) -> torch.Tensor:
        """Return the copy; what computes with it from now on waits for it, this thread does not."""


class CudaLane:
    """To a GPU: pinned memory, and a stream of its own, beside that of the computation.

    All calls of CUDA are made by the thread that computes: another one may not, while a graph is
    recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def room(self, shape: Sequence[int]) -> torch.Tensor:
        """Return pinned memory."""
        # torch gives a block of pinned memory to nobody else before copies from it are done.
        return torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=True)

    def send(self, host: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Begin to copy, on the lane's stream."""
        with torch.cuda.stream(self._stream):
            copy = host.to(self._device, non_blocking=True)
            return copy, self._stream.record_event()

    def receive(self, sent: tuple[torch.Tensor, torch.cuda.Event]) -> torch.Tensor:
        """Return the copy, for which the current stream waits."""
        copy, copied = sent
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        copy.record_stream(computing)  # its memory is the other stream's until that is done, too
        return copy


def uploaded(
    pixels: PixelsOfParts,
    parts: Sequence[torch.Tensor],
    shape: Sequence[int],
    lane: Lane,
) -> PixelsOfParts:
    """Yield the pixels of each part on the lane's device; the thread ends with the iterator.

    Args:
        pixels: (B, C, H, H) uint8 on the CPU, for each part; called in a thread. Its errors are
            raised when their part is to be copied.
        parts: their rows.
        shape: (C, H, H).
        lane: to the device.
    """
    making: deque[tuple[torch.Tensor, Future[None]]] = deque()
    sent: deque[Any] = deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="splitlab-upload")

    def make(host: torch.Tensor) -> None:
        # Not torch's copy, for which this thread would start a pool of threads of its own.
        np.copyto(host.numpy(), next(pixels).numpy())

    def send() -> None:
        host, made = making.popleft()
        made.result()
        sent.append(lane.send(host))

    try:
        for part in parts:
            host = lane.room((len(part), *shape))
            making.append((host, thread.submit(make, host)))
            if len(making) > MAKING:
                send()
            if len(sent) > ON_THEIR_WAY:
                yield lane.receive(sent.popleft())
        while making or sent:
            if making:
                send()
            if sent and (len(sent) > ON_THEIR_WAY or not making):
                yield lane.receive(sent.popleft())
    finally:
        thread.shutdown(cancel_futures=True)
        pixels.close()
