"""Fixtures of all tests: whatever a test leaves behind fails it, and `tiny` makes peers that
train in milliseconds.

Test modules are no package (pytest's importlib mode), so helpers come as fixtures.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

# Set by pytest, by torch when timm is imported, and by the command line for its process.
_NOT_OURS = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "GOMP_SPINCOUNT")
_PATIENCE = 3.0  # seconds that a thread, a child or a socket may take to go


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute with one thread: models this small lose time with more."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread would outlive the first test that loads data


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, child process, socket or changed process-wide state.

    Fixtures of a wider scope begin before and end after, so what they hold does not count.
    """
    before = _possessions()
    state = _state()
    yield
    deadline = time.monotonic() + _PATIENCE
    while (left := _possessions() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    after = _state()
    # A test may be the first to import torch.
    keys = {key for key in state.keys() | after.keys() if key in state or key.startswith("$")}
    changed = sorted(key for key in keys if state.get(key) != after.get(key))
    assert not left, f"this test leaves behind: {', '.join(sorted(map(str, left)))}"
    assert not changed, f"this test leaves changed: {', '.join(changed)}"


def _possessions() -> set[object]:
    sockets = set()
    for entry in Path("/proc/self/fd").glob("*"):
        try:
            target = os.readlink(entry)
        except OSError:
            continue  # the directory's own descriptor
        if target.startswith("socket:"):
            sockets.add(target)
    return {*threading.enumerate(), *_children(), *sockets}


def _children() -> set[str]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()  # one system call, and nearly always the end of it
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
        if int(parent) == os.getpid():
            found.add(f"process {stat.parent.name}")
    return found


def _state() -> dict[str, object]:
    state: dict[str, object] = {"the working directory": os.getcwd()}
    state |= {f"${key}": value for key, value in os.environ.items() if key not in _NOT_OURS}
    torch = sys.modules.get("torch")
    if torch is not None:
        state["torch's random state"] = bytes(torch.get_rng_state().numpy())
        state["torch.get_num_threads()"] = torch.get_num_threads()
        state["torch's default dtype"] = torch.get_default_dtype()
        state["torch.is_grad_enabled()"] = torch.is_grad_enabled()
    return state


class Tiny:
    """Makes the smallest things that a peer needs. N = 5 tokens, width 16, 4 classes, depth 3."""

    CLASSES = 4
    DEPTH = 3
    WIDTH = 16
    SIZE = 16
    BATCH = 6

    def vit(self, seed: int = 0, **arguments: Any) -> Any:
        """Build timm's VisionTransformer, equal for equal seeds."""
        import torch
        from timm.models.vision_transformer import VisionTransformer

        from splitlab.core.seeding import isolated_rng

        defaults = {
            "img_size": self.SIZE,
            "patch_size": 8,
            "in_chans": 3,
            "embed_dim": self.WIDTH,
            "depth": self.DEPTH,
            "num_heads": 2,
            "num_classes": self.CLASSES,
        }
        with isolated_rng(seed, "tiny", device=torch.device("cpu")):
            vit = VisionTransformer(**defaults | arguments)
            for parameter in vit.parameters():  # as they are, all samples look the same to it
                parameter.data += 0.3 * torch.randn_like(parameter)
            return vit

    def batch(self, number: int = 0, size: int = BATCH, classes: int = CLASSES) -> Any:
        """Make a `Batch` of noise, the same for the same number."""
        import torch

        from splitlab.core.data import Batch

        generator = torch.Generator().manual_seed(1000 + number)
        images = torch.randn(size, 3, self.SIZE, self.SIZE, generator=generator)
        targets = torch.randint(classes, (size,), generator=generator)
        return Batch(images, targets, torch.arange(size) + size * number)

    def split(self, batches: int = 3, size: int = BATCH) -> Any:
        """Make what has the surface of a `Split`: length, classes, batches."""

        class Noise:
            classes = tuple(f"class {i}" for i in range(self.CLASSES))

            def __len__(self) -> int:
                return batches * size

            def batches(self, batch_size: int, *, epoch: int = 0, skip: int = 0, **_: Any) -> Any:
                assert batch_size == size
                return (tiny.batch(epoch * batches + i, size) for i in range(skip, batches))

        tiny = self
        return Noise()

    def data(self) -> Any:
        """Make what has the surface of a `Data`."""
        return SimpleNamespace(name="noise", train=self.split(3), test=self.split(2))

    def bound(self, plugin: type, label: str = "", **params: Any) -> Any:
        """Bind a plugin class as `bind_plugin` would."""
        from splitlab.core.registry import BoundPlugin

        name = label or plugin.__name__.lower()
        return BoundPlugin(name, name, plugin, params, params)

    def peer(self, role: str = "client", **facts: Any) -> Any:
        """Make the `Peer` of a tiny model."""
        import torch

        from splitlab.core.peer import Peer

        defaults: dict[str, Any] = {
            "seed": 0,
            "classes": self.CLASSES,
            "tokens": 5,
            "width": self.WIDTH,
            "grid": (2, 2),
            "prefix_tokens": 1,
            "class_token": True,
            "cut": 1,
            "depth": self.DEPTH,
            "batch_size": self.BATCH,
            "device": torch.device("cpu"),
        }
        return Peer(role=role, **defaults | facts)

    def client(self, plugins: Sequence[Any] = (), **settings: Any) -> Any:
        """Build a client: bound plugins; settings are those of `_worker`."""
        from splitlab.core.engine import Client
        from splitlab.core.model import ClientHalf

        return self._worker("client", Client, ClientHalf, plugins, **settings)

    def server(self, plugins: Sequence[Any] = (), **settings: Any) -> Any:
        """Build a server: bound plugins; settings are those of `_worker`."""
        from splitlab.core.engine import Server
        from splitlab.core.model import ServerHalf

        return self._worker("server", Server, ServerHalf, plugins, **settings)

    def pair(self, plugins: Sequence[Any] = (), **settings: Any) -> tuple[Any, Any]:
        """Build a client and a server that fit."""
        return self.client(plugins, **settings), self.server(plugins, **settings)

    def _worker(
        self,
        role: str,
        worker: Any,
        half: Any,
        plugins: Sequence[Any],
        *,
        observers: Sequence[object] = (),
        cut: int = 1,
        seed: int = 0,
        optimizer: str = "adam",
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        model: Any = None,
        classes: int = CLASSES,
        **arguments: Any,
    ) -> Any:
        import torch

        from splitlab.core.engine import Optimization
        from splitlab.core.stack import Stack

        vit = model() if model else self.vit(seed, num_classes=classes, **arguments)
        part = half(vit, cut, torch.device("cpu"))
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
        )
        optimization = Optimization(optimizer, lr, weight_decay)
        return worker(part, Stack(plugins, observers), peer, optimization)

    def travel(self, message: Any) -> Any:
        """Encode a message, and decode it from the bytes alone."""
        from splitlab.core.wire import Reader, encode

        reader, raw = Reader(), b"".join(encode(message).buffers())
        while True:
            buffer = reader.buffer()
            count = min(len(buffer), len(raw))
            buffer[:count], raw = raw[:count], raw[count:]
            arrived = reader.advance(count)
            if arrived is not None:
                assert not raw
                return arrived

    def train(self, client: Any, server: Any, steps: Sequence[int]) -> list[float]:
        """Run these training steps through real frames; returns the losses."""
        losses = []
        for step in steps:
            up = self.travel(client.forward(self.batch(step), step))
            losses.append(client.backward(self.travel(server.handle(up))))
        return losses


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Return the maker of tiny things."""
    return Tiny()
