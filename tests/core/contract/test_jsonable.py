"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

from splitlab.core.contract.jsonable import json_text


def test_what_is_not_finite_is_null_at_any_depth() -> None:
    text = json_text({"a": math.nan, "b": [1.0, (math.inf, {"c": -math.inf})], "d": "NaN"})
    assert json.loads(text) == {"a": None, "b": [1.0, [None, {"c": None}]], "d": "NaN"}
