"""SplitFC, a reconstruction: drop columns at random, the flat ones rather, and quantize the rest.

Y. Oh, J. Lee, C. G. Brinton, Y.-S. Jeon, "Communication-Efficient Split Learning via Adaptive
Feature-Wise Compression", 2023, arXiv 2307.10805.

This is a reconstruction from the abstract; there is no public code. Known of the method: columns of
the feature matrix are dropped with probabilities set from their standard deviation; by the chain
rule the same columns of the gradient need not be sent; what survives is quantized by column, with
levels set from the ranges, the best allocation in closed form. The published quantizer has two
stages; this one has one, and a mean for narrow columns. Call results ``splitfc-recon``.

The feature matrix has R rows and Q columns: a row is a sample and a column one feature of one token
(``cols=token_feature``, Q = N · D), or a row is a token and a column a feature (``cols=channel``,
Q = D).

Up, in training:

1. s_q, the standard deviation of column q over the range of its channel (feature of a token) in the
   batch, so that channels compare.
2. Keep probabilities p_q = min(1, c s_q), at least 0.001, with the c for which Σ p_q = keep · Q.
3. δ_q ∈ {0, 1} with P(δ_q = 1) = p_q, drawn by the client. The K columns with δ_q = 1 are sent,
   divided by p_q: on average over δ the server sees what it would have seen.
4. Widths b_q of the K columns, for their ranges r_q after that division: what minimizes
   Σ r_q² 4^(-b_q) for a given sum, b_q = min(15, max(0, θ + log2 r_q)), rounded down; bits left
   over go to the largest ranges, one each.
5. Uniform quantization between the column's minimum and maximum. A column with no bits is sent as
   its mean.

Down: the K columns of the gradient, by steps 4 and 5; the server remembers which, from the uplink
of the same step. The client divides them by p_q, and the others are 0: ∂L/∂F = δ/p · ∂L/∂F̂, the
chain rule. Gradient: exact in the mask, straight-through in the quantizer.

On the wire: up ⌈Q/8⌉ bytes of mask (none if nothing is dropped); either way ⌈K/2⌉ bytes of widths,
a float16 for the minimum (or mean) of every column, one for the maximum of those with bits, and
Σ_w ⌈R · K_w · w / 8⌉ bytes of codes. The float16 numbers are multiples of a power of two that goes
with the header, so that the tiny numbers of a gradient keep their digits.

A ``ratio`` ξ of 32 bits a number is met with mask, ranges and widths included: step 4 spends what
the K columns that were drawn leave of it (a draw far above keep · Q can leave nothing, and then
exceeds). It fixes one of ``keep`` and ``bits``, given the other; with neither, ``bits`` is 4, and
where nothing would be dropped any more, more.

Evaluation is not compressed, unless ``evaluation=true``: nothing is dropped then, and all
columns are quantized with the mean width of training.

A column with a large mean and little spread is seldom kept, and then arrives 1/p times as large. A
column of few numbers (a small batch) costs as much for its range as for its codes.

A column that holds a value that is not finite is sent as its mean, that is as NaN or infinity, if
it survives; it and the columns of its channel then count as flat.

Shapes: R rows, Q columns, K columns sent, B samples, N tokens, D features.
"""

from __future__ import annotations

import math
from bisect import bisect_right
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
from splitlab.plugins.common.bits import pack, packed_bytes, unpack
from splitlab.plugins.common.columns import coded_bytes, decode_columns, encode_columns
from splitlab.plugins.common.exchange import (
    coded_name,
    describe,
    described,
    payload_name,
    take_checked,
)
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_choice, check_share, refusal

__all__ = ["SplitFC", "allocate_bits", "keep_probabilities"]

Cols = Literal["token_feature", "channel"]

_NAME = "splitfc"
_DEFAULT_BITS = 4.0
_MOST_BITS = 15
"""Of a column: its width travels in 4 bits, and 0 means that its mean is sent."""

_LEAST_KEPT = 1e-3
"""The smallest keep probability; a column that survives is divided by it."""

_COLUMN_BITS = 36
"""What a surviving column costs beside its codes: two float16 and its width."""

_TOP = 15
"""float16 ends are scaled so that the largest is below 2**15: small ones keep their digits."""

_MOST_EXPONENT = 150
"""Beyond that of any float32."""

