"""Models, batches and peers that train in milliseconds, and frames without a link."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.message import Message
from splitlab.core.contract.part import Layout
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.settings import Bound
from splitlab.core.engine.client import Client
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.server import Server
from splitlab.core.engine.stack import Stack
from splitlab.core.engine.worker import Optimization
from splitlab.core.models.vit import VisionTransformer, ViT
from splitlab.core.wire.decode import Reader
from splitlab.core.wire.encode import encode

__all__ = ["Tiny", "freeze", "thaw"]

CPU = torch.device("cpu")


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

    def vit(self, seed: int = 0, **arguments: Any) -> VisionTransformer:
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
            vit = VisionTransformer(**defaults | arguments)
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
        """Bind a plugin class as `splitlab.core.catalogue.binding.bind` would."""
        name = label or plugin.__name__.lower()
        return Bound(name, name, plugin, params, params)

    def peer(self, role: Literal["client", "server"] = "client", **facts: Any) -> Peer:
        """Make the `Peer` of this model, cut after its first block.

        Facts are fields of `Peer`, and of its `Layout`.
        """
        side = self.image // self.patch
        defaults: dict[str, Any] = {
            "seed": 0,
            "classes": self.classes,
            "cut": 1,
            "batch_size": self.samples,
            "device": CPU,
        }
        layout = Layout(side * side + 1, self.width, 1, True, (side, side))
        named = {spec.name for spec in dataclasses.fields(Layout)}
        changed = {name: facts.pop(name) for name in named & facts.keys()}
        if changed or "layout" not in facts:
            facts["layout"] = dataclasses.replace(facts.get("layout", layout), **changed)
        return Peer(role=role, **defaults | facts)

    def client(self, plugins: Sequence[Bound] = (), **settings: Any) -> Client:
        """Build a client; settings are those of `pair`."""
        client: Client = self._worker("client", Client, plugins, **settings)
        return client

    def server(self, plugins: Sequence[Bound] = (), **settings: Any) -> Server:
        """Build a server; settings are those of `pair`."""
        server: Server = self._worker("server", Server, plugins, **settings)
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
        plugins: Sequence[Bound],
        *,
        observers: Sequence[object] = (),
        cut: int = 1,
        seed: int = 0,
        optimizer: str = "adam",
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        model: Callable[[], VisionTransformer] | None = None,
        classes: int | None = None,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        **arguments: Any,
    ) -> Any:
        classes = classes or self.classes
        vit = model() if model else self.vit(seed, num_classes=classes, **arguments)
        whole = ViT(vit.to(dtype), channels=3, image_size=vit.patch_embed.img_size[0])
        part = whole.part(int(role == "server"), (cut,), device)
        layout = whole.layout(cut)
        peer = self.peer(role, seed=seed, classes=classes, layout=layout, cut=cut, device=device)
        optimization = Optimization(optimizer, lr, weight_decay)
        return worker(part, Stack(plugins, observers=observers), peer, optimization)

    def travel(self, message: Message) -> Message:
        """Encode a message, and decode it from the bytes alone."""
        return thaw(freeze(message))

    def train(self, client: Client, server: Server, steps: Sequence[int]) -> list[float]:
        """Run these training steps through real frames; returns the losses."""

        def ask(message: Message) -> Message:
            return self.travel(server.handle(self.travel(message)))

        return [hold(client.train(self.batch(step), step), ask).loss for step in steps]


def freeze(message: Message) -> bytes:
    """Return the frame of a message."""
    frame = encode(message)
    message.sent(frame.nbytes)
    return b"".join(frame.buffers())


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
