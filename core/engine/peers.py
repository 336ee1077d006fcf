"""The two peers: `Client` and `Server` take messages and return messages.

They import no transport, so a test of a peer is a function call. The loop that joins them::

    for step, batch in enumerate(batches):
        link.send(client.forward(batch, step))
        client.backward(link.receive())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import PluginError, ProtocolError
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.engine.stack import Stack
from splitlab.core.models.model import ClientHalf, ServerHalf

__all__ = ["Client", "Optimization", "Server"]

_ACTIVATIONS = "activations"
_GRADIENT = "gradient"
_TARGETS = "targets"
_PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Optimization:
    """The optimizer of one half: ``adam``, ``adamw`` or ``sgd``, with torch's other defaults."""

    optimizer: str
    lr: float
    weight_decay: float

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return the optimizer, or None if there is nothing to train."""
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": torch.optim.SGD,
        }
        if not parameters:
            return None
        return kinds[self.optimizer](parameters, lr=self.lr, weight_decay=self.weight_decay)


class _Worker:
    """What both peers have in common: a half model, a stack, an optimizer and their state."""

    def __init__(
        self,
        half: ClientHalf | ServerHalf,
        stack: Stack,
        peer: Peer,
        optimization: Optimization,
    ) -> None:
        self.stack = stack
        self.peer = peer
        self._half = half
        stack.setup(peer)
        own = [p for _, p in half.named_parameters() if p.requires_grad]
        added = [p for module in peer.modules for p in module.parameters() if p.requires_grad]
        self._optimizer = optimization.build(own + added)

    def _step(self, step: int) -> None:
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self.stack.step_end(step)

    def _backward(self, of: torch.Tensor, gradient: torch.Tensor | None, step: int) -> None:
        try:
            torch.autograd.backward(of, gradient)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            plugins = " + ".join(self.stack.traits())
            if not plugins:
                raise
            raise PluginError(
                f"step {step}: the backward pass through the stack {plugins} failed: "
                f"{type(error).__name__}: {error}; look at autograd functions of the plugins' own, "
                "and at changes of cut.activations in place"
            ) from error

    def _suspects(self) -> str:
        one_sided = self.stack.one_sided()
        return f"; no hook decodes for: {', '.join(one_sided)}" if one_sided else ""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return all that a resumed run needs of this peer: tensors, and JSON values."""
        tree: dict[str, Any] = {
            "model": self._half.state_dict(),
            "modules": {str(i): m.state_dict() for i, m in enumerate(self.peer.modules)},
            "plugins": self.stack.state_dict(),
        }
        if self._optimizer is not None:
            tree["optimizer"] = self._optimizer.state_dict()["state"]
        tensors: dict[str, torch.Tensor] = {}
        values: dict[str, Any] = {}
        _flatten(tree, (), tensors, values)
        return tensors, values

    def load_state(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        tree = _unflatten(tensors, values)
        self._half.load_state_dict(tree.get("model", {}))
        for i, module in enumerate(self.peer.modules):
            module.load_state_dict(tree.get("modules", {}).get(str(i), {}))
        self.stack.load_state_dict(tree.get("plugins", {}))
        if self._optimizer is not None:
            whole = self._optimizer.state_dict()
            whole["state"] = {int(key): value for key, value in tree.get("optimizer", {}).items()}
            self._optimizer.load_state_dict(whole)


class Client(_Worker):
    """Has the data: runs the first blocks, and backward through them with what comes back."""

    def __init__(
        self, half: ClientHalf, stack: Stack, peer: Peer, optimization: Optimization
    ) -> None:
        super().__init__(half, stack, peer, optimization)
        self._client_half = half
        if peer.attention:
            half.measure_attention(peer.attention)
        if peer.keys:
            half.measure_keys()
        self._pending: Cut | None = None
        self._asked = 0

    def forward(self, batch: Batch, step: int) -> Message:
        """Run one training batch up to the cut; returns the ACTIVATION message to send."""
        with isolated_rng(self.peer.seed, "client", step, device=self.peer.device):
            cut = self._cut(batch, step, training=True)
            self.stack.after_client_forward(cut)
        self._pending = cut
        return self._message(cut, stacked=True)

    def backward(self, message: Message) -> float:
        """Take the GRADIENT message, finish the training step and return the loss."""
        cut, self._pending = self._pending, None
        if cut is None or message.kind is not Kind.GRADIENT or message.step != cut.step:
            wanted = f"a GRADIENT for step {cut.step}" if cut else "nothing"
            raise ProtocolError(
                f"got a {message.kind.name} for step {message.step}, expected {wanted}"
            )
        message.to(self.peer.device)
        self.stack.after_receive(message)
        cut.gradient = message[_GRADIENT]
        self._check_gradient(cut)
        self.stack.gradient_return(cut)
        if cut.activations.requires_grad:
            self._backward(cut.activations, cut.gradient, cut.step)
        self._step(cut.step)
        loss = message.meta.get("loss")
        if not isinstance(loss, float):
            raise ProtocolError(f"step {cut.step}: the server's answer holds no loss")
        return loss

    @torch.no_grad()
    def query(self, batch: Batch, number: int, *, stacked: bool) -> Message:
        """Run one evaluation batch up to the cut; returns the ACTIVATION message to send.

        Args:
            batch: images and their labels, which travel with them for the loss.
            number: of the batch within this evaluation.
            stacked: whether the plugins act; without, the evaluation is uncompressed.
        """
        with isolated_rng(self.peer.seed, "client-evaluation", number, device=self.peer.device):
            cut = self._cut(batch, number, training=False)
            if stacked:
                self.stack.after_client_forward(cut)
        self._asked = len(batch.targets)
        return self._message(cut, stacked=stacked)

    def answer(self, message: Message) -> tuple[torch.Tensor, float]:
        """Take the PREDICTION message; returns class ids (B,) int64 on the CPU, and summed loss."""
        if message.kind is not Kind.PREDICTION:
            raise ProtocolError(f"got a {message.kind.name}, expected a PREDICTION")
        if message.stacked:
            self.stack.after_receive(message.to(self.peer.device))
        loss = message.meta.get("loss_sum")
        if not isinstance(loss, float):
            raise ProtocolError("the server's PREDICTION holds no summed loss")
        ids = message[_PREDICTIONS].cpu().long()
        if ids.shape != (self._asked,):
            raise PluginError(
                f"{[*ids.shape]} predictions came back for {self._asked} samples; the stack must "
                "keep samples apart in evaluation"
            )
        return ids, loss

    def _cut(self, batch: Batch, step: int, *, training: bool) -> Cut:
        self._half.train(training)
        images = batch.images.to(self.peer.device)
        activations, attention = self._client_half.forward(images)
        keys = self._client_half.keys()
        targets = batch.targets.to(self.peer.device)
        return Cut(activations, targets, step, training, attention, batch.sample_ids, keys)

    def _message(self, cut: Cut, *, stacked: bool) -> Message:
        message = Message(Kind.ACTIVATION, cut.step, training=cut.training, stacked=stacked)
        for name in (_ACTIVATIONS, _TARGETS):
            _check_tensor(cut, f"cut.{name}", getattr(cut, name), "after_client_forward")
        message.put(_ACTIVATIONS, cut.activations.detach(), Role.PAYLOAD)
        ids = cut.targets
        if not ids.is_floating_point():
            ids = ids.to(torch.uint8 if self.peer.classes <= 256 else torch.int32)
        message.put(_TARGETS, ids, Role.TARGETS)
        for name, tensor in cut.side.items():
            _check_tensor(cut, f"cut.side[{name!r}]", tensor, "after_client_forward")
            if name in message:
                raise PluginError(f"cut.side has a tensor {name!r}, a name that the engine uses")
            message.put(name, tensor.detach(), Role.SIDE)
        if stacked:
            self.stack.before_send(message)
        return message

    def _check_gradient(self, cut: Cut) -> None:
        _check_tensor(cut, "cut.gradient", cut.gradient, "after_receive")
        assert cut.gradient is not None
        # autograd would cast the codes of a quantizer without a word
        if cut.gradient.shape != cut.activations.shape or not cut.gradient.is_floating_point():
            raise PluginError(
                f"step {cut.step}: after after_receive the gradient is {cut.gradient.dtype} "
                f"{[*cut.gradient.shape]}, the activations that were sent {cut.activations.dtype} "
                f"{[*cut.activations.shape]}; a plugin of the stack does not undo in one direction "
                f"what it does in the other{self._suspects()}"
            )


class Server(_Worker):
    """Runs the other blocks and the loss; answers every ACTIVATION message."""

    def __init__(
        self, half: ServerHalf, stack: Stack, peer: Peer, optimization: Optimization
    ) -> None:
        super().__init__(half, stack, peer, optimization)
        self._server_half = half

    def handle(self, message: Message) -> Message:
        """Train or evaluate on one ACTIVATION message.

        Returns:
            A GRADIENT message with the loss (training), or a PREDICTION message with the summed
            loss (evaluation).
        """
        message.to(self.peer.device)
        if message.stacked:
            self.stack.after_receive(message)
        targets = message[_TARGETS]
        if not targets.is_floating_point():
            targets = targets.long()
            if (
                targets.numel()
                and not 0 <= int(targets.min()) <= int(targets.max()) < self.peer.classes
            ):
                raise ProtocolError(
                    f"step {message.step}: a class id is outside 0 to {self.peer.classes - 1}"
                )
        side = {name: message[name] for name in message.names(Role.SIDE)}
        leaf = message[_ACTIVATIONS]
        if leaf.ndim < 2 or not leaf.is_floating_point():
            raise ProtocolError(
                f"step {message.step}: activations arrived as {leaf.dtype} {[*leaf.shape]}, and no "
                f"plugin made floating-point rows of them{self._suspects()}"
            )
        cut = Cut(leaf, targets, message.step, message.training, side=side)
        return self._train(cut) if message.training else self._evaluate(cut, message.stacked)

    def _train(self, cut: Cut) -> Message:
        leaf = cut.activations.requires_grad_()
        self._half.train(True)
        with isolated_rng(self.peer.seed, "server", cut.step, device=self.peer.device):
            self.stack.before_server_forward(cut)
            logits = self._logits(cut)
        if cut.weights is None:
            loss = F.cross_entropy(logits, cut.targets)
        else:
            _check_tensor(cut, "cut.weights", cut.weights, "before_server_forward")
            if cut.weights.shape != logits.shape[:1]:
                raise PluginError(
                    f"step {cut.step}: cut.weights have shape {[*cut.weights.shape]}, one weight "
                    f"is needed for each of {len(logits)} rows"
                )
            per_row = F.cross_entropy(logits, cut.targets, reduction="none")
            loss = (per_row * cut.weights).sum() / cut.weights.sum()
        self._backward(loss, None, cut.step)
        if leaf.grad is None:
            raise PluginError(
                f"step {cut.step}: after before_server_forward cut.activations no longer depend on "
                "what the client sent, so there is no gradient to return"
            )
        self._step(cut.step)
        answer = Message(Kind.GRADIENT, cut.step, meta={"loss": loss.item()})
        answer.put(_GRADIENT, leaf.grad, Role.PAYLOAD)
        self.stack.before_send(answer)
        return answer

    @torch.no_grad()
    def _evaluate(self, cut: Cut, stacked: bool) -> Message:
        self._half.train(False)
        purpose = "server-evaluation"
        with isolated_rng(self.peer.seed, purpose, cut.step, device=self.peer.device):
            if stacked:
                self.stack.before_server_forward(cut)
            logits = self._logits(cut)
        loss = F.cross_entropy(logits, cut.targets, reduction="sum").item()
        ids = logits.argmax(-1).to(torch.uint8 if self.peer.classes <= 256 else torch.int32)
        answer = Message(
            Kind.PREDICTION, cut.step, training=False, stacked=stacked, meta={"loss_sum": loss}
        )
        answer.put(_PREDICTIONS, ids, Role.PAYLOAD)
        if stacked:
            self.stack.before_send(answer)
        return answer

    def _logits(self, cut: Cut) -> torch.Tensor:
        for name in (_ACTIVATIONS, _TARGETS):
            _check_tensor(cut, f"cut.{name}", getattr(cut, name), "before_server_forward")
        shape, targets = [*cut.activations.shape], [*cut.targets.shape]
        D, C = self.peer.width, self.peer.classes
        wanted = [*shape[:1], C] if cut.targets.is_floating_point() else shape[:1]
        if len(shape) != 3 or shape[2] != D or targets != wanted:
            raise PluginError(
                f"step {cut.step}: the stack gives the server activations {shape} and "
                f"{cut.targets.dtype} targets {targets}; it takes (rows, tokens, {D}) and for "
                f"every row a class id (rows) or probabilities (rows, {C}){self._suspects()}"
            )
        sizes = cut.token_sizes
        if sizes is not None:
            _check_tensor(cut, "cut.token_sizes", sizes, "before_server_forward")
            if [*sizes.shape] != shape[:2] or not bool((sizes > 0).all()):
                raise PluginError(
                    f"step {cut.step}: cut.token_sizes have shape {[*sizes.shape]}; for each of "
                    f"{shape[:2]} tokens a number above 0 is needed"
                )
        return self._server_half.forward(cut.activations, sizes)


def _check_tensor(cut: Cut, what: str, value: object, hook: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise PluginError(
            f"step {cut.step}: after {hook} {what} is {type(value).__name__}, not a tensor; "
            "a plugin of the stack left it so"
        )


# Checkpoint trees: nested dicts become flat names, since safetensors holds tensors by name only.


def _flatten(
    node: Mapping[Any, Any],
    path: tuple[str, ...],
    tensors: dict[str, torch.Tensor],
    values: dict[str, Any],
) -> None:
    for key, value in node.items():
        where = (*path, str(key))
        if isinstance(value, Mapping) and value:
            _flatten(value, where, tensors, values)
        elif isinstance(value, torch.Tensor):
            tensors[json.dumps(where)] = value
        else:
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise PluginError(
                    f"the state {' / '.join(where)} cannot be saved: {error}; a checkpoint holds "
                    "tensors and JSON values, in dictionaries"
                ) from error
            values[json.dumps(where)] = value


def _unflatten(tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in [*tensors.items(), *values.items()]:
        *path, leaf = json.loads(name)
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree
