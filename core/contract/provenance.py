"""Where the samples and tokens of a batch went on their way through a stack.

A plugin that merges samples, or chooses or merges tokens, says so with one call, which keeps the
tensor that it has at hand and computes nothing. Whoever watches asks, and only then the moves are
put together.

Shapes: B samples and N tokens that the model made; R rows and M tokens that a plugin finds, K
tokens that it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Provenance"]


@dataclass(slots=True, eq=False)
class Provenance:
    """What plugins told of one batch, in the order in which they acted. Client only."""

    _merges: list[torch.Tensor] = field(default_factory=list)
    _moves: list[tuple[int, torch.Tensor, int | None]] = field(default_factory=list)

    def merge(self, rows_R: torch.Tensor) -> None:
        """Say that rows were merged.

        Args:
            rows_R: (R,) integers, the new row that every one went into.
        """
        self._merges.append(rows_R)

    def select(self, tokens_RK: torch.Tensor) -> None:
        """Say which tokens of every row are left, in their new order; the others are gone.

        Args:
            tokens_RK: (R, K) integers in [0, M).
        """
        self._moves.append((len(self._merges), tokens_RK, None))

    def fuse(self, slots_RM: torch.Tensor, K: int) -> None:
        """Say which new token every token of a row went into, alone or with others.

        Args:
            slots_RM: (R, M) integers in [0, K).
            K: how many there are now.
        """
        self._moves.append((len(self._merges), slots_RM, K))

    @property
    def merged(self) -> bool:
        """Whether any plugin said that it merges samples."""
        return bool(self._merges)

    @property
    def moved(self) -> bool:
        """Whether any plugin said that it chooses or merges tokens."""
        return bool(self._moves)

    def rows(self, B: int) -> torch.Tensor:
        """Return the row of the activations that every sample is in, (B,) int64."""
        return self._rows(B, len(self._merges))

    def slots(self, B: int, N: int) -> torch.Tensor:
        """Return which token of its row every token of a sample went into, (B, N) int64.

        That is -1 for a token that was left out. A token that was kept is alone in its slot.
        """
        device = self._moves[0][1].device if self._moves else None
        slots_BN = torch.arange(N, device=device).expand(B, N)
        count = N
        for merges, told, fused in self._moves:
            own = told.to(device).long()[self._rows(B, merges).to(device)]
            if fused is None:
                K = own.shape[1]
                new = torch.arange(K, device=device).expand(B, K)
                own = own.new_full((B, count), -1).scatter_(1, own, new)
                count = K
            else:
                count = fused
            there = own.gather(1, slots_BN.clamp(min=0))
            slots_BN = torch.where(slots_BN < 0, slots_BN, there)
        return slots_BN

    def _rows(self, B: int, merges: int) -> torch.Tensor:
        """Return the row of every sample behind so many merges, (B,) int64."""
        device = self._merges[0].device if self._merges else None
        rows_B = torch.arange(B, device=device)
        for told in self._merges[:merges]:
            rows_B = told.to(device).long()[rows_B]
        return rows_B
