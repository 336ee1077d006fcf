"""SL-ACC, a reconstruction: more bits for the channels whose values are more diverse.

Z. Lin, Z. Lin, M. Yang, J. Huang, Y. Zhang, Z. Fang, X. Du, Z. Chen, S. Zhu, W. Ni, "SL-ACC: A
Communication-Efficient Split Learning Framework with Adaptive Channel-wise Compression", 2025,
arXiv 2508.12984.

This is a reconstruction from the abstract; there is no public code. Known of the method: every
channel of what is sent is scored by its Shannon entropy, now and in the past; channels are grouped
by score with K-means; each group gets a bit width; activations and gradients alike. All numbers,
the histogram, the form of the history and the quantizer are ours. Call results ``sl-acc-recon``.

The sender, in both directions, with (R, C) the rows · tokens by features of the payload:

1. H_c, the entropy in bits of the histogram of channel c over its own range, 256 bins. A constant
   channel has 0.
2. h_c = (H_c - min H) / (max H - min H), 0 if all are equal.
3. Importance I_c = alpha h_c + (1 - alpha) g_c, with the history g of earlier steps; then
   g ← (1 - rho) g + rho h. The first step takes g = h. Only training adds to the history.
4. K-means on the C numbers I_c: G groups, started from their quantiles. Empty groups are dropped.
5. s_g, the mean importance of the group, brought to [0, 1] over the groups (one group alone: ½).
   Width b_g = round(b_min + (b_max - b_min) s_g).
6. Uniform quantization between minimum and maximum of the group, or of every channel.

To meet a ``ratio`` ξ, step 5 takes the largest b_max up to 8 with which all that is sent fits into
ξ of 32 bits a number. If 8 leaves something over, b_min rises with it, to 16; if b_min alone is too
much, both fall. Then every group, the most important one first, gets one bit more if that fits,
too, and it does not overtake. What is sent stays below ξ by less than one bit for the channels of a
group. A batch smaller than a full one may exceed the smallest ξ.

On the wire, either way: the codes, of all channels of one width together, Σ_w ⌈R · C_w · w / 8⌉
bytes; two float32 a group (or channel) for its range; ⌈G / 2⌉ bytes of widths, 4 bits each;
⌈C · ⌈log2 G⌉ / 8⌉ bytes for the group of every channel. The gradient is coded in the same way by
the server, which keeps a history of its own: each history lives where it is made, and neither
travels. Gradient: straight-through.

Evaluation is not compressed, unless ``evaluation=true``: with the history as training left it.

A channel that holds a value that is not finite (with ``per=group``: its group) arrives as NaN, the
others as they would; it counts as constant.

Shapes: R rows · tokens, C channels (the features of a token), G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from splitlab.core import ConfigError, Kind, Message, Peer, ProtocolError, Role, Traits, hookimpl
from splitlab.plugins.common.bits import pack, packed_bytes, unpack
from splitlab.plugins.common.columns import WIDEST, coded_bytes, decode_columns, encode_columns
from splitlab.plugins.common.exchange import (
    coded_name,
    describe,
    described,
    payload_name,
    take_checked,
)
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["SLACC", "channel_entropy", "importance_groups", "widths_of", "widths_within"]

Per = Literal["group", "channel"]

_NAME = "sl-acc"
_MAX_BITS = 8
_MOST_GROUPS = 16
_KMEANS_ITERATIONS = 100
_EPSILON = 1e-12


class SLACC:
    """Group channels by the entropy of their values, and quantize the groups with unequal widths.

    Args:
        ratio: ξ, at least a little above 1/32 and at most 0.5: choose ``max_bits`` at every step so
            that what is sent meets it. 0.1 unless ``max_bits`` is given, which excludes it.
        min_bits: width of the least important group, 1 to 16; with ``ratio`` as far as that pays
            for it. Gradients of a Vision Transformer are large at the class token and tiny
            elsewhere: 2 or 3 bits between their minimum and maximum tell little, 4 much more.
        max_bits: width of the most important group, min_bits to 16; what is sent then depends on
            the data.
        groups: G, 1 to 16.
        per: one range for a group, or one for every channel. In a Vision Transformer a few
            channels are far larger than the others: with ``per=group`` they set the step of all
            that share their group. Ranges by channel cost 8 bytes a channel.
        alpha: in [0, 1], the share of the present in the importance.
        rho: in [0, 1], how fast the history follows.
        bins: of the histogram, 2 to 65536.
        evaluation: whether evaluation batches are compressed, too.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        min_bits: int = 2,
        max_bits: int | None = None,
        groups: int = 4,
        per: Per = "group",
        alpha: float = 0.5,
        rho: float = 0.1,
        bins: int = 256,
        evaluation: bool = False,
    ) -> None:
        either(ratio=ratio, max_bits=max_bits)
        if ratio is None and max_bits is None:
            ratio = DEFAULT_RATIO
        if ratio is not None:
            check_share("ratio", ratio)
        if not 1 <= min_bits <= WIDEST:
            raise refusal("min_bits", min_bits, f"1 to {WIDEST}", "for example min_bits=2")
        if max_bits is not None and not min_bits <= max_bits <= WIDEST:
            allowed = f"{min_bits} (min_bits) to {WIDEST}"
            raise refusal("max_bits", max_bits, allowed, f"for example max_bits={WIDEST}")
        if not 1 <= groups <= _MOST_GROUPS:
            raise refusal("groups", groups, f"1 to {_MOST_GROUPS}", "for example groups=4")
        for name, value in (("alpha", alpha), ("rho", rho)):
            if not 0 <= value <= 1:
                raise refusal(name, value, "0 to 1", f"for example {name}=0.1")
        if not 2 <= bins <= 2**16:
            raise refusal("bins", bins, "2 to 65536", "for example bins=256")
        check_choice("per", per, get_args(Per))
        self._ratio = ratio
        self._min_bits = min_bits
        self._max_bits = max_bits
        self._groups = groups
        self._per = per
        self._alpha = alpha
        self._rho = rho
        self._bins = bins
        self._evaluation = evaluation
        self._history: torch.Tensor | None = None
        self._bits_of: dict[Kind, float] = {}

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check that a full batch can meet the ratio."""
        self._peer = peer
        if self._ratio is None:
            return
        R, C = peer.batch_size * peer.tokens, peer.width
        groups = min(self._groups, C)
        least = (packed_bytes(R * C, 1) + self._side_bytes(groups, C)) / (4 * R * C)
        if not least <= self._ratio <= WIDEST / 32:
            low = math.ceil(least * 10_000) / 10_000
            raise ConfigError(
                f"plugin {_NAME!r}: ratio={self._ratio} cannot be met with 1 to {WIDEST} bits a "
                f"number, ranges and widths included; allowed for this model and batch: {low} to "
                f"{WIDEST / 32}"
            )

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace the payload by its codes."""
        if not self._acts_on(message):
            return
        name = payload_name(message, _NAME)
        values = message[name]
        C = values.shape[2]
        values_RC = values.reshape(-1, C).float()
        low_C, high_C = values_RC.amin(0), values_RC.amax(0)
        broken_C = ~(low_C.isfinite() & high_C.isfinite())
        if broken_C.any():
            values_RC = values_RC.masked_fill(broken_C, 0)
            low_C, high_C = (ends.masked_fill(broken_C, 0) for ends in (low_C, high_C))

        entropy_C = channel_entropy(values_RC, low_C, high_C, self._bins)
        importance_C = self._importance(entropy_C.cpu(), message.training)
        group_C, score_G = importance_groups(importance_C, self._groups)
        width_G = self._widths(group_C, score_G, len(values_RC))

        self._note_bits(message, width_G[group_C])
        owner_C = self._owners(group_C).to(values.device)
        count = int(owner_C.max()) + 1
        low_O = low_C.new_full((count,), math.inf).scatter_reduce(0, owner_C, low_C, "amin")
        high_O = high_C.new_full((count,), -math.inf).scatter_reduce(0, owner_C, high_C, "amax")
        every = torch.arange(C, device=values.device)
        codes = encode_columns(values_RC, every, low_O[owner_C], high_O[owner_C], width_G[group_C])
        ranges_O2 = torch.stack([low_O, high_O], dim=1)
        ranges_O2[owner_C[broken_C]] = math.nan

        message.push(_NAME, describe(values) | {"groups": len(width_G)})
        message.put(name, codes, Role.PAYLOAD)
        message.put(f"{_NAME}.ranges", ranges_O2, Role.SIDE)
        widths = pack(width_G - 1, 4).to(values.device)
        message.put(f"{_NAME}.widths", widths, Role.SIDE)
        if len(width_G) > 1:
            ids = pack(group_C, _id_bits(len(width_G))).to(values.device)
            message.put(f"{_NAME}.groups", ids, Role.SIDE)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Replace the codes by the levels that they name."""
        note = message.pop(_NAME)
        if note is None:
            return
        (B, N, C), dtype = described(_NAME, note, self._peer)
        G = note.get("groups")
        if type(G) is not int or not 1 <= G <= min(_MOST_GROUPS, C):
            raise ProtocolError(f"plugin {_NAME!r}: {G!r} groups of {C} channels cannot be")
        name = coded_name(message, _NAME)

        def side(name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return take_checked(message, _NAME, f"{_NAME}.{name}", dtype, shape)

        width_G = unpack(side("widths", torch.uint8, packed_bytes(G, 4)).cpu(), 4, G).long() + 1
        group_C = torch.zeros(C, dtype=torch.long)
        if G > 1:
            size = packed_bytes(C, _id_bits(G))
            group_C = unpack(side("groups", torch.uint8, size).cpu(), _id_bits(G), C).long()
            if int(group_C.max()) >= G:
                raise ProtocolError(f"plugin {_NAME!r}: a channel is in none of the {G} groups")
        width_C = width_G[group_C]
        self._note_bits(message, width_C)
        owner_C = self._owners(group_C)
        ranges_O2 = side("ranges", torch.float32, int(owner_C.max()) + 1, 2)
        size = coded_bytes(width_C, B * N)
        codes = take_checked(message, _NAME, name, torch.uint8, [size], Role.PAYLOAD)
        every = torch.arange(C, device=codes.device)
        low_C, high_C = ranges_O2[owner_C.to(codes.device)].unbind(1)
        values_RC = decode_columns(codes, (B * N, C), every, low_C, high_C, width_C)
        message.put(name, values_RC.view(B, N, C).to(dtype), Role.PAYLOAD)

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return the history of what this peer sends; empty before the first step."""
        return {} if self._history is None else {"history": self._history.clone()}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the history back."""
        history = state.get("history")
        self._history = None if history is None else history.cpu().clone()

    @hookimpl
    def nominal_ratio(self, step: int | None) -> tuple[float, float]:
        """Return ξ; without one the mean width over 32 of a step, the middle one before it."""
        ratio = self._ratio
        if ratio is None:
            if step is not None and len(self._bits_of) == 2:
                up, down = self._bits_of[Kind.ACTIVATION], self._bits_of[Kind.GRADIENT]
                return up / 32, down / 32
            assert self._max_bits is not None
            ratio = (self._min_bits + self._max_bits) / 64
        return ratio, ratio

    @hookimpl
    def traits(self) -> Traits:
        """Needs channels; leaves codes."""
        return Traits(
            needs={"layout"},
            changes={"numbers"},
            evaluation=self._evaluation,
            stateful=True,
            gradient="straight-through",
            waits="how many bits every channel gets is decided on the CPU",
        )

    def _acts_on(self, message: Message) -> bool:
        wanted = message.training or self._evaluation
        return wanted and message.kind in (Kind.ACTIVATION, Kind.GRADIENT)

    def _note_bits(self, message: Message, width_C: torch.Tensor) -> None:
        if message.training:
            self._bits_of[message.kind] = float(width_C.double().mean())

    def _owners(self, group_C: torch.Tensor) -> torch.Tensor:
        """Return which range is whose, (C,) int64: that of its group, or its own."""
        return group_C if self._per == "group" else torch.arange(len(group_C))

    def _importance(self, entropy_C: torch.Tensor, training: bool) -> torch.Tensor:
        """Return I_c, (C,) float64 on the CPU; in training the history takes the step in."""
        present_C = _brought_to_one(entropy_C)
        past_C = self._history
        if past_C is None or past_C.shape != present_C.shape:
            past_C = present_C
        if training:
            self._history = (1 - self._rho) * past_C + self._rho * present_C
        return self._alpha * present_C + (1 - self._alpha) * past_C

    def _widths(self, group_C: torch.Tensor, score_G: torch.Tensor, R: int) -> torch.Tensor:
        if self._max_bits is not None:
            return widths_of(score_G, self._min_bits, self._max_bits)
        assert self._ratio is not None
        C, G = len(group_C), len(score_G)
        budget = int(self._ratio * 4 * R * C) - self._side_bytes(G, C)
        return widths_within(score_G, torch.bincount(group_C), R, budget, self._min_bits)

    def _side_bytes(self, G: int, C: int) -> int:
        ids = packed_bytes(C, _id_bits(G)) if G > 1 else 0
        return 8 * (G if self._per == "group" else C) + packed_bytes(G, 4) + ids


def channel_entropy(
    values_RC: torch.Tensor, low_C: torch.Tensor, high_C: torch.Tensor, bins: int
) -> torch.Tensor:
    """Return the entropy in bits of every channel's histogram over [low, high], (C,) float64.

    Args:
        values_RC: float32, finite, within the range of their channel.
        low_C: least value of each channel.
        high_C: largest value; equal to the least: entropy 0.
        bins: of equal width; the largest value belongs to the last.
    """
    R, C = values_RC.shape
    scale_C = bins / (high_C - low_C)
    scale_C = torch.where(scale_C.isfinite(), scale_C, 0.0)
    bin_RC = (values_RC - low_C).mul_(scale_C).clamp_(0, bins - 1).to(torch.int32)
    bin_RC += torch.arange(0, C * bins, bins, dtype=torch.int32, device=bin_RC.device)
    counts_CK = torch.bincount(bin_RC.flatten(), minlength=C * bins).view(C, bins)
    nats_C: torch.Tensor = torch.special.entr(counts_CK.double() / R).sum(1)
    return nats_C / math.log(2)


def importance_groups(importance_C: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Group numbers by K-means; returns group ids (C,) int64 and the mean of each group (G,).

    Group 0 has the smallest numbers. G is smaller than ``groups`` where groups stayed empty.

    Args:
        importance_C: float64, on the CPU.
        groups: most groups.
    """
    at = (torch.arange(groups, dtype=torch.float64) + 0.5) / groups
    centre_G = importance_C.double().quantile(at)
    group_C = torch.full(importance_C.shape, -1)
    for _ in range(_KMEANS_ITERATIONS):
        before_C = group_C
        group_C = torch.bucketize(importance_C, (centre_G[1:] + centre_G[:-1]) / 2)
        if torch.equal(group_C, before_C):
            break
        count_G = torch.bincount(group_C, minlength=groups)
        sum_G = torch.bincount(group_C, weights=importance_C, minlength=groups)
        centre_G = torch.where(count_G > 0, sum_G / count_G, centre_G)
    group_C = torch.unique(group_C, return_inverse=True)[1]
    return group_C, torch.bincount(group_C, weights=importance_C) / torch.bincount(group_C)


