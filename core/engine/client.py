"""The client: has the data, runs the first part of the model, and asks the server for the rest.

It imports no link: `train` and `query` are conversations (`splitlab.core.engine.conversation`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.cut import Cut, Reference
from splitlab.core.contract.errors import PluginError
from splitlab.core.contract.measure import Measured
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.contract.part import Part
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.transfer import Fetch, upload
from splitlab.core.engine.arrival import (
    ACTIVATIONS,
    GRADIENT,
    PREDICTIONS,
    TARGETS,
    check_answer,
    check_answer_decoded,
    check_predictions,
    loss_of,
)
from splitlab.core.engine.conversation import Conversation
from splitlab.core.engine.optimization import Optimization
from splitlab.core.engine.stack import Stack
from splitlab.core.engine.worker import (
    Worker,
    by_label,
    check_tensor,
    class_ids,
    fetch_losses,
)

__all__ = ["Answer", "Client", "Trained"]


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training step.

    Attributes:
        step: its number, from 0.
        samples: of its batch.
        loss: of its batch.
        metrics: numbers of the client's plugins and probes, by their labels.
    """

    step: int
    samples: int
    loss: float
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What came of an evaluation batch: class ids (B,) int64 on the CPU, and the summed loss."""

    ids: torch.Tensor
    loss_sum: float


class Client(Worker):
    """Has the data: runs the first part, and backward through it with what comes back."""

    def __init__(self, part: Part, stack: Stack, peer: Peer, optimization: Optimization) -> None:
        super().__init__(part, stack, peer, optimization)
        for request in peer.requests:
            part.watch(request)

    def train(self, batch: Batch, step: int) -> Conversation[Trained]:
        """Train on a batch: an ACTIVATION goes out, a GRADIENT comes in.

        On a GPU, what was wrong with the gradients of the step before is raised when the forward
        pass of this one is in the queue, and before anything is sent.
        """
        self._trainer.weigh(averaged=False)
        compared = any(step % every == 0 for every in self.peer.compared)
        reference = (yield from self._without_stack(batch, step)) if compared else None
        self.stack.step_begin(step)
        with isolated_rng(self.peer.seed, "client", step, device=self.peer.device):
            cut = self._cut(batch, step, training=True)
            cut.reference = reference
            made = cut.activations
            self.stack.after_client_forward(cut)
        asked = self._message(cut, stacked=True)
        self.settle()
        message = yield asked
        loss = self._loss(message, Kind.GRADIENT, asked)
        message.verdicts = cut.verdicts
        message.to(self.peer.device)
        self.stack.after_receive(message)
        cut.gradient = check_answer_decoded(message, GRADIENT)
        self._check_gradient(cut)
        self.stack.gradient_return(cut)
        on_graph = [cut.activations] if cut.activations.requires_grad else []
        losses = fetch_losses(cut) if cut.losses else None
        self._backward(cut, on_graph, cut.gradient)
        passing = _leaving(cut, made) | {"the gradient at the cut, as it came back,": cut.gradient}
        self._step(step, passing, cut.verdicts)
        self._owed.append(cut.verdicts.fetch())
        own = by_label(cut, losses.settle()) if losses else {}
        return Trained(step, len(batch.targets), loss, self.stack.metrics(step, own))

    def query(self, batch: Batch, number: int, *, stacked: bool) -> Conversation[Answer]:
        """Evaluate a batch: an ACTIVATION goes out, a PREDICTION comes in.

        Args:
            batch: images and their labels, which travel with them for the loss.
            number: of the batch within this evaluation.
            stacked: whether the plugins act; without, the evaluation is uncompressed.
        """
        self.settle()
        self._trainer.weigh(averaged=True)
        with torch.no_grad():
            seed = self.peer.seed
            with isolated_rng(seed, "client-evaluation", number, device=self.peer.device):
                cut = self._cut(batch, number, training=False)
                made = cut.activations
                if stacked:
                    self.stack.after_client_forward(cut)
            asked = self._message(cut, stacked=stacked)
        message = yield asked
        loss = self._loss(message, Kind.PREDICTION, asked)
        message.verdicts = cut.verdicts
        with torch.no_grad():
            if stacked:
                self.stack.after_receive(message.to(self.peer.device))
        for name, tensor in _leaving(cut, made).items():
            self._expect_finite(name, tensor, number, cut.verdicts, training=False)
        predicted = check_answer_decoded(message, PREDICTIONS)
        pending, ids = cut.verdicts.fetch(), Fetch(predicted).tensor()
        pending.settle()
        check_predictions(ids, batch.targets, message.when, self.peer.classes)
        return Answer(ids.long(), loss)

    def _without_stack(self, batch: Batch, step: int) -> Conversation[Reference]:
        """Ask what the gradient of a batch is without the stack, and leave all as it is."""
        trained = {n: p for n, p in self._part.named_parameters() if p.requires_grad}
        with self._aside():
            with isolated_rng(self.peer.seed, "client", step, device=self.peer.device):
                cut = self._cut(batch, step, training=True)
            asked = self._message(cut, stacked=False)
            self.settle()  # before the server is asked what weights that are none are worth
            answer = yield asked
            loss = self._loss(answer, Kind.GRADIENT, asked)
            gradient = answer.to(self.peer.device)[GRADIENT]
            found: Sequence[torch.Tensor | None] = [None] * len(trained)
            if cut.activations.requires_grad:
                found = torch.autograd.grad(
                    cut.activations, [*trained.values()], gradient, allow_unused=True
                )
        pairs = zip(trained, found, strict=True)
        return Reference(loss, gradient, {name: g for name, g in pairs if g is not None})

    def _loss(self, message: Message, kind: Kind, asked: Message) -> float:
        """Return the loss that an answer holds, once the answer is one."""
        check_answer(message, kind, asked, plugins=bool(self._plugins))
        loss = loss_of(message)
        if not math.isfinite(loss):
            name = "the loss" if message.training else "the evaluation loss"
            raise self._diverged(name, loss, message.step, message.training)
        return loss

    def _cut(self, batch: Batch, step: int, *, training: bool) -> Cut:
        images = upload(batch.images, self.peer.device)
        return Cut(
            activations=self._forward(images, step, training=training),
            targets=upload(batch.targets, self.peer.device),
            step=step,
            training=training,
            measured=Measured(self._part.measured()),
            sample_ids=batch.sample_ids,
            images=images,
        )

    def _message(self, cut: Cut, *, stacked: bool) -> Message:
        # What is asked besides the training step is none of its bytes.
        training = cut.training and stacked
        message = Message(Kind.ACTIVATION, cut.step, training=training, stacked=stacked)
        if cut.training and not stacked:
            message.meta["gradient"] = True
        message.verdicts = cut.verdicts
        for name in (ACTIVATIONS, TARGETS):
            check_tensor(cut, f"cut.{name}", getattr(cut, name), "after_client_forward")
        message.put(ACTIVATIONS, cut.activations.detach(), Role.PAYLOAD)
        ids = cut.targets
        if not ids.is_floating_point():
            ids = class_ids(ids, self.peer.classes)
        message.put(TARGETS, ids, Role.TARGETS)
        for name, tensor in cut.side.items():
            check_tensor(cut, f"cut.side[{name!r}]", tensor, "after_client_forward")
            if name in message:
                raise PluginError(f"cut.side has a tensor {name!r}, a name that the engine uses")
            message.put(name, tensor.detach(), Role.SIDE)
        if stacked:
            self.stack.before_send(message)
        return message

    def _check_gradient(self, cut: Cut) -> None:
        gradient = cut.gradient
        if not isinstance(gradient, torch.Tensor):
            check_tensor(cut, "cut.gradient", gradient, "after_receive")
        # autograd would cast the codes of a quantizer without a word
        elif gradient.shape != cut.activations.shape or gradient.dtype != cut.activations.dtype:
            raise PluginError(
                f"{cut.when}: after after_receive the gradient is {gradient.dtype} "
                f"{[*gradient.shape]}, the activations that were sent {cut.activations.dtype} "
                f"{[*cut.activations.shape]}; a plugin of the stack does not undo in one direction "
                f"what it does in the other{self._suspects()}"
            )


def _leaving(cut: Cut, made: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what must be finite of a cut, whose activations were these before the stack's turn.

    It is looked at when the answer has come: a codec may make finite codes of what is not.
    """
    leaving = {"an activation at the cut": made}
    if cut.activations is not made:
        leaving["an activation that the stack left"] = cut.activations
    return leaving
