"""Fewer tokens per row, differentiably: what all methods share that choose or merge tokens.

Both maps are linear with the choice held fixed, so that autograd through them is exact. Each reads
what it needs of the activations once and writes their gradient once.

Shapes: B rows, N tokens, P special tokens in front, K tokens that are left, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch.autograd.function import once_differentiable

from splitlab.core import Attention, ConfigError, Cut, Peer, PluginError
from splitlab.plugins.common.finite import faults, marked
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_share, either

__all__ = [
    "SIZES",
    "Rounding",
    "Share",
    "floor",
    "merge_in_cut",
    "merge_tokens",
    "rounded",
    "select_in_cut",
    "select_tokens",
    "unreachable",
]

Rounding = Literal["floor", "nearest"]

SIZES = "tome.sizes"
"""Name of the side information of ``tome``: how many tokens each one stands for, (B, K) integers.
Whoever changes tokens behind it keeps it in line, by `select_in_cut` and `merge_in_cut`."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many patches a method keeps that drops the rest.

    Args:
        plugin: who asks, for the error message.
        keep: share of the patches, in (0, 1], rounded up; or
        ratio: ξ in (0, 1], share of all tokens, rounded down; both None: `DEFAULT_RATIO`, or the
            smallest ξ that the model allows.
        fused: how many tokens are sent besides special tokens and patches; they count in ξ.
    """

    plugin: str
    keep: float | None
    ratio: float | None
    fused: int = 0

    def __post_init__(self) -> None:
        either(keep=self.keep, ratio=self.ratio)
        for name, value in (("keep", self.keep), ("ratio", self.ratio)):
            if value is not None:
                check_share(name, value)

    def patches(self, N: int, peer: Peer) -> int:
        """Return how many of the patches among N tokens are kept; all means: change nothing."""
        P = peer.prefix_tokens
        if self.keep is not None:
            return max(1, math.ceil(self.keep * (N - P) - 1e-9))
        K = floor(N * (self.ratio or DEFAULT_RATIO))
        return N - P if K >= N else max(K, self._least(peer)) - P - self.fused

    def check(self, peer: Peer) -> None:
        """Refuse a ξ that is less than what the server needs and what is fused."""
        least, N = self._least(peer), peer.tokens
        if self.ratio is not None and floor(N * self.ratio) < least:
            raise unreachable(self.plugin, self.ratio, least, N)

    def nominal(self, peer: Peer) -> float:
        """Return ξ: as asked for, or of the patches that are kept."""
        N, P = peer.tokens, peer.prefix_tokens
        if self.keep is None:
            return self.ratio or max(DEFAULT_RATIO, self._least(peer) / N)
        M = self.patches(N, peer)
        return 1.0 if M >= N - P else (P + M + self.fused) / N

    def _least(self, peer: Peer) -> int:
        return max(1, peer.prefix_tokens + self.fused, peer.least_tokens)


def floor(value: float) -> int:
    """Round down, forgiving a product that lacks 1e-9 to the next integer: 0.29 · 100 is 29."""
    return math.floor(value + 1e-9)


def rounded(value: float, rounding: Rounding) -> int:
    """Round down or to the nearest, as forgiving as `floor`."""
    return floor(value + (0.5 if rounding == "nearest" else 0.0))


def unreachable(plugin: str, ratio: float, least: int, N: int) -> ConfigError:
    """Return the error for a ξ that would leave fewer than ``least`` of N tokens."""
    return ConfigError(
        f"plugin {plugin!r}: ratio={ratio} cannot be met: of this model's {N} tokens at least "
        f"{least} are sent; allowed here: ratio={math.ceil(least / N * 1e4) / 1e4} to 1"
    )


def attention_in_cut(cut: Cut, request: Attention, plugin: str) -> torch.Tensor:
    """Client: return the attention (B, N) to the tokens that the activations hold now."""
    found = cut.measured.get(request)
    N = cut.activations.shape[1]
    if found is None or found.shape[1] != N:
        what = "none" if found is None else f"shape {[*found.shape]}"
        raise PluginError(
            f"plugin {plugin!r} needs class-token attention to each of the {N} tokens at the cut "
            f"and finds {what}; put it in front of plugins that change the tokens"
        )
    return found


def bring_attention(cut: Cut, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Client: change every attention (B, N) as tokens or samples were, and drop the rest."""
    cut.measured = {
        request: change(value)
        for request, value in cut.measured.items()
        if isinstance(request, Attention)
    }


def select_in_cut(cut: Cut, tokens_BK: torch.Tensor) -> None:
    """Client: leave these tokens, in this order, of activations, attention and token sizes.

    A row is sent as NaN if any of its tokens, of those left out too, is not finite.
    """
    cut.provenance.select(tokens_BK)
    fault_B = faults(cut.activations)
    cut.activations = marked(select_tokens(cut.activations, tokens_BK), fault_B)
    bring_attention(cut, lambda attention_BN: attention_BN.gather(1, tokens_BK))
    if SIZES in cut.side:
        sizes_BN = cut.side[SIZES]
        cut.side[SIZES] = sizes_BN.int().gather(1, tokens_BK).to(sizes_BN.dtype)