def widths_of(score_G: torch.Tensor, least: float, most: float) -> torch.Tensor:
    """Return the width of each group: linear in its score, from least to most bits, (G,) int64."""
    share_G = _brought_to_one(score_G) if len(score_G) > 1 else torch.full_like(score_G, 0.5)
    return (least + (most - least) * share_G + 0.5).floor().long()


def widths_within(
    score_G: torch.Tensor, count_G: torch.Tensor, R: int, budget: int, least: int
) -> torch.Tensor:
    """Return the widths of `widths_of` with the ends that just meet a budget, (G,) int64.

    The least important group has ``least`` bits, the most important one up to 8. Where that leaves
    something over, both ends rise together, to 16; where it is too much, both fall together, to 1.

    Args:
        score_G: importance of each group, rising.
        count_G: its channels.
        R: values of a channel.
        budget: bytes for all codes; if 1 bit each is too much, 1 bit it is.
        least: bits.
    """
    room = max(_MAX_BITS - least, 0)

    def stretched(by: float) -> torch.Tensor:
        first = least + min(by, 0) + max(by - room, 0)
        return widths_of(score_G, first, least + by).clamp(1, WIDEST)

    def fits(width_G: torch.Tensor) -> bool:
        return coded_bytes(width_G.repeat_interleave(count_G), R) <= budget

    low, high = float(1 - least), float(room + WIDEST - least)
    if fits(stretched(high)):
        return stretched(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(stretched(middle)) else (low, middle)
    width_G = stretched(low)
    limit = WIDEST
    for g in reversed(range(len(width_G))):
        more = width_G.clone()
        more[g] += 1
        if more[g] <= limit and fits(more):
            width_G = more
        limit = int(width_G[g])  # never more bits than the next more important group
    return width_G


def _brought_to_one(numbers: torch.Tensor) -> torch.Tensor:
    """Move the least to 0 and the largest to 1; equal ones to 0."""
    rising = numbers - numbers.min()
    return rising / (rising.max() + _EPSILON)


def _id_bits(G: int) -> int:
    """Return how many bits tell G groups apart."""
    return (G - 1).bit_length()
