"""SplitFC, a reconstruction: drop columns at random, the flat ones rather, and quantize the rest.

Y. Oh, J. Lee, C. G. Brinton, Y.-S. Jeon, "Communication-Efficient Split Learning via Adaptive
Feature-Wise Compression", 2023, arXiv 2307.10805.

This is a reconstruction; there is no code of the authors. From the abstract: columns of the feature
matrix are dropped with probabilities set from their standard deviation; by the chain rule the same
columns of the gradient need not be sent; what survives is quantized by column, with numbers of
levels set from the ranges, optimal in closed form. From a port by others: the two quantizers of
steps 4 and 5, the equation of step 6, and that a search decides how many columns get which. The
full text was not at hand, so call results ``splitfc-recon``. What is ours is marked so.

The feature matrix has R rows and Q columns: a row is a sample and a column one feature of one token
(``cols=token_feature``, Q = N · D), or a row is a token and a column a feature (``cols=channel``,
Q = D).

Up, in training:

1. s_q, the standard deviation of column q over the range of its channel (feature of a token) in the
   batch, so that channels compare.
2. Keep probabilities p_q = min(1, c s_q), at least 0.001, with the c for which Σ p_q = keep · Q.
3. δ_q ∈ {0, 1} with P(δ_q = 1) = p_q, drawn by the client. The K columns with δ_q = 1 are sent,
   divided by p_q: on average over δ the server sees what it would have seen.
4. Two-stage quantizer, for the M columns of the largest ranges: their minima are quantized to 256
   levels between the least and the largest of them, their maxima likewise; then the numbers of
   column j to Q_j levels between its two ends. Ends are rounded outwards, so that nothing is
   clipped (ours).
5. Mean-value quantizer, for the K - M others: the mean of the column, one of Q_0 levels between the
   least and the largest mean.
6. The numbers of levels that make least of the error for given bits: (Q_j - 1)³ = u_j Q_j, with u_j
   proportional to the squared range of what is quantized, u_0 R times that of the means. The
   constant is the largest that the bits allow. Q is then rounded to one of 55 numbers from 2 to
   32768 (ours), about four to a doubling.
7. M is one of 17 numbers up to K, the one with the least error: r² / (12 (Q - 1)²) for a number
   that is quantized, the variance of the column for one whose mean is sent (ours).

Down: the K columns of the gradient, by steps 4 to 7; the server remembers which, from the uplink
of the same step. The client divides them by p_q, and the others are 0: ∂L/∂F = δ/p · ∂L/∂F̂, the
chain rule. Gradient: exact in the mask, straight-through in the quantizer.

On the wire: up ⌈Q/8⌉ bytes of mask (none if nothing is dropped); either way ⌈6 (K + 1) / 8⌉ bytes
that say how many levels the means and each column have, 2 M bytes of ends, six float32 that ends
and means lie between, and the codes of the means and of all columns of as many levels together,
log2 of these bits each and hardly more (`splitlab.plugins.common.bits`).

A ``ratio`` ξ of 32 bits a number is met with mask, ends and all included: step 6 spends what the K
columns that were drawn leave of it (a draw far above keep · Q can leave nothing, and then exceeds).
It fixes one of ``keep`` and ``bits``, given the other; with neither, ``bits`` is 4, and where
nothing would be dropped any more, more.

Evaluation is not compressed, unless ``evaluation=true``: nothing is dropped then, and all
columns are quantized with the mean width of training.

A column with a large mean and little spread is seldom kept, and then arrives 1/p times as large. A
column of few numbers (a small batch) costs as much for its range as for its codes.

Activations and gradients that are not all finite are refused: most columns would hide it.

Shapes: R rows, Q columns, K columns sent, B samples, N tokens, D features.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from splitlab.core import (
    ConfigError,
    Kind,
    Message,
    Peer,
    PluginError,
    ProtocolError,
    Role,
    Traits,
    hookimpl,
)
from splitlab.plugins.common.bits import (
    level_bytes,
    pack,
    pack_levels,
    packed_bytes,
    uniform_codes,
    uniform_values,
    unpack,
    unpack_levels,
    word,
)
from splitlab.plugins.common.exchange import (
    coded_name,
    describe,
    described,
    payload_name,
    take_checked,
)
from splitlab.plugins.common.finite import check_finite
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_choice, check_share, refusal

__all__ = ["LEVELS", "SplitFC", "allocate_levels", "keep_probabilities"]

Cols = Literal["token_feature", "channel"]

_NAME = "splitfc"
_DEFAULT_BITS = 4.0
LEVELS = [1, *range(2, 8), *(m * 2**k for k in range(12) for m in (8, 10, 12, 14)), 2**15]
"""Numbers of levels by the number that travels; 1 says that the column's mean is sent."""

