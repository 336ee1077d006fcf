"""What the laboratory itself costs: a split training step beside an unsplit one of the same model.

Both sides are timed alternately in one process, and the ratio of their medians counts; an empty
stack in process may cost at most 3%, and a tenth on a GPU where the model is as small as vit-mini.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from race import race
from torch.nn import functional as F

from splitlab.core.catalogue.loading import load
from splitlab.core.contract.batch import Batch
from splitlab.core.engine.client import Trained
from splitlab.core.models.build import build_model, describe
from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Decided, make_for_server
from splitlab.core.runs.workers import build_client, build_server
from splitlab.core.session.client import ClientSession
from splitlab.core.session.protocol import MARKS
from splitlab.core.session.server import ServerSession
from splitlab.core.wire.ledger import Ledger

CASES = [("vit-mini", 128, 15), ("deit_tiny_patch16_224", 64, 4)]
ON_A_GPU = [
    ("vit-mini", 128, 60),
    ("deit_tiny_patch16_224", 128, 20),
    ("vit_base_patch16_224", 64, 12),
]
"""Model, batch size, and turns of each side."""


def most(model: str, device: torch.device) -> float:
    """Return what a split step may take of an unsplit one."""
    return 1.10 if model == "vit-mini" and device.type == "cuda" else 1.03


def noise(config: Config, device: torch.device) -> Batch:
    """Return a batch of noise in the memory of the device."""
    facts = describe(config.model, image_size=config.image_size)
    channels, pixels, size = facts.channels, facts.image_size, config.batch_size
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(size, channels, pixels, pixels, generator=draws)
    targets = (torch.arange(size) % 10).to(device)
    return Batch(images.to(device), targets, torch.arange(size))


def split_step(config: Config, batch: Batch) -> Callable[[], Trained]:
    """Return a function that makes one training step over the in-process link."""
    # Without data of its own a client's plan is that of a server.
    plan, model = make_for_server(Decided.of(config), 10, peers_here=1)
    client, server = build_client(plan, model), build_server(plan, model)
    client_end, server_end = load("transports", "inprocess")().pair(lambda: server_session.turn())
    server_session = ServerSession(
        server_end,
        server,
        dict(plan.agreement),
        batch_bytes=plan.batch_bytes,
        timeout=60,
        resume=lambda run, step, marks: None,
        save=lambda step, keep: None,
    )
    marks = dict.fromkeys(MARKS, "bench")
    session = ClientSession(client_end, Ledger(), 60)
    session.open(
        dict(plan.agreement), run="bench", step=0, marks=marks, batch_bytes=plan.batch_bytes
    )

    numbers = itertools.count()

    def step() -> Trained:
        return session.hold(client.train(batch, next(numbers)))

    return step


def unsplit_step(config: Config, batch: Batch) -> Callable[[], None]:
    """Return a function that makes one training step of timm's own model."""
    built = build_model(
        config.model, classes=10, seed=0, image_size=config.image_size, weights="none"
    )
    device = batch.images.device
    model = built.module.to(device)
    model.train()
    fused = device.type == "cuda"  # as the engine has it
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=fused)
    forward: Any = model
    if config.compile != "off":
        forward = torch.compile(model, mode=config.compile)
    half = config.precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            logits = forward(batch.images)
        loss = F.cross_entropy(logits.float(), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def halves_step(config: Config, batch: Batch) -> Callable[[], None]:
    """Return a function that makes one training step of two halves, with nothing between them.

    Two passes backward and two optimizers, which no laboratory can do without.
    """
    built = build_model(
        config.model, classes=10, seed=0, image_size=config.image_size, weights="none"
    )
    device = batch.images.device
    parts = [built.part(i, (built.default_cut,), device) for i in range(2)]
    for part in parts:
        part.train(True)
    fused = device.type == "cuda"
    optimizers = [
        torch.optim.Adam((p for _, p in part.named_parameters()), lr=config.lr, fused=fused)
        for part in parts
    ]
    half = config.precision == "bf16"

    def run(part: Any, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            made: torch.Tensor = part.forward(inputs)
        return made

    def learn(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def step() -> None:
        made = run(parts[0], batch.images)
        leaf = made.detach().requires_grad_()
        loss = F.cross_entropy(run(parts[1], leaf).float(), batch.targets)
        loss.backward()
        learn(optimizers[1])
        loss.item()
        made.backward(leaf.grad)
        learn(optimizers[0])

    return step


def let_round(precision: str) -> None:
    """Let a GPU multiply float32 numbers as TensorFloat-32, or in full."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@pytest.mark.parametrize("case", range(3))
def test_an_empty_stack_costs_next_to_nothing(
    case: int, device: torch.device, request: pytest.FixtureRequest, benchmark: Any
) -> None:
    cases = ON_A_GPU if device.type == "cuda" else CASES
    if case >= len(cases):
        pytest.skip("on a GPU only")
    model, size, rounds = cases[case]
    precision = request.config.getoption("--precision")
    options: dict[str, Any] = {"model": model, "batch_size": size, "weights": "none"}
    config = Config(**options, device=str(device), precision=precision)
    let_round(precision)
    batch = noise(config, device)
    sides = {
        "unsplit": unsplit_step(config, batch),
        "halves": halves_step(config, batch),
        "split": split_step(config, batch),
    }
    found = benchmark.pedantic(race, args=(sides, device), kwargs={"rounds": rounds})
    ratio = found["split"] / found["unsplit"]
    print(
        f"\n{model}, batch {size}, {precision}: split {1e3 * found['split']:.1f} ms, two halves "
        f"{1e3 * found['halves']:.1f} ms, unsplit {1e3 * found['unsplit']:.1f} ms, "
        f"ratio {ratio:.3f} (at most {most(model, device)})"
    )
    assert ratio <= most(model, device)
