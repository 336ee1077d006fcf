"""NSC-SL, reconstructed: low-rank factors whose rank follows energy and bandwidth.

Z. Fang et al., "NSC-SL: A Bandwidth-Aware Neural Subspace Compression for Communication-Efficient
Split Learning", 2026, arXiv 2602.02696. This is a RECONSTRUCTION from the abstract: no code and no
full text were at hand, and results of it are results of ``nsc-sl-recon``, not of the paper. Known
are: a rank that is chosen from the singular values and the bandwidth, without a full decomposition;
a factorisation by alternating orthogonal iteration with residual feedback, against the truncation
error; both for activations and gradients. All else below is ours.

The sender, of a tensor read as G matrices M of m rows and c columns (``mat``):

1. ``feedback=temporal``, gradients with ``gradient=factor`` only: M̃ = M + β E, E being what the
   last gradient's factors missed. The next activations are other samples': E is not for them.
2. Cap: r_bw, the largest rank whose factors fit into the bytes that ``ratio`` or ``budget`` allow.
3. Alternating orthogonal iteration with r_bw columns V, from the last step's (before the first:
   random): U = orth(M̃ V), V = orth(M̃ᵀ U), ``iterations`` times.
4. ``feedback=intra``: in the last round 8 random directions Ω, orthogonal to V, stand beside V.
   M̃ Ω = R Ω, so the residual R = M̃ - M̃ V Vᵀ, which is never made, names what V lacks.
5. The singular values s_i of M̃ V and its right singular vectors, from the small Gram matrix of M̃ V:
   they approach those of M̃ from below. V is turned so that its columns are ordered by them.
6. r_energy, the fewest columns with Σ s_i² ≥ η ‖M̃‖². r = min(r_energy, r_bw), at least 1; if η is
   not reached within the cap, r = r_bw. With several matrices, energies are summed over them.
7. P = M̃ V, with the first r columns. E = M̃ - P Vᵀ.

Up: P (B, N, r) and V (D, r), with ``mat=tokens``; r is in their shapes. The server rebuilds P Vᵀ.
Down, ``gradient=natural`` (ours, the default): the server answers with G V, in P's shape; the
client, which keeps V until then, takes (G V) Vᵀ, the exact gradient of M ↦ M V Vᵀ with V fixed.
``gradient=factor`` (the abstract): steps 1 to 7 on the gradient, by the server with a state of its
own; straight-through.

Which matrices: ``tokens``, one of B·N tokens by D features, the cheapest basis; ``sample``, one of
N by D for every sample, each with a basis of its own; ``batch``, one of B samples by N·D. With
``sample`` all searches start from one basis: the mean projection onto the last batch's bases,
applied to the old one.

Evaluation: not compressed; what the paper does there is not known. ``evaluation=true``
compresses it, from the state and without changing it.

Other choices of ours: the bandwidth does not vary, so ``budget`` is one number for a run; the
first-named modes are the defaults; η = 0.95, two iterations, β = 1. The signs and rotations of V
may change from step to step: the receiver uses no V but the one that came.

Shapes: B rows of the batch, N tokens, D width; G matrices of M rows and F columns, K columns of the
search, R = r.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from splitlab.core import ConfigError, Kind, Peer, Traits, hookimpl
from splitlab.plugins.common.low_rank import (
    LowRank,
    Mat,
    Track,
    orthonormal,
    rank_for,
    shares,
    spectrum,
    worth,
)
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["NSCSL"]

Feedback = Literal["intra", "temporal", "none"]
Gradient = Literal["natural", "factor"]

_PROBES = 8
"""Random directions in which the residual is looked at, the usual oversampling."""

_SLACK = 1e-6
"""What float32 may lose of a matrix's energy: without it η = 1 would never be reached."""


