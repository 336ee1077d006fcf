"""What both peers have in common: a part of a model, a stack, an optimizer, and their state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import (
    FAULTS,
    ConfigError,
    Diverged,
    PluginError,
    reason,
    when,
)
from splitlab.core.contract.part import Part
from splitlab.core.contract.peer import Peer
from splitlab.core.engine.stack import Stack

__all__ = ["Optimization", "Worker", "check_tensor", "class_ids"]

# Names of the tensors that the engine itself puts into messages.
ACTIVATIONS = "activations"
GRADIENT = "gradient"
TARGETS = "targets"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Optimization:
    """The optimizer of one peer: ``adam``, ``adamw`` or ``sgd``, with torch's other defaults."""

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


class Worker:
    """One peer: takes messages and returns messages.

    Attributes:
        stack: its plugins.
        peer: its facts, which the plugins know too.
    """

    def __init__(self, part: Part, stack: Stack, peer: Peer, optimization: Optimization) -> None:
        self.stack = stack
        self.peer = peer
        self._part = part
        peer.unable = part.unable
        stack.setup(peer)
        own = [p for _, p in part.named_parameters() if p.requires_grad]
        added = [p for module in peer.modules for p in module.parameters() if p.requires_grad]
        self._optimizer = optimization.build(own + added)

    def _step(self, step: int) -> None:
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self.stack.step_end(step)

    def _forward(
        self,
        inputs: torch.Tensor,
        step: int,
        *,
        training: bool,
        token_sizes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the part of the model; an error of it says when."""
        self._part.train(training)
        try:
            return self._part.forward(inputs, token_sizes)
        except ConfigError as error:
            text = f"{when(step, training)}: {error}{self._suspects()}"
            raise ConfigError(text) from error

    def _backward(
        self, cut: Cut, of: Sequence[torch.Tensor], gradient: torch.Tensor | None = None
    ) -> Mapping[str, Mapping[str, float]]:
        """Go back through the graph, also from plugins' own losses; returns these, by label.

        Args:
            cut: of the step.
            of: a tensor with this gradient, or a loss, or nothing.
            gradient: None of a loss.

        Raises:
            Diverged: a plugin's own loss is no finite number.
        """
        step, own = cut.step, _values(cut)
        roots, rest = [*of, *cut.losses.values()], [None for _ in cut.losses]
        if not roots:
            return own
        try:
            torch.autograd.backward(roots, [*(gradient for _ in of), *rest])
        except torch.OutOfMemoryError:
            raise
        except FAULTS as error:
            plugins = " + ".join(self.stack.traits())
            if not plugins:
                raise ConfigError(
                    f"{when(step)}: the backward pass through the model failed: {reason(error)}; "
                    "look at autograd functions of its segments' own, and at what they change in "
                    "place"
                ) from error
            raise PluginError(
                f"{when(step)}: the backward pass through the stack {plugins} failed: "
                f"{reason(error)}; look at autograd functions of the plugins' own, and at changes "
                "of cut.activations in place; or at those of the model"
            ) from error
        return own

    def _suspects(self) -> str:
        one_sided = self.stack.one_sided()
        return f"; no hook decodes for: {', '.join(one_sided)}" if one_sided else ""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return all that a resumed run needs of this peer: tensors, and JSON values."""
        tree: dict[str, Any] = {
            "model": self._part.state_dict(),
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
        self._part.load_state_dict(tree.get("model", {}))
        for i, module in enumerate(self.peer.modules):
            module.load_state_dict(tree.get("modules", {}).get(str(i), {}))
        self.stack.load_state_dict(tree.get("plugins", {}))
        if self._optimizer is not None:
            whole = self._optimizer.state_dict()
            whole["state"] = {int(key): value for key, value in tree.get("optimizer", {}).items()}
            self._optimizer.load_state_dict(whole)


def _values(cut: Cut) -> dict[str, dict[str, float]]:
    """Return the losses that plugins added, by label and name."""
    found: dict[str, dict[str, float]] = {}
    for (label, name), loss in cut.losses.items():
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(
                f"{cut.when}: the loss {name!r} of plugin {label!r} is {value}; guard its "
                "divisions, logarithms and roots, or lower --lr"
            )
        found.setdefault(label, {})[name] = value
    return found


def class_ids(ids: torch.Tensor, classes: int) -> torch.Tensor:
    """Return class ids in the narrowest type that holds them on the wire."""
    return ids.to(torch.uint8 if classes <= 256 else torch.int32)


def check_tensor(cut: Cut, what: str, value: object, hook: str) -> None:
    """Raise `PluginError` if a hook left something that is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise PluginError(
            f"{cut.when}: after {hook} {what} is {type(value).__name__}, not a tensor; "
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
