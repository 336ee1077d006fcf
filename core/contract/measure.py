"""What a plugin or a probe may ask the client's model part to measure in passing.

A request is a value: `Peer.request` takes it in ``setup``, and the answer lies in ``cut.measured``
under the request itself. Equal requests are measured once. A new kind of measurement is a class
here and the few lines in the model family that know how to take it.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Attention", "Keys", "Measurement"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Base of all requests."""


@dataclass(frozen=True, slots=True)
class Attention(Measurement):
    """How much the class token attends to every token: (B, N) float32, detached.

    Attributes:
        heads: how the attention heads are reduced.
        layer: the class token's row in the last client block, or its attention rollout through
            all client blocks (half identity; Abnar and Zuidema, 2020).
    """

    heads: Literal["mean", "max"] = "mean"
    layer: Literal["last", "rollout"] = "last"


@dataclass(frozen=True, slots=True)
class Keys(Measurement):
    """Attention keys of the last client block, mean over heads: (B, N, K) float32, detached."""
