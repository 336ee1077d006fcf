"""What every method costs: encoding and decoding both ways, beside the step of the client's part.

DeiT-T at 224 px, cut after block 3, batches of 128: activations (128, 197, 192) float32. Both
sides are timed in turn, in one process and on one thread, and the ratio of their medians counts.
The table of all methods is printed at the end, and written to the file $SPLITLAB_SPEED_TABLE.

The wire is not part of it: what frames cost is in bench_links.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from race import race

from splitlab.core import Attention, Cut, Keys, Kind, Message, Peer, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import catalogue
from splitlab.core.engine.stack import Stack
from splitlab.core.models.build import build_model, describe

B, C = 128, 100
MODEL = "deit_tiny_patch16_224"
LARGEST_SHARE = 0.05
HELD_TO_IT = {
    "adc",
    "c3sl",
    "cast",
    "evit",
    "grid-pool",
    "quantize",
    "random-tokens",
    "topk",
}
ROUNDS = 3


class Client:
    """The client's part of DeiT-T, one batch of noise, and what a plugin sees of it."""

    def __init__(self, device: torch.device, model: str = MODEL, size: int = B) -> None:
        self.device = device
        self.size = size
        self.model = build_model(model, classes=C, seed=0, weights="none")
        self.cut = self.model.default_cut
        self.part = self.model.part(0, (self.cut,), device)
        self.part.train(True)
        for request in (Attention(), Keys()):
            self.part.watch(request)
        draw = torch.Generator().manual_seed(0)
        facts = describe(model)
        shape = (size, facts.channels, facts.image_size, facts.image_size)
        self.images = torch.randn(shape, generator=draw).to(device)
        self.targets = torch.randint(C, (size,), generator=draw).to(device)
        activations = self.part.forward(self.images)
        self.measured = self.part.measured()
        self.activations = activations.detach()
        self.gradient = 1e-5 * torch.randn(activations.shape, generator=draw).to(device)
        self.parameters = [parameter for _, parameter in self.part.named_parameters()]

    def step(self) -> None:
        """Run the part forward and backward, as a client does without compression."""
        torch.autograd.grad(self.part.forward(self.images), self.parameters, self.gradient)

    def peer(self, role: Any) -> Peer:
        return Peer(
            role=role,
            seed=0,
            classes=C,
            layout=self.model.layout(self.cut),
            cut=self.cut,
            batch_size=self.size,
            device=self.device,
        )


@pytest.fixture(scope="module")
def client(device: torch.device) -> Iterator[Client]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Client(device)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, float, float, float]]]:
    rows: list[tuple[str, float, float, float]] = []
    yield rows
    text = as_table(rows)
    print(f"\n{text}\n")
    path = os.environ.get("SPLITLAB_SPEED_TABLE")
    if path:
        Path(path).write_text(text + "\n", encoding="utf-8")


def as_table(rows: list[tuple[str, float, float, float]]) -> str:
    """Return the Markdown of names, seconds, shares and ratios."""
    lines = ["| plugin | encode + decode, ms | share of the client's step | ratio sent |"]
    lines.append("|---|--:|--:|--:|")
    for name, own, share, sent in sorted(rows, key=lambda row: row[2]):
        lines.append(f"| `{name}` | {own * 1e3:.1f} | {share:.1%} | {sent:.3f} |")
    return "\n".join(lines)


def compression(name: str, client: Client) -> Callable[[], float]:
    """Return a function that takes one batch through all hooks of one plugin, both ways.

    It returns the bytes of all tensors sent, over those of the uncompressed activations twice.
    """
    stacks = [Stack([bind("plugins", name)]) for _ in range(2)]
    near, far = stacks
    near.setup(client.peer("client"))
    far.setup(client.peer("server"))
    steps = iter(range(10**6))

    def travel(message: Message) -> tuple[Message, int]:
        arrived = Message(message.kind, message.step, meta=dict(message.meta))
        arrived.notes = {plugin: [*notes] for plugin, notes in message.notes.items()}
        for tensor in message:
            arrived.put(tensor, message[tensor], message.role(tensor))
        return arrived, sum(message[tensor].nbytes for tensor in message)

    def work() -> float:
        step = next(steps)
        x = client.activations.clone().requires_grad_()
        ids = torch.arange(client.size) + client.size * (step % 2)  # every sample comes back
        cut = Cut(
            activations=x,
            targets=client.targets,
            step=step,
            training=True,
            measured=dict(client.measured),
            sample_ids=ids,
        )
        near.after_client_forward(cut)
        up = Message(Kind.ACTIVATION, step)
        up.put("activations", cut.activations.detach(), Role.PAYLOAD)
        up.put("targets", cut.targets.to(torch.uint8), Role.TARGETS)
        for side, tensor in cut.side.items():
            up.put(side, tensor.detach(), Role.SIDE)
        near.before_send(up)
        up, sent_up = travel(up)
        far.after_receive(up)
        leaf = up["activations"].requires_grad_()
        side = {key: up[key] for key in up.names(Role.SIDE)}
        arrived = Cut(activations=leaf, targets=client.targets, step=step, training=True, side=side)
        far.before_server_forward(arrived)
        rows, tokens, _ = arrived.activations.shape
        if arrived.activations is leaf:
            gradient = client.gradient[:rows, :tokens]
        else:
            torch.autograd.backward(arrived.activations, client.gradient[:rows, :tokens])
            assert leaf.grad is not None
            gradient = leaf.grad
        down = Message(Kind.GRADIENT, step, meta={"loss": 1.0})
        down.put("gradient", gradient, Role.PAYLOAD)
        far.before_send(down)
        down, sent_down = travel(down)
        near.after_receive(down)
        cut.gradient = down["gradient"]
        near.gradient_return(cut)
        if cut.activations is not x:
            torch.autograd.backward(cut.activations, cut.gradient)
        near.step_end(step)
        far.step_end(step)
        return (sent_up + sent_down) / (2 * client.activations.nbytes)

    return work


@pytest.mark.parametrize("name", sorted(catalogue()["plugins"]))
def test_encoding_and_decoding_beside_the_clients_part(
    name: str, client: Client, table: Any, benchmark: Any
) -> None:
    work = compression(name, client)
    sent = 0.0
    for _ in range(3):  # warm: bases, histories, caches; every sample was seen
        sent = work()
    sides = {"own": work, "step": client.step}
    options = {"rounds": ROUNDS, "warm_up": 1}
    found = benchmark.pedantic(race, args=(sides, client.device), kwargs=options)
    own, step = found["own"], found["step"]
    benchmark.extra_info |= {"client_ms": step * 1e3, "share": own / step, "sent": sent}
    table.append((name, own, own / step, sent))
    print(f"\n{name}: {own * 1e3:.1f} ms of the client's {step * 1e3:.0f} ms, {own / step:.1%}")
    if name in HELD_TO_IT:
        assert own / step <= LARGEST_SHARE
