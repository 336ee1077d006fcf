"""From a configuration to a peer: half model, stack, optimizer, and what both must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import torch

from splitlab.core.catalogue.registry import bind_stack
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.peer import Peer
from splitlab.core.engine.peers import Client, Optimization, Server
from splitlab.core.engine.stack import Stack
from splitlab.core.models.model import (
    ClientHalf,
    ServerHalf,
    build_model,
    default_cut,
    fingerprint,
    input_shape,
)
from splitlab.core.run.config import DEFAULT_DATASET, Config
from splitlab.core.session.session import Agreement

__all__ = ["Built", "build_client", "build_server", "choose_device", "limited_threads", "resolve"]

W = TypeVar("W", Client, Server)


@dataclass(frozen=True)
class Built(Generic[W]):
    """A peer, ready for its first step.

    Attributes:
        worker: the peer.
        agreement: what both peers must have in common.
        batch_bytes: size of one uncompressed full batch at the cut.
    """

    worker: W
    agreement: Agreement
    batch_bytes: int


def resolve(config: Config) -> Config:
    """Fill in what can be decided without data: data set, image size, cut, threads.

    Raises:
        ConfigError: an unknown model, a plugin whose name or settings are wrong, or plugins that
            cannot work together.
    """
    Stack(bind_stack(config.plugins))
    return replace(
        config,
        dataset=config.dataset or (None if config.data_dir else DEFAULT_DATASET),
        cut=default_cut(config.model) if config.cut is None else config.cut,
        image_size=input_shape(config.model, config.image_size)[1],
        threads=config.threads or _cores(),
    )


def _cores() -> int:
    """Return how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def choose_device(name: str, role: Literal["client", "server"], *, peers_here: int) -> torch.device:
    """Return the device of a peer.

    ``auto``: a GPU if there is one; of several, the one that a launcher chose (``LOCAL_RANK``), or
    the second for the server if both peers run on this machine.
    """
    if name == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not gpus:
            return torch.device("cpu")
        second = role == "server" and peers_here == 2
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", int(second))) % gpus)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # also refuses meta, which computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"--device {name} cannot be used here: {reason}") from error
    return device


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_client(
    config: Config, classes: int, device: torch.device, observers: Sequence[object] = ()
) -> Built[Client]:
    """Build the client of a resolved configuration."""
    return _build(config, classes, device, observers, ClientHalf, Client)


def build_server(
    config: Config, classes: int, device: torch.device, observers: Sequence[object] = ()
) -> Built[Server]:
    """Build the server of a resolved configuration."""
    return _build(config, classes, device, observers, ServerHalf, Server)


def _build(
    config: Config,
    classes: int,
    device: torch.device,
    observers: Sequence[object],
    half_type: type[ClientHalf] | type[ServerHalf],
    worker_type: type[W],
) -> Built[W]:
    assert config.cut is not None
    bound = bind_stack(config.plugins)
    vit = build_model(
        config.model,
        classes=classes,
        seed=config.seed,
        image_size=config.image_size,
        pretrained=config.pretrained,
        weights=config.weights,
    )
    mark = fingerprint(vit)
    half = half_type(vit, config.cut, device)
    peer = Peer(
        role="client" if half_type is ClientHalf else "server",
        seed=config.seed,
        classes=classes,
        tokens=half.tokens,
        width=half.width,
        grid=half.grid,
        prefix_tokens=half.prefix_tokens,
        class_token=half.class_token,
        cut=config.cut,
        depth=half.depth,
        batch_size=config.batch_size,
        device=device,
        augmented=config.augment != "none",
    )
    optimization = Optimization(config.optimizer, config.lr, config.weight_decay)
    worker = worker_type(half, Stack(bound, observers), peer, optimization)  # type: ignore[arg-type]
    agreement = {
        "stack": " + ".join(plugin.agreement() for plugin in bound) or "none",
        "model": config.model,
        "image size": str(config.image_size),
        "cut": str(config.cut),
        "classes": str(classes),
        "weights": mark,
        "batch size": str(config.batch_size),
        "optimizer": f"{config.optimizer} lr={config.lr!r} weight_decay={config.weight_decay!r}",
        "seed": str(config.seed),
    }
    batch_bytes = 4 * config.batch_size * half.tokens * half.width
    return Built(worker, agreement, batch_bytes)
