"""Peers that train in milliseconds, the road between them, and an observer that sees everything."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.cut import Cut
from splitlab.core.contract.hooks import hookimpl
from splitlab.core.contract.link import Link, PairTransport, Transport
from splitlab.core.contract.message import Message, Role
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.settings import Bound
from splitlab.core.engine.peers import Client, Optimization, Server
from splitlab.core.engine.stack import Stack
from splitlab.core.models.model import ClientHalf, ServerHalf
from splitlab.core.models.model import VisionTransformer as ViT  # type: ignore[attr-defined]
from splitlab.core.wire.decode import Reader
from splitlab.core.wire.encode import encode
from splitlab.core.wire.layout import flat

__all__ = ["Carry", "Couple", "Seen", "Tiny", "both_ends", "difference", "joined", "thaw"]

CPU = torch.device("cpu")
SOON = 20.0  # seconds; a deadline that only what is broken reaches

Carry = Callable[[Message, bool], Message]
"""Takes a message to the other peer: up (True) or down."""


@dataclass(frozen=True)
class Tiny:
    """The smallest model, data and peers that everything can be checked on.

    By default N = 5 tokens (a class token and 2 x 2 patches) of width 16, 4 classes, 3 blocks.

    Attributes:
        image: height and width of an image, in pixels; images have 3 channels.
        patch: height and width of a patch.
        width: D.
        depth: blocks.
        heads: attention heads of every block.
        classes: C.
        samples: B of a full batch.
    """

    image: int = 16
    patch: int = 8
    width: int = 16
    depth: int = 3
    heads: int = 2
    classes: int = 4
    samples: int = 6

    def vit(self, seed: int = 0, **arguments: Any) -> ViT:
        """Build timm's VisionTransformer, equal for equal seeds; arguments are timm's."""
        defaults = {
            "img_size": self.image,
            "patch_size": self.patch,
            "in_chans": 3,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "num_classes": self.classes,
        }
        with isolated_rng(seed, "tiny", device=CPU):
            vit = ViT(**defaults | arguments)
            for parameter in vit.parameters():  # as they are, all samples look the same to it
                parameter.data += 0.3 * torch.randn_like(parameter)
            return vit

    def batch(self, number: int = 0, size: int | None = None, classes: int | None = None) -> Batch:
        """Make a batch of noise, the same for the same number."""
        generator = torch.Generator().manual_seed(1000 + number)
        B = size or self.samples
        images = torch.randn(B, 3, self.image, self.image, generator=generator)
        targets = torch.randint(classes or self.classes, (B,), generator=generator)
        return Batch(images, targets, torch.arange(B) + B * number)

    def bound(self, plugin: type, label: str = "", **params: Any) -> Bound:
        """Bind a plugin class as `splitlab.core.catalogue.registry.bind_plugin` would."""
        name = label or plugin.__name__.lower()
        return Bound(name, name, plugin, params, params)

    def peer(self, role: Literal["client", "server"] = "client", **facts: Any) -> Peer:
        """Make the `Peer` of this model, cut after its first block."""
        side = self.image // self.patch
        defaults: dict[str, Any] = {
            "seed": 0,
            "classes": self.classes,
            "tokens": side * side + 1,
            "width": self.width,
            "grid": (side, side),
            "prefix_tokens": 1,
            "class_token": True,
            "cut": 1,
            "depth": self.depth,
            "batch_size": self.samples,
            "device": CPU,
        }
        return Peer(role=role, **defaults | facts)

    def client(self, plugins: Sequence[Bound] = (), **settings: Any) -> Client:
        """Build a client; settings are those of `pair`."""
        client: Client = self._worker("client", Client, ClientHalf, plugins, **settings)
        return client

    def server(self, plugins: Sequence[Bound] = (), **settings: Any) -> Server:
        """Build a server; settings are those of `pair`."""
        server: Server = self._worker("server", Server, ServerHalf, plugins, **settings)
        return server

    def pair(self, plugins: Sequence[Bound] = (), **settings: Any) -> tuple[Client, Server]:
        """Build a client and a server that fit.

        Args:
            plugins: the stack.
            settings: ``observers`` of the stack, ``cut``, ``seed``, ``optimizer``, ``lr``,
                ``weight_decay``, ``classes``, ``device``, ``dtype`` of the model; ``model``, called
                for another model; everything else goes to `vit`.
        """
        return self.client(plugins, **settings), self.server(plugins, **settings)

    def _worker(
        self,
        role: Literal["client", "server"],
        worker: Any,
        half: Any,
        plugins: Sequence[Bound],
        *,
        observers: Sequence[object] = (),
        cut: int = 1,
        seed: int = 0,
        optimizer: str = "adam",
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        model: Callable[[], ViT] | None = None,
        classes: int | None = None,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        **arguments: Any,
    ) -> Any:
        classes = classes or self.classes
        vit = model() if model else self.vit(seed, num_classes=classes, **arguments)
        part = half(vit.to(dtype), cut, device)
        peer = self.peer(
            role,
            seed=seed,
            classes=classes,
            tokens=part.tokens,
            width=part.width,
            grid=part.grid,
            prefix_tokens=part.prefix_tokens,
            class_token=part.class_token,
            cut=cut,
            depth=part.depth,
            device=device,
        )
        optimization = Optimization(optimizer, lr, weight_decay)
        return worker(part, Stack(plugins, observers), peer, optimization)

    def travel(self, message: Message) -> Message:
        """Encode a message, and decode it from the bytes alone."""
        return thaw(b"".join(encode(message).buffers()))

    def train(self, client: Client, server: Server, steps: Sequence[int]) -> list[float]:
        """Run these training steps through real frames; returns the losses."""
        losses = []
        for step in steps:
            up = self.travel(client.forward(self.batch(step), step))
            losses.append(client.backward(self.travel(server.handle(up))))
        return losses


def thaw(raw: bytes) -> Message:
    """Return the message of a frame."""
    reader = Reader()
    while True:
        buffer = reader.buffer()
        count = min(len(buffer), len(raw))
        buffer[:count], raw = raw[:count], raw[count:]
        arrived = reader.advance(count)
        if arrived is not None:
            assert not raw, f"{len(raw)} bytes behind the frame"
            return arrived


@contextmanager
def both_ends(
    transport: Transport | PairTransport, device: torch.device = CPU
) -> Iterator[tuple[Link, Link, ThreadPoolExecutor]]:
    """Yield the client's end of a link, the server's, and a thread for one of them."""
    with ThreadPoolExecutor(1) as aside, ExitStack() as cleanup:
        if isinstance(transport, PairTransport):
            client, server = transport.pair()
        else:
            listener = transport.listen(transport.default_address, device=device)
            cleanup.callback(listener.close)
            accepted = aside.submit(listener.accept, SOON)
            client = transport.connect(listener.address, device=device, timeout=SOON)
            cleanup.callback(client.close)
            server = accepted.result()
        cleanup.callback(client.close)
        cleanup.callback(server.close)
        yield client, server, aside


@contextmanager
def joined(name: str, device: torch.device = CPU) -> Iterator[Carry]:
    """Yield what carries messages over a link of this transport, both ends in this process."""
    with both_ends(load_transport(name), device) as (client, server, aside):

        def carry(message: Message, upward: bool) -> Message:
            sender, receiver = (client, server) if upward else (server, client)
            sending = aside.submit(sender.send, message, SOON)  # it may wait for the receiver
            arrived = receiver.receive(SOON)
            sending.result()
            return arrived

        yield carry


# What was seen of a cut or message.


@dataclass(frozen=True, eq=False)
class Seen:
    """A copy of a message, or of the tensors of a cut.

    Attributes:
        what: ``"ACTIVATION of step 3"``.
        tensors: by name; those of a cut by attribute, its side tensors as in a message.
        roles: of a message's tensors.
        facts: everything else that two equal messages have in common.
        on_graph: whether a cut's activations have a gradient.
    """

    what: str
    tensors: dict[str, torch.Tensor]
    roles: dict[str, Role]
    facts: dict[str, Any]
    on_graph: bool = False

    @classmethod
    def of(cls, subject: Cut | Message) -> Seen:
        """Copy what is there now."""
        if isinstance(subject, Message):
            return cls(
                f"{subject.kind.name} of step {subject.step}"
                + ("" if subject.training else " of an evaluation"),
                {name: _copy(subject[name]) for name in subject},
                {name: subject.role(name) for name in subject},
                {
                    "bytes of the frame": subject.frame_bytes,
                    "flags": (subject.kind, subject.step, subject.training, subject.stacked),
                    "metadata": _json(subject.meta),
                },
            )
        names = ("activations", "targets", "weights", "token_sizes", "gradient")
        found = {name: getattr(subject, name) for name in names} | subject.side
        tensors = {k: _copy(v) for k, v in found.items() if isinstance(v, torch.Tensor)}
        on_graph = "activations" in tensors and subject.activations.requires_grad
        return cls(f"cut of step {subject.step}", tensors, {}, {}, on_graph)

    def payload(self) -> dict[str, torch.Tensor]:
        """Return the message's tensors of the role PAYLOAD."""
        return {n: t for n, t in self.tensors.items() if self.roles[n] is Role.PAYLOAD}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _json(meta: dict[str, Any]) -> str:
    return json.dumps(meta, default=repr)  # as text, so that NaN equals itself


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether dtype, shape and every bit are equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(flat(a.contiguous()).cpu(), flat(b.contiguous()).cpu())


