"""How one peer is trained: from gradients to new weights, and to their moving average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.engine.rate import Rate

__all__ = ["Optimization", "Trainer"]


@dataclass(frozen=True)
class Optimization:
    """What both peers do with gradients, in numbers.

    Attributes:
        optimizer: ``adam``, ``adamw`` or ``sgd``, with torch's other defaults.
        rate: the learning rate of every step.
        weight_decay: of the optimizer.
        clip_norm: to which the norm of each peer's gradients is scaled down, if it is larger.
        accumulate: batches an optimizer step.
        ema: decay of the moving average that is evaluated; None for none.
        label_smoothing: share of the targets that is spread over all classes.
    """

    optimizer: str
    rate: Rate
    weight_decay: float
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    label_smoothing: float = 0.0

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return the optimizer, or None if there is nothing to train."""
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": torch.optim.SGD,
        }
        if not parameters:
            return None
        # On a GPU fewer kernels than by default: they may take longer to start than to run, and
        # there are two peers to start them.
        fused = all(p.is_cuda and p.is_floating_point() for p in parameters) or None
        return kinds[self.optimizer](
            parameters, lr=self.rate.lr, weight_decay=self.weight_decay, fused=fused
        )


class Trainer:
    """The optimizer of one peer, and what belongs to it.

    Batch n belongs to the optimizer step n // `accumulate`, whose gradient is the mean over its
    batches. Autograd adds them up; what is incomplete is part of the state. A run's last ones, if
    they do not fill a step, change no weight, so that a run that goes on does what one that was
    longer from the start would have done.

    Args:
        optimization: what to do.
        trained: the parameters.
        numbers: returns all parameters and buffers of the peer by name, sharing their memory.
    """

    def __init__(
        self,
        optimization: Optimization,
        trained: Sequence[nn.Parameter],
        numbers: Callable[[], Mapping[str, torch.Tensor]],
    ) -> None:
        self._how = optimization
        self._trained = trained
        self._numbers = numbers
        self._optimizer = optimization.build([*trained])
        self._average: dict[str, torch.Tensor] = {}
        if optimization.ema is not None:
            self._average = {name: tensor.clone() for name, tensor in numbers().items()}
        self._averaged = False  # whether it has the weights' place, and they have its

    def step(self, step: int, steps: int | None) -> torch.Tensor | None:
        """Train with the gradients that are there, if this batch completes an optimizer step.

        Args:
            step: number of the batch.
            steps: how many the run is to last, if the learning rate follows from it.

        Returns:
            The norm of the gradients, if it was looked at. Gradients of a norm that is not finite
            are not scaled.
        """
        how, norm = self._how, None
        if (step + 1) % how.accumulate:
            return None
        if self._optimizer is not None:
            gradients = [p.grad for p in self._trained if p.grad is not None]
            if how.accumulate > 1:
                torch._foreach_div_(gradients, how.accumulate)
            if how.clip_norm is not None and gradients:
                norm = self._clip(gradients, how.clip_norm)
            if how.rate.varies:
                for group in self._optimizer.param_groups:
                    group["lr"] = self._rate(step, steps)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self._update_average()
        return norm

    def _clip(self, gradients: list[torch.Tensor], most: float) -> torch.Tensor:
        norm = torch.nn.utils.get_total_norm(gradients)
        known = torch.where(norm.isfinite(), norm, 0.0)  # else all of them would become NaN
        torch.nn.utils.clip_grads_with_norm_(self._trained, most, known)
        return norm

    def _rate(self, step: int, steps: int | None) -> float:
        if self._how.rate.needs_steps and steps is None:
            raise ConfigError(
                f"the learning rate ({self._how.rate}) follows from how many steps the run is to "
                "last, and the client does not say; give both peers the same --lr-schedule and "
                "--warmup"
            )
        return self._how.rate.at(step, steps)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self._how.ema is None:
            return
        now = self._numbers()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        if floats:
            blend = get_ema_multi_avg_fn(self._how.ema)  # type: ignore[no-untyped-call]
            blend([self._average[name] for name in floats], [now[name] for name in floats], 0)
        for name in now.keys() - floats:  # counters, which have no average
            self._average[name].copy_(now[name])

    @torch.no_grad()
    def weigh(self, *, averaged: bool) -> None:
        """Let the peer compute with the moving average, if there is one, or with its weights again.

        They change places once for a whole evaluation, not for every batch.
        """
        if self._how.ema is None or averaged is self._averaged:
            return
        self._averaged = averaged
        for name, tensor in self._numbers().items():
            kept = tensor.clone()
            tensor.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as a tree of tensors and JSON values.

        The peer computes with its weights again.
        """
        self.weigh(averaged=False)
        tree: dict[str, Any] = {}
        if self._optimizer is not None:
            state = self._optimizer.state_dict()["state"]
            tree["optimizer"] = {str(key): value for key, value in state.items()}
        if self._how.ema is not None:
            tree["average"] = dict(self._average)
        summed = {str(i): p.grad for i, p in enumerate(self._trained) if p.grad is not None}
        return tree | ({"gradients": summed} if summed else {})

    def load_state(self, tree: Mapping[str, Any]) -> None:
        """Take back what `state` returned, after the weights."""
        self._averaged = False
        if self._optimizer is not None:
            whole = self._optimizer.state_dict()
            whole["state"] = {int(key): value for key, value in tree.get("optimizer", {}).items()}
            self._optimizer.load_state_dict(whole)
        if self._how.ema is not None:
            _copy(tree["average"], self._average)
        summed = tree.get("gradients", {})
        for i, parameter in enumerate(self._trained):
            found = summed.get(str(i))
            parameter.grad = None if found is None else found.to(parameter.device)


@torch.no_grad()
def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
