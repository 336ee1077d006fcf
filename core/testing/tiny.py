"""Models, batches and peers that train in milliseconds, and frames without a link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from splitlab.core.catalogue.registry import BoundPlugin
from splitlab.core.contract.message import Message
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.data.data import Batch
from splitlab.core.engine.peers import Client, Optimization, Server
from splitlab.core.engine.stack import Stack
from splitlab.core.models.model import ClientHalf, ServerHalf
from splitlab.core.models.model import VisionTransformer as ViT  # type: ignore[attr-defined]
from splitlab.core.wire.frame import Reader, encode

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

    def bound(self, plugin: type, label: str = "", **params: Any) -> BoundPlugin:
        """Bind a plugin class as `splitlab.core.catalogue.registry.bind_plugin` would."""
        name = label or plugin.__name__.lower()
        return BoundPlugin(name, name, plugin, params, params)

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

    def client(self, plugins: Sequence[BoundPlugin] = (), **settings: Any) -> Client:
        """Build a client; settings are those of `pair`."""
        client: Client = self._worker("client", Client, ClientHalf, plugins, **settings)
        return client

    def server(self, plugins: Sequence[BoundPlugin] = (), **settings: Any) -> Server:
        """Build a server; settings are those of `pair`."""
        server: Server = self._worker("server", Server, ServerHalf, plugins, **settings)
        return server

    def pair(self, plugins: Sequence[BoundPlugin] = (), **settings: Any) -> tuple[Client, Server]:
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
        plugins: Sequence[BoundPlugin],
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
        return thaw(freeze(message))

    def train(self, client: Client, server: Server, steps: Sequence[int]) -> list[float]:
        """Run these training steps through real frames; returns the losses."""
        losses = []
        for step in steps:
            up = self.travel(client.forward(self.batch(step), step))
            losses.append(client.backward(self.travel(server.handle(up))))
        return losses


def freeze(message: Message) -> bytes:
    """Return the frame of a message."""
    return b"".join(encode(message).buffers())


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
