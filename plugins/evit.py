"""EViT: keep the patches that the class token attends to most, fuse the others into one token.

Y. Liang, C. Ge, Z. Tong, Y. Song, J. Wang, P. Xie, "Not All Patches are What You Need: Expediting
Vision Transformers via Token Reorganizations", ICLR 2022, arXiv 2202.07800.

The client:

1. a_j, the class token's attention to patch j in the last client block, mean over heads, detached.
2. M = ⌈keep · (N - P)⌉ patches, those with the largest a_j, are kept. Ties: the lowest token. All P
   special tokens are kept.
3. The other patches become one token, Σ a_j x_j. It is not normalised: its length follows the
   attention that is left to it.
4. What is left: special tokens, kept patches in their old order, fused token: K = P + M + 1 tokens.
   If M = N - P nothing is changed.

Up: (B, K, D) and the class ids (B,); no indices, since positions were added before the first block.
Down: ∂L/∂Z (B, K, D). In bytes, float32: 4·B·K·D + B up, 4·B·K·D down.

Gradient: natural, exact autograd of X ↦ Z with attention and choice held fixed: a kept token gets
its own gradient, another a_j times that of the fused token.

What this file does otherwise than paper and official code, and why:

- Tokens are reorganised behind the whole last client block. The paper does it within the block,
  between attention and MLP; a cut lies between blocks.
- The official code lets gradients flow into the a_j as well. Here the attention is measured, and is
  no part of the graph.
- The paper drops tokens in several blocks, in evaluation too. Here it is done once, at the cut, and
  in evaluation on demand.
- ``fuse=none`` (the official code knows it), ``normalised`` (Σ a_j x_j / Σ a_j) and ``mean`` are
  for comparison. Where all fused patches have attention 0, ``normalised`` takes their mean.
- The order of tokens carries no meaning; the official code sorts by attention.

Attention that is not a number counts as the largest. What is not finite in a token stays in it, or
in the fused token of its row; with ``fuse=none`` the whole row is NaN. For a reducer that follows,
the fused token has the sum of the attention of what it holds.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from splitlab.core import Attention, Cut, Peer, Traits, hookimpl
from splitlab.plugins.common.pooling import Share, attention_in_cut, merge_in_cut, select_in_cut
from splitlab.plugins.common.settings import check_choice

__all__ = ["EViT"]

Fuse = Literal["sum", "none", "normalised", "mean"]
Heads = Literal["mean", "max"]
ScoreLayer = Literal["last", "rollout"]


class EViT:
    """Send the attended patches, and the others as one token.

    Args:
        keep: share of the patches that is kept, in (0, 1], rounded up. The paper has 0.5 to 0.9.
        ratio: ξ in (0, 1] instead: ⌊ξN⌋ tokens are sent, special and fused tokens counted; at least
            these. Given neither: ξ = 0.1, or the smallest that the model allows.
        fuse: what becomes of the others: their attention-weighted sum (the paper), nothing, that
            sum divided by its weights, or their plain mean.
        evaluation: whether evaluation batches are reduced, too.
        heads: how attention heads are reduced; the paper takes the mean.
        score_layer: attention of the last client block (the paper), or rollout through all.
    """

    def __init__(
        self,
        *,
        keep: float | None = None,
        ratio: float | None = None,
        fuse: Fuse = "sum",
        evaluation: bool = False,
        heads: Heads = "mean",
        score_layer: ScoreLayer = "last",
    ) -> None:
        check_choice("fuse", fuse, get_args(Fuse))
        check_choice("heads", heads, get_args(Heads))
        check_choice("score_layer", score_layer, get_args(ScoreLayer))
        self._share = Share("evit", keep, ratio, fused=int(fuse != "none"))
        self._fuse = fuse
        self._evaluation = evaluation
        self._attention = Attention(heads, score_layer)

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check ξ against the model, ask for attention."""
        self._peer = peer
        peer.request("evit", self._attention)
        self._share.check(peer)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, K, D)."""
        if not (cut.training or self._evaluation):
            return
        B, N, _ = cut.activations.shape
        P = self._peer.prefix_tokens
        M = self._share.patches(N, self._peer)
        if M >= N - P:
            return
        scores_BN = attention_in_cut(cut, self._attention, "evit")
        # Not topk: which of two equal scores it takes is not defined.
        ranked = scores_BN[:, P:].argsort(dim=1, descending=True, stable=True)
        special_BP = torch.arange(P, device=ranked.device).expand(B, P)
        kept_BK = torch.cat((special_BP, ranked[:, :M].sort(dim=1).values + P), dim=1)
        if self._fuse == "none":
            select_in_cut(cut, kept_BK)
            return
        slots_BN = kept_BK.new_full((B, N), P + M)
        slots_BN.scatter_(1, kept_BK, torch.arange(P + M, device=kept_BK.device).expand(B, P + M))
        fused_BN = slots_BN == P + M
        weights_BN = torch.where(fused_BN, self._weights(scores_BN, fused_BN), 1.0)
        merge_in_cut(cut, slots_BN, weights_BN, P + M + 1)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ, the share of tokens that is sent, for both directions."""
        share = self._share.nominal(self._peer)
        return share, share

    @hookimpl
    def traits(self) -> Traits:
        """Needs attention; leaves every row with tokens of its own."""
        return Traits(
            needs={"attention"}, changes={"tokens", "places"}, evaluation=self._evaluation
        )

    def _weights(self, scores_BN: torch.Tensor, fused_BN: torch.Tensor) -> torch.Tensor:
        """Return the weights (B, N) float64 of the patches that are fused."""
        scores_BN = scores_BN.double()
        if self._fuse == "sum":
            return scores_BN
        even_B1 = 1 / fused_BN.sum(dim=1, keepdim=True, dtype=torch.float64)
        if self._fuse == "mean":
            return even_B1.expand_as(scores_BN)
        total_B1 = torch.where(fused_BN, scores_BN, 0.0).sum(dim=1, keepdim=True)
        return torch.where(total_B1 == 0, even_B1, scores_BN / total_B1)
