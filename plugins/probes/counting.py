"""What the probes of cost share: FLOPs and seconds of a peer's part and of each plugin, in a step.

FLOPs are those of torch's own table (`torch.utils.flop_counter`): products of matrices,
convolutions and attention, two for a multiply and an add. Whatever else is computed, such as sums,
products of a matrix and a vector, sorting, transforms and decompositions, has no formula there and
counts as none; seconds tell it. What another probe computes in its hooks may be counted with a
plugin's; leave such probes out where it matters.

To count is slow, most of all for many small operations, so seconds are those of the next step,
which nobody counts.

Not ``FlopCounterMode`` itself: it follows modules with hooks on the autograd graph, and is made to
stand around a whole step, while here it opens and closes between two hooks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from splitlab.core import ConfigError, Cut, Message, Peer, hookimpl

__all__ = ["MODEL", "Counting"]

MODEL = "model"
"""What the peer's part of the model is called beside the plugins."""

_aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    made: int = sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    return made


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> int:
    shapes = (gradient.shape, query.shape, key.shape, value.shape)
    made: int = sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]
    return made


_FORMULAS: Mapping[Any, Callable[..., int]] = {
    # torch's table has attention on a GPU only.
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    **flop_registry,
}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of everything that torch computes while somebody counts.

    torch takes its modes off in the order in which they came, whoever leaves; so the probes of a
    peer share one counter, which stands there while any of them counts.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._counting = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled parts run as they are: torch would run them uncompiled, and round otherwise.

        Of these it sees the products, which are all that has a formula.
        """
        return True

    def begin(self) -> None:
        """Count for one more."""
        if not self._counting:
            self.__enter__()  # type: ignore[no-untyped-call]
        self._counting += 1

    def end(self) -> None:
        """Count for one less."""
        self._counting -= 1
        if not self._counting:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        return made


_COUNTERS: WeakKeyDictionary[Peer, _Counter] = WeakKeyDictionary()


class Counting:
    """A probe that counts in the second training step, and in every n-th behind it.

    It counts in the first step of another value, too, where a plugin's setting changes in mid-run.

    The first step warms up: `torch.compile` works in it. The step behind each of these is timed;
    where n is 1 they are the same, and its seconds are those of counting as well.

    Args:
        every: n.

    Attributes:
        flops: of the step that was counted last, by label; `MODEL` is the peer's part.
        seconds: of the step that was timed last, by label; a GPU may work on after a hook has
            returned, which is not in it.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ConfigError(f"every={every} is not allowed; 1 or more")
        self._every = every
        self._counts = False
        self._times = False
        self._inside = False  # whether something is looked at
        self._since = 0  # FLOPs at the last look
        self._began = 0  # when the model's part did
        self.flops: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Return whether this is a step to count in."""
        return step % self._every == min(1, self._every - 1) or self.peer.changes(step)

    def timed(self, step: int) -> bool:
        """Return whether this is a step to time."""
        return self.due(step) if self._every == 1 else step > 0 and self.due(step - 1)

    # A step.

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Learn which peer this is."""
        self.peer = peer
        self._counter = _COUNTERS.setdefault(peer, _Counter())

    @hookimpl
    def step_begin(self, step: int) -> None:
        """Begin to count, or to time, if it is due."""
        self._counts, self._times = self.due(step), self.timed(step)
        if self._counts:
            self.flops = defaultdict(int)
        if self._times:
            self.seconds = defaultdict(float)
        if self.peer.role == "client":
            self._open()

    @hookimpl
    def plugin_ran(self, label: str, nanoseconds: int) -> None:
        """Put down what a plugin took."""
        if self._counts:
            self.flops[label] += self._taken()
        if self._times:
            self.seconds[label] += nanoseconds / 1e9

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Count the plugins."""
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Generator[None, None, None]:
        """Count the plugins."""
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def after_receive(self, message: Message) -> Generator[None, None, None]:
        """Count the plugins."""
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def before_server_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Count the plugins, and then the server's part."""
        return (yield from self._around(before_the_model=True))

    @hookimpl(wrapper=True)
    def gradient_return(self, cut: Cut) -> Generator[None, None, None]:
        """Count the plugins, and then the client's way back."""
        return (yield from self._around(before_the_model=True))

    @hookimpl
    def step_end(self) -> None:
        """End the peer's part."""
        self._close()

    def complete(self) -> bool:
        """Return whether the step that is over was timed; ask once, in ``metrics``."""
        timed = self._times
        self._counts = self._times = False
        return timed

    @hookimpl
    def run_end(self) -> None:
        """Let go of torch, also where a step has failed."""
        self._close()
        self._counts = self._times = False

    # Between two hooks.

    def _around(self, *, before_the_model: bool = False) -> Generator[None, None, None]:
        if not (self._counts or self._times):
            yield
            return
        self._close()
        self._enter()
        try:
            yield
        finally:
            self._leave()
        if before_the_model:
            self._open()

    def _open(self) -> None:
        """The peer's part runs from here, if anybody wants to know."""
        if self._counts or self._times:
            self._enter()
            self._began = time.perf_counter_ns()

    def _close(self) -> None:
        """The peer's part ran until here, if it did."""
        if not self._inside:
            return
        if self._times:
            self.seconds[MODEL] += (time.perf_counter_ns() - self._began) / 1e9
        self._leave()
        if self._counts:
            self.flops[MODEL] += self._taken()

    def _enter(self) -> None:
        self._inside = True
        if self._counts:
            self._since = self._counter.flops
            self._counter.begin()

    def _leave(self) -> None:
        self._inside = False
        if self._counts:
            self._counter.end()

    def _taken(self) -> int:
        taken = self._counter.flops - self._since
        self._since = self._counter.flops
        return taken
