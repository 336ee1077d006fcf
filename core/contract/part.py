"""Models as the engine sees them: a whole `Model`, cut into `Part`s, each held by one peer.

A model is a row of segments that run one after another. Cut c lies behind segment c: with one cut
the client holds segments 0 to c and the server the others; with two, the client holds the last
ones too. Whatever a segment makes, plugins see tokens: a transformer's (B, N, D) as they are, an
image (B, D, H, W) as (B, H·W, D) without a class token, a vector (B, D) as one token.

`splitlab.core.models` has the families that ship, and what one's own is made of: `Segments`, or a
subclass of `Segmented`.

Shapes: B samples, N tokens (special ones first), D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from splitlab.core.contract.measure import Measurement

__all__ = ["Layout", "Model", "Part"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What plugins see at a cut: tokens (B, N, D).

    Attributes:
        tokens: N, special tokens included.
        width: D.
        prefix_tokens: how many special tokens (class, distillation, registers) stand in front.
        class_token: whether the first of them is a class token.
        grid: the other tokens' places in the image (down, across), row by row; None if they have
            no such places.
        any_tokens: whether what stands behind the cut takes other tokens than these, in any number.
        pools: whether the head reads the patches, pooled, and not the special tokens alone.
    """

    tokens: int
    width: int
    prefix_tokens: int = 0
    class_token: bool = False
    grid: tuple[int, int] | None = None
    any_tokens: bool = True
    pools: bool = False

    @property
    def least_tokens(self) -> int:
        """The fewest tokens of which logits can be made, special tokens included.

        One patch is among them where the head pools patches, or has no class token to read.
        """
        return self.prefix_tokens + int(self.pools or not self.class_token)


class Part(Protocol):
    """Some segments of a model, with their numbers, on the device of the peer that holds them.

    Attributes:
        plain: whether `forward` runs as it is written, also where it is compiled: for a pass that
            is no step, whose shapes should not be among those that are compiled.
    """

    plain: bool

    def forward(
        self, inputs: torch.Tensor, token_sizes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the segments.

        Args:
            inputs: images (B, channels, height, width) if the first segment is among them,
                otherwise tokens (rows, tokens, D).
            token_sizes: (rows, tokens), more than 0: how many equal tokens each one stands for,
                in every attention of this part, and where its head pools tokens. A part that
                cannot weigh them so raises `ConfigError`.

        Returns:
            Tokens (rows, tokens, D), or logits (rows, C) if the last segment is among them.
        """
        ...

    def compile(self, mode: str, *, begins: bool) -> None:
        """Let torch compile what `forward` runs from now on, for static shapes.

        Args:
            mode: ``default`` or ``reduce-overhead``, as of `torch.compile`.
            begins: whether a `forward` begins a step of all parts in this process.
        """
        ...

    def unable(self, request: Measurement) -> str | None:
        """Return why the client's part of this model cannot measure that; None if it can."""
        ...

    def watch(self, request: Measurement) -> None:
        """Measure this in every `forward` from now on."""
        ...

    def measured(self) -> dict[Measurement, torch.Tensor]:
        """Return what was measured in the `forward` that just ran; it may be `Measured`."""
        ...

    def train(self, mode: bool) -> None:
        """Switch dropout, batch statistics and the like on or off."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this part's own parameters, under the whole model's names."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return this part's own parameters and buffers, under the whole model's names."""
        ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load what `state_dict` returned; `ConfigError` if it is of another model or cut."""
        ...


class Model(Protocol):
    """A whole model, with all its numbers, as plan and peers use it.

    A function that builds a model for `build_model` returns more than that, since listings, weights
    and cuts have questions, too: `Segments`, or an instance of a subclass of `Segmented`. Both are
    exported by `splitlab.core`.

    Attributes:
        module: all its parameters and buffers.
    """

    module: nn.Module

    def part(self, index: int, cuts: Sequence[int], device: torch.device) -> Part:
        """Return one of the parts that these cuts make, in memory of its own.

        Args:
            index: 0 is the part with the images.
            cuts: one (client, server) or two (client, server, client), in order.
            device: where its numbers shall lie.

        Raises:
            ConfigError: a cut is outside of the model.
        """
        ...
