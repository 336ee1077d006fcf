"""What crosses a cut: images and vectors as tokens, and tokens as what they were made of.

In both directions, an image and its gradient are made to lie in memory as they do in the whole
model: that decides which kernels run, and with them the last bits.

Shapes: B samples, N tokens, D width, H x W places of an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.part import Layout

__all__ = ["Leaving", "channels_last", "from_tokens", "seen", "to_tokens"]


class Leaving(NamedTuple):
    """What leaves a segment for one sample.

    Attributes:
        shape: (N, D), (D, H, W) or (D,).
        channels_last: whether an image lies in memory place by place, not channel by channel.
        gradient_last: the same of its gradient.
    """

    shape: tuple[int, ...] = ()
    channels_last: bool = False
    gradient_last: bool = False


def channels_last(x: torch.Tensor) -> bool:
    """Return whether an image lies in memory place by place, and not channel by channel, too."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return last and not x.is_contiguous()


def seen(shape: tuple[int, ...]) -> Layout:
    """Return what plugins see where this leaves a segment; `ConfigError` if it cannot cross."""
    if len(shape) == 3:
        D, H, W = shape
        return Layout(H * W, D, grid=(H, W), any_tokens=False)
    if len(shape) == 1:
        return Layout(1, shape[0], any_tokens=False)
    if len(shape) != 2:
        raise ConfigError(
            f"a model cannot be cut where {[*shape]} leaves it for one sample; tokens (N, D), "
            "images (D, H, W) or a vector (D) can cross a link"
        )
    return Layout(*shape, any_tokens=False)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gradient_last: bool) -> torch.Tensor:
        ctx.places, ctx.gradient_last = x.shape[2:], gradient_last
        return x.flatten(2).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        image = _as_image(gradient, ctx.places)
        return image.contiguous(memory_format=_FORMATS[ctx.gradient_last]), None


class _FromTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, places: tuple[int, int], channels_last: bool
    ) -> torch.Tensor:
        # A copy always: the first segment may change it in place.
        return _as_image(x, places).clone(memory_format=_FORMATS[channels_last])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient.flatten(2).transpose(1, 2).contiguous(), None, None


_FORMATS = {False: torch.contiguous_format, True: torch.channels_last}


def _as_image(tokens: torch.Tensor, places: tuple[int, int]) -> torch.Tensor:
    return tokens.reshape(len(tokens), *places, tokens.shape[2]).permute(0, 3, 1, 2)


def to_tokens(x: torch.Tensor, leaving: Leaving) -> torch.Tensor:
    """Return (B, D, H, W) as tokens (B, H·W, D), and (B, D) as one token (B, 1, D)."""
    if x.ndim == 2:
        return x[:, None]
    tokens: torch.Tensor = _ToTokens.apply(x, leaving.gradient_last)
    return tokens


def from_tokens(x: torch.Tensor, arriving: Leaving) -> torch.Tensor:
    """Return tokens as what they were made of, (rows, *shape).

    Raises:
        ConfigError: other tokens than that takes.
    """
    shape = arriving.shape
    tokens = shape[1] * shape[2] if len(shape) == 3 else 1
    if [*x.shape[1:]] != [tokens, shape[0]]:
        raise ConfigError(
            f"tokens {[*x.shape]} arrived where this model takes (rows, {tokens}, {shape[0]}); "
            "choose methods that give the server all tokens back"
        )
    if len(shape) == 1:
        return x[:, 0].clone()
    image: torch.Tensor = _FromTokens.apply(x, shape[1:], arriving.channels_last)
    return image
