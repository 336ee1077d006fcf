"""FFT low-pass: low frequencies of every sample's tokens-by-width matrix (FourierCompress).

J. Ma, X. Lyu, J. Jiang, L. Zou, C. Ren, Q. Cui, X. Tao, "FourierCompress: Layer-Aware Spectral
Activation Compression for Efficient and Accurate Collaborative LLM Inference", 2025, arXiv
2510.16418. Made for the inference of language models; there is no public code. The maps are linear,
so that they can be trained through: here it is a cheap baseline for split learning.

``block=corner``, the paper's section III-C:

1. Client: of the two-dimensional Fourier transform A[u, v] of X (N, D) keep the top-left block,
   u < K and v < L. These K · L complex numbers are sent.
2. Server: the block in the corner of N · D zeros; X̂ is the real part of the inverse transform.

A holds A[-u, -v], the conjugate of A[u, v], too, and the corner has it of the zero frequency alone
(and of what lies beyond the middle of an axis). So X̂ has every other wave of the block at half its
height. And of the four combinations of signs of low frequencies it has two: waves that fall along
one diagonal, none along the other.

``block=mirrored`` is ours: as corner, but the server puts the conjugates, which it knows, in their
places, too. The paper names this symmetry, and then fills up with zeros. Same bytes, full height.

``block=centred`` is ours: the frequencies (p, q) with |p| ≤ a and |q| ≤ b, of either sign. X is
real, so the block holds M · Q = (2a + 1)(2b + 1) independent real numbers: half as many as there
are complex ones. These are sent, as coordinates in the basis of cosines and sines of tokens times
those of features, and X̂ is the orthogonal projection of X. An axis of which everything is kept is
not transformed.

Up: the block in the dtype of X, (rows, K, 2 L) with real and imaginary part side by side, or
(rows, M, Q); and N and D, 8 bytes. Down: the gradient of the block, of its shape. A block that
would be as large as X is not made; X is sent. Gradient: natural.

What the paper leaves open, and what is chosen here:

- Which K and L give a ratio: both axes keep about the same share, and a complex number counts as
  two. The transforms have a factor 1/√(N D) each, where the paper's inverse has 1/(N D): X̂ is the
  same, and numbers keep a size that half precision can hold.
- They are computed as two products with the waves that are kept, not as a fast transform of which
  nine tenths are thrown away. 197 tokens are a prime number: fast transforms are slow there.
- Special tokens are tokens like all others, as in the original.

Evaluation is compressed, too, as the method was made for it: ``evaluation=false`` sends evaluation
batches whole to a server that was trained on smoothed ones.

A number that is not finite makes its whole sample so.

Shapes: B rows, N tokens, D width (or whatever a plugin in front left of them), M and Q of the block
that is sent, K = M and L = Q / 2 of its complex numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import torch

from splitlab.core import Cut, ProtocolError, Traits, hookimpl, upload
from splitlab.plugins.common.exchange import Told, working_dtype
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_choice, check_share, either

__all__ = ["FFTLowpass", "fourier_basis"]

Block = Literal["corner", "mirrored", "centred"]
Rounded = Callable[[int, float], int]
"""Returns how many frequencies of so many a share of them is."""

SIZE = "fft-lowpass.size"
"""Name of the side information: tokens and width before, (2,) int32."""

_TRIED = 16
"""How far the number of token frequencies may be from its share, and at most a tenth of it."""

_FORGIVEN = 1e-9
"""What a product of floats may lack to an integer."""


class FFTLowpass:
    """Send a block of low frequencies of every row's 2-D Fourier transform.

    Args:
        ratio: ξ in (0, 1]: the block has at most ξ N D real numbers, and as many of them as such a
            block can have, of both axes about the same share. At least one frequency. 0.1 if no
            share is given, either; 1 sends everything as it is.
        token_keep: share of the token axis' frequencies in (0, 1] instead; everything if only the
            other share is given. Rounded down, with ``block=centred`` to an odd number.
        width_keep: the same for the width.
        block: corner (the paper), mirrored or centred (ours), see above.
        evaluation: whether evaluation batches are compressed, too (the paper).
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        token_keep: float | None = None,
        width_keep: float | None = None,
        block: Block = "corner",
        evaluation: bool = True,
    ) -> None:
        either(ratio=ratio, token_keep=token_keep)
        either(ratio=ratio, width_keep=width_keep)
        if ratio is None and token_keep is None and width_keep is None:
            ratio = DEFAULT_RATIO
        self._ratio = ratio
        self._token_keep = 1.0 if token_keep is None else token_keep
        self._width_keep = 1.0 if width_keep is None else width_keep
        self._kind = block
        self._evaluation = evaluation
        self._told = Told()
        if ratio is not None:
            check_share("ratio", ratio)
        check_share("token_keep", self._token_keep)
        check_share("width_keep", self._width_keep)
        check_choice("block", block, get_args(Block))

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, M, Q)."""
        if not (cut.training or self._evaluation):
            return
        rows_BND = cut.activations
        _, N, D = rows_BND.shape
        M, Q = self._block(N, D)
        if self._kind == "centred":
            token_basis, width_basis = _bases(rows_BND, (N, M), (D, Q))
            cut.activations = _transform(rows_BND, token_basis, width_basis)
        elif (M, Q) != (N, D):
            cut.activations = _corner(rows_BND, M, Q // 2)
        cut.side[SIZE] = upload(torch.tensor([N, D], dtype=torch.int32), rows_BND.device)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Replace (B, M, Q) by (B, N, D)."""
        if SIZE not in cut.side:
            return
        block_BMQ = cut.activations
        N, D = self._size(cut, cut.side.pop(SIZE))
        _, M, Q = block_BMQ.shape
        if self._kind == "centred":
            token_basis, width_basis = _bases(block_BMQ, (N, M), (D, Q))
            cut.activations = _transform(
                block_BMQ,
                None if token_basis is None else token_basis.T,
                None if width_basis is None else width_basis.T,
            )
        elif (M, Q) != (N, D):
            cut.activations = _from_corner(block_BMQ, N, D, mirrored=self._kind == "mirrored")

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ, or the product of the shares (twice, of complex numbers), both ways."""
        parts = 1 if self._kind == "centred" else 2
        share = self._token_keep * self._width_keep * parts if self._ratio is None else self._ratio
        return min(1.0, share), min(1.0, share)

    @hookimpl
    def traits(self) -> Traits:
        """Needs a matrix in every row; leaves a smaller one, of frequencies."""
        return Traits(needs={"layout"}, changes={"layout"}, evaluation=self._evaluation)

    def _block(self, N: int, D: int) -> tuple[int, int]:
        """Return M and Q; N and D if everything is sent as it is."""
        if self._kind == "centred":
            return self._within(N, D, self._ratio, _odd, 2)
        half = None if self._ratio is None else self._ratio / 2
        if self._ratio == 1:
            return N, D
        K, L = self._within(N, D, half, _whole, 1)
        return (K, 2 * L) if 2 * K * L < N * D else (N, D)

    def _within(
        self, N: int, D: int, ratio: float | None, rounded: Rounded, step: int
    ) -> tuple[int, int]:
        """Return how many frequencies of both axes make the most of ratio · N · D."""
        if ratio is None:
            return rounded(N, self._token_keep * N), rounded(D, self._width_keep * D)
        budget = ratio * N * D
        low, middle, high = (
            max(1, step * math.floor(share * math.sqrt(ratio) * N / step) + step - 1)
            for share in (0.9, 1, 1.1)
        )
        blocks = {(1, rounded(D, budget))} if budget < middle else set()
        for M in range(max(low, middle - _TRIED), min(high, middle + _TRIED) + 1, step):
            blocks.add((min(M, N), rounded(D, budget / min(M, N))))
        fitting = [(M, Q) for M, Q in blocks if budget + _FORGIVEN >= M * Q]
        return max(fitting, key=lambda block: (block[0] * block[1], block), default=(1, 1))

    def _size(self, cut: Cut, size: torch.Tensor) -> tuple[int, int]:
        """Return N and D, if what arrived is the block of such a matrix."""
        block, N, D = cut.activations.shape[1:], 0, 0

        def wrong() -> ProtocolError:
            return ProtocolError(
                f"plugin 'fft-lowpass': {SIZE!r} says {size.tolist()}, and a block of "
                f"{[*block]} arrived; no such matrix has this block"
            )

        if size.dtype == torch.int32 and size.shape == (2,):
            N, D = self._told.read(cut, size, (cut.training, block), wrong)
        if N < 1 or D < 1 or block != self._block(N, D):
            raise wrong()
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
    dtype = working_dtype(like.dtype)
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


def _corner(rows_BND: torch.Tensor, K: int, L: int) -> torch.Tensor:
    """Return the corner of every row's transform, (B, K, 2 L): real and imaginary part in turn."""
    _, N, D = rows_BND.shape
    dtype = working_dtype(rows_BND.dtype)
    waves_KN = _waves(N, K, dtype, rows_BND.device)
    parts_BNQ = rows_BND.to(dtype) @ _parts(_waves(D, L, dtype, rows_BND.device))
    corner_BKL = waves_KN @ torch.view_as_complex(parts_BNQ.reshape(-1, N, L, 2))
    return torch.view_as_real(corner_BKL).flatten(-2).to(rows_BND.dtype)


