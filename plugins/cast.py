"""Cast: every floating-point payload crosses the link in 16 or 8 bits.

The baseline of every compression paper, from no paper itself. The two formats of 8 bits are those
of P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv 2209.05433.

1. The sender clamps every payload tensor to the largest number of the format, so that nothing
   finite overflows, and rounds to the nearest. Before that, for 8 bits, it divides the tensor by
   s = max |x| / (the format's largest number), so that the range is used and nothing underflows
   that matters.
2. The receiver casts back and multiplies by s.

Up and down: 2 bytes per number, or 1 byte and 4 for s (float32, ``cast.NAME``). A tensor that is
not larger than the format already is left alone. Gradient: straight-through; rounding is ignored,
and the gradient itself is cast on its way back. float16 loses gradients below 6e-8, bfloat16 and
the scaled formats do not; so bfloat16 is the default.

NaN stays NaN, and infinities become NaN: not every format has them. In 8 bits what shares a tensor
with an infinity becomes zero, and a tensor with a NaN in it is clamped, not divided.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from splitlab.core import Kind, Message, ProtocolError, Role, Traits, hookimpl
from splitlab.plugins.common.exchange import working_dtype
from splitlab.plugins.common.settings import check_choice, either, refusal

__all__ = ["Cast"]

Format = Literal["fp16", "bf16", "fp8_e4m3", "fp8_e5m2"]
Direction = Literal["both", "up", "down"]

_FORMATS = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
_BY_RATIO: dict[float, Format] = {0.5: "bf16", 0.25: "fp8_e4m3"}
_WIDER = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
"""What may be cast back to, by the name that a note gives it."""


class Cast:
    """Send floating-point payloads in fewer bits each.

    Args:
        ratio: ξ of the directions that are cast: 0.5 (bf16) or 0.25 (fp8_e4m3), of float32.
        dtype: the format; bf16 by default.
        gradient_dtype: another format for gradients, None for the same; fp8_e5m2 goes with
            fp8_e4m3.
        direction: both, up (activations) or down (gradients).
        evaluation: whether evaluation batches are cast, too.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        dtype: Format | None = None,
        gradient_dtype: Format | None = None,
        direction: Direction = "both",
        evaluation: bool = False,
    ) -> None:
        either(ratio=ratio, dtype=dtype)
        if ratio is not None and ratio not in _BY_RATIO:
            raise refusal("ratio", ratio, "0.5 and 0.25", "for another one use quantize:bits=…")
        up = dtype or _BY_RATIO.get(ratio or 0.5, "bf16")
        check_choice("dtype", up, get_args(Format))
        check_choice("gradient_dtype", gradient_dtype or up, get_args(Format))
        check_choice("direction", direction, get_args(Direction))
        if gradient_dtype and direction == "up":
            raise refusal(
                "gradient_dtype", gradient_dtype, "direction=both or down", "leave one of them out"
            )
        self._formats: dict[Kind, Format] = {}
        if direction != "down":
            self._formats[Kind.ACTIVATION] = up
        if direction != "up":
            self._formats[Kind.GRADIENT] = gradient_dtype or up
        self._evaluation = evaluation

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Cast down."""
        if message.kind not in self._formats or not (message.training or self._evaluation):
            return
        dtype = _FORMATS[self._formats[message.kind]]
        note = {}
        for name in message.names(Role.PAYLOAD):
            values = message[name]
            if not values.is_floating_point() or values.dtype.itemsize <= dtype.itemsize:
                continue
            note[name] = str(values.dtype).removeprefix("torch.")
            most = torch.finfo(dtype).max
            if dtype.itemsize == 1:
                values = values.to(working_dtype(values.dtype))
                scale = _scale(values, most)
                message.put(f"cast.{name}", scale, Role.SIDE)
                values = values / scale
            held = values.clamp(-most, most).masked_fill_(values.isinf(), torch.nan)
            message.put(name, held.to(dtype), Role.PAYLOAD)
        if note:
            message.push("cast", note)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Cast back what the sender cast."""
        note = message.pop("cast")
        if note is None:
            return
        if not isinstance(note, dict) or any(name not in message for name in note):
            raise ProtocolError("plugin 'cast': the note does not name tensors of the message")
        for name, original in note.items():
            values, dtype = message[name], _WIDER.get(str(original))
            if values.dtype not in _FORMATS.values() or dtype is None:
                raise ProtocolError(
                    f"plugin 'cast': {name} arrived as {values.dtype}, to be cast back to "
                    f"{str(original)[:40]}"
                )
            if values.dtype.itemsize == 1:
                scale = message.take(f"cast.{name}") if f"cast.{name}" in message else None
                if scale is None or scale.dtype != torch.float32 or scale.ndim:
                    raise ProtocolError(f"plugin 'cast': {name} arrived without one float32 scale")
                values = values.to(working_dtype(dtype)).mul_(scale)
            message.put(name, values.to(dtype), Role.PAYLOAD)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return the bits of the format over 32, for each direction."""
        up, down = (
            _FORMATS[self._formats[kind]].itemsize / 4 if kind in self._formats else 1.0
            for kind in (Kind.ACTIVATION, Kind.GRADIENT)
        )
        return up, down

    @hookimpl
    def traits(self) -> Traits:
        """Any floating-point payload will do, and it stays one.

        Numbers of 8 bits are for a quantizer or a packer behind it, no longer for arithmetic.
        """
        narrow = any(_FORMATS[name].itemsize == 1 for name in self._formats.values())
        return Traits(
            needs={"numbers"},
            changes={"layout"} if narrow else set(),
            evaluation=self._evaluation and Kind.ACTIVATION in self._formats,
            gradient="straight-through",
        )


def _scale(values: torch.Tensor, most: float) -> torch.Tensor:
    """Return s, float32, positive and finite, so that values / s fills the format."""
    if not values.numel():
        return values.new_ones((), dtype=torch.float32)
    limits = torch.finfo(torch.float32)
    # A little below the largest float, which times s / s might round to infinity.
    peak = values.abs().amax().to(torch.float32).clamp_(max=limits.max * (1 - 2**-20))
    return torch.where(peak > 0, peak / most, 1.0).clamp_(min=limits.tiny)