def difference(ours: Sequence[Seen], theirs: Sequence[Seen]) -> str | None:
    """Return where two rows of messages first differ, in words, or None if they are equal."""
    for a, b in zip(ours, theirs, strict=False):
        if (names := list(a.tensors)) != list(b.tensors) or a.roles != b.roles:
            return f"{a.what}: tensors {names} and {list(b.tensors)}"
        for name, tensor in a.tensors.items():
            other = b.tensors[name]
            if not same(tensor, other):
                return f"{a.what}: tensor {name!r}, {_compared(tensor, other)}"
        for fact, value in a.facts.items():
            if value != b.facts[fact]:
                return f"{a.what}: {fact}, {value} and {b.facts[fact]}"
    if len(ours) != len(theirs):
        return f"{len(ours)} messages and {len(theirs)}"
    return None


def _compared(a: torch.Tensor, b: torch.Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {[*a.shape]} and {b.dtype} {[*b.shape]}"
    return f"{int((a != b).sum())} of {a.numel()} elements"


@dataclass(frozen=True, eq=False)
class Event:
    """One hook of the whole stack, before and after it ran.

    ``backward`` stands for a hook: then ``after`` holds the gradient that reached the client half.
    """

    role: str
    hook: str
    step: int
    training: bool
    before: Seen
    after: Seen


Change = Callable[[Cut], None]


class Couple:
    """A client and a server, every message carried as bytes, every hook watched.

    Args:
        tiny: makes the peers.
        plugins: the stack.
        carry: takes messages to the other peer; real frames, without a link, by default.
        enter: changes the client's cut before the stack sees it.
        leave: changes the server's cut after the stack.
        settings: of `Tiny.pair`.

    Attributes:
        client: the client.
        server: the server.
        arrived: every message as it arrived, before any hook changed it.
        events: every data hook that ran.
    """

    def __init__(
        self,
        tiny: Tiny,
        plugins: Sequence[Bound],
        *,
        carry: Carry | None = None,
        enter: Change | None = None,
        leave: Change | None = None,
        **settings: Any,
    ) -> None:
        self.arrived: list[Seen] = []
        self.events: list[Event] = []
        self._dtype: torch.dtype = settings.get("dtype", torch.float32)
        self._carry = carry or (lambda message, upward: tiny.travel(message))
        self.client = tiny.client(
            plugins, observers=[_Watch("client", self.events, enter)], **settings
        )
        self.server = tiny.server(
            plugins, observers=[_Watch("server", self.events, leave)], **settings
        )

    def train(self, batch: Batch, step: int) -> float:
        """Run a training step; returns the loss."""
        up = self._cross(self.client.forward(self._as_wanted(batch), step), upward=True)
        return self.client.backward(self._cross(self.server.handle(up), upward=False))

    def evaluate(
        self, batch: Batch, number: int, *, stacked: bool = True
    ) -> tuple[torch.Tensor, float]:
        """Evaluate a batch; returns class ids and the summed loss."""
        up = self._cross(
            self.client.query(self._as_wanted(batch), number, stacked=stacked), upward=True
        )
        return self.client.answer(self._cross(self.server.handle(up), upward=False))

    def seen(self, role: str, hook: str, *, training: bool = True) -> list[Event]:
        """Return the events of a hook at one peer, in order."""
        return [
            event
            for event in self.events
            if (event.role, event.hook, event.training) == (role, hook, training)
        ]

    def _as_wanted(self, batch: Batch) -> Batch:
        return Batch(batch.images.to(self._dtype), batch.targets, batch.sample_ids)

    def _cross(self, message: Message, *, upward: bool) -> Message:
        arrived = self._carry(message, upward)
        self.arrived.append(Seen.of(arrived))
        return arrived


class _Watch:
    """An observer of one peer: notes what every data hook found and what it left."""

    def __init__(self, role: str, events: list[Event], change: Change | None) -> None:
        self._role = role
        self._events = events
        self._change = change

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, object, object]:
        if self._change:
            self._change(cut)
        if cut.activations.requires_grad:
            note = functools.partial(self._backward, cut, Seen.of(cut))
            cut.activations.register_hook(note)  # type: ignore[no-untyped-call]
        return (yield from self._around("after_client_forward", cut))

    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Generator[None, object, object]:
        return (yield from self._around("before_send", message))

    @hookimpl(wrapper=True)
    def after_receive(self, message: Message) -> Generator[None, object, object]:
        return (yield from self._around("after_receive", message))

    @hookimpl(wrapper=True)
    def before_server_forward(self, cut: Cut) -> Generator[None, object, object]:
        answer = yield from self._around("before_server_forward", cut)
        if self._change:
            self._change(cut)
        return answer

    @hookimpl(wrapper=True)
    def gradient_return(self, cut: Cut) -> Generator[None, object, object]:
        return (yield from self._around("gradient_return", cut))

    def _around(self, hook: str, subject: Cut | Message) -> Generator[None, object, object]:
        before = Seen.of(subject)
        try:
            return (yield)
        finally:  # also when a plugin failed: what it left says why
            event = Event(
                self._role, hook, subject.step, subject.training, before, Seen.of(subject)
            )
            self._events.append(event)

    def _backward(self, cut: Cut, before: Seen, gradient: torch.Tensor) -> None:
        after = Seen(before.what, {"gradient": _copy(gradient)}, {}, {})
        self._events.append(Event(self._role, "backward", cut.step, True, before, after))