def _from_corner(block_BKQ: torch.Tensor, N: int, D: int, *, mirrored: bool) -> torch.Tensor:
    """Return the real part of the inverse transform of the corner and zeros, (B, N, D)."""
    _, K, Q = block_BKQ.shape
    dtype = working_dtype(block_BKQ.dtype)
    corner_BKL = torch.view_as_complex(block_BKQ.to(dtype).reshape(-1, K, Q // 2, 2))
    if mirrored:
        corner_BKL = corner_BKL * _heights(K, Q // 2, N, D, dtype, block_BKQ.device)
    halfway_BNL = _waves(N, K, dtype, block_BKQ.device).mH @ corner_BKL
    parts_DQ = _parts(_waves(D, Q // 2, dtype, block_BKQ.device))
    return (torch.view_as_real(halfway_BNL).flatten(-2) @ parts_DQ.T).to(block_BKQ.dtype)


@functools.lru_cache(maxsize=16)
def _waves(n: int, k: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the k lowest rows of the unitary Fourier transform of n points, (k, n) complex."""
    index = torch.arange(n)
    turns = (index[:k, None] * index).remainder(n).double() * (-2 * math.pi / n)
    waves = torch.polar(torch.full_like(turns, 1 / math.sqrt(n)), turns)
    return waves.to(device, dtype.to_complex())


def _parts(waves_LD: torch.Tensor) -> torch.Tensor:
    """Return real and imaginary part of every wave as two columns, (D, 2 L)."""
    return torch.view_as_real(waves_LD).transpose(0, 1).flatten(1)


@functools.lru_cache(maxsize=16)
def _heights(
    K: int, L: int, N: int, D: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return 1 for what has its conjugate in the corner, 2 for what stands for it, too, (K, L)."""
    u_K1, v_L = torch.arange(K)[:, None], torch.arange(L)
    return 2.0 - ((-u_K1 % N < K) & (-v_L % D < L)).to(device, dtype)


def _whole(whole: int, share: float) -> int:
    """Return the share rounded down, 1 at least, the whole at most."""
    return min(whole, max(1, math.floor(share + _FORGIVEN)))


def _odd(whole: int, share: float) -> int:
    """Return the largest odd number up to the share, 1 at least; the whole if that is it."""
    kept = math.floor(share + _FORGIVEN)
    return whole if kept >= whole else max(1, kept - (kept + 1) % 2)
