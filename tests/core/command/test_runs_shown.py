"""Curves as text; the rest of how runs look is seen through `splitlab runs`."""

from __future__ import annotations

import pytest

from splitlab.core.command.runs_shown import spark


@pytest.mark.parametrize(
    ("values", "signs"),
    [([0.0, 1.0], "▁█"), ([0.5, 0.5], "▁▁"), ([3.0], "▁"), ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█")],
)
def test_a_curve(values: list[float], signs: str) -> None:
    assert spark(values) == signs


def test_a_long_curve_keeps_its_ends() -> None:
    line = spark([1.0, *[0.5] * 1000, 0.0])
    assert len(line) == 60
    assert (line[0], line[-1]) == ("█", "▁")
    assert set(line[1:-1]) == {"▅"}
