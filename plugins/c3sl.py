"""C3-SL: bind every sample to a key by circular convolution and send sums of R samples.

C.-Y. Hsieh, Y.-C. Chuang, A.-Y. Wu, "C3-SL: Circular Convolution-Based Batch-Wise Compression for
Communication-Efficient Split Learning", 2022, arXiv 2207.12397.

Keys K_1 … K_R of L independent normal numbers each, scaled to norm 1, are drawn once. A sample is
flattened to Z of L numbers. ⊛ is circular convolution, ∘ circular correlation, its adjoint:
(K ⊛ Z)[n] = Σ_m K[m] Z[n - m], (K ∘ V)[n] = Σ_m K[m] V[n + m], indices modulo L.

1. Client: the batch in groups of R consecutive samples; V_g = Σ_r K_r ⊛ Z_{g,r}.
2. Server: Ẑ_{g,r} = K_r ∘ V_g, and the loss over all B samples.
3. Server, backward: ∂L/∂V_g = Σ_r K_r ⊛ ∂L/∂Ẑ_{g,r}. Client: ∂L/∂Z_{g,r} = K_r ∘ ∂L/∂V_g.

Up: V, as many numbers as G = ⌈B/R⌉ samples have, and the number of samples, one int32: 4 G L + 4
bytes. Down: ∂L/∂V, 4 G L bytes. Keys never travel: both peers draw them from the run's seed, for a
length the same ones at every step and after a resume. Gradient: natural; both directions are one
pair of adjoint maps, written as such.

Decoding is not exact, not even for R = 1. Over the draw of the keys Ẑ_r is Z_r on average, and the
expected error is E‖Ẑ_r - Z_r‖² = Σ_j ‖Z_j‖² over the R samples of the group: R times the power of
a sample. ``keys=unitary`` gives every frequency of a key magnitude 1: then a sample does not
disturb itself, the error is R - 1 times its power, and R = 1 loses nothing.

A strong sample drowns the weak ones of its group. ``standardize=true`` brings every sample to mean
0 and variance 1 before, and back after; the two float32 numbers of each, 8 B bytes, go up. For the
gradient they are constants. The authors standardize at some of their splits and undo nothing.

Evaluation: the authors' code superposes test batches, too, and so does ``evaluation=true``. What
comes out for a sample then depends on the samples beside it. The port in ADC's code superposes in
training only and evaluates on exact activations, on which the server's part was never trained:
``evaluation=false``.

What this file does otherwise than the two public code bases, and why:

- The authors drop the samples that do not fill a group, ADC's port fails on them. Here the last
  group takes the first of the keys.
- The port draws its keys anew after a resume. Here they follow from the seed.
- The port divides the normal numbers by L and not by √L; scaled to norm 1 it is all the same.
- A convolution of length L takes transforms of length L only where L has no large prime factor.
  37,824 = 2⁶ · 3 · 197 has one: there the samples are filled up with zeros to a length P ≥ 2 L - 1
  that transforms quickly, and what runs over L is added to the front. The result is the same.

A sample with a number that is not finite makes its whole group NaN.

Shapes: B samples, R samples to a group, G groups, L numbers of a sample, P points and F = P/2 + 1
frequencies of a transform.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast, get_args

import torch
from torch.autograd.function import once_differentiable

from splitlab.core import ConfigError, Cut, Peer, ProtocolError, Traits, hookimpl, upload
from splitlab.plugins.common.exchange import Told
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["C3SL", "Keys", "draw_keys"]

KeyKind = Literal["gaussian", "unitary"]

ROWS = "c3sl.rows"
"""Name of the side information: how many samples the groups hold, (1,) int32."""

STATISTICS = "c3sl.statistics"
"""Name of the side information: mean and standard deviation of every sample, (B, 2) float32."""

_LARGEST_PRIME = 64
"""A transform whose length has no larger prime factor than this is quick as it is."""

_PIECE = 2**20
"""Numbers transformed at a time on a CPU, by each thread: a few MB stay in its cache, and memory
that is used again need not be fetched from the system, which would double the time."""

_MOST_LENGTHS = 8
"""So many lengths have their keys kept; a run meets one in training and perhaps one besides."""


class C3SL:
    """Superpose groups of R samples, each bound to a key by circular convolution.

    Args:
        group: R, samples to a group, 1 to the batch size. 10 if ``ratio`` is not given, either.
        ratio: ξ in (0, 1] instead: R is 1/ξ rounded, halves up. What is met is 1/R, so exactly
            only 1, 1/2, 1/3, …, and 1/B at the least.
        keys: gaussian (the paper), or unitary: every frequency with magnitude 1, less error.
        standardize: bring samples to mean 0 and variance 1 before they are superposed.
        evaluation: whether evaluation batches are superposed, too (the authors' code).
    """

    def __init__(
        self,
        *,
        group: int | None = None,
        ratio: float | None = None,
        keys: KeyKind = "gaussian",
        standardize: bool = False,
        evaluation: bool = True,
    ) -> None:
        either(group=group, ratio=ratio)
        if group is None:
            ratio = DEFAULT_RATIO if ratio is None else ratio
            check_share("ratio", ratio)
            group = math.floor(1 / ratio + 0.5)
        if group < 1:
            raise refusal("group", group, "1 or more", "for example group=8")
        check_choice("keys", keys, get_args(KeyKind))
        self._group = group
        self._kind = keys
        self._standardize = standardize
        self._evaluation = evaluation
        self._keys: dict[tuple[int, torch.dtype], Keys] = {}
        self._told = Told()

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check the group against the batch."""
        self._peer = peer
        if self._group > peer.batch_size:
            raise ConfigError(
                f"plugin 'c3sl': groups of {self._group} samples do not come about in batches of "
                f"{peer.batch_size}; allowed: group=1 to {peer.batch_size}, or ratio from "
                f"{1 / peer.batch_size:.2g}; or a larger --batch-size"
            )

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, …) by (G, …), the sums of the groups."""
        if not (cut.training or self._evaluation):
            return
        samples = cut.activations
        B = samples.shape[0]
        rows_BL = samples.flatten(1).to(_computed_in(samples))
        if self._standardize:
            statistics_B2 = _statistics(rows_BL.detach())
            cut.side[STATISTICS] = statistics_B2
            rows_BL = (rows_BL - statistics_B2[:, :1]) / statistics_B2[:, 1:]
        groups_GL = self._keys_for(rows_BL).superpose(rows_BL)
        cut.activations = groups_GL.to(samples.dtype).view(-1, *samples.shape[1:])
        cut.side[ROWS] = upload(torch.tensor([B], dtype=torch.int32), samples.device)
        cut.sample_ids = None  # a group is no sample

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Replace (G, …) by (B, …), what the keys find in the sums."""
        if ROWS not in cut.side:
            return
        groups = cut.activations
        B = self._count(cut, cut.side.pop(ROWS))
        groups_GL = groups.flatten(1).to(_computed_in(groups))
        rows_BL = self._keys_for(groups_GL).retrieve(groups_GL, B)
        if self._standardize:
            statistics_B2 = cut.side.pop(STATISTICS, None)
            if statistics_B2 is None or statistics_B2.shape != (B, 2):
                found = "nothing" if statistics_B2 is None else [*statistics_B2.shape]
                raise ProtocolError(f"plugin 'c3sl': {STATISTICS!r} must be [{B}, 2], got {found}")
            rows_BL = rows_BL * statistics_B2[:, 1:] + statistics_B2[:, :1]
        cut.activations = rows_BL.to(groups.dtype).view(-1, *groups.shape[1:])

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return 1/R for both directions."""
        return 1 / self._group, 1 / self._group

    @hookimpl
    def traits(self) -> Traits:
        """Takes rows of any shape; leaves sums of rows."""
        return Traits(
            needs={"numbers"},
            changes={"batch", "layout"},
            evaluation=self._evaluation,
            once=True,
        )

    def _count(self, cut: Cut, rows: torch.Tensor) -> int:
        """Return B, if so many samples make the groups that arrived."""
        G, B = len(cut.activations), -1

        def wrong() -> ProtocolError:
            return ProtocolError(
                f"plugin 'c3sl': {ROWS!r} says {str(rows.tolist())[:100]}; {G} groups of "
                f"{self._group} hold {(G - 1) * self._group + 1} to {G * self._group} samples"
            )

        if rows.dtype == torch.int32 and rows.shape == (1,):
            # Groups of a smaller batch may be as many; its targets are fewer.
            (B,) = self._told.read(cut, rows, (cut.training, G, len(cut.targets)), wrong)
        if not (G - 1) * self._group < B <= G * self._group:
            raise wrong()
        return B

    def _keys_for(self, rows: torch.Tensor) -> Keys:
        """Return the keys for rows of this length and dtype, drawn once."""
        L = rows.shape[1]
        if (L, rows.dtype) not in self._keys:
            if len(self._keys) == _MOST_LENGTHS:
                self._keys.pop(next(iter(self._keys)))
            drawn_RL = draw_keys(self._group, L, self._kind, self._peer.generator("c3sl keys"))
            self._keys[L, rows.dtype] = Keys(drawn_RL.to(rows.device, rows.dtype))
        return self._keys[L, rows.dtype]


def draw_keys(R: int, L: int, kind: KeyKind, generator: torch.Generator) -> torch.Tensor:
    """Return R random keys of norm 1, (R, L) float64 on the CPU.

    Args:
        R: how many.
        L: how long.
        kind: gaussian, or unitary: divided by the magnitude of their transform.
        generator: of the CPU.
    """
    keys_RL = torch.randn(R, L, generator=generator, dtype=torch.float64)
    if kind == "unitary":
        keys_RL = torch.fft.irfft(torch.fft.rfft(keys_RL).sgn(), n=L)
    return torch.nn.functional.normalize(keys_RL)


class Keys:
    """The transforms of R keys, and the pair of adjoint maps that they define.

    Args:
        keys_RL: (R, L) float32 or float64; all that is computed with them has the same dtype and
            lies on the same device.
    """

    def __init__(self, keys_RL: torch.Tensor) -> None:
        self.count, self.length = keys_RL.shape
        self._points = _transform_length(self.length)
        self._keys_RF = torch.fft.rfft(keys_RL, n=self._points)
        self._conjugates_RF = self._keys_RF.conj().resolve_conj()

    def superpose(self, rows_BL: torch.Tensor) -> torch.Tensor:
        """Return the sums (G, L) of each R consecutive rows, row r convolved with key r.

        The last group may be smaller. Differentiable once.
        """
        return cast(torch.Tensor, cast(Any, _Superpose).apply(rows_BL, self))

    def retrieve(self, groups_GL: torch.Tensor, B: int) -> torch.Tensor:
        """Return the rows (B, L) that the keys, correlated with the sums, find in them.

        The adjoint of `superpose` for B rows. Differentiable once.
        """
        return cast(torch.Tensor, cast(Any, _Retrieve).apply(groups_GL, B, self))

    def _superpose(self, rows_BL: torch.Tensor) -> torch.Tensor:
        B, L = rows_BL.shape
        R, P = min(self.count, B), self._points
        G = -(-B // R)
        sums_GF = self._keys_RF.new_empty(G, self._keys_RF.shape[1])
        for groups, rows in self._pieces(B, R, G):
            bound_rF = torch.fft.rfft(rows_BL[rows], n=P)
            if len(bound_rF) % R:
                bound_rF = torch.nn.functional.pad(bound_rF, (0, 0, 0, -len(bound_rF) % R))
            bound_gRF = bound_rF.view(-1, R, bound_rF.shape[1]).mul_(self._keys_RF[:R])
            torch.sum(bound_gRF, dim=1, out=sums_GF[groups])
        sums_GP: torch.Tensor = torch.fft.irfft(sums_GF, n=P)
        if P == L:
            return sums_GP
        sums_GL = sums_GP[:, :L].contiguous()
        sums_GL[:, : L - 1] += sums_GP[:, L : 2 * L - 1]
        return sums_GL

    def _retrieve(self, sums_GL: torch.Tensor, B: int) -> torch.Tensor:
        G, L = sums_GL.shape
        R, P = min(self.count, B), self._points
        if P > L:
            sums_GL = torch.cat((sums_GL, sums_GL[:, : L - 1]), dim=1)
        sums_GF = torch.fft.rfft(sums_GL, n=P)
        rows_BL: torch.Tensor = sums_GL.new_empty(B, L)
        for groups, rows in self._pieces(B, R, G):
            found_gRF = sums_GF[groups, None] * self._conjugates_RF[:R]
            found_rF = found_gRF.flatten(0, 1)[: len(rows_BL[rows])]
            rows_BL[rows] = torch.fft.irfft(found_rF, n=P)[:, :L]
        return rows_BL

    def _pieces(self, B: int, R: int, G: int) -> list[tuple[slice, slice]]:
        """Return which groups and which rows to take at a time: all of them, but on a CPU."""
        step = G
        if self._keys_RF.device.type == "cpu":
            step = max(1, _PIECE * torch.get_num_threads() // (R * self._points))
        starts = range(0, G, step)
        return [(slice(g, g + step), slice(g * R, min((g + step) * R, B))) for g in starts]


class _Superpose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BL: torch.Tensor, keys: Keys) -> torch.Tensor:
        ctx.keys, ctx.rows = keys, rows_BL.shape[0]
        return keys._superpose(rows_BL)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_GL: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.keys._retrieve(gradient_GL, ctx.rows), None


class _Retrieve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups_GL: torch.Tensor, B: int, keys: Keys) -> torch.Tensor:
        ctx.keys = keys
        return keys._retrieve(groups_GL, B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BL: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.keys._superpose(gradient_BL), None, None


def _statistics(rows_BL: torch.Tensor) -> torch.Tensor:
    """Return mean and standard deviation of every row, (B, 2) float32; a constant row has 1."""
    deviation_B, mean_B = torch.std_mean(rows_BL, dim=1, correction=0)
    statistics_B2 = torch.stack((mean_B, deviation_B), dim=1).float()
    usable_B = (statistics_B2[:, 1] > 0) & statistics_B2[:, 1].isfinite()
    statistics_B2[:, 1].masked_fill_(~usable_B, 1)
    return statistics_B2


def _computed_in(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype to transform in: half precision has no transform of every length."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _transform_length(L: int) -> int:
    """Return L if it transforms quickly, else a quick length of at least 2 L - 1."""
    if _rough_part(L, _LARGEST_PRIME) == 1:
        return L
    unit = 64  # powers of two make the quickest transforms, and at most 64 points are wasted
    multiple = -(-(2 * L - 1) // unit)
    while _rough_part(multiple, 5) > 1:
        multiple += 1
    return unit * multiple


def _rough_part(number: int, largest: int) -> int:
    """Return what is left of the number without its prime factors up to the largest."""
    for factor in range(2, largest + 1):
        while number % factor == 0:
            number //= factor
    return number
