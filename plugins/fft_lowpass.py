"""FFT low-pass: the low frequencies of every sample's tokens-by-width matrix.

J. Ma, X. Lyu, J. Jiang, L. Zou, C. Ren, Q. Cui, X. Tao, "FourierCompress: Layer-Aware Spectral
Activation Compression for Efficient and Accurate Collaborative LLM Inference", 2025, arXiv
2510.16418: a 2-D Fourier transform of the activations, a block of low frequencies, and conjugate
symmetry to rebuild from it. Made for the inference of language models. The map is linear, so that
it can be trained through: here it is a cheap baseline for split learning.

1. Client: of the 2-D Fourier transform of X (N, D) keep the frequencies (p, q) with |p| ≤ a and
   |q| ≤ b. X is real, so the coefficient at (-p, -q) is the conjugate of that at (p, q): the block
   holds M · Q = (2a + 1)(2b + 1) independent real numbers. These are sent.
2. Server: rebuild X̂ from the block, all other frequencies zero.

Up: the block (rows, M, Q) in the dtype of X, and N and D, 8 bytes. Down: ∂L/∂block (rows, M, Q).
Gradient: natural. In the basis that is sent, cosines and sines scaled to norm 1, the two maps are
adjoint: X̂ is the orthogonal projection of X, and the way back projects the gradient likewise.

What this file does otherwise than the abstract lets expect, and why:

- The numbers of the block are not real and imaginary parts of some of the coefficients, but the
  coordinates in the basis of cosines and sines of tokens times those of features. They span the
  same matrices, none of them is redundant, and X̂ is the same.
- They are computed as two products with the basis vectors that are kept, not as a fast transform of
  which nine tenths are thrown away. 197 tokens are a prime number: fast transforms are slow there.
- An axis of which everything is kept is not transformed: its numbers can be sent as they are.
- Special tokens are tokens like all others, as in the original.

Evaluation is compressed, too, as the method was made for it: ``evaluation=false`` sends evaluation
batches whole to a server that was trained on smoothed ones.

A number that is not finite makes its whole sample so.

Shapes: B rows, N tokens, D width (or whatever a plugin in front left of them), M and Q kept of
them.
"""

from __future__ import annotations

import functools
import math

import torch

from splitlab.core import Cut, ProtocolError, Traits, hookimpl
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_share, either

__all__ = ["FFTLowpass", "fourier_basis"]

SIZE = "fft-lowpass.size"
"""Name of the side information: tokens and width before, (2,) int32."""

_TRIED = 16
"""How far the number of token frequencies may be from the share √ξ, and at most a tenth of it."""

_FORGIVEN = 1e-9
"""What a product of floats may lack to an integer."""


