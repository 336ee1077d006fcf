"""Quantize: every number becomes one of 2^b equally spaced levels and travels in b bits.

The uniform quantizer that split learning is compared with. ``mode=minmax`` is the one of the code
of ADC (arXiv 2509.15058), ``mode=midrise`` that of the code of RandTopK (arXiv 2305.18469).
Stochastic rounding as in D. Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient
Quantization and Encoding", 2017, arXiv 1610.02132.

The sender, for every floating-point payload tensor (…, D) by itself:

1. Ranges: lo and hi, the least and the largest value of the whole tensor, of each token (a vector
   along the last dimension), of each channel (a feature over all tokens), or of each group of
   consecutive features of a token. They are rounded outwards to what is sent.
2. Levels from a to z, 2^b of them, s = (z - a) / (2^b - 1) apart. minmax: a = lo, z = hi. midrise:
   the centres of 2^b equal cells of [lo, hi]; with one or two bits much better, as the extremes
   are rare.
3. Code q = round((x - a) / s), clamped to [0, 2^b - 1]; to the nearest level, or stochastically to
   one of its two neighbours, so that the mean is x. (With midrise, what lies beyond the outermost
   centres goes to these, in either case.)
4. The codes are packed without gaps (`splitlab.plugins.common.bits`).

The receiver returns q · s + a.

Up and down, for a tensor of n values: ⌈n·b / 8⌉ bytes of codes, and the ranges beside them
(``quantize.NAME``): 8 bytes per tensor, or 4 per token, channel or group. Gradient:
straight-through; rounding is ignored, and the gradient itself is quantized on its way back.

Defaults, and what differs from the code named above:

- A range per token, where both have one for the whole tensor: one outlier then costs its token and
  not the batch. ``per=tensor`` is theirs.
- Gradients are rounded stochastically, so that with minmax the server's error is no bias that adds
  up over steps. ``gradient_rounding=nearest`` is theirs. The draws come from the run's seed and the
  step.
- Ranges per token, channel and group are two bfloat16: they cost what float16 would, and gradients
  are often smaller than float16 can tell from zero. Rounding them outwards clips nothing, and makes
  steps larger by 1% or less, unless a range is small against its own distance from zero.
- A constant tensor divides by zero in the code named above. Here it arrives unchanged, up to the
  rounding of its range.
- Codes are packed for every b. The reference charges b bits for them.

NaN or an infinity makes everything NaN that shares a range with it: who diverges shall see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from splitlab.core import Kind, Message, Peer, ProtocolError, Role, Traits, hookimpl
from splitlab.plugins.common.bits import pack, packed_bytes, uniform_codes, uniform_values, unpack
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["Quantize"]

Direction = Literal["both", "up", "down"]
Mode = Literal["minmax", "midrise"]
Per = Literal["tensor", "token", "channel", "group"]
Rounding = Literal["nearest", "stochastic"]

_MOST_BITS = 16
_MOST_DIMENSIONS = 8
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}


class Quantize:
    """Send floating-point payloads in a few bits per number.

    Args:
        ratio: ξ in [1/32, 1] of the directions that are quantized, met by ⌊32 ξ⌋ bits, at most 16;
            the ranges come on top. 0.1, so 3 bits, if neither ratio nor bits are given.
        bits: bits per number, 1 to 16, for activations.
        gradient_bits: for gradients; None: as many.
        mode: minmax, whose levels hold the extremes, or midrise, cell centres.
        gradient_mode: of gradients; None: the same.
        per: what has a range of its own: tensor, token, channel or group.
        gradient_per: of gradients; None: the same.
        group: features of a group, with ``per=group``; the last group of a token may be smaller.
        rounding: of activations: nearest or stochastic.
        gradient_rounding: of gradients.
        direction: both, up (activations) or down (gradients).
        evaluation: whether evaluation batches are quantized, too.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        bits: int | None = None,
        gradient_bits: int | None = None,
        mode: Mode = "minmax",
        gradient_mode: Mode | None = None,
        per: Per = "token",
        gradient_per: Per | None = None,
        group: int = 64,
        rounding: Rounding = "nearest",
        gradient_rounding: Rounding = "stochastic",
        direction: Direction = "both",
        evaluation: bool = False,
    ) -> None:
        either(ratio=ratio, bits=bits)
        if bits is None:
            bits = _bits(DEFAULT_RATIO if ratio is None else ratio)
        for name, value in (("bits", bits), ("gradient_bits", gradient_bits)):
            if value is not None and not 1 <= value <= _MOST_BITS:
                raise refusal(name, value, f"1 to {_MOST_BITS}", f"for example {name}=4")
        check_choice("mode", mode, get_args(Mode))
        check_choice("gradient_mode", gradient_mode or mode, get_args(Mode))
        check_choice("per", per, get_args(Per))
        check_choice("gradient_per", gradient_per or per, get_args(Per))
        check_choice("rounding", rounding, get_args(Rounding))
        check_choice("gradient_rounding", gradient_rounding, get_args(Rounding))
        check_choice("direction", direction, get_args(Direction))
        if group < 1:
            raise refusal("group", group, "1 or more", "for example group=64")
        for name, given in (
            ("gradient_bits", gradient_bits),
            ("gradient_mode", gradient_mode),
            ("gradient_per", gradient_per),
        ):
            if given is not None and direction == "up":
                raise refusal(name, given, "direction=both or down", "leave one of them out")
        self._quantizers: dict[Kind, _Quantizer] = {}
        if direction != "down":
            self._quantizers[Kind.ACTIVATION] = _Quantizer(bits, mode, per, group, rounding)
        if direction != "up":
            self._quantizers[Kind.GRADIENT] = _Quantizer(
                gradient_bits or bits,
                gradient_mode or mode,
                gradient_per or per,
                group,
                gradient_rounding,
            )
        self._evaluation = evaluation

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, for stochastic rounding."""
        self._peer = peer

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace floating-point payload tensors by codes and ranges."""
        quantizer = self._quantizers.get(message.kind)
        if quantizer is None or not (message.training or self._evaluation):
            return
        note = {}
        for name in message.names(Role.PAYLOAD):
            values = message[name]
            if not values.is_floating_point() or not values.ndim or not values.numel():
                continue
            generator = None
            if quantizer.rounding == "stochastic":
                generator = self._generator(message, name, values.device)
            codes, ranges = quantizer.encode(values, generator)
            message.put(name, codes, Role.PAYLOAD)
            message.put(f"quantize.{name}", ranges, Role.SIDE)
            note[name] = [str(values.dtype).removeprefix("torch."), *values.shape]
        if note:
            message.push("quantize", note)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Put values of the old shape and dtype in the place of codes and ranges."""
        note = message.pop("quantize")
        if note is None:
            return
        quantizer = self._quantizers.get(message.kind)
        if quantizer is None or not isinstance(note, dict):
            raise ProtocolError(
                f"plugin 'quantize': a {message.kind.name} message has a note {str(note)[:100]}"
            )
        for name, form in note.items():
            if name not in message or f"quantize.{name}" not in message:
                raise ProtocolError(f"plugin 'quantize': no codes or no ranges of {name!r} arrived")
            dtype, shape = _read_form(name, form)
            ranges_name = f"quantize.{name}"
            roles = message.role(name), message.role(ranges_name)
            if roles != (Role.PAYLOAD, Role.SIDE):
                raise ProtocolError(
                    f"plugin 'quantize': {name!r} and its ranges arrived as {' and '.join(roles)}, "
                    "expected as payload and side"
                )
            ranges = message.take(ranges_name)
            values = quantizer.decode(name, message[name], ranges, shape)
            if dtype.itemsize < 4:  # ranges were rounded outwards, perhaps beyond what it can hold
                values.clamp_(torch.finfo(dtype).min, torch.finfo(dtype).max)
            message.put(name, values.to(dtype), Role.PAYLOAD)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return b / 32 for each direction: papers do not charge the ranges."""
        up, down = (
            self._quantizers[kind].bits / 32 if kind in self._quantizers else 1.0
            for kind in (Kind.ACTIVATION, Kind.GRADIENT)
        )
        return up, down

    @hookimpl
    def traits(self) -> Traits:
        """Needs numbers, leaves codes."""
        return Traits(
            needs={"numbers"},
            changes={"numbers"},
            evaluation=self._evaluation and Kind.ACTIVATION in self._quantizers,
            gradient="straight-through",
        )

    def _generator(self, message: Message, name: str, device: torch.device) -> torch.Generator:
        """Return one on the device, seeded by run, direction, step and name.

        The receiver needs no draws, so that they may be made where the values lie.
        """
        purpose = ("quantize", name, int(message.kind), int(message.training), message.step)
        agreed = self._peer.generator(*purpose)
        return torch.Generator(device).manual_seed(agreed.initial_seed())


