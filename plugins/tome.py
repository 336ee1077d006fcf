"""ToMe: merge the patches that are most alike, and let the server count every token by its size.

D. Bolya, C.-Y. Fu, X. Dai, P. Zhang, C. Feichtenhofer, J. Hoffman, "Token Merging: Your ViT But
Faster", ICLR 2023, arXiv 2210.09461.

The client, until R = N - K tokens are gone:

1. Patches at even places are the set A, those at odd places the set B. The P special tokens are in
   neither.
2. Every token of A finds the token of B that it is most alike: cosine of their metrics, the keys of
   the last client block, mean over heads. Ties: the lowest token of B.
3. Of these pairs the most alike are merged, at most half of the patches a round; ties: the lowest
   token of A. All that fell on one token of B become one token, the mean weighted by size, and so
   does their metric.
4. What is left: special tokens, tokens of A that were not merged, tokens of B, each in their old
   order. One more round, if there are still too many.

Up: (B, K, D), the class ids (B,) and, with ``prop_attn``, the sizes (B, K): how many tokens each
one stands for, uint8 up to N = 255, then uint16. The server adds log sizes to the attention logits
of all its blocks (proportional attention), and a head that pools tokens counts them by size, too:
equal tokens may be merged without changing the logits. Down: ∂L/∂Z (B, K, D). In bytes, float32:
4·B·K·D + B·K + B up, 4·B·K·D down.

Gradient: natural, exact autograd of X ↦ Z with the pairs held fixed: a token gets size / total size
of its group's gradient.

What this file does otherwise than paper and official code, and why:

- The paper merges r tokens in every block, within the block. Here all are merged at the cut, behind
  the last client block, and several rounds replace the blocks; a round merges as many as it can, so
  that there are few.
- Later rounds compare the merged metric; the paper has fresh keys in every block.
- ``metric=tokens`` compares the tokens themselves, which the paper found worse. It works where keys
  are not known: behind a method that changed the tokens, or with no client block.
- The official code keeps a distillation token in set B, where nothing may join it. Here no special
  token is in a set, however many there are.
- ``prop_attn=false`` sends no sizes; the server then underrates what was merged.
- Evaluation is merged on demand; the paper always does.

Numbers that are not finite stay in the group of their token. A second ``tome`` in a stack counts on
from the sizes of the first.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from splitlab.core import ConfigError, Cut, Keys, Peer, PluginError, ProtocolError, Traits, hookimpl
from splitlab.plugins.common.pooling import SIZES, floor, merge_in_cut, merge_tokens, unreachable
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["ToMe", "match"]

Metric = Literal["keys", "tokens"]


class ToMe:
    """Merge similar patches.

    Args:
        r: tokens that are merged away, over all rounds.
        ratio: ξ in (0, 1] instead: ⌊ξN⌋ tokens are sent, special tokens counted; at least these and
            one more. Sizes are not counted. Given neither: ξ = 0.1, or the smallest that the model
            allows.
        metric: what is compared: attention keys (the paper), or the tokens themselves.
        prop_attn: whether sizes are sent and the server attends, and pools, in proportion to them.
            Needs blocks, and a pooling, that can.
        evaluation: whether evaluation batches are merged, too.
    """

    def __init__(
        self,
        *,
        r: int | None = None,
        ratio: float | None = None,
        metric: Metric = "keys",
        prop_attn: bool = True,
        evaluation: bool = False,
    ) -> None:
        either(r=r, ratio=ratio)
        if r is not None and r < 1:
            raise refusal("r", r, "1 or more", "for example r=8")
        if ratio is not None:
            check_share("ratio", ratio)
        check_choice("metric", metric, get_args(Metric))
        self._r = r
        self._ratio = ratio
        self._metric = metric
        self._prop_attn = prop_attn
        self._evaluation = evaluation

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check the parameters against the model, ask for keys."""
        self._peer = peer
        if self._metric == "keys":
            peer.request("tome", Keys())
        N, least = peer.tokens, self._least(peer.tokens)
        if self._r is not None and self._r > N - least:
            raise ConfigError(
                f"plugin 'tome': r={self._r} is too many: of this model's {N} tokens at least "
                f"{least} are sent; allowed here: r=1 to {N - least}"
            )
        if self._ratio is not None and floor(N * self._ratio) < least:
            raise unreachable("tome", self._ratio, least, N)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, K, D)."""
        if not (cut.training or self._evaluation):
            return
        B, N, _ = cut.activations.shape
        K = self._count(N)
        if K >= N:
            return
        sizes_BN = cut.side.get(SIZES)
        if sizes_BN is None:
            dtype = torch.uint8 if self._peer.tokens <= 255 else torch.uint16
            sizes_BN = torch.ones(B, N, dtype=dtype, device=cut.activations.device)
            if self._prop_attn:
                cut.side[SIZES] = sizes_BN
        sizes_BN = sizes_BN.double()
        slots_BN = match(self._compared(cut), sizes_BN, self._peer.prefix_tokens, K)
        merge_in_cut(cut, slots_BN, _shares(sizes_BN, slots_BN, K), K)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Take the sizes that arrived for the server's attention."""
        if not self._prop_attn or SIZES not in cut.side:
            return
        sizes_BK = cut.side.pop(SIZES)
        if sizes_BK.shape != cut.activations.shape[:2]:
            raise ProtocolError(
                f"{cut.when}: {SIZES!r} has shape {[*sizes_BK.shape]}, the tokens that "
                f"arrived {[*cut.activations.shape[:2]]}; plugin 'tome' needs one size per token: "
                "put it behind plugins that choose tokens"
            )
        if sizes_BK.dtype not in (torch.uint8, torch.uint16):
            raise ProtocolError(
                f"{cut.when}: {SIZES!r} arrived as {sizes_BK.dtype}; plugin 'tome' counts "
                "tokens in uint8 or uint16"
            )
        sizes_BK = sizes_BK.float()
        when = cut.when
        cut.expect(
            (sizes_BK >= 1).all() & (sizes_BK.sum(dim=1) <= self._peer.tokens).all(),
            lambda: ProtocolError(
                f"{when}: {SIZES!r} must be 1 or more and add up to at most "
                f"{self._peer.tokens} in every row; plugin 'tome' merges no more tokens than there "
                "are"
            ),
        )
        cut.token_sizes = sizes_BK if cut.token_sizes is None else cut.token_sizes * sizes_BK

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ, the share of tokens that is sent, for both directions; sizes are not in it."""
        N = self._peer.tokens
        if self._r is not None:
            share = (N - self._r) / N
        else:
            share = self._ratio or max(DEFAULT_RATIO, self._least(N) / N)
        return share, share

    @hookimpl
    def traits(self) -> Traits:
        """Needs keys, or tokens of any kind; leaves every row with groups of its own."""
        return Traits(
            needs={"keys" if self._metric == "keys" else "layout"},
            changes={"tokens", "places"},
            evaluation=self._evaluation,
        )

    def _least(self, N: int) -> int:
        """Return the fewest tokens that matching leaves: special tokens and one patch."""
        return min(N, self._peer.prefix_tokens + 1)

    def _count(self, N: int) -> int:
        """Return K for the N tokens that are there."""
        K = floor(N * (self._ratio or DEFAULT_RATIO)) if self._r is None else N - self._r
        return max(K, self._least(N))

    def _compared(self, cut: Cut) -> torch.Tensor:
        if self._metric == "tokens":
            return cut.activations.detach()
        keys = cut.measured.get(Keys())
        if keys is None or keys.shape[:2] != cut.activations.shape[:2]:
            found = "none" if keys is None else f"shape {[*keys.shape]}"
            raise PluginError(
                f"plugin 'tome' needs an attention key of every token at the cut, "
                f"{[*cut.activations.shape[:2]]}, and finds {found}; put it in front of plugins "
                "that change the tokens, or give metric=tokens"
            )
        return keys


def match(metric_BNF: torch.Tensor, sizes_BN: torch.Tensor, P: int, K: int) -> torch.Tensor:
    """Return where every token goes when N are merged into K, (B, N) int64 in [0, K).

    Bipartite soft matching, in as few rounds as it takes; compares in float32 at least.

    Args:
        metric_BNF: (B, N, F) floating point; tokens are alike if the angle between these is small.
        sizes_BN: (B, N) floating point, how many tokens each one stands for.
        P: special tokens in front, which stay what they are.
        K: P + 1 to N.
    """
    metric = metric_BNF.to(torch.promote_types(metric_BNF.dtype, torch.float32))
    sizes, left = sizes_BN, metric.shape[1]
    slots_BN = torch.arange(left, device=metric.device).expand(sizes_BN.shape)
    while left > K:
        merged = min(left - K, (left - P) // 2)
        step = _round(metric, P, merged)
        left -= merged
        slots_BN = step.gather(1, slots_BN)
        if left > K:
            metric = merge_tokens(metric, step, _shares(sizes, step, left), left)
            sizes = _totals(sizes, step, left)
    return slots_BN


def _round(metric_BNF: torch.Tensor, P: int, merged: int) -> torch.Tensor:
    """Return where every token goes when the most alike are merged, (B, N) int64."""
    B, N, _ = metric_BNF.shape
    unit = torch.nn.functional.normalize(metric_BNF, dim=-1)
    even, odd = slice(P + P % 2, None, 2), slice(P + 1 - P % 2, None, 2)
    alike_BA, partner_BA = (unit[:, even] @ unit[:, odd].mT).max(dim=-1)
    ranked_BA = alike_BA.argsort(dim=1, descending=True, stable=True)
    goes_BA = torch.zeros_like(ranked_BA, dtype=torch.bool)
    goes_BA.scatter_(1, ranked_BA[:, :merged], True)
    stays_BA = ~goes_BA

    first = P + goes_BA.shape[1] - merged  # slot of the first token of B
    slots_BN = torch.arange(N, device=unit.device).repeat(B, 1)
    slots_BN[:, even] = torch.where(goes_BA, first + partner_BA, P - 1 + stays_BA.cumsum(dim=1))
    slots_BN[:, odd] = torch.arange(first, N - merged, device=unit.device)
    return slots_BN


def _totals(sizes_BN: torch.Tensor, slots_BN: torch.Tensor, K: int) -> torch.Tensor:
    ones_BN = torch.ones_like(sizes_BN)
    return merge_tokens(sizes_BN[..., None], slots_BN, ones_BN, K)[..., 0]


def _shares(sizes_BN: torch.Tensor, slots_BN: torch.Tensor, K: int) -> torch.Tensor:
    """Return every token's share of the token that it goes into, (B, N)."""
    return sizes_BN / _totals(sizes_BN, slots_BN, K).gather(1, slots_BN)
