"""A complete plugin in one file: every payload crosses the link as 16-bit floating point.

    splitlab run --plugin examples/half_precision.py:HalfPrecision
    splitlab run --plugin adc --plugin examples/half_precision.py:HalfPrecision:dtype=bfloat16

It needs no packaging and no registration. Both peers load this file; on two machines the handshake
compares its content.
"""

from typing import Literal

import torch

from splitlab.core import Message, Role, Traits, hookimpl

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class HalfPrecision:
    """Casts activations, gradients and whatever else is a floating-point payload.

    1. The sender casts every float32 payload tensor and names those it cast in the metadata.
    2. The receiver casts exactly those back.

    On the wire: half of the payload's bytes, both ways. Gradient: straight-through (the rounding is
    ignored), and itself cast on its way back. Evaluation is compressed too.
    """

    def __init__(self, dtype: Literal["float16", "bfloat16"] = "float16") -> None:
        self._dtype = _DTYPES[dtype]

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Cast down, in either direction."""
        floats = [n for n in message.names(Role.PAYLOAD) if message[n].dtype == torch.float32]
        for name in floats:
            message.put(name, message[name].to(self._dtype), Role.PAYLOAD)
        if floats:
            message.push("half_precision", floats)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Cast back what the sender cast."""
        for name in message.pop("half_precision") or []:
            message.put(name, message[name].float(), Role.PAYLOAD)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Half the bits in both directions."""
        return 0.5, 0.5

    @hookimpl
    def traits(self) -> Traits:
        """Any floating-point payload will do; ``before_send`` casts evaluation batches as well."""
        return Traits(needs={"numbers"}, evaluation=True, gradient="straight-through")
