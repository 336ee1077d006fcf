"""When a run ends."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from splitlab.core.contract.errors import ConfigError, unknown_name

__all__ = ["Budget"]

_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "": 1}


@dataclass(frozen=True)
class Budget:
    """When a run ends: an amount of one unit (``steps``, ``epochs``, ``bytes``, ``nominal``).

    It is looked at after every step, and the run ends as soon as *at least* so much is used: what
    can be met exactly is met exactly, as 10 uncompressed epochs by ``nominal=10``. (The reference
    code of ADC ends when *more* is used, one step later where a step meets its budget exactly.) A
    step is not divided, so the last one may use more than was left; the summary says how much.
    """

    unit: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``steps=500``, ``epochs=10``, ``bytes=50MB`` or ``nominal=1.0``."""
        unit, _, amount = text.partition("=")
        units = ("steps", "epochs", "bytes", "nominal")
        match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE]\+?[0-9]+)?) ?([A-Za-z]*)", amount.strip())
        if unit not in units:
            raise unknown_name("budget", unit, units, f"; as in {_EXAMPLES}")
        size = _SIZES.get(match[2]) if match and (unit == "bytes" or not match[2]) else None
        value = float(match[1]) * size if match and size else 0.0
        whole = unit in ("steps", "bytes")
        if not 0 < value < math.inf or (whole and not value.is_integer()):
            raise ConfigError(f"budget {text!r} is not an amount of {unit}; write {_EXAMPLES}")
        return cls(unit, value)


_EXAMPLES = "steps=500, epochs=10, bytes=50MB or nominal=1.0"