class NSCSL(LowRank):
    """Send matrices as two factors; their rank follows energy and bytes. A reconstruction.

    Bytes, with E bytes a number (4 for float32) and G matrices (m, c): E · G · r · (m + c) up, and
    as many down with ``gradient=factor``, E · G · r · m with ``natural``. These are caps: where few
    directions have the energy, less is sent.

    Args:
        ratio: ξ in (0, 1], the cap: the largest r_bw whose bytes, mean of both directions, are at
            most ξ. Without budget: 0.1.
        budget: instead of ratio, bytes that the factors of a message may take: rate times deadline.
        eta: η in (0, 1], share of the energy to keep; 1 fills the cap unless the rank is lower.
        mat: tokens, sample or batch, see above.
        gradient: natural (projected) or factor (factors of the gradient).
        feedback: intra (probe the residual of this message), temporal (that, and add the last
            residual to gradients), none.
        beta: β ≥ 0 of ``feedback=temporal``.
        iterations: rounds of the alternating iteration, 1 or more.
        evaluation: whether evaluation batches are compressed, too.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        budget: int | None = None,
        eta: float = 0.95,
        mat: Mat = "tokens",
        gradient: Gradient = "natural",
        feedback: Feedback = "intra",
        beta: float = 1.0,
        iterations: int = 2,
        evaluation: bool = False,
    ) -> None:
        either(ratio=ratio, budget=budget)
        if ratio is None and budget is None:
            ratio = DEFAULT_RATIO
        if ratio is not None:
            check_share("ratio", ratio)
        if budget is not None and budget < 1:
            raise refusal("budget", budget, "1 byte or more", "for example budget=1000000")
        check_share("eta", eta)
        check_choice("mat", mat, get_args(Mat))
        check_choice("gradient", gradient, get_args(Gradient))
        check_choice("feedback", feedback, get_args(Feedback))
        if not 0 <= beta < math.inf:
            raise refusal("beta", beta, "0 or more", "for example beta=1")
        if iterations < 1:
            raise refusal("iterations", iterations, "1 or more", "for example iterations=2")
        natural = gradient == "natural"
        if feedback == "temporal" and natural:
            raise refusal(
                "feedback",
                feedback,
                "intra and none with gradient=natural, which has no residual of the gradient",
                "give gradient=factor with it",
            )
        super().__init__(
            "nsc-sl",
            mat=mat,
            natural=natural,
            evaluation=evaluation,
            feedback=beta if feedback == "temporal" else 0.0,
        )
        self._ratio = ratio
        self._budget = budget
        self._eta = eta
        self._probes = feedback != "none"
        self._iterations = iterations

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check ratio or budget against the model and the batch."""
        super().setup(peer)
        G, M, F = self._full_shape()
        if self._room(G, M, F, 4) >= 1:
            return
        what = f"the factors of rank 1 take, {G} x ({M} + {F}) numbers of {G} x {M} x {F}"
        if self._budget is not None:
            raise ConfigError(
                f"plugin 'nsc-sl': budget={self._budget} is less than {what}; allowed here: "
                f"{4 * G * (M + F)} or more"
            )
        least = sum(shares(1, M, F, natural=self._natural)) / 2
        raise ConfigError(
            f"plugin 'nsc-sl': ratio={self._ratio} is less than {what}; allowed here: "
            f"{math.ceil(1e4 * least) / 1e4:g} to 1"
        )

    @hookimpl
    def nominal_ratio(self, step: int | None) -> tuple[float, float]:
        """Return what the ranks of a step, else the capped one, take of a full batch; or ξ."""
        if not hasattr(self, "_peer"):
            return self._ratio or 1.0, self._ratio or 1.0
        G, M, F = self._full_shape()
        cap = self._cap(G, M, F, 4)
        ranks = self._ranks if step is not None else {}
        up, _ = shares(ranks.get(Kind.ACTIVATION, cap), M, F, natural=self._natural)
        _, down = shares(ranks.get(Kind.GRADIENT, cap), M, F, natural=self._natural)
        return up, down

    @hookimpl
    def traits(self) -> Traits:
        """Needs one tensor of tokens; leaves two factors."""
        return Traits(
            needs={"layout"},
            changes={"layout"},
            evaluation=self._evaluation,
            stateful=True,
            gradient="natural" if self._natural else "straight-through",
            waits="how many columns are sent follows from their energy",
        )

    def _factorise(
        self, matrix_GMF: torch.Tensor, track: Track, *, draw: torch.Generator, size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        G, M, F = matrix_GMF.shape
        cap = self._cap(G, M, F, size)
        start_FK = orthonormal(self._start(track, F, cap, draw, matrix_GMF))
        V_GFK = start_FK.expand(G, *start_FK.shape)
        for left in reversed(range(self._iterations)):
            if left == 0 and self._probes:
                V_GFK = _with_probes(V_GFK, draw)
            U_GMK = orthonormal(matrix_GMF @ V_GFK)
            V_GFK = orthonormal(matrix_GMF.mT @ U_GMK)

        projected_GMK = matrix_GMF @ V_GFK
        exact_GMK = projected_GMK.double()
        energy_GK, turn_GKK = spectrum(exact_GMK.mT @ exact_GMK)
        turn_GKK = turn_GKK[..., :cap].to(matrix_GMF)
        R = min(cap, self._columns(energy_GK.sum(dim=0), matrix_GMF))
        V_GFK = V_GFK @ turn_GKK

        basis_FK = V_GFK[0]
        if G > 1:  # mean projection onto the bases, applied to where they started from
            basis_FK = (V_GFK @ (V_GFK.mT @ start_FK)).mean(dim=0)
        return projected_GMK @ turn_GKK[..., :R], V_GFK[..., :R], basis_FK

    def _columns(self, energy_K: torch.Tensor, matrix_GMF: torch.Tensor) -> int:
        """Return the fewest columns that hold η of the matrices' energy; K + 1 if all do not."""
        norm_GM = torch.linalg.vector_norm(matrix_GMF, dim=-1)
        if not 1e-15 < float(norm_GM.max()) < math.inf:  # squares that float32 cannot hold
            norm_GM = torch.linalg.vector_norm(matrix_GMF, dim=-1, dtype=torch.float64)
        wanted = (self._eta - _SLACK) * norm_GM.double().square().sum()
        # Here, as a GPU of older versions of torch cannot repeat sums that go on, and says so.
        return int((energy_K.cpu().cumsum(dim=0) < wanted.cpu()).sum()) + 1

    def _room(self, G: int, M: int, F: int, size: int) -> int:
        """Return the largest rank that the bytes allow, 0 if none; numbers of so many bytes."""
        if self._budget is not None:
            return self._budget // (size * G * (M + F))
        assert self._ratio is not None
        return rank_for(self._ratio, M, F, natural=self._natural)

    def _cap(self, G: int, M: int, F: int, size: int) -> int:
        """Return r_bw: at least 1, and never so large that the factors outgrow the matrix."""
        return max(1, min(self._room(G, M, F, size), worth(M, F)))


def _with_probes(V_GFK: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return V's columns and random ones orthogonal to them: M̃ times these is R times these."""
    F, K = V_GFK.shape[-2:]
    probe_FS = torch.randn(F, min(_PROBES, F - K), generator=draw, dtype=torch.float64).to(V_GFK)
    return torch.cat((V_GFK, probe_FS - V_GFK @ (V_GFK.mT @ probe_FS)), dim=-1)
