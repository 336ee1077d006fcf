"""JSON that every reader takes: it has no word for NaN and infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["json_text"]


def json_text(
    value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """Return a value as JSON, with null for every number that is not finite.

    Args:
        value: mappings, sequences, texts and numbers.
        indent: of nested values; None writes one line.
        default: makes such values of others, as that of `json.dumps`.

    >>> json_text({"loss": float("nan"), "rates": [1.0, float("inf")]})
    '{"loss": null, "rates": [1.0, null]}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=default)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
