"""Between the host and a device, without waiting: what goes up, what comes back, what must hold.

A GPU works off a queue. Whoever reads a number of it (``item``, ``tolist``, ``if tensor``, a shape
that depends on data) stands still until the queue is empty, and then the GPU stands still until
there is work again. So nothing in a step reads: numbers go up with `upload`, come back with `Fetch`
while the device works on, and what must be true of them is told with ``cut.expect`` or
``message.expect``, whose `Verdicts` the engine asks once, late in the step. On a CPU all of this is
immediate, and an error is raised on the spot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["Fetch", "Pending", "Verdicts", "at_hand", "pretending", "upload"]

Complaint = Callable[[int], Exception]
"""Makes the error of the verdict of this number."""

_pretended = False


def at_hand(tensor: torch.Tensor) -> bool:
    """Return whether the host can read a tensor without waiting for a device.

    What follows from a number then may be left out, as the last rounds of an iteration that has
    converged. The result must be the same where it is not left out.
    """
    return tensor.device.type == "cpu" and not _pretended


@contextmanager
def pretending() -> Iterator[None]:
    """Treat what is on the CPU as if a GPU had it, for tests: nothing is `at_hand`."""
    global _pretended
    before, _pretended = _pretended, True
    try:
        yield
    finally:
        _pretended = before


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device; a GPU takes it from pinned memory when its turn comes.

    Args:
        tensor: anywhere; it is copied unless it is on the device already.
        device: to compute on.
    """
    if device.type != "cuda":  # a copy to the host has to wait
        return tensor.to(device)
    if tensor.device.type == "cpu" and not tensor.is_pinned():
        # torch keeps pinned memory until the copy is done, also if nobody else does. Not
        # pin_memory(), which takes no tensor that was expanded.
        tensor = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
    return tensor.to(device, non_blocking=True)


class Fetch:
    """A tensor on its way to the host; the device goes on behind it.

    Args:
        tensor: on any device; what happens to it later does not matter.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        tensor = tensor.detach()
        if tensor.device.type != "cuda":
            self._here = tensor.to("cpu", copy=True)
            return
        self._here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._here.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(tensor.device))

    def arrived(self) -> bool:
        """Return whether it is here, without waiting for it."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def tensor(self) -> torch.Tensor:
        """Return it, on the CPU; waits for what was queued in front of it, and no longer."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._here


class Pending:
    """Numbers and verdicts that are on their way."""

    def __init__(
        self, numbers: list[torch.Tensor], asked: list[tuple[torch.Tensor, Complaint]]
    ) -> None:
        self._count = len(numbers)
        self._asked = [(flags.numel(), error) for flags, error in asked]
        # Few kernels, since each takes longer to start than to run.
        parts = [number.detach().reshape(1) for number in numbers]
        flags = [flags.reshape(-1) for flags, _ in asked]
        if numbers and asked:  # in the numbers' dtype: not every device has one with 64 bits
            widest = functools.reduce(torch.promote_types, (each.dtype for each in parts))
            parts, flags = [each.to(widest) for each in parts], [_one(flags).to(widest)]
        self._fetch = Fetch(_one(parts + flags)) if parts or flags else None

    def settle(self) -> list[float]:
        """Return the numbers, when they are here.

        Raises:
            Exception: of the first verdict that is no.
        """
        if self._fetch is None:
            return []
        found: list[float] = self._fetch.tensor().tolist()
        self._fetch = None
        at = self._count
        for length, error in self._asked:
            flags = found[at : at + length]
            at += length
            if not all(flags):
                raise error(flags.index(False))
        return found[: self._count]


def _one(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


class Verdicts:
    """What must be true at one peer in one step, or in one evaluation batch."""

    def __init__(self) -> None:
        self._asked: list[tuple[torch.Tensor, Complaint]] = []

    def expect(self, flags: torch.Tensor, error: Complaint) -> None:
        """Take note of what must be true; raise at once where that is `at_hand`.

        Args:
            flags: bool, of any shape.
            error: is given the number of the first that is false, and returns what to raise.
        """
        if not at_hand(flags):
            self._asked.append((flags, error))
        elif not bool(flags.all()):
            raise error(flags.flatten().tolist().index(False))

    def fetch(self, *numbers: torch.Tensor) -> Pending:
        """Fetch these scalars, and the answers to all that was asked since the last time."""
        asked, self._asked = self._asked, []
        return Pending([*numbers], asked)