_MOST_BITS = 15
"""Of a number, with the most levels."""

_LEAST_KEPT = 1e-3
"""The smallest keep probability; a column that survives is divided by it."""

_STEP_BITS = 6
"""Which of `LEVELS` a column has."""

_COLUMN_BITS = _STEP_BITS + 2 * 8
"""What a column of the two-stage quantizer costs beside its codes."""

_ENDS = 256
"""Levels of the ends of ranges."""

_HEADER_BITS = 8 * 25
"""What a message costs whatever its columns: bounds of ends and means, and a byte begun."""

_SEARCHED = 16
"""Parts of all columns that the search for M tries."""

_HALVINGS = 16
"""Of the span that the constant in step 6 may lie in, which is some hundred."""

_LEVELS = torch.tensor(LEVELS, dtype=torch.float64)
_MIDDLE = (_LEVELS[1:-1] + _LEVELS[2:]) / 2
_BETWEEN = ((_MIDDLE - 1) ** 3 / _MIDDLE).log()
"""ln u where the solution of (Q - 1)³ = u Q is in the middle between two numbers of levels."""

_WHOLE_LINE = F.pad(F.pad(_BETWEEN, (1, 0), value=-math.inf), (0, 1), value=math.inf)

_EACH, _BITS = torch.tensor([word(levels) for levels in LEVELS[1:]]).unbind(1)
"""Codes of one number, and its bits, for so many levels and not for one."""


