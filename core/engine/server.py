"""The server: runs the other part of the model and the loss, and answers every message.

It imports no link, and keeps what is open by client and step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch.nn import functional as F

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import PluginError
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.contract.part import Part
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.engine.arrival import (
    ACTIVATIONS,
    GRADIENT,
    PREDICTIONS,
    TARGETS,
    Arriving,
    Side,
    check_decoded,
    check_read,
    check_request,
    check_server_input,
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

__all__ = ["Server"]


_LAST_WORDS = (Kind.GRADIENT, Kind.PREDICTION)


class Server(Worker):
    """Runs the other part and the loss; answers every ACTIVATION message.

    Attributes:
        metrics: numbers of its plugins and probes after the step that was trained last.
    """

    def __init__(self, part: Part, stack: Stack, peer: Peer, optimization: Optimization) -> None:
        super().__init__(part, stack, peer, optimization)
        self.metrics: Mapping[str, Mapping[str, float]] = {}
        self._loss = partial(F.cross_entropy, label_smoothing=optimization.label_smoothing)
        self._open: dict[tuple[int, bool, int], Conversation[None]] = {}
        self._arriving = Arriving.at(peer, self._crossing, stack)

    def handle(self, message: Message, client: int = 0) -> Message:
        """Take one message of a client and return the answer.

        Args:
            message: an ACTIVATION, which begins a step or an evaluation batch, or what continues
                one that is open.
            client: who sent it.

        Returns:
            A GRADIENT message with the loss (training), or a PREDICTION message with the summed
            loss (evaluation).

        Raises:
            Diverged: the loss is not finite; or, on a GPU, the gradients of the step before were
                not, see `Worker.settle`.
        """
        self.settle()
        key = client, message.training, message.step
        conversation = self._open.pop(key, None)
        if conversation is None:
            conversation = self._converse(message)
            answer = next(conversation)
        else:
            answer = conversation.send(message)
        if answer.kind not in _LAST_WORDS:
            self._open[key] = conversation
        return answer

    def _converse(self, message: Message) -> Conversation[None]:
        """Hold the server's side of a step: yield an answer to every message of the client.

        A step whose labels come with its activations has one of each.
        """
        wanted = "gradient" in message.meta
        self._trainer.weigh(averaged=not (message.training or wanted))
        if message.training:
            self.stack.step_begin(message.step)
        cut = self._arrived(message)
        if wanted:
            yield self._gradient(cut)
        else:
            yield self._train(cut) if message.training else self._evaluate(cut, message.stacked)

    def _arrived(self, message: Message) -> Cut:
        check_request(message, self._arriving)
        message.to(self.peer.device)
        if message.stacked:
            self.stack.after_receive(message)
        leaf, targets = check_decoded(message, self._arriving, self._suspects)
        side = Side(message)
        return Cut(
            activations=leaf,
            targets=targets,
            step=message.step,
            training=message.training,
            side=side,
            verdicts=message.verdicts,
        )

    def _train(self, cut: Cut) -> Message:
        leaf = cut.activations.requires_grad_()
        with isolated_rng(self.peer.seed, "server", cut.step, device=self.peer.device):
            self.stack.before_server_forward(cut)
            self._check_side(cut)
            logits = self._logits(cut)
        if cut.weights is None:
            loss = self._loss(logits, cut.targets)
        else:
            check_tensor(cut, "cut.weights", cut.weights, "before_server_forward")
            if cut.weights.shape != logits.shape[:1]:
                raise PluginError(
                    f"{cut.when}: cut.weights have shape {[*cut.weights.shape]}, one weight "
                    f"is needed for each of {len(logits)} rows"
                )
            per_row = self._loss(logits, cut.targets, reduction="none")
            loss = (per_row * cut.weights).sum() / cut.weights.sum()
        losses = fetch_losses(cut, loss)  # here: the device has the backward pass to do meanwhile
        self._backward(cut, [loss])
        if leaf.grad is None:
            raise PluginError(
                f"{cut.when}: after before_server_forward cut.activations no longer depend on "
                "what the client sent, so there is no gradient to return"
            )
        passing = {"the loss": loss, "the gradient at the cut": leaf.grad}
        self._step(cut.step, passing, cut.verdicts)
        value, *own = losses.settle()
        if not math.isfinite(value):
            raise self._diverged("the loss", value, cut.step, training=True)
        if value < 0:
            raise PluginError(
                f"{cut.when}: the loss is {value}, less than 0; a plugin of the stack makes "
                "negative cut.weights or cut.targets"
            )
        answer = Message(Kind.GRADIENT, cut.step, meta={"loss": value})
        answer.verdicts = cut.verdicts
        answer.put(GRADIENT, leaf.grad, Role.PAYLOAD)
        self.stack.before_send(answer)
        self._owed.append(cut.verdicts.fetch())
        self.metrics = self.stack.metrics(cut.step, by_label(cut, own))
        return answer

    def _gradient(self, cut: Cut) -> Message:
        """Return the gradient of the training loss at the cut, and leave all as it is."""
        leaf = cut.activations.requires_grad_()
        cut.training = True
        with self._aside():
            with isolated_rng(self.peer.seed, "server", cut.step, device=self.peer.device):
                loss = self._loss(self._logits(cut), cut.targets)
            (gradient,) = torch.autograd.grad(loss, [leaf])
        answer = Message(Kind.GRADIENT, cut.step, training=False, stacked=False)
        answer.verdicts = cut.verdicts
        answer.put(GRADIENT, gradient, Role.PAYLOAD)
        (answer.meta["loss"],) = cut.verdicts.fetch(loss).settle()
        return answer

    @torch.no_grad()
    def _evaluate(self, cut: Cut, stacked: bool) -> Message:
        purpose = "server-evaluation"
        with isolated_rng(self.peer.seed, purpose, cut.step, device=self.peer.device):
            if stacked:
                self.stack.before_server_forward(cut)
                self._check_side(cut)
            logits = self._logits(cut)
        total = F.cross_entropy(logits, cut.targets, reduction="sum")
        self._expect_finite("the evaluation loss", total, cut.step, cut.verdicts, training=False)
        pending = cut.verdicts.fetch(total)
        ids = class_ids(logits.argmax(-1), self.peer.classes)
        (value,) = pending.settle()
        answer = Message(
            Kind.PREDICTION,
            cut.step,
            training=False,
            stacked=stacked,
            meta={"loss_sum": value},
        )
        answer.verdicts = cut.verdicts
        answer.put(PREDICTIONS, ids, Role.PAYLOAD)
        if stacked:
            self.stack.before_send(answer)
            self._owed.append(cut.verdicts.fetch())
        return answer

    def _check_side(self, cut: Cut) -> None:
        if isinstance(cut.side, Side):
            check_read(cut.when, cut.side.unread())

    def _logits(self, cut: Cut) -> torch.Tensor:
        for name in (ACTIVATIONS, TARGETS):
            check_tensor(cut, f"cut.{name}", getattr(cut, name), "before_server_forward")
        check_server_input(cut, self.peer, self._crossing, self._suspects())
        sizes = cut.token_sizes
        if sizes is not None:
            check_tensor(cut, "cut.token_sizes", sizes, "before_server_forward")
            wrong = PluginError(
                f"{cut.when}: cut.token_sizes have shape {[*sizes.shape]}; for each of "
                f"{[*cut.activations.shape[:2]]} tokens a number above 0 is needed"
            )
            if sizes.shape != cut.activations.shape[:2]:
                raise wrong
            cut.expect((sizes > 0).all(), lambda: wrong)
        return self._forward(cut.activations, cut.step, training=cut.training, token_sizes=sizes)
