"""AQ-SGD: send how a sample's activations changed since its last visit, not what they are.

J. Wang, B. Yuan, L. Rimanic, Y. He, T. Dao, B. Chen, C. Ré, C. Zhang, "Fine-tuning Language Models
over Slow Networks using Activation Compression with Guarantees", NeurIPS 2022, arXiv 2206.01299.

Both peers hold m(id), float16, for every training sample that has passed.

1. First visit of a sample: X travels as float16, m(id) ← X.
2. Later visits: the change X - m(id) is quantized and travels; m(id) ← m(id) + what the codes say,
   in float16. The server goes on with m(id), in either case.
3. Gradients are quantized by themselves, with more bits.

Quantizer (of the official code, to the last code): for every feature d a scale s_d, the largest
magnitude in the batch, as float16; q = round(x / (s_d + 10⁻⁶) · 2^(b-1)), the sum in float16, too,
clipped to [-2^(b-1), 2^(b-1) - 1]; its value is q / 2^(b-1) · s_d. Rounding is to the nearest. x is
float32; the official code divides in float16 where the model is in it.

The two m(id) stay the same, bit for bit: both peers compute them from the codes and scales that
travelled, and q · s_d is exact in float32, so that there is one rounding, to float16, alike on
every machine.

On the wire, up: ids of the B samples, 4 bytes each (8 if one does not fit); float16 activations of
those never seen, 2 · N · D bytes each; for the K others ⌈K · N · D · bits / 8⌉ bytes of codes and
2 · D bytes of scales. Which samples are new the server knows from the ids. Down:
⌈B · N · D · gradient_bits / 8⌉ bytes of codes and 2 · D of scales. Gradient: straight-through.

Evaluation is not touched.

Samples must look the same at every visit: with random augmentation the change is as large as the
activations, and the setup refuses it. Every peer keeps 2 · N · D bytes for every training sample
(CIFAR-100 with DeiT-T: 3.8 GB) and writes them into its checkpoints.

What this file does otherwise than the official code, and why:

- A sample's first visit is what sends it whole; the code has a warm-up epoch, which is the same
  where an epoch visits all samples.
- A gradient is multiplied by a power of two that brings its largest magnitude to [2¹⁴, 2¹⁵), and
  divided by it after. The code runs in mixed precision, whose loss scaling does the like; without,
  scales of 10⁻⁷ would drown in the 10⁻⁶ and in float16's steps.
- What exceeds the largest float16 is clipped to it.

Activations that are not finite are refused: both peers would remember them.

Shapes: B samples, N tokens, D features; K of the samples known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from splitlab.core import (
    ConfigError,
    Cut,
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
from splitlab.plugins.common.exchange import (
    coded_name,
    describe,
    described,
    payload_name,
    take_checked,
)
from splitlab.plugins.common.finite import check_finite
from splitlab.plugins.common.settings import check_choice, check_share, either, refusal

__all__ = ["AQSGD", "dequantize", "quantize"]

Memory = Literal["cpu", "device"]

_NAME = "aqsgd"
_IDS = "aqsgd.ids"
_BITS, _GRADIENT_BITS = 4, 8
_FEWEST, _MOST = 2, 8
"""Widths: 1 bit could not say "more", and beyond 8 a product of code and scale is not exact."""

_WHOLE = "aqsgd.whole"

_LARGEST = torch.finfo(torch.float16).max
_TOP = 15
"""The largest magnitude of a gradient is brought below 2**15 before scales become float16."""

_LEAST_EXPONENT, _LARGEST_EXPONENT = -80, 128
"""Of a gradient's largest magnitude; one below 2**-80 counts as so large."""


