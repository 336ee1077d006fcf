"""SL-FAC, a reconstruction: quantize the spatial frequencies of every channel by their energy.

Z. Lin, M. Yang, H. Zhu, Z. Lin, J. Huang, J. Yang, G. Pan, D. Luan, Z. Fang, S. Zhu, W. Ni,
J. Thompson, "SL-FAC: A Communication-Efficient Split Learning Framework with Frequency-Aware
Compression", 2026, arXiv 2604.07316.

This is a reconstruction from the abstract and from summaries of others; there is no public code.
Known of the method: a cosine transform of every channel's map; its frequencies sorted by energy; a
share θ = 0.9 of the energy splits them in two sets; bit widths between 2 and 8 from the logarithm
of the energy; linear quantization between minimum and maximum; activations and gradients alike.
It was made for convolutional networks. The port to the tokens of a Vision Transformer, what a set's
range and width are shared by, and all of ``ratio`` are ours. Call results ``sl-fac-recon``.

The sender, in both directions, with X (rows, tokens, D):

1. Special tokens are sent as float16, each divided by its largest magnitude, a float32: gradients
   are too small for float16 as they are.
2. The patch tokens of channel d and one row are a map. Its two-dimensional orthonormal cosine
   transform (DCT-II) has F numbers, one for each frequency, F the number of patches.
3. Energy E_{f,d}: the mean over rows of the square. The frequencies of channel d are sorted by
   energy; the first of them that together have a share θ of it are its set of much energy, the
   others its set of little energy. θ = 1: all are in the first. 2 D sets in all.
4. e_s, the mean energy of the numbers of set s, on a logarithmic scale: the set with the largest
   has max_bits, that with the least min_bits, the others what lies between, rounded. If all are
   equal, they have the middle.
5. Uniform quantization of all numbers of the set between their minimum and maximum. A set of equal
   numbers needs no code.

To meet a ``ratio`` ξ, step 4 is another: widths follow ½ log₂ e_s + λ, which is the rule that makes
most of a number of bits, and λ is the largest with which all that is sent fits into ξ of 32 bits a
number. A width is 0, which makes the numbers of the set zero, or 4 to 16: most numbers are far
from minimum and maximum, and with few levels in between they are nearer to zero than to a level.
The bits are given out one width of one set at a time, in closed form, so that what is sent stays
below ξ by less than the next step of a set. From 0.003 (ranges and special tokens alone) to 0.5 on
a DeiT-T; `setup` says what a model allows. A batch smaller than a full one may exceed the smallest
ξ.

On the wire, either way: the codes of all numbers of one width together, Σ_w ⌈R n_w w / 8⌉ bytes;
for every special token 2 D + 4 bytes; ⌈F D / 8⌉ bytes that tell the sets apart, ⌈10 D / 8⌉ of
widths, two float32 a set, 16 D, for its range. Each direction finds its own sets. Gradient:
straight-through.

Evaluation batches are sent whole, unless ``evaluation=true``.

A channel with a patch that is not finite arrives as NaN in all patches of all rows; a special token
with such a number as NaN itself, in part or whole.

Shapes: R rows, F frequencies (as many as patches), D width; S = 2 D sets, first those of much
energy; Q = F · D numbers of a row.
"""

from __future__ import annotations

import functools
import math

import torch

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
from splitlab.plugins.common.columns import WIDEST, coded_bytes, decode_columns, encode_columns
from splitlab.plugins.common.exchange import describe, described, payload_name, take_checked
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_share, either, refusal

__all__ = ["SLFAC", "dct_basis", "much_energy", "widths_of", "widths_within"]

_LEAST_SHARE = 1e-6
"""What is charged where nothing needs bits: a ratio is more than 0."""

_NAME = "sl-fac"
_MIN_BITS, _MAX_BITS = 2, 8
_LEAST_USEFUL = 4
"""With fewer bits, but 0, no width is given out to meet a ratio."""
_WIDTH_BITS = 5
"""Bits that carry a width of 0 to 16."""

_PIECE = 2**18
"""Numbers transformed at a time on a CPU, by each thread, so that they stay in its cache."""


