"""Heat maps: which settings they are over, and which row stands where."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.heat_maps import contours, maps
from splitlab.core.report.results import Results


def test_a_heat_map_has_a_cell_for_every_row(cut_by_ratio: Results) -> None:
    found = maps(cut_by_ratio)
    assert (found.x.name, found.x.values) == ("ratio", (0.05, 0.1, 0.2))
    assert (found.y.name, found.y.values) == ("cut", (1, 2, 3))
    [only] = found.maps
    assert (only.title, len(only.cells)) == ("", 9)
    assert only.cells[1, 2].row.title == "adc:ratio=0.1, cut 3"
    assert only.cells[0, 2].accuracy is None  # it diverged
    assert [row.title for row in found.beside] == ["none, cut 1", "none, cut 2", "none, cut 3"]


def test_other_settings_have_a_map_for_each_combination(make: Any) -> None:
    results = make.grid(cuts=(1, 2), stacks=("adc", "topk"))
    assert [each.title for each in maps(results).maps] == ["adc", "topk"]
    by_stack = maps(results, "heatmap:x=ratio,y=stack")
    assert by_stack.y.values == ("adc", "topk")  # what is uncompressed has no ratio
    assert [each.title for each in by_stack.maps] == ["cut 1", "cut 2"]
    assert [each.title for each in maps(results, "heatmap:cut×ratio").maps] == ["adc", "topk"]


def test_settings_that_go_together_are_one_side_of_a_map(make: Any) -> None:
    rows = [
        make.row(f"{cut}{size}", [0.5], settings={"cut": cut, "size": size, "lr": size / 1000})
        for cut in (1, 2)
        for size in (16, 32, 64)
    ]
    axes = [make.axis("size", (16, 32, 64)), make.axis("lr", (0.016, 0.032, 0.064))]
    found = maps(make.results(rows, [*axes, make.axis("cut", (1, 2))]))
    assert (found.x.name, found.x.values) == ("size, lr", ("16, 0.016", "32, 0.032", "64, 0.064"))
    assert (found.y.name, found.y.values) == ("cut", (1, 2))
    assert [len(each.cells) for each in found.maps] == [6]


def test_without_a_word_a_map_is_over_the_settings_with_the_most_values(make: Any) -> None:
    rows = [
        make.row(f"{a}{b}{c}", [0.5], settings={"a": a, "b": b, "c": c})
        for a in (1, 2)
        for b in (1, 2, 3)
        for c in (1, 2, 3, 4)
    ]
    axes = [make.axis("a", (1, 2)), make.axis("b", (1, 2, 3)), make.axis("c", (1, 2, 3, 4))]
    found = maps(make.results(rows, axes))
    assert (found.x.name, found.y.name, len(found.maps)) == ("c", "b", 2)


def test_numbers_go_up_and_texts_stay_in_order(make: Any) -> None:
    rows = [
        make.row(f"{cut}{sort}", [0.5], settings={"cut": cut, "sort": sort})
        for cut in (3, 1)
        for sort in ("b", "a")
    ]
    axes = [make.axis("cut", (3, 1)), make.axis("sort", ("b", "a"))]
    found = maps(make.results(rows, axes, draw=("heatmap",)))
    assert (found.x.values, found.y.values) == ((1, 3), ("b", "a"))


def test_equal_products_are_a_line_and_its_best_is_known(make: Any) -> None:
    accuracies = {(0.1, 0.4): 0.6, (0.2, 0.2): 0.7, (0.4, 0.1): 0.65, (0.2, 0.4): 0.8}
    rows = [
        make.row(f"{tau} {kappa}", [accuracy], settings={"tau": tau, "kappa": kappa})
        for (tau, kappa), accuracy in accuracies.items()
    ]
    lost = make.row("lost", [], runs=(make.lost(0, "failed"),))
    rows.append(make.row("c", [], runs=lost.runs, settings={"tau": 0.4, "kappa": 0.2}))
    axes = [make.axis(name, (0.1, 0.2, 0.4)) for name in ("tau", "kappa")]
    found = maps(make.results(rows, axes), "ridge:x=tau,y=kappa")
    one, two = contours(found, found.maps[0])
    assert one.product == pytest.approx(0.04)
    assert (one.places, one.best) == (((0, 2), (1, 1), (2, 0)), (1, 1))
    assert (two.places, two.best) == (((1, 2), (2, 1)), (1, 2))


def test_texts_have_no_products(make: Any) -> None:
    results = make.grid(cuts=(1, 2), stacks=("adc", "topk"))
    with pytest.raises(ConfigError, match="ratio and stack are not both numbers"):
        maps(results, "ridge:x=ratio,y=stack")
    with pytest.raises(ConfigError, match="write ridge:x=X,y=Y, with two of"):
        maps(results, "ridge:x=ratio")
