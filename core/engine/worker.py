"""What both peers have in common: a part of a model, a stack, an optimizer, and their state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

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
from splitlab.core.contract.transfer import Pending, Verdicts
from splitlab.core.engine.arrival import ids_dtype
from splitlab.core.engine.finite import all_finite, each_finite
from splitlab.core.engine.optimization import Optimization, Trainer
from splitlab.core.engine.stack import Stack

__all__ = ["Worker", "by_label", "check_tensor", "class_ids", "fetch_losses"]


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
        peer.parameters = dict(part.named_parameters())
        stack.setup(peer)
        own = [(name, p) for name, p in part.named_parameters() if p.requires_grad]
        added = [
            (f"a plugin's {type(module).__name__}.{name}", p)
            for module in peer.modules
            for name, p in module.named_parameters()
            if p.requires_grad
        ]
        self._trained = own + added
        self._trainer = Trainer(optimization, [p for _, p in self._trained], self.numbers)
        kinds = (p.dtype for _, p in part.named_parameters() if p.is_floating_point())
        self._dtype = next(kinds, torch.float32)  # of the model's numbers
        self._crossing = peer.autocast or self._dtype  # of activations at the cut
        self._plugins = stack.traits()
        self._owed: list[Pending] = []
        self._mode: bool | None = None  # that the part was last told: training or not

    def settle(self) -> None:
        """Raise what was wrong with the step before, if a GPU has only now said so.

        A GPU that is asked how a step ended stands still until the next one begins. So the answer
        is looked at in the next step, when there is work in the queue behind it, and before
        anything is made of the weights: an evaluation, a checkpoint, the end of the run.
        """
        owed, self._owed = self._owed, []
        for pending in owed:
            pending.settle()

    def _step(self, step: int, passing: Mapping[str, torch.Tensor], verdicts: Verdicts) -> None:
        """Train with the gradients that are there.

        Args:
            step: its number.
            passing: what else must be finite, by name.
            verdicts: of the step; `Diverged` if this, or the gradient of a parameter, is not
                finite.
        """
        watched = {**passing}
        for name, parameter in self._trained:
            if parameter.grad is not None:
                watched[f"the gradient of {name}"] = parameter.grad
        # Looked at before the optimizer, which gives the gradients away.
        finite = each_finite([*watched.values()])
        schedule = self.peer.schedule
        norm = self._trainer.step(step, schedule.steps if schedule else None)
        names = [*watched]
        told = {name: tensor.detach() for name, tensor in passing.items() if not tensor.ndim}

        def wrong(i: int) -> Diverged:
            value = told[names[i]].item() if names[i] in told else None
            return self._diverged(names[i], value, step, training=True)

        verdicts.expect(finite, wrong)
        if norm is not None:
            self._expect_finite("the norm of the gradients", norm, step, verdicts)
        self.stack.step_end(step)

    def _expect_finite(
        self,
        name: str,
        tensor: torch.Tensor,
        step: int,
        verdicts: Verdicts,
        *,
        training: bool = True,
    ) -> None:
        """Expect that a tensor is finite; else `Diverged`."""
        value = None if tensor.ndim else tensor.detach()
        verdicts.expect(
            all_finite(tensor),
            lambda _: self._diverged(name, None if value is None else value.item(), step, training),
        )

    def _diverged(self, name: str, value: float | None, step: int, training: bool) -> Diverged:
        found = "not finite" if value is None else value
        suspects = "the model and the stack" if self._plugins else "the model"
        lower = "lower --lr, or " if step or not training else ""  # at first nothing was learned
        return Diverged(f"{when(step, training)}: {name} is {found}; {lower}check {suspects}")

    def _forward(
        self,
        inputs: torch.Tensor,
        step: int,
        *,
        training: bool,
        token_sizes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the part of the model; an error of it says when."""
        if training is not self._mode:  # telling every module of a part takes a millisecond
            self._part.train(training)
            self._mode = training
        try:
            autocast = self.peer.autocast
            if autocast is None:
                return self._part.forward(inputs, token_sizes)
            # Residual sums go on in float32, as in the whole model, so a block may leave float32.
            with torch.autocast(self.peer.device.type, autocast):
                made = self._part.forward(inputs.to(self._dtype), token_sizes)
            return made.to(autocast if self.peer.role == "client" else self._dtype)
        except ConfigError as error:
            text = f"{when(step, training)}: {error}{self._suspects()}"
            raise ConfigError(text) from error

    def _backward(
        self, cut: Cut, of: Sequence[torch.Tensor], gradient: torch.Tensor | None = None
    ) -> None:
        """Go back through the graph, also from plugins' own losses.

        Args:
            cut: of the step.
            of: a tensor with this gradient, or a loss, or nothing.
            gradient: None of a loss.
        """
        step = cut.step
        roots, rest = [*of, *cut.losses.values()], [None for _ in cut.losses]
        if not roots:
            return
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

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let the part run in between as if it had not: uncompiled, and its norms' statistics stay.

        A compiled part compiles for shapes that come again, and remembers which came.
        """
        self._part.plain = True
        own = dict(self._part.named_parameters())
        kept = {n: t.clone() for n, t in self._part.state_dict().items() if n not in own}
        try:
            yield
        finally:
            self._part.plain = False
            now = self._part.state_dict()
            for name, before in kept.items():
                now[name].copy_(before)

    def _suspects(self) -> str:
        one_sided = self.stack.one_sided()
        return f"; no hook decodes for: {', '.join(one_sided)}" if one_sided else ""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return all that a resumed run needs of this peer: tensors, and JSON values."""
        self.settle()
        trained = self._trainer.state()  # first: it puts the weights back, if the average is there
        tree: dict[str, Any] = {
            "model": self._part.state_dict(),
            "modules": {str(i): m.state_dict() for i, m in enumerate(self.peer.modules)},
            "plugins": self.stack.state_dict(),
        }
        tree |= trained
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
        self._trainer.load_state(tree)

    def numbers(self) -> dict[str, torch.Tensor]:
        """Return all parameters and buffers of this peer by name; they share its memory."""
        found = dict(self._part.state_dict())
        for i, module in enumerate(self.peer.modules):
            found |= {f"plugins' module {i}.{name}": t for name, t in module.state_dict().items()}
        return found


