"""What a plugin or a probe may ask the client's model part to measure in passing.

A request is a value: `Peer.request` takes it in ``setup``, and the answer lies in ``cut.measured``
under the request itself. Equal requests are measured once.

A new kind of measurement is a class here, with its words and the aspect of the cut that it makes
true, and one line of `MEASUREMENTS`; a row in the table of the model family that can take it; and
its name among those that `splitlab.core` exports. Nobody else knows of one kind or another.

Shapes: B samples, L layers with attention, H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

__all__ = ["MEASUREMENTS", "Attention", "HeadAttention", "Keys", "Measured", "Measurement"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Base of all requests.

    Attributes:
        words: what it is called where it is refused, as it follows "needs".
        aspect: the aspect of a cut that is true if this can be measured; empty for none.
        known: that aspect, in words.
        gone_with: other aspects, each of which this one is lost with where a plugin changes it.
    """

    words: ClassVar[str] = "a measurement"
    aspect: ClassVar[str] = ""
    known: ClassVar[str] = ""
    gone_with: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Attention(Measurement):
    """How much the class token attends to every token: (B, N) float32, detached.

    Attributes:
        heads: how the attention heads are reduced.
        layer: the class token's row in the last attention that the client computes, or its
            attention rollout through all of them (half identity; Abnar and Zuidema, 2020).
    """

    words: ClassVar[str] = "the attention of a class token"
    aspect: ClassVar[str] = "attention"
    known: ClassVar[str] = "the class token's attention to every token is known"
    gone_with: ClassVar[tuple[str, ...]] = ("layout", "numbers")

    heads: Literal["mean", "max"] = "mean"
    layer: Literal["last", "rollout"] = "last"


@dataclass(frozen=True, slots=True)
class Keys(Measurement):
    """Attention keys of the last client block, mean over heads: (B, N, K) float32, detached."""

    words: ClassVar[str] = "the attention keys of a transformer's block"
    aspect: ClassVar[str] = "keys"
    known: ClassVar[str] = "the attention keys of the tokens are known"
    gone_with: ClassVar[tuple[str, ...]] = ("batch", "tokens", "layout", "numbers")


@dataclass(frozen=True, slots=True)
class HeadAttention(Measurement):
    """The class token's attention in every layer that the client computes, by head.

    (B, L, H, N) float32, detached. It is computed when it is read, so that a probe which reads it
    every few steps costs nothing in between: read it before the first plugin has its turn.
    """

    words: ClassVar[str] = "the attention of a class token by head"
    aspect: ClassVar[str] = "heads"
    known: ClassVar[str] = "the class token's attention is known by layer and head"
    gone_with: ClassVar[tuple[str, ...]] = ("batch", "tokens", "layout", "numbers")


MEASUREMENTS: tuple[type[Measurement], ...] = (Keys, Attention, HeadAttention)
"""All kinds that there are."""


class Measured(dict[Measurement, Any]):
    """What was measured, tensors by request.

    Args:
        found: what is there already.
        later: what is computed when it is read for the first time.
    """

    def __init__(
        self,
        found: Mapping[Measurement, Any] = MappingProxyType({}),
        later: Mapping[Measurement, Callable[[], Any]] = MappingProxyType({}),
    ) -> None:
        super().__init__(found)
        self._later: dict[Measurement, Callable[[], Any]] = {}
        if isinstance(found, Measured):
            self._later |= found._later
        self._later |= later

    def __missing__(self, request: Any) -> Any:
        if request in self._later:
            self[request] = self._later.pop(request)()
            return self[request]
        raise LookupError(
            f"{request} is not measured here; ask for it in setup, with "
            f"peer.request(NAME, {request}), and read it at the client"
        )