class SplitFC:
    """Drop whole columns of the feature matrix, divide the others by p, quantize them by column.

    Args:
        ratio: ξ in (0, 1]: what is sent, all included, of 32 bits a number. 0.1 unless both
            ``keep`` and ``bits`` are given; those two together exclude it. The largest is about
            0.48 (all columns at 15 bits), the smallest a little above 1 / (32 R).
        keep: expected share of columns that survive, in (0, 1]; with ``ratio`` it fixes the bits.
        bits: mean width of a surviving number, more than 0, at most 15, need not be whole; with
            ``ratio`` it fixes keep.
        cols: a column is one feature of one token, over the samples of the batch, or one feature,
            over all tokens.
        evaluation: whether evaluation batches are quantized, too; nothing is dropped then.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        keep: float | None = None,
        bits: float | None = None,
        cols: Cols = "token_feature",
        evaluation: bool = False,
    ) -> None:
        if ratio is not None and keep is not None and bits is not None:
            raise refusal("bits", bits, "two of ratio, keep, bits", "leave out one of them")
        if ratio is None and (keep is None or bits is None):
            ratio = DEFAULT_RATIO
        for name, share in (("ratio", ratio), ("keep", keep)):
            if share is not None:
                check_share(name, share)
        if bits is not None and not 0 < bits <= _MOST_BITS:
            allowed = f"more than 0, at most {_MOST_BITS}"
            raise refusal("bits", bits, allowed, f"for example bits={_DEFAULT_BITS}")
        check_choice("cols", cols, get_args(Cols))
        self._plan = _Plan(ratio, keep, bits)
        self._cols = cols
        self._evaluation = evaluation
        self._sent: _Sent | None = None

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check that a full batch can meet the ratio."""
        self._peer = peer
        if self._cols == "token_feature":
            self._plan.check(peer.batch_size)
        else:
            self._plan.check(peer.batch_size * peer.tokens)

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace the payload by codes of the columns that survive."""
        if message.kind is Kind.ACTIVATION and message.training:
            self._send_activations(message, dropping=True)
        elif message.kind is Kind.ACTIVATION and self._evaluation:
            self._send_activations(message, dropping=False)
        elif message.kind is Kind.GRADIENT:
            self._send_gradient(message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Put the columns that came into their places, zeros into the others."""
        note = message.pop(_NAME)
        if note is None:
            return
        shape, dtype = described(_NAME, note, self._peer)
        R, Q = self._matrix(shape)
        name = coded_name(message, _NAME)
        if message.kind is Kind.GRADIENT:
            kept_K, scale_K = self._kept_of_step(message, shape)
        else:
            kept_K, scale_K = self._take_mask(message, shape, Q), None
        values_RK = _decode(message, name, R, len(kept_K), scale_K)
        values_RQ = values_RK
        if len(kept_K) < Q:
            values_RQ = values_RK.new_zeros(R, Q).index_copy_(1, kept_K, values_RK)
        if dtype.itemsize < 4:  # what was divided by a small p may be beyond what it can hold
            values_RQ.clamp_(torch.finfo(dtype).min, torch.finfo(dtype).max)
        message.put(name, values_RQ.view(shape).to(dtype), Role.PAYLOAD)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ, or keep · bits / 32 where both are given, for both directions."""
        ratio = self._plan.nominal()
        return ratio, ratio

    @hookimpl
    def traits(self) -> Traits:
        """Needs tokens at their places for columns of tokens, else features; leaves codes."""
        return Traits(
            needs={"places"} if self._cols == "token_feature" else {"layout"},
            changes={"numbers"},
            evaluation=self._evaluation,
            gradient="straight-through",
            waits="which columns survive, with how many levels, is decided on the CPU",
        )

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return R and Q."""
        B, N, D = shape
        return (B, N * D) if self._cols == "token_feature" else (B * N, D)

    def _send_activations(self, message: Message, *, dropping: bool) -> None:
        name = payload_name(message, _NAME)
        values = message[name]
        R, Q = self._matrix(tuple(values.shape))
        values_RQ = values.reshape(R, Q).float()
        low_Q, high_Q = values_RQ.amin(0), values_RQ.amax(0)
        check_finite(torch.stack((low_Q, high_Q)), message, _NAME, "the activations")
        kept_K, scale_K = torch.arange(Q, device=values.device), None
        keep = self._plan.keep(R) if dropping else 1.0
        if keep < 1:
            spread_Q = _spread(values_RQ, low_Q, high_Q, values.shape[2])
            p_Q = keep_probabilities(spread_Q.cpu(), keep * Q).to(torch.float32)
            draw_Q = torch.rand(Q, generator=self._peer.generator(_NAME, message.step))
            mask_Q = draw_Q < p_Q
            kept_K = mask_Q.nonzero().view(-1).to(values.device)
            scale_K = p_Q[mask_Q].reciprocal().to(values.device)
            message.put(f"{_NAME}.mask", pack(mask_Q.to(values.device), 1), Role.SIDE)
        if dropping:
            self._sent = _Sent(message.step, tuple(values.shape), kept_K, scale_K)
        bits = self._plan.bits(R, Q, len(kept_K), mask=keep < 1, dropping=dropping)
        _encode(message, name, values_RQ, kept_K, (low_Q, high_Q), scale_K, bits)
        message.push(_NAME, describe(values))

    def _send_gradient(self, message: Message) -> None:
        sent, self._sent = self._sent, None
        if sent is None or sent.step != message.step:
            return  # the activations of this step came whole
        name = payload_name(message, _NAME)
        values = message[name]
        if tuple(values.shape) != sent.shape:
            raise PluginError(
                f"plugin {_NAME!r}: the gradient has shape {[*values.shape]}, the activations had "
                f"{[*sent.shape]}; a plugin in front changed only one of them"
            )
        R, Q = self._matrix(sent.shape)
        values_RQ = values.reshape(R, Q).float()
        ends = values_RQ.amin(0), values_RQ.amax(0)
        check_finite(torch.stack(ends), message, _NAME, "the gradients")
        bits = self._plan.bits(R, Q, len(sent.kept), mask=False, dropping=True)
        _encode(message, name, values_RQ, sent.kept, ends, None, bits)
        message.push(_NAME, describe(values))

    def _kept_of_step(
        self, message: Message, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return which columns this client sent at the step, and their 1/p."""
        sent, self._sent = self._sent, None
        if sent is None or (sent.step, sent.shape) != (message.step, shape):
            raise ProtocolError(
                f"plugin {_NAME!r}: columns of a gradient {[*shape]} arrived for {message.when}, "
                "whose activations were not sent so"
            )
        return sent.kept, sent.scale

    def _take_mask(self, message: Message, shape: tuple[int, ...], Q: int) -> torch.Tensor:
        """Return which columns arrive, and remember it for the gradient."""
        device = message[coded_name(message, _NAME)].device
        if f"{_NAME}.mask" in message:
            size = [packed_bytes(Q, 1)]
            packed = take_checked(message, _NAME, f"{_NAME}.mask", torch.uint8, size)
            kept_K = unpack(packed, 1, Q).nonzero().view(-1)
        else:
            kept_K = torch.arange(Q, device=device)
        if message.training:
            self._sent = _Sent(message.step, shape, kept_K, None)
        return kept_K


@dataclass(frozen=True, slots=True)
class _Sent:
    """What either peer remembers from a step's activations to its gradient."""

    step: int
    shape: tuple[int, ...]
    kept: torch.Tensor
    scale: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many columns survive, with how many bits; given by two of three, or by the ratio alone.

    A row of Q columns costs, with keep = K/Q and the bits of a column spread over its R numbers:
    32 ξ Q = keep · Q · (bits + 22/R) + Q/R, the last for the mask.
    """

    ratio: float | None
    given_keep: float | None
    given_bits: float | None

    def keep(self, R: int) -> float:
        """Return the expected share of columns that survive."""
        if self.given_keep is not None:
            return self.given_keep
        return min(1.0, max(_LEAST_KEPT, self._keep_for(R)))

    def bits(self, R: int, Q: int, K: int, *, mask: bool, dropping: bool) -> int:
        """Return the bits for all of K columns but the mask."""
        if self.ratio is not None and dropping:
            return int(32 * self.ratio * R * Q) - (8 * packed_bytes(Q, 1) if mask else 0)
        each = self.given_bits if self.ratio is None else self._bits_for(R)
        assert each is not None
        return int((R * each + _COLUMN_BITS) * K) + _HEADER_BITS

    def nominal(self) -> float:
        """Return the ratio."""
        if self.ratio is not None:
            return self.ratio
        assert self.given_keep is not None
        assert self.given_bits is not None
        return self.given_keep * self.given_bits / 32

    def check(self, R: int) -> None:
        """Refuse a ratio that neither more nor fewer bits can meet."""
        if self.ratio is None:
            return
        if self.given_keep is None:
            bits = _DEFAULT_BITS if self.given_bits is None else self.given_bits
            low = _cost(R, _LEAST_KEPT, bits)
            high = _cost(R, 1, _MOST_BITS if self.given_bits is None else bits)
        else:
            low, high = (_cost(R, self.given_keep, bits) for bits in (0, _MOST_BITS))
        if not low <= self.ratio <= high:
            low, high = math.ceil(low * 10_000) / 10_000, min(1, math.floor(high * 10_000) / 10_000)
            given = [("keep", self.given_keep), ("bits", self.given_bits)]
            with_them = "".join(f" with {name}={x}" for name, x in given if x is not None)
            raise ConfigError(
                f"plugin {_NAME!r}: ratio={self.ratio} cannot be met{with_them}; allowed for "
                f"columns of {R} numbers: {low} to {high}"
            )

    def _keep_for(self, R: int) -> float:
        """Return the share of columns that the ratio pays for; above 1: bits remain."""
        assert self.ratio is not None
        bits = _DEFAULT_BITS if self.given_bits is None else self.given_bits
        return (32 * self.ratio * R - 1) / (R * bits + _COLUMN_BITS)

    def _bits_for(self, R: int) -> float:
        """Return the mean width that the ratio pays for."""
        assert self.ratio is not None
        keep = self.keep(R)
        bits = ((32 * self.ratio * R - (keep < 1)) / keep - _COLUMN_BITS) / R
        return min(max(bits, 0.0), _MOST_BITS)


def _cost(R: int, keep: float, bits: float) -> float:
    """Return ξ for columns of R numbers."""
    return (keep * (R * bits + _COLUMN_BITS) + (keep < 1)) / (32 * R)


def keep_probabilities(spread_Q: torch.Tensor, count: float) -> torch.Tensor:
    """Return p_q = min(1, c · spread_q), at least 0.001, that sum up to ``count``, (Q,) float64.

    Columns without spread share what the others, all at 1, leave over.

    Args:
        spread_Q: not negative, finite, on the CPU.
        count: how many columns survive on average, more than 0, at most Q.
    """
    Q, largest = len(spread_Q), float(spread_Q.max())
    least = min(_LEAST_KEPT, count / Q)
    if largest == 0 or least * Q == count:
        return torch.full((Q,), count / Q, dtype=torch.float64)
    share_Q, order = (spread_Q.double() / largest).clamp_min_(1e-6).sort(descending=True)
    level = _water_level(least / share_Q, 1 / share_Q, share_Q, count - least * Q)
    return torch.empty_like(share_Q).index_copy_(0, order, (level * share_Q).clamp_(least, 1))


def allocate_levels(
    range_K: torch.Tensor, spread_K: torch.Tensor, mean_K: torch.Tensor, R: int, bits: int
) -> tuple[torch.Tensor, int]:
    """Return the number in `LEVELS` of every column, (K,) int64, and that of the means.

    Args:
        range_K: of each column as it is quantized, float64 on the CPU, not negative; where it is 0,
            the mean is sent.
        spread_K: variance of each column, likewise.
        mean_K: of each column, likewise.
        R: numbers of a column.
        bits: for codes, ends, and which levels a column has. Means of 256 levels are sent even if
            they are more.
    """
    K, live = len(range_K), int((range_K > 0).sum())
    if not K:
        return torch.zeros(0, dtype=torch.int64), LEVELS.index(_ENDS)
    range_K, order_K = range_K.sort(descending=True, stable=True)
    weight_K = 2 * range_K.clamp(min=1e-300).log()
    mean_K, spread_K = mean_K[order_K], spread_K[order_K]
    rising_K = weight_K.flip(0)
    best, steps_K, of_means = math.inf, torch.zeros(K, dtype=torch.int64), LEVELS.index(_ENDS)
    for M in sorted({live * part // _SEARCHED for part in range(_SEARCHED + 1)}):
        means = mean_K[M:]
        width = float(means.max() - means.min()) if M < K else 0.0
        weight_0 = math.log(R) + 2 * math.log(max(width, 1e-300))
        room = bits - _STEP_BITS * (K + 1) - 16 * M
        shift = _most(rising_K[K - M :], weight_0, R, K - M, room)
        if shift is None:
            continue
        step_M = 1 + torch.searchsorted(_BETWEEN, weight_K[:M] + shift)
        step_0 = 1 + int(torch.searchsorted(_BETWEEN, weight_0 + shift))
        error = (weight_K[:M].exp() / (_LEVELS[step_M] - 1) ** 2).sum() / 12 + spread_K[M:].sum()
        error = float(error) + (K - M) * width**2 / (12 * (LEVELS[step_0] - 1) ** 2)
        if error < best:
            best, of_means = error, step_0
            steps_K = torch.zeros(K, dtype=torch.int64).index_copy_(0, order_K[:M], step_M)
    return steps_K, of_means


def _most(rising_M: torch.Tensor, weight_0: float, R: int, means: int, bits: int) -> float | None:
    """Return the largest logarithm of the constant in step 6 that the bits allow, or None."""
    M = len(rising_M)

    def fits(shift: float) -> bool:
        count = torch.searchsorted(rising_M, _WHOLE_LINE - shift, right=True).diff()
        words = (R * count + _EACH - 1) // _EACH
        spent = int(((words * _BITS + 7) // 8).sum())
        if means:
            step_0 = 1 + int(torch.searchsorted(_BETWEEN, weight_0 + shift))
            spent += level_bytes(means, LEVELS[step_0])
        return 8 * spent <= bits

    largest = max(float(rising_M[-1]) if M else -math.inf, weight_0 if means else -math.inf)
    least = min(float(rising_M[0]) if M else math.inf, weight_0 if means else math.inf)
    low, high = float(_BETWEEN[0]) - largest - 1, float(_BETWEEN[-1]) - least + 1
    if not fits(low):
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _water_level(
    enter: torch.Tensor, leave: torch.Tensor, slope: torch.Tensor, target: float
) -> float:
    """Return x with Σ slope · (min(max(x, enter), leave) - enter) = target.

    Args:
        enter: rising, float64: from here on an item rises with x,
        leave: rising, in the same order: up to here.
        slope: how fast, positive.
        target: at least 0, at most what all items reach.
    """
    parts = (slope, slope * enter, slope * (leave - enter))
    slopes, starts, wholes = (F.pad(part.cumsum(0), (1, 0)) for part in parts)

    def filled(x: torch.Tensor) -> float:
        i, j = int(torch.searchsorted(enter, x)), int(torch.searchsorted(leave, x))
        rising = x * (slopes[i] - slopes[j]) - (starts[i] - starts[j])
        return float(wholes[j] + rising)

    items = range(len(enter))
    i = bisect_right(items, target, key=lambda k: filled(enter[k]))
    j = bisect_right(items, target, key=lambda k: filled(leave[k]))
    if i <= j:  # nothing rises here: it is full up to the last that has left
        return float(leave[j - 1])
    risen, rising = wholes[j] - (slope * enter)[j:i].sum(), slope[j:i].sum()
    return float((target - risen) / rising)


def _spread(
    values_RQ: torch.Tensor, low_Q: torch.Tensor, high_Q: torch.Tensor, D: int
) -> torch.Tensor:
    """Return every column's standard deviation over the range of its channel, (Q,) float32."""
    deviation_Q = (values_RQ - values_RQ.mean(0)).square_().mean(0).sqrt_()
    range_D = high_Q.view(-1, D).amax(0) - low_Q.view(-1, D).amin(0)
    spread_ND = deviation_Q.view(-1, D) / range_D
    return torch.where(spread_ND.isfinite(), spread_ND, 0.0).view(-1)


def _encode(
    message: Message,
    name: str,
    values_RQ: torch.Tensor,
    kept_K: torch.Tensor,
    ends_Q: tuple[torch.Tensor, torch.Tensor],
    scale_K: torch.Tensor | None,
    bits: int,
) -> None:
    """Put codes, ends and numbers of levels of the kept columns, times their scale."""
    values_RK = (
        values_RQ if len(kept_K) == values_RQ.shape[1] else values_RQ.index_select(1, kept_K)
    )
    low_K, high_K = (end_Q[kept_K] for end_Q in ends_Q)
    mean_K = values_RK.mean(0)
    spread_K = (values_RK - mean_K).square_().mean(0)
    # Numbers whose squares float32 cannot hold, or whose sum.
    spread_K = torch.where(
        (spread_K > 1e-30) & spread_K.isfinite(), spread_K, (high_K.double() - low_K) ** 2 / 12
    )
    mean_K = torch.where(mean_K.isfinite(), mean_K, low_K / 2 + high_K / 2)
    mean_K = torch.minimum(torch.maximum(mean_K, low_K), high_K)
    one_K = torch.ones_like(low_K) if scale_K is None else scale_K
    most = torch.finfo(torch.float32).max / 4  # a difference of two is finite
    low_K, high_K, mean_K = ((x * one_K).clamp(-most, most) for x in (low_K, high_K, mean_K))
    spread_K = spread_K.double() * one_K.double() ** 2

    # Ends are rounded outwards by half a step on average.
    range_K = high_K.double() - low_K
    steps = sum(float(end_K.max()) - float(end_K.min()) for end_K in (low_K, high_K) if len(end_K))
    widened_K = torch.where(range_K > 0, range_K + steps / (2 * (_ENDS - 1)), 0)
    step_K, step_0 = allocate_levels(
        widened_K.cpu(), spread_K.cpu(), mean_K.double().cpu(), len(values_RK), bits - _HEADER_BITS
    )
    coded = step_K.nonzero().view(-1).to(kept_K.device)
    flat = (step_K == 0).nonzero().view(-1).to(kept_K.device)
    sent = (low_K[coded], high_K[coded], mean_K[flat])
    bounds_6 = torch.stack(
        [end for x in sent for end in (x.aminmax() if len(x) else x.new_zeros(2))]
    )
    low_M, high_M = (
        _outwards(x, *bounds_6[2 * i : 2 * i + 2], up=bool(i)) for i, x in enumerate(sent[:2])
    )
    parts = []
    if len(flat):
        codes = uniform_codes(sent[2], bounds_6[4], bounds_6[5], LEVELS[step_0])
        parts.append(pack_levels(codes, LEVELS[step_0]))
    low, high = (_ends(x, bounds_6, i) / one_K[coded] for i, x in enumerate((low_M, high_M)))
    for levels, members in _by_levels(step_K[step_K > 0], kept_K.device):
        picked = values_RK.index_select(1, coded[members])
        parts.append(
            pack_levels(uniform_codes(picked, low[members], high[members], levels), levels)
        )
    empty = torch.empty(0, dtype=torch.uint8, device=kept_K.device)
    message.put(name, torch.cat([empty, *parts]), Role.PAYLOAD)
    numbers = F.pad(step_K, (1, 0), value=step_0)
    message.put(f"{_NAME}.levels", pack(numbers, _STEP_BITS).to(kept_K.device), Role.SIDE)
    message.put(f"{_NAME}.ends", torch.stack((low_M, high_M)), Role.SIDE)
    message.put(f"{_NAME}.bounds", bounds_6, Role.SIDE)


def _decode(
    message: Message, name: str, R: int, K: int, scale_K: torch.Tensor | None
) -> torch.Tensor:
    """Return the columns that `_encode` was given, times the scale, (R, K) float32."""

    def side(name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return take_checked(message, _NAME, f"{_NAME}.{name}", dtype, shape)

    packed = side("levels", torch.uint8, packed_bytes(K + 1, _STEP_BITS)).cpu()
    numbers = unpack(packed, _STEP_BITS, K + 1).long()
    step_0, step_K = int(numbers[0]), numbers[1:]
    if not step_0 or int(numbers.max()) >= len(LEVELS):
        raise ProtocolError(f"plugin {_NAME!r}: there are no {numbers.tolist()[:3]}… levels")
    M = int((step_K > 0).sum())
    bounds_6 = side("bounds", torch.float32, 6)
    ends_2M = side("ends", torch.uint8, 2, M)
    strings = [(LEVELS[step_0], K - M)] if K > M else []
    groups = list(_by_levels(step_K[step_K > 0], bounds_6.device))
    strings += [(levels, R * len(members)) for levels, members in groups]
    sizes = [level_bytes(count, levels) for levels, count in strings]
    codes = take_checked(message, _NAME, name, torch.uint8, [sum(sizes)], Role.PAYLOAD)
    parts = [
        unpack_levels(part, levels, count)
        for part, (levels, count) in zip(torch.split(codes, sizes), strings, strict=True)
    ]
    values_RK = bounds_6.new_empty(R, K)
    if K > M:
        flat = (step_K == 0).nonzero().view(-1).to(codes.device)
        mean = uniform_values(parts.pop(0), bounds_6[4], bounds_6[5], LEVELS[step_0])
        values_RK[:, flat] = mean if scale_K is None else mean * scale_K[flat]
    coded = step_K.nonzero().view(-1).to(codes.device)
    one_M = 1 if scale_K is None else scale_K[coded]
    low_M, high_M = (_ends(ends_2M[i], bounds_6, i) * one_M for i in range(2))
    for part, (levels, members) in zip(parts, groups, strict=True):
        columns = uniform_values(part.view(R, -1), low_M[members], high_M[members], levels)
        values_RK.index_copy_(1, coded[members], columns)
    return values_RK


def _outwards(
    ends: torch.Tensor, first: torch.Tensor, last: torch.Tensor, *, up: bool
) -> torch.Tensor:
    """Return the code of the next level up or down of each end of a range, uint8."""
    place = (ends.double() - first) / (last.double() - first).clamp(min=1e-300) * (_ENDS - 1)
    return (place.ceil() if up else place.floor()).clamp_(0, _ENDS - 1).to(torch.uint8)


def _ends(codes: torch.Tensor, bounds_6: torch.Tensor, which: int) -> torch.Tensor:
    """Return what codes of `_outwards` stand for, of minima (0) or maxima (1)."""
    return uniform_values(codes, bounds_6[2 * which], bounds_6[2 * which + 1], _ENDS)


def _by_levels(step_M: torch.Tensor, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield every number of levels that occurs, and which columns have it."""
    for step in torch.unique(step_M).tolist():
        yield LEVELS[step], (step_M == step).nonzero().view(-1).to(device)
