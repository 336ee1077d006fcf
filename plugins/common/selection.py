"""Which tokens of a row are sent: so many of them, ranked by one of several scores.

Scores: ``attention``, the class token's attention in the client's last block; ``rollout``, its
attention rollout through all of them (Abnar and Zuidema, 2020, arXiv 2005.00928); ``norm``, the
Euclidean norm of the token as it would be sent; ``random``, a draw of its own for every row and
step, from the run's seed. An evaluation batch draws by its number, the same at every evaluation.

Shapes: T rows, N tokens, K tokens sent, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from splitlab.core import Attention, Cut, Peer, upload
from splitlab.plugins.common.pooling import Rounding, attention_in_cut, rounded
from splitlab.plugins.common.settings import check_choice

__all__ = ["Select", "Selection"]

Select = Literal["attention", "rollout", "norm", "random"]


@dataclass(frozen=True, slots=True)
class Selection:
    """How many tokens of a row are sent, and by what they are chosen.

    Attributes:
        plugin: who asks, for error messages.
        kappa: share of the tokens that is left, in (0, 1], special tokens counted.
        rounding: how κN becomes a number.
        attention: what ``select=attention`` ranks by; ``rollout`` has its reduction of heads.
        select: see the module.
    """

    plugin: str
    kappa: float
    rounding: Rounding
    attention: Attention
    select: Select = "attention"

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, get_args(Rounding))
        check_choice("select", self.select, get_args(Select))

    @property
    def request(self) -> Attention | None:
        """What the client's part must measure; None if nothing."""
        if self.select == "rollout":
            return replace(self.attention, layer="rollout")
        return self.attention if self.select == "attention" else None

    @property
    def needs(self) -> frozenset[str]:
        """Aspects of the cut, see `splitlab.core.Traits`."""
        return frozenset({"attention"} if self.request else {"layout"})

    def check(self, peer: Peer) -> None:
        """Ask for attention, if tokens are chosen by it."""
        if self.request:
            peer.request(self.plugin, self.request)

    def count(self, N: int) -> int:
        """Return k for N tokens, special tokens counted."""
        return max(1, rounded(self.kappa * N, self.rounding))

    def nominal(self, peer: Peer) -> float:
        """Return κ, or the smallest that the model allows."""
        return max(self.kappa, peer.least_tokens / peer.tokens)

    def scores(
        self, cut: Cut, peer: Peer, T: int, rows: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Client: return what the tokens of T rows are ranked by, (T, N), detached.

        Args:
            cut: with the attention of these rows, where it was asked for.
            peer: the client.
            T: how many rows there are.
            rows: gives them, (T, N, D); asked for by ``select=norm`` alone.
        """
        if self.request:
            return attention_in_cut(cut, self.request, self.plugin)
        if self.select == "norm":
            rows_TND = rows().detach()
            dtype = torch.promote_types(rows_TND.dtype, torch.float32)
            norms_TN: torch.Tensor = torch.linalg.vector_norm(rows_TND, dim=2, dtype=dtype)
            return norms_TN
        generator = peer.generator("select tokens", cut.step)
        drawn_TN = torch.rand(T, cut.activations.shape[1], generator=generator)
        return upload(drawn_TN, cut.activations.device)

    def choose(self, scores_TN: torch.Tensor, peer: Peer) -> torch.Tensor | None:
        """Return the tokens kept, (T, K) in ascending order, or None if all are.

        K is `count`, but at least what the server needs: the prefix of special tokens, which is
        always kept, and one patch where the head pools patches.
        """
        T, N = scores_TN.shape
        prefix, K = peer.prefix_tokens, max(self.count(N), peer.least_tokens)
        if K >= N:
            return None
        special_TK = torch.arange(prefix, device=scores_TN.device).expand(T, prefix)
        # Not topk: which of two equal scores it takes is not defined.
        ranked = scores_TN[:, prefix:].argsort(dim=1, descending=True, stable=True)
        chosen_TK = ranked[:, : K - prefix].sort(dim=1).values + prefix
        return torch.cat((special_TK, chosen_TK), dim=1)