def merge_in_cut(cut: Cut, slots_BN: torch.Tensor, weights_BN: torch.Tensor, K: int) -> None:
    """Client: merge activations by `merge_tokens`; attention and token sizes are summed."""
    cut.provenance.fuse(slots_BN, K)
    cut.activations = merge_tokens(cut.activations, slots_BN, weights_BN, K)
    bring_attention(cut, lambda attention_BN: _sums(attention_BN, slots_BN, K))
    if SIZES in cut.side:
        sizes_BN = cut.side[SIZES]
        cut.side[SIZES] = _sums(sizes_BN.float(), slots_BN, K).to(sizes_BN.dtype)


def select_tokens(activations_BND: torch.Tensor, tokens_BK: torch.Tensor) -> torch.Tensor:
    """Return the tokens named, (B, K, D); the others are never read. Differentiable once.

    Args:
        activations_BND: (B, N, D) floating point.
        tokens_BK: (B, K) int64, the entries of a row distinct and in [0, N).
    """
    return cast(torch.Tensor, cast(Any, _Select).apply(activations_BND, tokens_BK))


def merge_tokens(
    activations_BND: torch.Tensor, slots_BN: torch.Tensor, weights_BN: torch.Tensor, K: int
) -> torch.Tensor:
    """Return (B, K, D): token k of row b is the sum over n of weight · token n, where slot n is k.

    Half precision adds in float32. Neither direction uses atomic additions on a GPU. Differentiable
    once, in the activations alone.

    Args:
        activations_BND: (B, N, D) floating point.
        slots_BN: (B, N) int64 in [0, K): where every token goes. A slot that is empty gets zeros.
        weights_BN: (B, N) floating point.
        K: tokens that are left.
    """
    return cast(
        torch.Tensor, cast(Any, _Merge).apply(activations_BND, slots_BN, weights_BN.detach(), K)
    )


def _sums(values_BN: torch.Tensor, slots_BN: torch.Tensor, K: int) -> torch.Tensor:
    return merge_tokens(values_BN[..., None], slots_BN, torch.ones_like(values_BN), K)[..., 0]


def _numbered(slots_BN: torch.Tensor, K: int) -> torch.Tensor:
    """Return the slots numbered through all rows, (B·N,)."""
    rows = torch.arange(slots_BN.shape[0], device=slots_BN.device)
    return (slots_BN + rows[:, None] * K).flatten()


class _Select(torch.autograd.Function):
    # index_select on flattened rows: gather with an expanded index takes several times as long.

    @staticmethod
    def forward(ctx: Any, activations_BND: torch.Tensor, tokens_BK: torch.Tensor) -> torch.Tensor:
        B, N, D = activations_BND.shape
        ctx.save_for_backward(tokens_BK)
        ctx.tokens = N
        table = activations_BND.reshape(B * N, D)
        return table.index_select(0, _numbered(tokens_BK, N)).view(B, -1, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BKD: torch.Tensor) -> tuple[torch.Tensor, None]:
        (tokens_BK,) = ctx.saved_tensors
        B, K, D = gradient_BKD.shape
        # What was not kept reads a row of zeros, so that every gradient is written once.
        source = gradient_BKD.new_zeros(B * K + 1, D)
        source[:-1] = gradient_BKD.reshape(B * K, D)
        slots_BN = tokens_BK.new_full((B, ctx.tokens), B * K)
        order = torch.arange(B * K, device=tokens_BK.device).view(B, K)
        slots_BN.scatter_(1, tokens_BK, order)
        return source.index_select(0, slots_BN.flatten()).view(B, -1, D), None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        activations_BND: torch.Tensor,
        slots_BN: torch.Tensor,
        weights_BN: torch.Tensor,
        K: int,
    ) -> torch.Tensor:
        B, N, D = activations_BND.shape
        ctx.save_for_backward(slots_BN, weights_BN)
        # Half precision is summed in float32; float64 stays.
        dtype = torch.promote_types(activations_BND.dtype, torch.float32)
        slots = _numbered(slots_BN, K)
        tokens = slots.argsort(stable=True)
        starts = torch.searchsorted(slots[tokens], torch.arange(B * K, device=slots.device))
        merged = torch.nn.functional.embedding_bag(
            tokens,
            activations_BND.reshape(B * N, D).to(dtype),
            starts,
            mode="sum",
            per_sample_weights=weights_BN.to(dtype).flatten()[tokens],
        )
        return merged.view(B, K, D).to(activations_BND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BKD: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        slots_BN, weights_BN = ctx.saved_tensors
        B, K, D = gradient_BKD.shape
        dtype = torch.promote_types(gradient_BKD.dtype, torch.float32)
        rows = gradient_BKD.reshape(B * K, D).index_select(0, _numbered(slots_BN, K)).to(dtype)
        rows.mul_(weights_BN.to(dtype).reshape(-1, 1))
        return rows.view(B, -1, D).to(gradient_BKD.dtype), None, None, None
