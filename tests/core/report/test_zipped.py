"""Settings whose values go together are one side of a map."""

from __future__ import annotations

from splitlab.core.report.results import Axis, Row
from splitlab.core.report.zipped import together, zipped

CUT, LR, STEP = Axis("cut", (1, 2)), Axis("lr", (0.1, 0.2)), Axis("step", (3, 4))


def rows(*values: tuple[int, float, int]) -> list[Row]:
    return [
        Row(str(each), "m", dict(zip(("cut", "lr", "step"), each, strict=True)), ())
        for each in values
    ]


def test_values_that_go_one_with_one() -> None:
    both = rows((1, 0.1, 3), (2, 0.2, 3), (1, 0.1, 4), (2, 0.2, 4))
    assert zipped("cut", [LR, STEP], both) == [LR]
    assert zipped("step", [CUT, LR], both) == []
    assert zipped("cut", [LR], both[:1]) == []  # a single value goes with everything


def test_a_side_has_the_names_and_values_of_all() -> None:
    both = rows((1, 0.1, 3), (2, 0.2, 3))
    assert together(CUT, [LR], both) == Axis("cut, lr", ("1, 0.1", "2, 0.2"))
    assert together(CUT, [], both) == CUT
