"""What a plugin or a probe knows of the peer that it lives in; ``setup`` is given it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import nn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.measure import Measurement
from splitlab.core.contract.part import Layout
from splitlab.core.contract.seeding import generator

__all__ = ["Peer", "Schedule"]

M = TypeVar("M", bound=Measurement)


def _anything(request: Measurement) -> None:
    """Return None: everything can be measured."""


@dataclass(frozen=True)
class Schedule:
    """How long a run is to last, as far as it is decided beforehand.

    Attributes:
        training_samples: of an epoch.
        unit: of the budget: ``steps``, ``epochs``, ``bytes`` or ``nominal``.
        amount: of the budget, in that unit; bytes are those of training, in both directions.
        steps: how many it is expected to allow, where the learning rate or a plugin's settings
            follow from it.
    """

    training_samples: int
    unit: str
    amount: float
    steps: int | None = None


@dataclass(eq=False, kw_only=True)
class Peer:
    """One peer's facts, and what a plugin may ask of it.

    Attributes:
        role: ``"client"`` or ``"server"``.
        seed: the run's seed, the same at both peers; draw with `generator`.
        classes: C, number of classes.
        layout: what plugins see at the cut; `tokens` and the like are its fields.
        cut: behind which segment of the model the cut lies.
        batch_size: B of a full batch; the last batch of an epoch may be smaller.
        device: where this peer computes.
        schedule: how long the run is to last; read it as `training_samples`, `steps_per_epoch` and
            `budget`. None at a server that its client has not greeted yet.
        augmented: whether the images of a sample differ from epoch to epoch, by augmentation or
            mixup. Client only.
        autocast: what `torch.autocast` lets both parts of the model compute in; activations at the
            cut and their gradient then have this dtype, too, in hooks and on the link. None: they
            have that of the model's numbers. Hooks themselves run outside of autocast.
        unable: why the client's part cannot measure something, or None; asked by `request`.
        requests: what was asked for with `request`.
        modules: what the plugins registered with `add_module`.
        parameters: of this peer's part of the model, by the whole model's names, for those who
            watch; empty while a run is planned.
        compared: every how many steps somebody asked for a reference, see `compare`.
        pieces: into how many equal shares the run is divided by settings that change meanwhile.
    """

    role: Literal["client", "server"]
    seed: int
    classes: int
    layout: Layout
    cut: int
    batch_size: int
    device: torch.device
    schedule: Schedule | None = None
    augmented: bool = False
    autocast: torch.dtype | None = None
    unable: Callable[[Measurement], str | None] = _anything
    requests: list[Measurement] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)
    pieces: set[int] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        """N, tokens per sample at the cut, special tokens included."""
        return self.layout.tokens

    @property
    def width(self) -> int:
        """D, width of a token."""
        return self.layout.width

    @property
    def prefix_tokens(self) -> int:
        """How many special tokens (class, distillation, registers) stand in front."""
        return self.layout.prefix_tokens

    @property
    def least_tokens(self) -> int:
        """The fewest tokens of which the server can make logits, special tokens included."""
        return self.layout.least_tokens

    @property
    def class_token(self) -> bool:
        """Whether the first special token is a class token."""
        return self.layout.class_token

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches (down, across); None where the model has no such grid."""
        return self.layout.grid

    @property
    def training_samples(self) -> int:
        """How many samples an epoch has."""
        return self._scheduled("training_samples").training_samples

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch, of which the last may have a smaller batch."""
        return -(-self._scheduled("steps_per_epoch").training_samples // self.batch_size)

    @property
    def budget(self) -> tuple[str, float]:
        """When the run ends: a unit (``steps``, ``epochs``, ``bytes``, ``nominal``) and its amount.

        Like `training_samples` and `steps_per_epoch`, it is the client's to decide. A server that
        waits for its client (``splitlab serve``) learns it after ``setup``, before the first step:
        there, read all three in the hooks of a step.

        Raises:
            ConfigError: it is not known yet.
        """
        schedule = self._scheduled("budget")
        return schedule.unit, schedule.amount

    def piece(self, step: int, pieces: int) -> int:
        """Return in which of so many equal shares of the run's steps a step is, the first one 0.

        A step beyond the run's expected end is in the last one.

        Raises:
            ConfigError: the run's length in steps is not known.
        """
        steps = self._scheduled("piece").steps
        if steps is None:
            raise ConfigError(
                "peer.piece needs the run's length in steps, which is told only where a learning "
                "rate or a setting of a plugin, such as ratio=0.4..0.1, follows from it"
            )
        return min(step * pieces // steps, pieces - 1)

    def changes(self, step: int) -> bool:
        """Return whether a plugin's setting has another value from this step on."""
        return step > 0 and any(self.piece(step, n) != self.piece(step - 1, n) for n in self.pieces)

    def _scheduled(self, what: str) -> Schedule:
        if self.schedule is None:
            raise ConfigError(
                f"peer.{what} is the client's to decide, and this server waits for its client: "
                "read it in a hook of a step, not in setup"
            )
        return self.schedule

    def request(self, who: str, what: M) -> M:
        """Ask the client's part to measure something; call it in ``setup``, at either peer.

        Args:
            who: the plugin or probe that asks, for the error message.
            what: a request such as ``Attention(heads="max")``.

        Returns:
            The request, under which the answer lies in ``cut.measured`` at the client.

        Raises:
            ConfigError: this model, cut here, cannot measure that.
        """
        reason = self.unable(what)
        if reason:
            raise ConfigError(f"{who!r} needs {reason}")
        if what not in self.requests:
            self.requests.append(what)
        return what

    def compare(self, every: int) -> None:
        """Ask for the gradient without the stack, in step 0 and every so many behind it.

        Client only, in ``setup``; for probes. It lies in ``cut.reference`` and changes nothing of
        the step, but costs the time of one: before it, the batch crosses the link uncompressed and
        its gradient comes back, with the same draws of dropout and no optimizer step. The ledger
        counts these bytes as evaluation, and no budget does.

        Raises:
            ConfigError: every is less than 1.
        """
        if every < 1:
            raise ConfigError(f"every={every} is not allowed; 1 or more")
        self.compared.append(every)

    def add_module(self, module: nn.Module) -> None:
        """Register a module: moved to the device, trained by the peer's optimizer, checkpointed.

        Only in ``setup``; there its weights are drawn from the run's seed.
        """
        self.modules.append(module.to(self.device))

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a CPU generator for this purpose, the same at both peers and after a resume.

        Put the step into the purpose for a fresh draw at every step: ``("kmeans", cut.step)``.
        """
        return generator(self.seed, *purpose)
