"""Models, batches and peers that train in milliseconds, and frames without a link."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.message import Message
from splitlab.core.contract.part import Layout
from splitlab.core.contract.peer import Peer, Schedule
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.settings import Bound, parameters
from splitlab.core.engine.client import Client
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.optimization import Optimization
from splitlab.core.engine.rate import Rate
from splitlab.core.engine.server import Server
from splitlab.core.engine.stack import Stack
from splitlab.core.models.build import ModelFacts, bind_model, build_model, describe
from splitlab.core.models.segments import Segmented
from splitlab.core.models.vit import shaped, whole
from splitlab.core.wire.decode import Reader
from splitlab.core.wire.encode import encode

__all__ = ["Tiny", "freeze", "thaw"]

CPU = torch.device("cpu")
_HOW = ("clip_norm", "accumulate", "ema", "label_smoothing")
"""Fields of `Optimization` that a setting of this name changes."""
_PIXELS = 64
"""Height and width of the images of a model that takes any: two places are left of them behind five
halvings, and batch norm, which trains on no single value, still has four of one sample."""


@dataclass(frozen=True)
class Tiny:
    """The smallest model, data and peers that everything can be checked on.

    By default a transformer with N = 5 tokens (a class token and 2 x 2 patches) of width 16, 4
    classes, cuts 0 to 3. Or any model that can be cut, with new numbers, on images of at most 64
    pixels unless its text says otherwise; it is cut where a run would cut it.

    Attributes:
        image: height and width of an image, in pixels; images have 3 channels.
        patch: height and width of a patch.
        width: D.
        depth: the last cut.
        heads: attention heads.
        classes: C.
        samples: B of a full batch.
        batches: how many different ones there are, one after another and again; 0 for no end.
        model: another model, as users type it: ``"resnet18"``, ``"vit:depth=2"``,
            ``"FILE.py:function"``. Of the other attributes, it takes classes and samples.
        device: where its peers compute, unless they are told otherwise.
    """

    image: int = 16
    patch: int = 8
    width: int = 16
    depth: int = 3
    heads: int = 2
    classes: int = 4
    samples: int = 6
    batches: int = 0
    model: str | None = None
    device: str = "cpu"

    def vit(self, seed: int = 0, **arguments: Any) -> Any:
        """Build timm's module of this model, equal for equal seeds; arguments are timm's."""
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
            vit = shaped(**defaults | arguments).module
            for parameter in vit.parameters():  # as they are, all samples look the same to it
                parameter.data += 0.3 * torch.randn_like(parameter)
            return vit

    def batch(self, number: int = 0, size: int | None = None, classes: int | None = None) -> Batch:
        """Make a batch of noise, the same for the same number."""
        number = number % self.batches if self.batches else number
        generator = torch.Generator().manual_seed(1000 + number)
        B = size or self.samples
        channels, side = self._images
        images = torch.randn(B, channels, side, side, generator=generator)
        targets = torch.randint(classes or self.classes, (B,), generator=generator)
        return Batch(images, targets, torch.arange(B) + B * number)

    def bound(self, plugin: type, label: str = "", **params: Any) -> Bound:
        """Bind a plugin class as `splitlab.core.catalogue.binding.bind` would."""
        name = label or plugin.__name__.lower()
        return Bound(name, name, plugin, params, params)

    def peer(self, role: Literal["client", "server"] = "client", **facts: Any) -> Peer:
        """Make the `Peer` of this model, cut at 1, or where runs cut it.

        Facts are fields of `Peer`, and of its `Layout`.
        """
        side = self.image // self.patch
        defaults: dict[str, Any] = {
            "seed": 0,
            "classes": self.classes,
            "cut": self._cut,
            "batch_size": self.samples,
            "device": torch.device(self.device),
            "schedule": self._schedule,
        }
        layout = (
            self._known.layout
            if self.model
            else Layout(side * side + 1, self.width, 1, True, (side, side))
        )
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
            settings: ``observers`` of the stack, ``cut``, ``seed``, fields of `Optimization`,
                ``lr``, ``classes``, ``device``, ``dtype`` of the model, ``autocast`` of the peer;
                ``model``, called for another module such as `vit` makes; everything else goes to
                `vit`.
        """
        return self.client(plugins, **settings), self.server(plugins, **settings)

    def _worker(
        self,
        role: Literal["client", "server"],
        worker: Any,
        plugins: Sequence[Bound],
        *,
        observers: Sequence[object] = (),
        cut: int | None = None,
        seed: int = 0,
        optimizer: str = "adam",
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        rate: Rate | None = None,
        model: Callable[[], torch.nn.Module] | None = None,
        classes: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        autocast: torch.dtype | None = None,
        **arguments: Any,
    ) -> Any:
        classes = classes or self.classes
        cut = self._cut if cut is None else cut
        how = {name: arguments.pop(name) for name in _HOW if name in arguments}
        uncut = whole(model().to(dtype)) if model else self._whole(classes, seed, dtype, arguments)
        device = device or torch.device(self.device)
        part = uncut.part(int(role == "server"), (cut,), device)
        layout = uncut.layout(cut)
        facts = {"seed": seed, "classes": classes, "layout": layout, "cut": cut}
        peer = self.peer(role, **facts, device=device, autocast=autocast)
        optimization = Optimization(optimizer, rate or Rate.parse(lr), weight_decay, **how)
        if role == "server":  # as one that hears it from its client
            peer.schedule = None
        built = worker(part, Stack(plugins, observers=observers), peer, optimization)
        peer.schedule = self._schedule
        return built

    @property
    def _schedule(self) -> Schedule:
        return Schedule(3 * self.samples, "steps", 30.0, 30)

    # What is known of another model.

    @cached_property
    def _known(self) -> ModelFacts:
        assert self.model
        return describe(self.model, image_size=self._pixels, classes=self.classes)

    @property
    def _pixels(self) -> int | None:
        """The image size that the model is built for; None for its own."""
        assert self.model
        bound = bind_model(self.model)
        if "image_size" not in parameters(bound.factory) or "image_size" in bound.given:
            return None
        own = bound.params["image_size"]
        return None if isinstance(own, int) and own <= _PIXELS else _PIXELS

    @property
    def _images(self) -> tuple[int, int]:
        """Channels of an image, and its height and width."""
        return (self._known.channels, self._known.image_size) if self.model else (3, self.image)

    @property
    def _cut(self) -> int:
        return self._known.cut if self.model else 1

    @cached_property
    def _wholes(self) -> dict[Any, Segmented]:
        return {}

    def _whole(
        self, classes: int, seed: int, dtype: torch.dtype, arguments: Mapping[str, Any]
    ) -> Segmented:
        """Return the model; parts of it have memory of their own, so it is built once."""
        key = classes, seed, dtype, frozenset(arguments.items())
        if key not in self._wholes:
            self._wholes[key] = self._built(classes, seed, dtype, **arguments)
        return self._wholes[key]

    def _built(self, classes: int, seed: int, dtype: torch.dtype, **arguments: Any) -> Segmented:
        if not self.model:
            return whole(self.vit(seed, num_classes=classes, **arguments).to(dtype))
        size = self._pixels
        uncut = build_model(
            self.model, classes=classes, seed=seed, image_size=size, weights="none", **arguments
        )
        uncut.layout(self._cut)  # it may try an image, of float32
        uncut.module.to(dtype)
        return uncut

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
    reader, size = Reader(), len(raw)
    while True:
        buffer = reader.buffer()
        count = min(len(buffer), len(raw))
        buffer[:count], raw = raw[:count], raw[count:]
        arrived = reader.advance(count)
        if arrived is not None:
            behind = size - arrived.frame_bytes
            assert not behind, f"{behind} bytes behind the frame"
            return arrived
