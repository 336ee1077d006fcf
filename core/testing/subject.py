"""A plugin under test: the run that most of its checks look at, and whose fault its end is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import ConfigError, ProtocolError, SplitlabError
from splitlab.core.contract.message import Message
from splitlab.core.contract.settings import Bound, parameters
from splitlab.core.contract.traits import Gradient, Traits
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.decoding import decoding_problem, undeclared
from splitlab.core.testing.fresh import FreshPeers, Turn
from splitlab.core.testing.report import Failed, Skipped
from splitlab.core.testing.seen import difference
from splitlab.core.testing.state import Belongings, GlobalRandom
from splitlab.core.testing.tiny import Tiny, freeze, thaw

__all__ = [
    "CHANGES",
    "DECODED",
    "GRADIENT",
    "REPEATS",
    "RUNS",
    "TINY",
    "TURNS",
    "State",
    "Subject",
    "with_activations",
    "with_ratio",
]

# The checks that an error of the run belongs to, and that others refer to.
RUNS = "builds-and-runs"
DECODED = "decoded-fits-the-model"
REPEATS = "repeats-itself"
GRADIENT = "gradient-as-declared"
CHANGES = "changes-are-declared"

TINY = Tiny(image=16, patch=4, width=32, depth=2, samples=10)
"""N = 17: a class token and 4 x 4 patches, so that pooling and merging have something to do."""

TURNS: list[Turn] = [("train", 0), ("train", 1), ("evaluate", 0), ("train", 2), ("evaluate", 1)]
_RATIOS = (1e-6, 1e-5, 1e-4, 1e-3, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)

State = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Of a peer, as a checkpoint holds it: tensors and JSON values by name."""


@dataclass
class _Base:
    """The run that most checks look at.

    Attributes:
        couple: the peers; None if they could not be built.
        frames: up and down by turns.
        shared: what both instances can reach and one of them changed.
        disturbed: the global random generators that were drawn from.
        error: what ended the run, and which check it belongs to.
    """

    couple: Couple | None
    frames: list[bytes]
    shared: list[str]
    disturbed: list[str]
    error: Exception | None = None
    check: str = ""


