"""Settings in which rows differ: which of them go together."""

from __future__ import annotations

from typing import Any

from splitlab.core.report.axes import together, zipped


def test_what_is_zipped_goes_together_and_nothing_else(make: Any) -> None:
    rows = [
        make.row(f"{size}{cut}", [0.5], settings={"size": size, "lr": size / 10, "cut": cut})
        for size in (1, 2)
        for cut in (1, 2)
    ]
    lr, cut = make.axis("lr", (0.1, 0.2)), make.axis("cut", (1, 2))
    assert zipped("size", [lr, cut], rows) == [lr]
    assert zipped("cut", [lr], rows) == []
    size = make.axis("size", (1, 2))
    assert together(size, [lr], rows) == make.axis("size, lr", ("1, 0.1", "2, 0.2"))
    assert together(size, [], rows) is size