_ROUNDING_BITS = 8 * 17
"""What rounding up to whole bytes costs at most: 15 widths, the widths themselves, the mask."""


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
        bits_K, low_K, high_K = _take_ranges(message, len(kept_K), note.get("e"))
        if scale_K is not None:
            low_K, high_K = low_K * scale_K, high_K * scale_K
        size = [coded_bytes(bits_K, R)]
        codes = take_checked(message, _NAME, name, torch.uint8, size)
        values_RQ = decode_columns(codes, (R, Q), kept_K, low_K, high_K, bits_K)
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
        bits = self._plan.row_bits(R, Q, len(kept_K), mask=keep < 1, dropping=dropping)
        exponent = _encode(message, name, values_RQ, kept_K, (low_Q, high_Q), scale_K, bits)
        message.push(_NAME, describe(values) | {"e": exponent})

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
        bits = self._plan.row_bits(R, Q, len(sent.kept), mask=False, dropping=True)
        exponent = _encode(message, name, values_RQ, sent.kept, ends, None, bits)
        message.push(_NAME, describe(values) | {"e": exponent})

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
    32 ξ Q = keep · Q · (bits + 36/R) + Q/R, the last for the mask.
    """

    ratio: float | None
    given_keep: float | None
    given_bits: float | None

    def keep(self, R: int) -> float:
        """Return the expected share of columns that survive."""
        if self.given_keep is not None:
            return self.given_keep
        return min(1.0, max(_LEAST_KEPT, self._keep_for(R)))

    def row_bits(self, R: int, Q: int, K: int, *, mask: bool, dropping: bool) -> int:
        """Return Σ b over the K columns."""
        if self.ratio is None:
            assert self.given_bits is not None
            return int(self.given_bits * K)
        if not dropping:
            return int(self._bits_for(R) * K)
        left = 32 * self.ratio * R * Q - _COLUMN_BITS * K - (Q if mask else 0)
        return max(0, int(left - _ROUNDING_BITS) // R)

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


def allocate_bits(range_K: torch.Tensor, total: int) -> torch.Tensor:
    """Return widths b_k in 0 to 15 that minimize Σ range_k² 4^(-b_k), (K,) int64 on the CPU.

    They sum up to ``total``, or to 15 for every column that has a range, if that is less. Rounding
    down leaves bits over: one each for the columns with the largest ranges.

    Args:
        range_K: of each column; where it is 0 or not finite, the width is 0.
        total: bits to give away.
    """
    range_K = range_K.cpu().double()
    log_range, order = torch.where(range_K.isfinite(), range_K, 0.0).log2().sort(descending=True)
    live = int((log_range > -math.inf).sum())
    log_range, order = log_range[:live], order[:live]
    bits_K = torch.zeros(len(range_K), dtype=torch.int64)
    total = min(total, _MOST_BITS * live)
    if total <= 0:
        return bits_K
    level = _water_level(-log_range, _MOST_BITS - log_range, torch.ones_like(log_range), total)
    bits = (level + log_range).clamp_(0, _MOST_BITS).add_(1e-9).floor_().long()
    left = total - int(bits.sum())
    bits[(bits < _MOST_BITS).nonzero().view(-1)[:left]] += 1
    return bits_K.index_copy_(0, order, bits)


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
) -> int:
    """Put codes, ranges and widths of the kept columns; returns the exponent of the ranges.

    Codes do not change if a column and its ends are multiplied alike, so 1/p goes into the ends.
    """
    low_K, high_K = (end_Q[kept_K] for end_Q in ends_Q)
    one_K = torch.ones_like(low_K) if scale_K is None else scale_K
    low_K, high_K = low_K * one_K, high_K * one_K
    bits_K = allocate_bits(high_K - low_K, bits)
    flat = (bits_K == 0).nonzero().view(-1).to(kept_K.device)
    low_K[flat] = values_RQ.index_select(1, kept_K[flat]).mean(0) * one_K[flat]
    coded = bits_K.nonzero().view(-1).to(kept_K.device)

    numbers = torch.cat([low_K, high_K[coded]]).abs()
    numbers = numbers[numbers.isfinite()]
    exponent = math.frexp(float(numbers.max()))[1] if numbers.numel() else 0
    low_half, high_half = (_to_half(end, exponent) for end in (low_K, high_K[coded]))
    low_K = _from_half(low_half, exponent) / one_K
    high_K = low_K.index_copy(0, coded, _from_half(high_half, exponent) / one_K[coded])
    codes = encode_columns(values_RQ, kept_K, low_K, high_K, bits_K)

    message.put(name, codes, Role.PAYLOAD)
    message.put(f"{_NAME}.widths", pack(bits_K, 4).to(codes.device), Role.SIDE)
    message.put(f"{_NAME}.low", low_half, Role.SIDE)
    message.put(f"{_NAME}.high", high_half, Role.SIDE)
    return exponent


def _take_ranges(
    message: Message, K: int, exponent: object
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the width of every column (on the CPU), its first and its last level (float32)."""
    if type(exponent) is not int or abs(exponent) > _MOST_EXPONENT:
        raise ProtocolError(f"plugin {_NAME!r}: {exponent!r:.20} is no exponent of a float32")

    def side(name: str, dtype: torch.dtype, size: int) -> torch.Tensor:
        return take_checked(message, _NAME, f"{_NAME}.{name}", dtype, [size])

    bits_K = unpack(side("widths", torch.uint8, packed_bytes(K, 4)).cpu(), 4, K).long()
    coded = bits_K.nonzero().view(-1)
    low_K = _from_half(side("low", torch.float16, K), exponent)
    high = _from_half(side("high", torch.float16, len(coded)), exponent)
    return bits_K, low_K, low_K.index_copy(0, coded.to(low_K.device), high)


def _to_half(numbers: torch.Tensor, exponent: int) -> torch.Tensor:
    return (numbers.double() * 2.0 ** (_TOP - exponent)).half()


def _from_half(numbers: torch.Tensor, exponent: int) -> torch.Tensor:
    return (numbers.double() * 2.0 ** (exponent - _TOP)).float()