@dataclass(frozen=True, slots=True)
class _Quantizer:
    """The two maps of one direction."""

    bits: int
    mode: Mode
    per: Per
    group: int
    rounding: Rounding

    def encode(
        self, values: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return packed codes (bytes,) uint8 and ranges (2, R)."""
        if values.dtype.itemsize < 4:
            values = values.float()
        blocks = self._blocks(values)
        dims = self._reduced(blocks.ndim)
        low = blocks.amin(dims, keepdim=True)
        high = blocks.amax(dims, keepdim=True)
        ranges = torch.stack((low, high)).flatten(1)
        ranges = ranges.float() if self.per == "tensor" else _outwards(ranges.float())
        low, high = self._levels(ranges, low.shape, values.dtype)
        codes = uniform_codes(blocks, low, high, 2**self.bits, generator)
        if codes.shape != values.shape:
            codes = codes.flatten(-2)[..., : values.shape[-1]]
        return pack(codes, self.bits), ranges

    def decode(
        self, name: str, packed: torch.Tensor, ranges: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """Return the values, float32; what arrived is checked."""
        count = math.prod(shape)
        if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, self.bits),):
            raise ProtocolError(
                f"plugin 'quantize': {name} of shape {[*shape]} arrived as {packed.dtype} "
                f"{[*packed.shape]} instead of {self.bits} bits for each value"
            )
        codes = self._blocks(unpack(packed, self.bits, count).view(shape))
        dims = self._reduced(codes.ndim)
        limits = [1 if i in dims else size for i, size in enumerate(codes.shape)]
        dtype = torch.float32 if self.per == "tensor" else torch.bfloat16
        if ranges.dtype != dtype or ranges.shape != (2, math.prod(limits)):
            raise ProtocolError(
                f"plugin 'quantize': the ranges of {name} arrived as {ranges.dtype} "
                f"{[*ranges.shape]}, expected {dtype} {[2, math.prod(limits)]}"
            )
        values = uniform_values(codes, *self._levels(ranges, limits), 2**self.bits)
        return values if codes.shape == shape else values.flatten(-2)[..., : shape[-1]]

    def _blocks(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values; for groups (…, groups, group), filled up with what is there."""
        if self.per != "group":
            return values
        D = values.shape[-1]
        size = min(self.group, D)
        missing = -D % size
        if missing:
            values = torch.cat((values, values[..., -1:].expand(*values.shape[:-1], missing)), -1)
        return values.view(*values.shape[:-1], -1, size)

    def _reduced(self, ndim: int) -> tuple[int, ...]:
        """Return the dimensions that share a range; a tensor of one dimension is one token."""
        if self.per == "tensor" or ndim == 1:
            return tuple(range(ndim))
        return tuple(range(ndim - 1)) if self.per == "channel" else (ndim - 1,)

    def _levels(
        self, ranges: torch.Tensor, shape: Any, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first and the last level of every range, in this shape."""
        low, high = (limit.to(dtype).view(shape) for limit in ranges)
        if self.mode == "midrise":
            half_cell = (high - low) / 2 ** (self.bits + 1)
            low, high = low + half_cell, high - half_cell
        return low, high


def _outwards(ranges: torch.Tensor) -> torch.Tensor:
    """Return float32 (2, R), low and high, as bfloat16: low rounded down, high rounded up.

    bfloat16 is the upper half of float32. Cutting the lower half off moves a number towards zero;
    where that is the wrong way, the upper half is counted up first.
    """
    bits = ranges.view(torch.int32)
    away = torch.stack((ranges[0] < 0, ranges[1] > 0))
    upper = torch.where(away, bits + 0xFFFF, bits) & ~0xFFFF
    return upper.view(torch.float32).to(torch.bfloat16)


def _read_form(name: str, form: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return dtype and shape of a tensor, as its note has them."""
    dtype, shape = (form[0], form[1:]) if isinstance(form, list) and form else (None, [])
    sizes = 0 < len(shape) <= _MOST_DIMENSIONS and all(type(n) is int and n > 0 for n in shape)
    if str(dtype) not in _DTYPES or not sizes:
        raise ProtocolError(
            f"plugin 'quantize': the note of {name!r} should hold dtype and shape, and holds "
            f"{str(form)[:100]}"
        )
    return _DTYPES[str(dtype)], tuple(shape)


def _bits(ratio: float) -> int:
    check_share("ratio", ratio)
    if ratio < 1 / 32:
        raise refusal("ratio", ratio, "1/32 (one bit) to 1", "for example ratio=0.1")
    return min(_MOST_BITS, math.floor(32 * ratio + 1e-9))