def fetch_losses(cut: Cut, *more: torch.Tensor) -> Pending:
    """Fetch these scalars and the losses that plugins added, which have to be finite."""
    losses = [loss.detach() for loss in cut.losses.values()]
    if losses:
        keys = [*cut.losses]

        def wrong(i: int) -> Diverged:
            label, name = keys[i]
            return Diverged(
                f"{cut.when}: the loss {name!r} of plugin {label!r} is {losses[i].item()}; guard "
                "its divisions, logarithms and roots, or lower --lr"
            )

        cut.verdicts.expect(torch.stack(losses).isfinite(), wrong)
    return cut.verdicts.fetch(*more, *losses)


def by_label(cut: Cut, values: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return the losses that plugins added, by label and name."""
    found: dict[str, dict[str, float]] = {}
    for (label, name), value in zip(cut.losses, values, strict=True):
        found.setdefault(label, {})[name] = value
    return found


def class_ids(ids: torch.Tensor, classes: int) -> torch.Tensor:
    """Return class ids in the narrowest type that holds them on the wire."""
    return ids.to(ids_dtype(classes))


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
        if not isinstance(key, str):
            raise _unsaved(where, f"its key {key!r} is no text")
        if isinstance(value, Mapping):
            _flatten(value, where, tensors, values)
            if not value:
                values[json.dumps(where)] = {}
        elif isinstance(value, torch.Tensor):
            tensors[json.dumps(where)] = value
        else:
            try:
                back = json.loads(json.dumps(value))
            except (TypeError, ValueError, RecursionError) as error:
                raise _unsaved(where, str(error)) from error
            if repr(back) != repr(value):  # tuples, numbers as keys, numbers of other libraries
                raise _unsaved(where, f"{value!r} would come back as {back!r}")
            values[json.dumps(where)] = value


def _unsaved(where: tuple[str, ...], reason: str) -> PluginError:
    kind, *rest = where
    owner = "the peer's"
    if kind == "plugins":
        label = rest.pop(0)
        owner = label if label.startswith("probe ") else f"plugin {label}"
    return PluginError(
        f"{owner}: the state {' / '.join(rest)} cannot be saved: {reason[:300]}; a checkpoint "
        "holds tensors and JSON values (texts, numbers, true, false, none, lists of them), in "
        "dictionaries whose keys are texts"
    )


def _unflatten(tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in [*tensors.items(), *values.items()]:
        *path, leaf = json.loads(name)
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree
