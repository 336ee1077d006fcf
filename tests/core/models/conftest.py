"""What the tests of all model families share: training a model whole, and cut, from one start."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

CPU = torch.device("cpu")
LR = 1e-2
STEPS = 3


class Whole:
    """Three steps of the whole model with Adam: what a split run must repeat."""

    def __init__(self, model: Any, batch_size: int = 4, classes: int = 5) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(7)
        size = (batch_size, model.channels, model.image_size, model.image_size)
        self.images = torch.randn(size, generator=generator)
        self.targets = torch.randint(classes, (batch_size,), generator=generator)
        self.logits, self.losses, self.gradients = [], [], []
        module = deepcopy(model.module).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=LR)
        for _ in range(STEPS):
            logits = module(self.images)
            loss = F.cross_entropy(logits, self.targets)
            loss.backward()
            self.logits.append(logits.detach())
            self.losses.append(loss.item())
            self.gradients.append(
                {
                    n: None if p.grad is None else p.grad.clone()
                    for n, p in module.named_parameters()
                }
            )
            optimizer.step()
            optimizer.zero_grad()
        self.end = module.state_dict()

    def check(self, *cuts: int) -> None:
        """Train from the same numbers, cut in two or three, and compare every bit."""
        parts = [self.model.part(index, cuts, CPU) for index in range(len(cuts) + 1)]
        own = {name: p for part in parts for name, p in part.named_parameters()}
        assert own.keys() == self.gradients[0].keys()
        optimizers = [
            torch.optim.Adam(parameters, lr=LR)
            for part in parts
            if (parameters := [p for _, p in part.named_parameters()])
        ]
        for part in parts:
            part.train(True)
        for step in range(STEPS):
            outputs = [parts[0].forward(self.images)]
            leaves = []
            for cut, part in zip(cuts, parts[1:], strict=True):
                layout = self.model.layout(cut)
                assert outputs[-1].shape == (len(self.images), layout.tokens, layout.width)
                # What arrived over a link lies there as it was read.
                leaves.append(outputs[-1].detach().clone().contiguous().requires_grad_())
                outputs.append(part.forward(leaves[-1]))
            loss = F.cross_entropy(outputs[-1], self.targets)
            loss.backward()
            for output, leaf in zip(outputs[-2::-1], leaves[::-1], strict=True):
                output.backward(leaf.grad)
            assert torch.equal(outputs[-1], self.logits[step])
            assert loss.item() == self.losses[step]
            for name, parameter in own.items():
                wanted = self.gradients[step][name]
                if wanted is None:  # older timm does not use the class token of every model
                    assert parameter.grad is None, name
                else:
                    assert torch.equal(parameter.grad, wanted), name
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        states = [part.state_dict() for part in parts]
        assert sum(map(len, states)) == len(self.end), "every tensor is at exactly one peer"
        trained = {name: tensor for state in states for name, tensor in state.items()}
        assert trained.keys() == self.end.keys()
        for name, tensor in trained.items():
            assert torch.equal(tensor, self.end[name]), name


@pytest.fixture(scope="session")
def whole() -> Callable[..., Whole]:
    """Return the class, which trains a model whole when it is made."""
    return Whole
