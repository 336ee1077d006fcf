"""From a plan to the two peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from splitlab.core.contract.part import Model, Part
from splitlab.core.engine.client import Client
from splitlab.core.engine.optimization import Optimization
from splitlab.core.engine.server import Server
from splitlab.core.engine.stack import Stack
from splitlab.core.runs.plan import PeerPlan

__all__ = ["build_client", "build_server", "limited_threads"]


def build_client(plan: PeerPlan, model: Model, observers: Sequence[object] = ()) -> Client:
    """Build the client of a plan; it gets its part of the model in memory of its own."""
    part = _part(plan, model, 0, begins=True)
    stack = Stack(plan.stack, plan.probes, observers)
    return Client(part, stack, plan.peer("client"), _optimization(plan))


def build_server(
    plan: PeerPlan, model: Model, observers: Sequence[object] = (), *, alone: bool = False
) -> Server:
    """Build the server of a plan; it gets its part of the model in memory of its own.

    Args:
        plan: of the server, or of both.
        model: whole.
        observers: as of `Stack`.
        alone: whether its client is in another process.
    """
    part = _part(plan, model, 1, begins=alone)
    stack = Stack(plan.stack, plan.probes, observers)
    return Server(part, stack, plan.peer("server"), _optimization(plan))


def _part(plan: PeerPlan, model: Model, index: int, *, begins: bool) -> Part:
    part = model.part(index, (plan.model.cut,), plan.device)
    if plan.device.type == "cuda":
        # Autograd's thread for the GPU: torch warns if it begins with a matrix product.
        torch.autograd.backward(torch.zeros(1, device=plan.device, requires_grad=True).sum())
    if plan.config.compile != "off":
        part.compile(plan.config.compile, begins=begins)
    return part


def _optimization(plan: PeerPlan) -> Optimization:
    config = plan.config
    return Optimization(
        config.optimizer,
        config.rate,
        config.weight_decay,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        ema=config.ema,
        label_smoothing=config.label_smoothing,
    )


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
