"""What a plugin knows of the peer that it lives in: the argument of the hook ``setup``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import generator

__all__ = ["AttentionRequest", "Peer"]


@dataclass(frozen=True, slots=True)
class AttentionRequest:
    """Which class-token attention the client shall measure (see `Peer.require_attention`)."""

    heads: Literal["mean", "max"] = "mean"
    layer: Literal["last", "rollout"] = "last"


@dataclass(eq=False)
class Peer:
    """One peer's facts, and what a plugin may ask of it.

    Attributes:
        role: ``"client"`` or ``"server"``.
        seed: the run's seed, the same at both peers; draw with `generator`.
        classes: C, number of classes.
        tokens: N, tokens per sample at the cut, special tokens included.
        width: D, width of a token.
        prefix_tokens: how many special tokens (class, distillation, registers) stand in front.
        class_token: whether the first of them is a class token.
        cut: how many blocks the client runs.
        depth: blocks of the whole model.
        batch_size: B of a full batch; the last batch of an epoch may be smaller.
        device: where this peer computes.
        grid: patches (down, across); None where the model has no such grid.
        augmented: whether the images of a sample differ from epoch to epoch. Client only.
        attention: what the plugins asked for with `require_attention`, or None.
        keys: whether a plugin asked for them with `require_keys`.
        modules: what the plugins registered with `add_module`.
    """

    role: Literal["client", "server"]
    seed: int
    classes: int
    tokens: int
    width: int
    prefix_tokens: int
    class_token: bool
    cut: int
    depth: int
    batch_size: int
    device: torch.device
    grid: tuple[int, int] | None = None
    augmented: bool = False
    attention: AttentionRequest | None = None
    keys: bool = False
    modules: list[nn.Module] = field(default_factory=list)

    def require_attention(
        self,
        plugin: str,
        *,
        heads: Literal["mean", "max"] = "mean",
        layer: Literal["last", "rollout"] = "last",
    ) -> None:
        """Ask the client to fill ``cut.attention``; call it in ``setup``, at either peer.

        Args:
            plugin: who asks, for the error message.
            heads: how the attention heads are reduced.
            layer: the class token's row in the last client block, or its attention rollout through
                all client blocks (mean over heads, half identity; Abnar and Zuidema, 2020).

        Raises:
            ConfigError: the model has no class token, the client runs no block, or another plugin
                of the stack asked for a different kind of attention.
        """
        if not self.class_token:
            raise ConfigError(
                f"plugin {plugin!r} needs the attention of a class token, which this model does "
                "not have; choose a model with one (for example vit-mini or deit_tiny_patch16_224)"
            )
        if self.cut == 0:
            raise ConfigError(
                f"plugin {plugin!r} needs the attention of a client block, but --cut 0 leaves the "
                f"client none; allowed here: --cut 1 to {self.depth}"
            )
        request = AttentionRequest(heads, layer)
        if self.attention not in (None, request):
            raise ConfigError(
                f"plugin {plugin!r} asks for attention {request.heads}/{request.layer}, another "
                f"plugin of the stack for {self.attention.heads}/{self.attention.layer}; "
                "give both the same"
            )
        self.attention = request

    def require_keys(self, plugin: str) -> None:
        """Ask the client to fill ``cut.keys``; call it in ``setup``, at either peer.

        Args:
            plugin: who asks, for the error message.

        Raises:
            ConfigError: the client runs no block.
        """
        if self.cut == 0:
            raise ConfigError(
                f"plugin {plugin!r} needs the attention keys of a client block, but --cut 0 leaves "
                f"the client none; allowed here: --cut 1 to {self.depth}"
            )
        self.keys = True

    def add_module(self, module: nn.Module) -> None:
        """Register a module: moved to the device, trained by the peer's optimizer, checkpointed.

        Only in ``setup``; there its weights are drawn from the run's seed.
        """
        self.modules.append(module.to(self.device))

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a CPU generator for this purpose, the same at both peers and after a resume.

        Put the step into the purpose for a fresh draw at every step: ``("kmeans", cut.step)``.
        """
        return generator(self.seed, *purpose)