class AQSGD:
    """Quantize the change of every sample's activations since its last visit.

    Args:
        ratio: ξ in [0.0625, 0.25]: ``bits`` and ``gradient_bits`` are both the largest whole number
            of at most 32 ξ. Scales and ids, (2 D + 4 B) / (4 B N D), come on top. It holds from the
            second visit on: the first epoch sends half of the bytes up.
        bits: of a change, 2 to 8; the paper's 4 if neither is given.
        gradient_bits: of a gradient, 2 to 8; the paper's 8 if neither is given.
        memory: where m(id) lies: on the CPU, or on the device that computes.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        bits: int | None = None,
        gradient_bits: int | None = None,
        memory: Memory = "cpu",
    ) -> None:
        either(ratio=ratio, bits=bits)
        either(ratio=ratio, gradient_bits=gradient_bits)
        if ratio is not None:
            check_share("ratio", ratio)
            if not _FEWEST <= 32 * ratio <= _MOST:
                raise refusal(
                    "ratio",
                    ratio,
                    f"{_FEWEST / 32} ({_FEWEST} bits) to {_MOST / 32} ({_MOST} bits)",
                    "for example ratio=0.125",
                )
            bits = gradient_bits = math.floor(32 * ratio + 1e-9)
        bits = _BITS if bits is None else bits
        gradient_bits = _GRADIENT_BITS if gradient_bits is None else gradient_bits
        for name, value in (("bits", bits), ("gradient_bits", gradient_bits)):
            if not _FEWEST <= value <= _MOST:
                raise refusal(name, value, f"{_FEWEST} to {_MOST}", f"for example {name}=4")
        check_choice("memory", memory, get_args(Memory))
        self._nominal = (bits / 32, gradient_bits / 32) if ratio is None else (ratio, ratio)
        self._bits = bits
        self._gradient_bits = gradient_bits
        self._memory = memory
        self._share_new = 0.0

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Refuse images that change from visit to visit."""
        self._peer = peer
        if peer.augmented:
            raise ConfigError(
                f"plugin {_NAME!r} sends how a sample's activations changed since its last visit; "
                "random augmentation and mixup make another image of it every time; use "
                "--augment none, and no --mixup"
            )
        self._samples = _Samples(peer.device if self._memory == "device" else torch.device("cpu"))

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Send along which samples these are."""
        if not cut.training:
            return
        ids_B = cut.sample_ids
        if ids_B is None or ids_B.shape != cut.activations.shape[:1]:
            raise PluginError(
                f"plugin {_NAME!r} needs the id of every sample; a plugin in front dropped or "
                "merged samples without a word"
            )
        fits = int(ids_B.max()) <= torch.iinfo(torch.int32).max
        ids_B = ids_B.to(torch.int32 if fits else torch.int64)
        cut.side[_IDS] = ids_B.to(cut.activations.device)

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace activations by changes, a gradient by codes."""
        if not message.training:
            return
        if message.kind is Kind.ACTIVATION:
            self._send_activations(message)
        elif message.kind is Kind.GRADIENT:
            self._send_gradient(message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Replace changes by the activations that both peers now hold, codes by a gradient."""
        note = message.pop(_NAME)
        if note is None:
            return
        if message.kind is Kind.ACTIVATION:
            self._receive_activations(message, note)
        else:
            self._receive_gradient(message, note)

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return m(id) of all samples that have passed; empty before the first step."""
        return self._samples.state()

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._samples.load(state)

    @hookimpl
    def nominal_ratio(self, step: int | None) -> tuple[float, float]:
        """Return bits over 32 up and down, or ξ; of a step, with ½ up for its first visits."""
        up, down = self._nominal
        if step is None:
            return up, down
        return self._share_new / 2 + (1 - self._share_new) * up, down

    @hookimpl
    def traits(self) -> Traits:
        """Needs samples with ids and tokens at their places; leaves codes."""
        return Traits(
            needs={"sample ids", "places"},
            changes={"numbers"},
            stateful=True,
            gradient="straight-through",
            waits="how many samples come for the first time decides what is sent",
        )

    def _send_activations(self, message: Message) -> None:
        name = payload_name(message, _NAME)
        values_BND = message[name]
        ids_B = message[_IDS].cpu().long()
        if len(ids_B) != len(values_BND) or _distinct(ids_B) != len(ids_B):
            raise PluginError(
                f"plugin {_NAME!r}: {len(values_BND)} rows with {_distinct(ids_B)} different "
                "sample ids; every row must be another sample"
            )
        if not self._samples.fit(values_BND.shape):
            raise PluginError(
                f"plugin {_NAME!r}: the samples have shape {[*values_BND.shape[1:]]}, at an "
                f"earlier visit they had {[*self._samples.shape]}; a plugin in front changes what "
                "it leaves of them"
            )
        slot_B = self._samples.find(ids_B)
        known, new = (slot_B >= 0).nonzero().view(-1), (slot_B < 0).nonzero().view(-1)
        self._share_new = len(new) / len(ids_B)
        whole = _rows(values_BND, new)
        if len(new):
            _scales(whole, message)
        message.push(_NAME, describe(values_BND))
        codes = torch.empty(0, dtype=torch.uint8, device=values_BND.device)
        if len(known):
            old = self._samples.rows(slot_B[known], values_BND.device)
            change = _rows(values_BND, known).float() - old
            scale_D = _scales(change, message)
            quantized = quantize(change, scale_D, self._bits)
            self._samples.replace(slot_B[known], _changed(old, quantized, scale_D, self._bits))
            codes = _packed(quantized, self._bits)
            message.put(f"{_NAME}.scales", scale_D, Role.SIDE)
        message.put(name, codes, Role.PAYLOAD)
        if len(new):
            whole = whole.clamp(-_LARGEST, _LARGEST).half()
            self._samples.add(ids_B[new], whole)
            message.put(_WHOLE, whole, Role.PAYLOAD)

    def _receive_activations(self, message: Message, note: Any) -> None:
        shape, dtype = described(_NAME, note, self._peer)
        ids_B = self._take_ids(message, shape)
        slot_B = self._samples.find(ids_B)
        known, new = (slot_B >= 0).nonzero().view(-1), (slot_B < 0).nonzero().view(-1)
        if (_WHOLE in message) != (len(new) > 0):
            raise ProtocolError(
                f"plugin {_NAME!r}: of {len(ids_B)} samples this peer has seen {len(known)}, the "
                "other peer does not agree; resume both from the same checkpoint"
            )
        _, N, D = shape
        whole = None
        if len(new):
            whole = take_checked(
                message, _NAME, _WHOLE, torch.float16, [len(new), N, D], Role.PAYLOAD
            )
            message.expect(
                whole.isfinite().all(),
                lambda: ProtocolError(f"plugin {_NAME!r}: a sample arrived that is not finite"),
            )
        name = coded_name(message, _NAME)
        size = [packed_bytes(len(known) * N * D, self._bits)]
        codes = take_checked(message, _NAME, name, torch.uint8, size, Role.PAYLOAD)
        values_BND = torch.empty(shape, dtype=torch.float16, device=codes.device)
        if len(known):
            scale_D = self._take_scales(message, D)
            if not scale_D.isfinite().all():
                raise ProtocolError(f"plugin {_NAME!r}: a scale is not finite")
            old = self._samples.rows(slot_B[known], codes.device)
            quantized = _unpacked(codes, self._bits, (len(known), N, D))
            changed = _changed(old, quantized, scale_D, self._bits)
            self._samples.replace(slot_B[known], changed)
            values_BND[known.to(codes.device)] = changed
        if whole is not None:
            self._samples.add(ids_B[new], whole)
            values_BND[new.to(codes.device)] = whole
        message.put(name, values_BND.to(dtype), Role.PAYLOAD)

    def _send_gradient(self, message: Message) -> None:
        name = payload_name(message, _NAME)
        values = message[name]
        largest_D = _largest(values.float())
        finite = largest_D[largest_D.isfinite()]
        exponent = math.frexp(float(finite.max()))[1] if len(finite) else 0
        exponent = max(exponent, _LEAST_EXPONENT)
        scale_D = (largest_D * 2.0 ** (_TOP - exponent)).half()
        unit = 2.0 ** (exponent - _TOP)
        quantized = quantize(values.float(), scale_D, self._gradient_bits, unit)
        if len(finite) < len(largest_D):
            quantized.nan_to_num_(0)  # the scale, which is not finite, says it
        message.push(_NAME, describe(values) | {"e": exponent})
        message.put(name, _packed(quantized, self._gradient_bits), Role.PAYLOAD)
        message.put(f"{_NAME}.scales", scale_D, Role.SIDE)

    def _receive_gradient(self, message: Message, note: Any) -> None:
        shape, dtype = described(_NAME, note, self._peer)
        exponent = note.get("e")
        if type(exponent) is not int or abs(exponent) > _LARGEST_EXPONENT:
            raise ProtocolError(f"plugin {_NAME!r}: {exponent!r:.20} is no exponent of a float32")
        name = coded_name(message, _NAME)
        size = [packed_bytes(math.prod(shape), self._gradient_bits)]
        codes = take_checked(message, _NAME, name, torch.uint8, size, Role.PAYLOAD)
        scale_D = self._take_scales(message, shape[2]).float() * 2.0 ** (exponent - _TOP)
        quantized = _unpacked(codes, self._gradient_bits, shape)
        values = dequantize(quantized, scale_D, self._gradient_bits)
        message.put(name, values.to(dtype), Role.PAYLOAD)

    def _take_ids(self, message: Message, shape: tuple[int, ...]) -> torch.Tensor:
        wide = _IDS in message and message[_IDS].dtype == torch.int64
        ids_dtype = torch.int64 if wide else torch.int32
        ids_B = take_checked(message, _NAME, _IDS, ids_dtype, shape[:1]).cpu().long()
        if _distinct(ids_B) != len(ids_B) or int(ids_B.min()) < 0:
            raise ProtocolError(f"plugin {_NAME!r}: the ids of a batch's samples repeat")
        if not self._samples.fit(shape):
            raise ProtocolError(
                f"plugin {_NAME!r}: samples of shape {[*shape[1:]]} arrived, at an earlier visit "
                f"they had {[*self._samples.shape]}"
            )
        return ids_B

    def _take_scales(self, message: Message, D: int) -> torch.Tensor:
        return take_checked(message, _NAME, f"{_NAME}.scales", torch.float16, [D])


class _Samples:
    """m(id): what both peers remember of every sample, in slots that fill up as samples come."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._load(*_nothing())

    def _load(self, ids: torch.Tensor, table: torch.Tensor) -> None:
        self._id_n, self._slot_n = ids.sort()  # which slot an id has, by rising id
        self._table = table.to(self._device)
        self._count = len(ids)

    @property
    def shape(self) -> torch.Size:
        """N and D."""
        return self._table.shape[1:]

    def fit(self, shape: Sequence[int]) -> bool:
        """Return whether samples of this shape (B, N, D) are like those that are held."""
        return not self._count or self.shape == tuple(shape[1:])

    def find(self, ids_B: torch.Tensor) -> torch.Tensor:
        """Return the slot of each sample, -1 for one that is not held, (B,) int64."""
        if not self._count:
            return torch.full_like(ids_B, -1)
        at_B = torch.searchsorted(self._id_n, ids_B).clamp_(max=self._count - 1)
        return torch.where(self._id_n[at_B] == ids_B, self._slot_n[at_B], -1)

    def rows(self, slot_K: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return m of these slots, (K, N, D) float32."""
        return self._table.index_select(0, slot_K.to(self._device)).to(device).float()

    def replace(self, slot_K: torch.Tensor, rows_KND: torch.Tensor) -> None:
        """Set m of these slots."""
        self._table.index_copy_(0, slot_K.to(self._device), rows_KND.to(self._device))

    def add(self, ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Hold samples that were not held."""
        count = self._count + len(ids)
        if count > len(self._table):
            # On a CPU, memory that is reserved and not written yet is not taken yet.
            larger = self._table.new_empty(max(count, 2 * len(self._table)), *rows.shape[1:])
            larger[: self._count] = self._table[: self._count].view(self._count, *rows.shape[1:])
            self._table = larger
        self._table[self._count : count] = rows.to(self._device)
        slots = torch.arange(self._count, count)
        self._id_n, order = torch.cat([self._id_n, ids]).sort()
        self._slot_n = torch.cat([self._slot_n, slots])[order]
        self._count = count

    def state(self) -> dict[str, torch.Tensor]:
        """Return ids and m in the order of the slots."""
        if not self._count:
            return {}
        ids = torch.empty_like(self._id_n)
        ids[self._slot_n] = self._id_n
        return {"ids": ids, "table": self._table[: self._count].clone()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        if "ids" in state:
            self._load(state["ids"].cpu().clone(), state["table"].clone())
        else:
            self._load(*_nothing())


def _nothing() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(0, dtype=torch.int64), torch.empty(0, 0, 0, dtype=torch.float16)


def quantize(
    values: torch.Tensor, scale_D: torch.Tensor, bits: int, unit: float = 1.0
) -> torch.Tensor:
    """Return whole numbers in [-2^(bits-1), 2^(bits-1) - 1], float32, shape of the values.

    Args:
        values: (…, D) float32.
        scale_D: largest magnitude of each feature, float16, in units.
        bits: 2 to 8.
        unit: of the scales, a power of two.
    """
    half = 2 ** (bits - 1)
    step_D = (scale_D + 1e-6).float() * (unit / half)
    whole: torch.Tensor = values / step_D
    return whole.round_().clamp_(-half, half - 1).add_(0.0)  # -0 would not survive the packing


def dequantize(quantized: torch.Tensor, scale_D: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the values that the whole numbers of `quantize` stand for, float32."""
    return torch.mul(quantized, scale_D.float() / 2 ** (bits - 1))


def _changed(
    old: torch.Tensor, quantized: torch.Tensor, scale_D: torch.Tensor, bits: int
) -> torch.Tensor:
    """Return m + the change, float16."""
    step_D = scale_D.float() / 2 ** (bits - 1)
    return torch.addcmul(old, quantized, step_D).clamp_(-_LARGEST, _LARGEST).half()


def _distinct(ids_B: torch.Tensor) -> int:
    return len(torch.unique(ids_B))


def _largest(values: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each feature, (D,)."""
    return torch.maximum(values.amax((0, 1)), -values.amin((0, 1)))


def _scales(values: torch.Tensor, message: Message) -> torch.Tensor:
    """Return the scale of each feature, (D,) float16; refuse what is not finite."""
    largest_D = _largest(values)
    check_finite(largest_D, message, _NAME, "the activations")
    return largest_D.clamp(max=_LARGEST).half()


def _packed(quantized: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack whole numbers; uses up its argument."""
    return pack(quantized.add_(2 ** (bits - 1)).to(torch.uint8), bits)


def _unpacked(codes: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    return unpack(codes, bits, math.prod(shape)).view(shape).float().sub_(2 ** (bits - 1))


def _rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    whole = len(rows) == len(values)
    return values if whole else values.index_select(0, rows.to(values.device))