class FFTLowpass:
    """Send a block of low frequencies of every row's 2-D Fourier transform.

    Args:
        ratio: ξ in (0, 1]: the block has at most ξ N D numbers, and as many of them as an odd times
            an odd number can be, of both axes about the share √ξ. At least 1. 0.1 if no share is
            given, either; 1 sends everything as it is.
        token_keep: share of the token axis' frequencies in (0, 1] instead; everything if only the
            other share is given. Rounded down to an odd number.
        width_keep: the same for the width.
        evaluation: whether evaluation batches are compressed, too (the paper).
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        token_keep: float | None = None,
        width_keep: float | None = None,
        evaluation: bool = True,
    ) -> None:
        either(ratio=ratio, token_keep=token_keep)
        either(ratio=ratio, width_keep=width_keep)
        if ratio is None and token_keep is None and width_keep is None:
            ratio = DEFAULT_RATIO
        self._ratio = ratio
        self._token_keep = 1.0 if token_keep is None else token_keep
        self._width_keep = 1.0 if width_keep is None else width_keep
        self._evaluation = evaluation
        if ratio is not None:
            check_share("ratio", ratio)
        check_share("token_keep", self._token_keep)
        check_share("width_keep", self._width_keep)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, M, Q)."""
        if not (cut.training or self._evaluation):
            return
        rows_BND = cut.activations
        _, N, D = rows_BND.shape
        M, Q = self._block(N, D)
        token_basis, width_basis = _bases(rows_BND, (N, M), (D, Q))
        cut.activations = _transform(rows_BND, token_basis, width_basis)
        cut.side[SIZE] = torch.tensor([N, D], dtype=torch.int32, device=rows_BND.device)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Replace (B, M, Q) by (B, N, D)."""
        if SIZE not in cut.side:
            return
        block_BMQ = cut.activations
        N, D = self._size(cut.side.pop(SIZE), block_BMQ)
        _, M, Q = block_BMQ.shape
        token_basis, width_basis = _bases(block_BMQ, (N, M), (D, Q))
        cut.activations = _transform(
            block_BMQ,
            None if token_basis is None else token_basis.T,
            None if width_basis is None else width_basis.T,
        )

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ, or the product of the shares, for both directions."""
        share = self._token_keep * self._width_keep if self._ratio is None else self._ratio
        return share, share

    @hookimpl
    def traits(self) -> Traits:
        """Needs a matrix in every row; leaves a smaller one, of frequencies."""
        return Traits(needs={"layout"}, changes={"layout"}, evaluation=self._evaluation)

    def _block(self, N: int, D: int) -> tuple[int, int]:
        """Return M and Q."""
        if self._ratio is None:
            return _odd(N, self._token_keep * N), _odd(D, self._width_keep * D)
        budget = self._ratio * N * D
        low, middle, high = (
            2 * math.floor(share * math.sqrt(self._ratio) * N / 2) + 1 for share in (0.9, 1, 1.1)
        )
        blocks = {(1, _odd(D, budget))} if budget < middle else set()
        for M in range(max(low, middle - _TRIED), min(high, middle + _TRIED) + 1, 2):
            blocks.add((min(M, N), _odd(D, budget / min(M, N))))
        fitting = [(M, Q) for M, Q in blocks if budget + _FORGIVEN >= M * Q]
        return max(fitting, key=lambda block: (block[0] * block[1], block), default=(1, 1))

    def _size(self, size: torch.Tensor, block_BMQ: torch.Tensor) -> tuple[int, int]:
        """Return N and D, if what arrived is the block of such a matrix."""
        found = size.tolist() if size.dtype == torch.int32 and size.shape == (2,) else [0, 0]
        N, D = found
        if N < 1 or D < 1 or block_BMQ.shape[1:] != self._block(N, D):
            raise ProtocolError(
                f"plugin 'fft-lowpass': {SIZE!r} says {size.tolist()}, and a block of "
                f"{[*block_BMQ.shape[1:]]} arrived; no such matrix has this block"
            )
        return N, D


def fourier_basis(n: int, m: int) -> torch.Tensor:
    """Return the m lowest real Fourier vectors of n points, as rows: (m, n) float64, orthonormal.

    Constant, then cosine and sine of one period, of two periods, and so on.

    Args:
        n: points.
        m: an odd number, at most n.
    """
    points = torch.arange(n, dtype=torch.float64)
    periods = torch.arange(1, m // 2 + 1, dtype=torch.float64)
    # The phase modulo n: the argument stays small, and so does the error of cosine and sine.
    phase = (periods[:, None] * points).remainder(n) * (2 * math.pi / n)
    waves = torch.stack((phase.cos(), phase.sin()), dim=1).flatten(0, 1) * math.sqrt(2 / n)
    return torch.cat((torch.full((1, n), 1 / math.sqrt(n), dtype=torch.float64), waves))


def _bases(
    like: torch.Tensor, tokens: tuple[int, int], width: tuple[int, int]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the bases of both axes, each given as (whole, kept); None where all is kept."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    token_basis, width_basis = (
        None if whole == kept else _basis(whole, kept, dtype, like.device)
        for whole, kept in (tokens, width)
    )
    return token_basis, width_basis


@functools.lru_cache(maxsize=16)
def _basis(n: int, m: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return what is the same at every step."""
    return fourier_basis(n, m).to(device, dtype)


def _transform(
    matrix_B: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor | None
) -> torch.Tensor:
    """Return left · matrix · rightᵀ of every row, computed in the dtype of these."""
    result = matrix_B
    if right is not None:
        result = result.to(right.dtype) @ right.T
    if left is not None:
        result = left @ result.to(left.dtype)
    return result.to(matrix_B.dtype)


def _odd(whole: int, share: float) -> int:
    """Return the largest odd number up to the share, 1 at least; the whole if that is it."""
    kept = math.floor(share + _FORGIVEN)
    return whole if kept >= whole else max(1, kept - (kept + 1) % 2)