class SLFAC:
    """Quantize the cosine transform of every channel, with more bits where there is more energy.

    Args:
        ratio: ξ, at most 0.5: choose the widths so that what is sent meets it. 0.1 if neither
            ``min_bits`` nor ``max_bits`` is given.
        theta: θ in (0, 1], the share of a channel's energy that its first set has.
        min_bits: width of the set of least energy, 0 to 16; 2 (the paper) if only ``max_bits`` is
            given. Without ``ratio`` only: what is sent then depends on the data.
        max_bits: width of the set of most energy, min_bits to 16; 8 (the paper) if only
            ``min_bits`` is given.
        evaluation: whether evaluation batches are compressed, too.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        theta: float = 0.9,
        min_bits: int | None = None,
        max_bits: int | None = None,
        evaluation: bool = False,
    ) -> None:
        either(ratio=ratio, min_bits=min_bits)
        either(ratio=ratio, max_bits=max_bits)
        if ratio is None and min_bits is None and max_bits is None:
            ratio = DEFAULT_RATIO
        if ratio is not None:
            check_share("ratio", ratio)
        check_share("theta", theta)
        least = _MIN_BITS if min_bits is None else min_bits
        most = max(_MAX_BITS, least) if max_bits is None else max_bits
        if not 0 <= least <= WIDEST:
            raise refusal("min_bits", least, f"0 to {WIDEST}", f"for example min_bits={_MIN_BITS}")
        if not max(least, 1) <= most <= WIDEST:
            allowed = f"{max(least, 1)} to {WIDEST}"
            raise refusal(
                "max_bits", most, allowed, f"for example max_bits={max(_MAX_BITS, least)}"
            )
        self._ratio = ratio
        self._theta = theta
        self._bits = (least, most)
        self._bits_of: dict[Kind, float] = {}
        self._evaluation = evaluation

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check that there is a grid of patches, and that a full batch can meet the ratio."""
        if peer.grid is None:
            raise ConfigError(
                f"plugin {_NAME!r} needs the patches' grid, which this model does not have; choose "
                "a model with one (for example vit-mini or deit_tiny_patch16_224)"
            )
        self._peer = peer
        self._grid = peer.grid
        self._prefix = peer.prefix_tokens
        if self._ratio is None:
            return
        R, D = peer.batch_size, peer.width
        least = self._side_bytes(R, D) / (4 * R * peer.tokens * D)
        if not least <= self._ratio <= WIDEST / 32:
            low = math.ceil(least * 10_000) / 10_000
            raise ConfigError(
                f"plugin {_NAME!r}: ratio={self._ratio} cannot be met with up to {WIDEST} bits a "
                f"number, special tokens and ranges included; allowed for this model and batch: "
                f"{low} to {WIDEST / 32}"
            )

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace the payload by the codes of its spectrum, and its special tokens."""
        wanted = message.training or self._evaluation
        if not wanted or message.kind not in (Kind.ACTIVATION, Kind.GRADIENT):
            return
        name = payload_name(message, _NAME)
        values = message[name]
        R, N, D = values.shape
        if self._prefix + self._frequencies != N:
            raise PluginError(
                f"plugin {_NAME!r}: {N} tokens are not {self._prefix} special tokens and a grid of "
                f"{self._grid[0]} x {self._grid[1]} patches; put it in front of plugins that "
                "change the tokens"
            )
        spectrum_RQ, energy_Q = self._spectrum(values[:, self._prefix :])
        low_Q, high_Q = spectrum_RQ.amin(0), spectrum_RQ.amax(0)
        broken_D = ~(low_Q.isfinite() & high_Q.isfinite()).view(-1, D).all(0)
        if broken_D.any():
            broken_Q = broken_D.repeat(self._frequencies)
            spectrum_RQ = spectrum_RQ.masked_fill(broken_Q, 0)
            low_Q, high_Q, energy_Q = (
                numbers.masked_fill(broken_Q, 0) for numbers in (low_Q, high_Q, energy_Q)
            )

        energy_FD = energy_Q.view(-1, D)
        much_FD = much_energy(energy_FD, self._theta)
        set_Q = _sets(much_FD)
        low_S = low_Q.new_full((2 * D,), math.inf).scatter_reduce(0, set_Q, low_Q, "amin")
        high_S = high_Q.new_full((2 * D,), -math.inf).scatter_reduce(0, set_Q, high_Q, "amax")
        energy_S = energy_FD.new_zeros(2 * D).scatter_add(0, set_Q, energy_FD.view(-1))
        count_S = torch.bincount(set_Q, minlength=2 * D)
        energy_S = torch.where(low_S < high_S, energy_S / count_S, 0)
        bits_S = self._widths(energy_S.cpu(), count_S.cpu(), R)

        # What has no code arrives as the lower end of its range.
        coded_S = bits_S.to(low_S.device) > 0
        low_S = torch.where(coded_S | (low_S == high_S), low_S, 0)
        high_S = torch.where(coded_S, high_S, low_S)
        every = torch.arange(len(set_Q), device=values.device)
        self._note_bits(message, bits_S[set_Q.cpu()])
        codes = encode_columns(spectrum_RQ, every, low_S[set_Q], high_S[set_Q], bits_S[set_Q.cpu()])
        ranges_S2 = torch.stack((low_S, high_S), dim=1).float()
        ranges_S2[broken_D.repeat(2)] = math.nan

        message.push(_NAME, describe(values))
        message.put(name, codes, Role.PAYLOAD)
        if self._prefix:
            halves_RpD, scale_Rp = _to_half(values[:, : self._prefix])
            message.put(f"{_NAME}.special", halves_RpD, Role.PAYLOAD)
            message.put(f"{_NAME}.scale", scale_Rp, Role.SIDE)
        message.put(f"{_NAME}.sets", pack(much_FD, 1), Role.SIDE)
        message.put(f"{_NAME}.widths", pack(bits_S, _WIDTH_BITS).to(values.device), Role.SIDE)
        message.put(f"{_NAME}.ranges", ranges_S2, Role.SIDE)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Replace the codes by the levels that they name, transformed back."""
        note = message.pop(_NAME)
        if note is None:
            return
        (R, N, D), dtype = described(_NAME, note, self._peer)
        F, prefix = self._frequencies, self._prefix
        if prefix + F != N:
            raise ProtocolError(
                f"plugin {_NAME!r}: {N} tokens arrived, this model has {prefix + F}"
            )

        def take(name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            role = Role.PAYLOAD if name == "special" else Role.SIDE
            return take_checked(message, _NAME, f"{_NAME}.{name}", dtype, shape, role)

        special_RpD = None
        if prefix:
            halves_RpD = take("special", torch.float16, R, prefix, D)
            special_RpD = halves_RpD.float() * take("scale", torch.float32, R, prefix)[..., None]
        names = message.names(Role.PAYLOAD)
        if len(names) != 1:
            raise ProtocolError(f"plugin {_NAME!r}: {len(names)} payloads arrived, expected one")
        sets = take("sets", torch.uint8, packed_bytes(F * D, 1))
        set_Q = _sets(unpack(sets, 1, F * D).view(F, D).bool())
        widths = take("widths", torch.uint8, packed_bytes(2 * D, _WIDTH_BITS))
        bits_S = unpack(widths.cpu(), _WIDTH_BITS, 2 * D).long()
        if int(bits_S.max()) > WIDEST:
            raise ProtocolError(
                f"plugin {_NAME!r}: a width of {int(bits_S.max())} bits arrived; allowed: 0 to "
                f"{WIDEST}"
            )
        low_S, high_S = take("ranges", torch.float32, 2 * D, 2).unbind(1)
        bits_Q = bits_S[set_Q.cpu()]
        self._note_bits(message, bits_Q)
        codes = take_checked(
            message, _NAME, names[0], torch.uint8, [coded_bytes(bits_Q, R)], Role.PAYLOAD
        )
        every = torch.arange(F * D, device=codes.device)
        spectrum_RQ = decode_columns(codes, (R, F * D), every, low_S[set_Q], high_S[set_Q], bits_Q)
        values = spectrum_RQ.new_empty((R, N, D), dtype=dtype)
        if special_RpD is not None:
            values[:, :prefix] = special_RpD
        self._write_patches(spectrum_RQ.view(R, F, D), values[:, prefix:])
        message.put(names[0], values, Role.PAYLOAD)

    @hookimpl
    def nominal_ratio(self, step: int | None) -> tuple[float, float]:
        """Return ξ; without one the mean width over 32 of a step, the middle one before it."""
        if self._ratio is None and step is not None and len(self._bits_of) == 2:
            up, down = self._bits_of[Kind.ACTIVATION], self._bits_of[Kind.GRADIENT]
            return max(up / 32, _LEAST_SHARE), max(down / 32, _LEAST_SHARE)
        ratio = sum(self._bits) / 64 if self._ratio is None else self._ratio
        return ratio, ratio

    @hookimpl
    def traits(self) -> Traits:
        """Needs the grid of patches; leaves codes."""
        return Traits(
            needs={"grid"},
            changes={"numbers"},
            evaluation=self._evaluation,
            gradient="straight-through",
            waits="how many bits every set of frequencies gets is decided on the CPU",
        )

    @property
    def _frequencies(self) -> int:
        return self._grid[0] * self._grid[1]

    def _note_bits(self, message: Message, bits_Q: torch.Tensor) -> None:
        if message.training:
            self._bits_of[message.kind] = float(bits_Q.double().mean())

    def _spectrum(self, patches_RFD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosine transform, (R, Q) float32, and its mean squares, (Q,) float64."""
        R, F, D = patches_RFD.shape
        down, across = (_basis(n, patches_RFD.device) for n in self._grid)
        spectrum_RFD = patches_RFD.new_empty((R, F, D), dtype=torch.float32)
        energy_FD = patches_RFD.new_zeros((F, D), dtype=torch.float64)
        for rows in _pieces(patches_RFD):
            part_rFD = _transform(patches_RFD[rows].float(), down, across)
            spectrum_RFD[rows] = part_rFD
            energy_FD += part_rFD.double().square_().sum(0)
        return spectrum_RFD.view(R, -1), energy_FD.view(-1) / R

    def _write_patches(self, spectrum_RFD: torch.Tensor, patches_RFD: torch.Tensor) -> None:
        """Undo `_spectrum`, into the second argument."""
        down, across = (_basis(n, spectrum_RFD.device).T for n in self._grid)
        for rows in _pieces(spectrum_RFD):
            patches_RFD[rows] = _transform(spectrum_RFD[rows], down, across)

    def _widths(self, energy_S: torch.Tensor, count_S: torch.Tensor, R: int) -> torch.Tensor:
        if self._ratio is None:
            return widths_of(energy_S, *self._bits)
        D = len(energy_S) // 2
        budget = int(self._ratio * 4 * R * (self._prefix + self._frequencies) * D)
        return widths_within(energy_S, count_S, R, budget - self._side_bytes(R, D))

    def _side_bytes(self, R: int, D: int) -> int:
        """Return the bytes of all that is sent besides the codes."""
        special = R * self._prefix * (2 * D + 4)
        sets = packed_bytes(self._frequencies * D, 1)
        return special + sets + packed_bytes(2 * D, _WIDTH_BITS) + 16 * D


def dct_basis(n: int) -> torch.Tensor:
    """Return the orthonormal cosine transform (DCT-II) of n points, (n, n) float64.

    Row k is c_k cos(π (2 t + 1) k / (2 n)) over t, with c_0 = √(1/n) and the others √(2/n).
    """
    k = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / (2 * n) * k[:, None] * (2 * k + 1)) * math.sqrt(2 / n)
    basis[0] = math.sqrt(1 / n)
    return basis


@functools.lru_cache(maxsize=16)
def _basis(n: int, device: torch.device) -> torch.Tensor:
    """Return what is the same at every step."""
    return dct_basis(n).to(device, torch.float32)


def _pieces(maps_RFD: torch.Tensor) -> list[slice]:
    """Return which rows to take at a time: all of them, but on a CPU."""
    R = len(maps_RFD)
    step = R
    if maps_RFD.device.type == "cpu":
        step = max(1, _PIECE * torch.get_num_threads() // maps_RFD[0].numel())
    return [slice(start, start + step) for start in range(0, R, step)]


def _transform(maps_RFD: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Return down · map · acrossᵀ of the map of every row and channel."""
    R, F, D = maps_RFD.shape
    rows, columns = len(down), len(across)
    halfway = down @ maps_RFD.reshape(R, rows, columns * D)
    return (across @ halfway.view(R * rows, columns, D)).view(R, F, D)


def much_energy(energy_FD: torch.Tensor, theta: float) -> torch.Tensor:
    """Return which frequencies of every channel have the most energy, (F, D) bool.

    The fewest of them that together have a share theta of the channel's energy, all for theta = 1,
    none of a channel without energy.

    Args:
        energy_FD: float64, not negative.
        theta: in (0, 1].
    """
    if theta == 1:
        return torch.ones_like(energy_FD, dtype=torch.bool)
    sorted_FD, order_FD = energy_FD.sort(dim=0, descending=True, stable=True)
    so_far_FD = sorted_FD.cumsum(0)
    wanted_FD = so_far_FD - sorted_FD < theta * so_far_FD[-1]
    return torch.zeros_like(wanted_FD).scatter(0, order_FD, wanted_FD)


def widths_of(energy_S: torch.Tensor, least: int, most: int) -> torch.Tensor:
    """Return the width of each set: linear in the logarithm of its energy, (S,) int64.

    Args:
        energy_S: float64 on the CPU; sets with 0 need no bits and get none.
        least: width of the set with the least energy.
        most: width of the set with the most.
    """
    needs_S = energy_S > 0
    widths_S = torch.zeros(energy_S.shape, dtype=torch.int64)
    if needs_S.any():
        level = energy_S[needs_S].log2()
        span = level.max() - level.min()
        share = (level - level.min()) / span if span > 0 else torch.full_like(level, 0.5)
        widths_S[needs_S] = (least + (most - least) * share + 0.5).floor().long()
    return widths_S


def widths_within(
    energy_S: torch.Tensor, count_S: torch.Tensor, R: int, budget: int
) -> torch.Tensor:
    """Return the widths 0 or 4 to 16 nearest to ½ log₂ e + λ, λ as large as fits, (S,) int64.

    Args:
        energy_S: float64 on the CPU; sets with 0 need no bits and get none.
        count_S: numbers of each set in a row.
        R: rows.
        budget: bytes for all codes.
    """
    widths = torch.tensor([0, *range(_LEAST_USEFUL, WIDEST + 1)])
    step_W = widths.diff()
    # A set takes a step up when ½ log₂ e + λ passes the middle between two widths, so the steps of
    # all sets, sorted by the λ that they need, are taken as far as the budget goes.
    middle_W = (widths[1:] + widths[:-1]) / 2
    needed_SW = middle_W - energy_S.log2()[:, None] / 2
    bits_SW = count_S[:, None] * R * step_W
    order = needed_SW.flatten().argsort(stable=True)
    # The codes of one width fill whole bytes: less than one byte is lost for each width.
    spent = bits_SW.flatten()[order].cumsum(0) <= 8 * (budget - len(step_W))
    taken_SW = torch.zeros(needed_SW.numel(), dtype=torch.bool)
    taken_SW[order] = spent & needed_SW.flatten()[order].isfinite()
    return (taken_SW.view_as(needed_SW) * step_W).sum(1)


def _sets(much_FD: torch.Tensor) -> torch.Tensor:
    """Return the set of every number, (Q,) int64: d, or D + d for little energy."""
    D = much_FD.shape[1]
    channel_D = torch.arange(D, device=much_FD.device)
    return torch.where(much_FD, channel_D, D + channel_D).view(-1)


def _to_half(tokens_RpD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens divided by their largest magnitudes, float16, and these, float32."""
    tokens_RpD = tokens_RpD.float()
    scale_Rp = tokens_RpD.abs().amax(2)
    divisor_Rp = torch.where(scale_Rp > 0, scale_Rp, 1)
    return (tokens_RpD / divisor_Rp[..., None]).half(), scale_Rp