class Subject:
    """A plugin under test, or a stack that has a name.

    Attributes:
        stack: the plugin, or the plugins of the stack.
        label: what reasons call it.
        text: what users type for it; None for a class.
        tiny: makes its peers.
        fresh: makes peers in other processes; None if no check needs them.
        breaks_at_edges: whether a check found that it does not survive inputs at the edge.
        needs_more_than_frames: whether one found that a peer does not go by the frames alone.
    """

    breaks_at_edges = False
    needs_more_than_frames = False

    def __init__(
        self,
        stack: Sequence[Bound],
        text: str | None,
        tiny: Tiny,
        fresh: FreshPeers | None,
    ) -> None:
        self.stack = stack
        self.label = " + ".join(bound.label for bound in stack)
        self.text = text
        self.tiny = tiny
        self.fresh = fresh

    @cached_property
    def base(self) -> _Base:
        """A short training with evaluations, through real frames."""
        frames: list[bytes] = []

        def carry(message: Message, upward: bool) -> Message:
            frames.append(freeze(message))
            return thaw(frames[-1])

        instances: list[object] = []

        def build(factory: Any, **params: Any) -> object:
            instances.append(factory(**params))
            return instances[-1]

        stack = [
            dataclasses.replace(bound, factory=partial(build, bound.factory))
            for bound in self.stack
        ]
        base = _Base(None, frames, [], [])
        with GlobalRandom(1) as world:
            try:
                base.couple = Couple(self.tiny, stack, carry=carry)
                belongings = [Belongings(instance) for instance in instances]
                self.run(base.couple)
                for client, server in zip(belongings, belongings[len(stack) :], strict=False):
                    base.shared += Belongings.changed_together(client, server)
            except Exception as error:  # noqa: BLE001 (it is a plugin's)
                base.error = error
            base.disturbed = world.disturbed()
        if base.error is not None:
            base.check = _whose(base)
        return base

    @property
    def traits(self) -> Traits:
        """What the plugin declares; of a stack, what its plugins declare together."""
        declared = list(self.working().client.stack.traits().values())
        order: tuple[Gradient, ...] = ("corrected", "straight-through", "natural")
        return Traits(
            changes=frozenset().union(*(traits.takes_away for traits in declared)),
            evaluation=any(traits.evaluation for traits in declared),
            stateful=any(traits.stateful for traits in declared),
            gradient=min((traits.gradient for traits in declared), key=order.index),
        )

    @property
    def waits(self) -> str:
        """Why the plugins say that their steps wait for a GPU; empty if none does."""
        declared = self.working().client.stack.traits().values()
        return "; ".join(dict.fromkeys(traits.waits for traits in declared if traits.waits))

    def couple(self, stack: Sequence[Bound] = (), **settings: Any) -> Couple:
        """Build new peers."""
        return Couple(self.tiny, stack or self.stack, **settings)

    def run(self, couple: Couple, turns: Sequence[Turn] = TURNS) -> Couple:
        """Take these turns."""
        for what, number in turns:
            batch = self.tiny.batch(number)
            if what == "train":
                couple.train(batch, number)
            else:
                couple.evaluate(batch, number)
        return couple

    def working(self) -> Couple:
        """Return the peers of the base run; skip the check if that run failed."""
        if self.base.couple is None or self.base.error is not None:
            raise Skipped(f"needs steps that run, see {self.base.check}")
        return self.base.couple

    @cached_property
    def second(self) -> Couple:
        """The peers of the same run once more, with other global random states."""
        self.working()
        with GlobalRandom(2):
            return self.run(self.couple())

    @cached_property
    def irregular(self) -> str | None:
        """Where the two runs differ."""
        first = self.working().arrived
        return difference(first, self.second.arrived[: len(first)])

    def repeating(self) -> Couple:
        """Return the peers of the base run; skip the check if that run does not repeat itself."""
        couple = self.working()
        if self.irregular:
            raise Skipped(f"needs runs that repeat themselves, see {REPEATS}")
        return couple

    @cached_property
    def smallest_ratio(self) -> float | None:
        """The smallest ratio that the plugin takes on this model; None if it takes none."""
        if len(self.stack) == 1 and "ratio" in parameters(self.stack[0].factory):
            for ratio in _RATIOS:
                with suppress(ConfigError):
                    self.tiny.client(with_ratio(self, ratio))
                    return ratio
        return None

    def has(self, hook: str) -> bool:
        """Return whether a plugin implements the hook."""
        return any(hasattr(bound.factory, hook) for bound in self.stack)

    def failed(self, text: str) -> Failed:
        """Return the error that fails a check."""
        what = "plugin" if len(self.stack) == 1 else "stack"
        return Failed(f"{what} {self.label!r}: {text}")

    def charged(self, check: str) -> None:
        """Fail this check if the base run ended with an error that belongs to it."""
        if self.base.check == check:
            error = self.base.error
            if isinstance(error, SplitlabError):
                named = any(repr(bound.label) in str(error) for bound in self.stack)
                raise Failed(str(error)) if named else self.failed(str(error))
            where = f" (last hook: {_last(self.base)})" if _last(self.base) else ""
            raise self.failed(f"{type(error).__name__}: {error}{where}")


def _last(base: _Base) -> str:
    event = base.couple.events[-1] if base.couple and base.couple.events else None
    return f"{event.hook} at the {event.role}" if event else ""


def _whose(base: _Base) -> str:
    """Return the check that the error of the base run belongs to."""
    if base.disturbed:
        return REPEATS
    if base.couple is None or not base.couple.events:
        return RUNS
    event = base.couple.events[-1]
    if event.hook in ("after_client_forward", "before_server_forward") and event.training:
        left = event.after.tensors.get("activations")
        floats = left is not None and left.is_floating_point()
        if floats and event.before.on_graph and not event.after.on_graph:
            return GRADIENT
    if decoding_problem(base.couple):
        return DECODED
    if isinstance(base.error, ProtocolError):  # what arrived is nothing that the traits tell of
        return CHANGES if undeclared(base.couple) else DECODED
    behind = (event.role, event.hook, event.training) == ("server", "before_server_forward", True)
    # The server's part ran on what was decoded, and its gradient has nowhere to go.
    return GRADIENT if behind and "no gradient" in str(base.error) else RUNS


def with_ratio(s: Subject, ratio: float) -> list[Bound]:
    """Return the plugin with another ratio."""
    return [dataclasses.replace(s.stack[0], params={**s.stack[0].params, "ratio": ratio})]


def with_activations(cut: Cut, value: torch.Tensor) -> None:
    """Give the cut other activations, on the same graph."""
    cut.activations = cut.activations * 0 + value.to(cut.activations)
