"""What the laboratory itself costs: a split training step beside an unsplit one of the same model.

Both sides are timed alternately in one process, and the ratio of their medians counts; an empty
stack in process, with real frames, may cost at most 3%.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from splitlab.core.catalogue.loading import load
from splitlab.core.contract.batch import Batch
from splitlab.core.models.build import build_model, describe
from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Decided, make_for_server
from splitlab.core.runs.workers import build_client, build_server
from splitlab.core.session.client import ClientSession
from splitlab.core.session.server import ServerSession
from splitlab.core.wire.ledger import Ledger

CPU = torch.device("cpu")
CASES = [("vit-mini", 128, 15), ("deit_tiny_patch16_224", 64, 4)]


def split_step(config: Config, batch: Batch) -> Callable[[], None]:
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
        resume=lambda run, step: None,
        save=lambda step: None,
    )
    session = ClientSession(client_end, Ledger(), 60)
    session.open(dict(plan.agreement), run="bench", step=0, batch_bytes=plan.batch_bytes)

    numbers = itertools.count()

    def step() -> None:
        session.hold(client.train(batch, next(numbers)))

    return step


def unsplit_step(config: Config, batch: Batch) -> Callable[[], None]:
    """Return a function that makes one training step of timm's own model."""
    model = build_model(config.model, classes=10, seed=0, weights="none").module
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)

    def step() -> None:
        loss = F.cross_entropy(model(batch.images), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


@pytest.mark.parametrize(("model", "size", "rounds"), CASES)
def test_an_empty_stack_costs_three_percent_at_most(
    model: str, size: int, rounds: int, benchmark: Any
) -> None:
    config = Config(model=model, batch_size=size, weights="none", device="cpu")
    facts = describe(model)
    channels, pixels = facts.channels, facts.image_size
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(size, channels, pixels, pixels, generator=draws)
    batch = Batch(images, torch.arange(size) % 10, torch.arange(size))
    split, unsplit = split_step(config, batch), unsplit_step(config, batch)
    split(), unsplit()
    seconds: dict[str, list[float]] = {"split": [], "unsplit": []}

    def pair() -> None:
        for name, step in (("unsplit", unsplit), ("split", split)):
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)

    benchmark.pedantic(pair, rounds=rounds)
    split_ms, unsplit_ms = (1e3 * statistics.median(seconds[key]) for key in ("split", "unsplit"))
    ratio = split_ms / unsplit_ms
    print(
        f"\n{model}, batch {size}: split {split_ms:.1f} ms, unsplit {unsplit_ms:.1f} ms, "
        f"ratio {ratio:.3f} (at most 1.03)"
    )
    assert ratio <= 1.03
