"""Controls for token reducers: patches drawn at random, and average pooling of the patch grid.

A method that chooses tokens by attention or similarity should beat what chooses blindly
(``random-tokens``) and what keeps a coarser image (``grid-pool``), at equal bytes. Both are common
practice without a paper of their own.

``random-tokens``, the client: M of the N - P patches of every row, each choice equally likely,
drawn anew for every row and step from the run's seed; they follow the P special tokens in their old
order.

``grid-pool``, the client: the patch grid (H, W) becomes (⌈H/f⌉, ⌈W/f⌉): the mean of every f by f
window. Where f does not divide the grid, the windows at the lower and right edge are smaller, and
their mean is over the patches that are there. Special tokens pass unchanged.

Up: (B, K, D) and the class ids (B,). Down: ∂L/∂Z (B, K, D). In bytes, float32: 4·B·K·D + B up,
4·B·K·D down; K = P + M, or P + ⌈H/f⌉·⌈W/f⌉.

Gradient: natural. Evaluation: whole batches, or reduced ones on demand; ``random-tokens`` then
draws by the number of the batch, the same at every evaluation.

Attention, for a reducer that follows, is that of the patches drawn, or summed over windows. Numbers
that are not finite make the whole row NaN, whether drawn or not, or spread over their window.
"""

from __future__ import annotations

import math

import torch

from splitlab.core import ConfigError, Cut, Peer, PluginError, Traits, hookimpl, upload
from splitlab.plugins.common.pooling import Share, floor, merge_in_cut, select_in_cut
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_share, either, refusal

__all__ = ["GridPool", "RandomTokens"]


class RandomTokens:
    """Send patches drawn at random.

    Args:
        keep: share of the patches that is kept, in (0, 1], rounded up.
        ratio: ξ in (0, 1] instead: ⌊ξN⌋ tokens are sent, special tokens counted; at least these.
            Given neither: ξ = 0.1, or the smallest that the model allows.
        evaluation: whether evaluation batches are reduced, too.
    """

    def __init__(
        self,
        *,
        keep: float | None = None,
        ratio: float | None = None,
        evaluation: bool = False,
    ) -> None:
        self._share = Share("random-tokens", keep, ratio)
        self._evaluation = evaluation

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check ξ against the model."""
        self._peer = peer
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
        generator = self._peer.generator("random-tokens", cut.step)
        drawn = torch.rand(B, N - P, generator=generator).argsort(dim=1)[:, :M]
        special_BP = torch.arange(P).expand(B, P)
        kept_BK = torch.cat((special_BP, drawn.sort(dim=1).values + P), dim=1)
        select_in_cut(cut, upload(kept_BK, cut.activations.device))

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ, the share of tokens that is sent, for both directions."""
        share = self._share.nominal(self._peer)
        return share, share

    @hookimpl
    def traits(self) -> Traits:
        """Leaves every row with tokens of its own."""
        return Traits(needs={"layout"}, changes={"tokens", "places"}, evaluation=self._evaluation)


class GridPool:
    """Send the means of square windows of patches.

    Args:
        factor: f, the side of a window in patches: 2 makes one of four. 1 changes nothing.
        ratio: ξ in (0, 1] instead: the smallest f with at most ξN tokens, special tokens counted.
            A grid has few such sizes, so the ξ sent is often well below. Given neither: ξ = 0.1, or
            the smallest that the model allows.
        evaluation: whether evaluation batches are pooled, too.
    """

    def __init__(
        self,
        *,
        factor: int | None = None,
        ratio: float | None = None,
        evaluation: bool = False,
    ) -> None:
        either(factor=factor, ratio=ratio)
        if factor is not None and factor < 1:
            raise refusal("factor", factor, "1 or more", "for example factor=2")
        if ratio is not None:
            check_share("ratio", ratio)
        self._given_factor = factor
        self._ratio = ratio
        self._evaluation = evaluation

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Find the windows."""
        if peer.grid is None:
            raise ConfigError(
                "plugin 'grid-pool' needs patches in a grid, row by row, which this model does not "
                "have; choose another model or a reducer that needs no grid, such as random-tokens"
            )
        self._peer = peer
        self._factor = self._given_factor or self._meet(peer.grid)
        (H, W), P = peer.grid, peer.prefix_tokens
        if self._factor > max(H, W):
            raise ConfigError(
                f"plugin 'grid-pool': factor={self._factor} exceeds the grid of {H} x {W} patches; "
                f"allowed here: 1 to {max(H, W)}"
            )
        down, across = (torch.arange(side) // self._factor for side in (H, W))
        window = (down[:, None] * math.ceil(W / self._factor) + across).flatten()
        slots_N = torch.cat((torch.arange(P), window + P))
        self._slots_N = slots_N.to(peer.device)
        self._weights_N = (1 / slots_N.bincount().double())[slots_N].to(peer.device)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, K, D)."""
        if self._factor == 1 or not (cut.training or self._evaluation):
            return
        B, N, _ = cut.activations.shape
        if len(self._slots_N) != N:
            raise PluginError(
                f"plugin 'grid-pool' needs the whole patch grid, {len(self._slots_N)} tokens, and "
                f"finds {N}; put it in front of plugins that change the tokens"
            )
        K = self._tokens(self._factor)
        merge_in_cut(cut, self._slots_N.expand(B, N), self._weights_N.expand(B, N), K)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return the share of tokens that is sent, for both directions."""
        share = self._tokens(self._factor) / self._peer.tokens
        return share, share

    @hookimpl
    def traits(self) -> Traits:
        """Needs the whole grid; leaves a coarser one."""
        return Traits(needs={"grid"}, changes={"tokens"}, evaluation=self._evaluation)

    def _tokens(self, factor: int) -> int:
        """Return K."""
        assert self._peer.grid is not None
        windows = math.prod(math.ceil(side / factor) for side in self._peer.grid)
        return self._peer.prefix_tokens + windows

    def _meet(self, grid: tuple[int, int]) -> int:
        """Return the smallest factor that meets ξ."""
        N = self._peer.tokens
        most = floor(N * (self._ratio or DEFAULT_RATIO))
        counts = {factor: self._tokens(factor) for factor in range(max(grid), 0, -1)}
        fitting = [factor for factor, K in counts.items() if most >= K]
        if not fitting and self._ratio is not None:
            can = ", ".join(f"{math.ceil(K / N * 1e4) / 1e4:g}" for K in sorted({*counts.values()}))
            raise ConfigError(
                f"plugin 'grid-pool': ratio={self._ratio} cannot be met: one window and "
                f"{self._peer.prefix_tokens} special tokens are more; this model's grid can {can}"
            )
        return min(fitting, default=max(grid))
