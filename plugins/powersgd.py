"""PowerSGD: activations and gradients as low-rank factors, found by one warm-started power step.

T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
Distributed Optimization", NeurIPS 2019, arXiv 1905.13727. The paper compresses the gradient of a
weight matrix that many workers average; here it compresses what crosses the cut.

The sender, of a tensor (B, N, D) read as a matrix M of B·N rows (tokens) and D columns (features):

1. M̃ = M + E, with ``error_feedback`` and for gradients only. E is what the factors of the last
   gradient missed. Activations are fed nothing back: E would carry other samples' features.
2. P = orth(M̃ Q), Q (D, r) the right factor of the last step. Before the first: random.
3. Q = M̃ᵀ P. Steps 2 and 3 repeat ``iterations`` times.
4. M̂ = P Qᵀ is what the receiver rebuilds; E = M̃ - M̂.

Up: P (B, N, r) and Q (D, r), r (B·N + D) numbers. Down, ``gradient=factor``: the same of the
gradient, by the server and with its own Q and E; straight-through. ``gradient=natural``: the
client sends V = orth(Q) and P = M V instead, M projected to the space of Q's columns, half a power
step better; the server answers with G V, r · B·N numbers; the client's gradient is (G V) Vᵀ, exact
for the map M ↦ M V Vᵀ with V held fixed.

With ``center`` the column means travel too, D numbers each way, and M is what is left without them:
principal component analysis. Down, ``natural``, these are the column sums of G.

Evaluation: not compressed. ``evaluation=true`` compresses it, from the state and without
changing it.

What differs from the paper and its code:

- Nothing is averaged over workers: there is one client.
- Q is orthonormalised before it is used again, which changes P Qᵀ in nothing but rounding.
- The paper's orthogonalization is Gram-Schmidt with an ε; ours is by Householder reflections and
  needs none: a gradient of zeros is rebuilt as zeros.
- The authors' later code sends only one factor a step, P and Q in turn, and both peers use the last
  one of the other. P belongs to the samples of its batch, so it cannot be left out here; and Q is
  D / (B·N + D) of what is sent, under one per cent.
- M has B·N rows and the last batch of an epoch fewer: only Q, whose size does not depend on it,
  starts the next search, and E is added to gradients of its own shape alone.
- ``error_feedback``, which the paper needs, is off. There E is of the same weight at the next step;
  here it is of other samples: what telescopes is the sum over steps at a place of the batch, and
  each sample gets a part of the gradient of another one. Training is the worse for it.
- ``svd`` replaces steps 2 and 3 by the exact best approximation of rank r: the bound of what any
  search can reach, at several times the time (see `splitlab.plugins.common.low_rank.principal`).
- The rank is fixed by the shape. If rank r would send more numbers than the tensor has, the largest
  rank that does not is taken (a small last batch; a stack that sends few tokens).
- If a quantizer stands behind, E does not contain its error.

Shapes: B rows of the batch, N tokens, D width; G = 1 matrix of M rows and F columns, R = r.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from splitlab.core import ConfigError, Peer, Traits, hookimpl
from splitlab.plugins.common.low_rank import (
    LowRank,
    Track,
    orthonormal,
    principal,
    rank_for,
    shares,
    worth,
)
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["PowerSGD"]

Gradient = Literal["factor", "natural"]


class PowerSGD(LowRank):
    """Send a matrix of tokens as two factors of fixed rank.

    Bytes, with E bytes a number (4 for float32): E · r · (B·N + D) up, and as many down with
    ``gradient=factor``, E · r · B·N with ``natural``; ``center`` adds E · D each way.

    Args:
        ratio: ξ in (0, 1], the largest rank whose bytes, mean of both directions, are at most ξ.
            Without rank: 0.1.
        rank: r, at least 1, instead of ratio.
        gradient: factor (the paper: factors of the gradient) or natural (projected, see above).
        error_feedback: add to a gradient what the last one's factors missed, as in the paper; with
            ``gradient=factor`` only.
        iterations: power steps a message, 1 in the paper.
        svd: the best factors of this rank, by an exact decomposition.
        center: take the column means out, and send them too.
        evaluation: whether evaluation batches are compressed, too.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        rank: int | None = None,
        gradient: Gradient = "factor",
        error_feedback: bool = False,
        iterations: int = 1,
        svd: bool = False,
        center: bool = False,
        evaluation: bool = False,
    ) -> None:
        either(ratio=ratio, rank=rank)
        check_choice("gradient", gradient, get_args(Gradient))
        if ratio is None and rank is None:
            ratio = DEFAULT_RATIO
        if ratio is not None:
            check_share("ratio", ratio)
        if rank is not None and rank < 1:
            raise refusal("rank", rank, "1 or more", "for example rank=4")
        if iterations < 1:
            raise refusal("iterations", iterations, "1 or more", "for example iterations=1")
        natural = gradient == "natural"
        if error_feedback and natural:
            raise refusal(
                "error_feedback",
                True,
                "false with gradient=natural, which has no residual of the gradient",
                "give gradient=factor with it",
            )
        super().__init__(
            "powersgd",
            mat="tokens",
            natural=natural,
            evaluation=evaluation,
            feedback=1.0 if error_feedback else 0.0,
            center=center,
        )
        self._ratio = ratio
        self._given = rank
        self._iterations = iterations
        self._svd = svd

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check the rank against the model and the batch."""
        super().setup(peer)
        _, M, F = self._full_shape()
        if self._given is not None and self._given > worth(M, F):
            raise ConfigError(
                f"plugin 'powersgd': rank={self._given} would send more than the {M} by {F} matrix "
                f"that it factorises; allowed here: 1 to {worth(M, F)}"
            )
        if self._wanted(M, F) < 1:
            least = sum(shares(1, M, F, natural=self._natural, center=self._center)) / 2
            raise ConfigError(
                f"plugin 'powersgd': ratio={self._ratio} is less than rank 1 takes of a {M} by {F} "
                f"matrix; allowed here: {math.ceil(1e4 * least) / 1e4:g} to 1"
            )

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return what the rank takes of a full batch, up and down; before ``setup`` ξ, if given."""
        if not hasattr(self, "_peer"):
            return self._ratio or 1.0, self._ratio or 1.0
        _, M, F = self._full_shape()
        return shares(self._rank(M, F), M, F, natural=self._natural, center=self._center)

    @hookimpl
    def traits(self) -> Traits:
        """Needs one tensor of tokens; leaves two factors."""
        return Traits(
            needs={"layout"},
            changes={"layout"},
            evaluation=self._evaluation,
            stateful=not self._svd or self._feedback > 0,
            gradient="natural" if self._natural else "straight-through",
            waits="torch looks whether the eigenvectors were found" if self._svd else "",
        )

    def _factorise(
        self, matrix_GMF: torch.Tensor, track: Track, *, draw: torch.Generator, size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        _, M, F = matrix_GMF.shape
        R = self._rank(M, F)
        if self._svd:
            V_GFR = principal(matrix_GMF, R)
            return matrix_GMF @ V_GFR, V_GFR, None
        # The paper takes Q as it was: the same space, but of numbers squared at every step.
        Q_GFR = orthonormal(self._start(track, F, R, draw, matrix_GMF))[None]
        for _ in range(self._iterations):
            P_GMR = orthonormal(matrix_GMF @ Q_GFR)
            Q_GFR = matrix_GMF.mT @ P_GMR
        if self._natural:
            Q_GFR = orthonormal(Q_GFR)
            P_GMR = matrix_GMF @ Q_GFR
        return P_GMR, Q_GFR, Q_GFR[0]

    def _rank(self, M: int, F: int) -> int:
        """Return r for such a matrix."""
        return max(1, min(self._wanted(M, F), worth(M, F)))

    def _wanted(self, M: int, F: int) -> int:
        """Return the rank that was asked for, 0 if the ratio allows none."""
        if self._given is not None:
            return self._given
        assert self._ratio is not None
        return rank_for(self._ratio, M, F, natural=self._natural, center=self._center)
