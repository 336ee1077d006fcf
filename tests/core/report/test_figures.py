"""What figures show: panels that can be read, means at common steps, the frontier, heat maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.contract.errors import Notice
from splitlab.core.report.draw_frontier import draw_frontier
from splitlab.core.report.figures import (
    FIGURES,
    check_name,
    drawable,
    frontier,
    is_still,
    maps,
    panels,
    wanted,
)
from splitlab.core.report.results import Point, Results, Row
from splitlab.core.report.statistics import Mean

# Which figures.


def test_what_suits_is_drawn(methods: Results, cut_by_ratio: Results) -> None:
    assert wanted(methods) == ("bytes", "bytes:log", "frontier")
    assert wanted(cut_by_ratio) == ("heatmap", "bytes", "bytes:log", "frontier")


def test_settings_that_no_row_has_both_of_make_no_map(make: Any) -> None:
    rows = [
        make.row(f"{name}{i}", [0.5], settings={name: i, other: None})
        for name, other in (("k", "bits"), ("bits", "k"))
        for i in (1, 2)
    ]
    axes = [make.axis("k", (1, 2, None)), make.axis("bits", (None, 1, 2))]
    assert "heatmap" not in wanted(make.results(rows, axes))
    with pytest.raises(ConfigError, match="heatmap: no row has both k and bits"):
        maps(make.results(rows, axes))


def test_what_was_asked_for_is_drawn_once(cut_by_ratio: Results) -> None:
    asked = ("frontier", "heatmap:ratio×cut", "heatmap:x=cut,y=ratio", "seconds:log", "frontier")
    assert wanted(replace(cut_by_ratio, draw=asked)) == asked[:-1]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("byte", r"unknown figure 'byte' \(did you mean 'bytes'\?\); known: bytes"),
        ("heat", "unknown figure 'heat'"),
        ("heatmaps", "unknown figure 'heatmaps'"),
        ("joules", "no run recorded its joules"),
        (
            "heatmap:cut",
            "names no two settings; write heatmap:x=X,y=Y, with two of stack, ratio, cut",
        ),
        ("heatmap:cut×cut", "names no two settings"),
        ("heatmap:x=cut,z=ratio", "names no two settings"),
        ("heatmap:cut×rate", r"unknown setting 'rate' \(did you mean 'ratio'\?\)"),
    ],
)
def test_what_cannot_be_drawn_is_told(cut_by_ratio: Results, kind: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        wanted(replace(cut_by_ratio, draw=(kind,)))


def test_what_cannot_be_drawn_is_left_out_with_a_word(cut_by_ratio: Results) -> None:
    kinds = ("bytes", "joules", "heatmap:x=cut,y=lr", "heatmap")
    with pytest.warns(Notice) as told:
        found = drawable(replace(cut_by_ratio, draw=kinds))
    assert found.draw == ("bytes", "heatmap")
    assert [str(each.message).partition(" is left out: ")[0] for each in told] == [
        "the figure joules",
        "the figure heatmap:x=cut,y=lr",
    ]
    assert drawable(found) == found


def test_a_heat_map_needs_two_settings(make: Any) -> None:
    results = make.results([make.row("a", [0.5])], [make.axis("ratio", (1, 2))], draw=("heatmap",))
    with pytest.raises(ConfigError, match=r"needs two settings .* these runs differ in ratio"):
        wanted(results)


def test_every_figure_has_a_name() -> None:
    assert len(set(FIGURES)) == len(FIGURES) == 12


# Curves.


def test_a_panel_is_a_method_and_its_lines_are_settings(methods: Results) -> None:
    found = panels(methods, "bytes")
    assert [panel.title for panel in found] == [r.method for r in methods.rows[1::3]]
    for panel in found:
        assert [line.label for line in panel.lines] == ["ratio 0.05", "ratio 0.1", "ratio 0.2"]
        assert [line.row.title for line in panel.context] == ["none"]
    assert found[3].lines[0].missing == "1 of 5 diverged"
    svd = next(panel for panel in found if panel.title == "svd")
    assert (svd.lines[0].x, svd.lines[0].missing) == ((), "5 of 5 not shown")


def test_a_panel_of_many_lines_is_divided(make: Any) -> None:
    found = panels(make.grid(cuts=(1, 2, 3)), "bytes")
    assert [panel.title for panel in found] == [f"adc, ratio {r}" for r in (0.05, 0.1, 0.2)]
    assert [line.label for line in found[0].lines] == ["cut 1", "cut 2", "cut 3"]
    assert len(panels(make.grid(cuts=(1, 2)), "bytes")) == 1


def test_rows_that_are_all_the_reference_have_a_panel(make: Any) -> None:
    [panel] = panels(make.results([make.row("none", [0.5])], reference="none"), "bytes")
    assert [line.row.title for line in panel.lines] == ["none"]
    assert panel.context == ()


def run_of(make: Any, seed: int, points: list[tuple[int, int, float]]) -> Any:
    found = tuple(Point(step, accuracy, 1.0, spent) for step, spent, accuracy in points)
    return replace(make.finished(seed, points[-1][2]), points=found)


def test_a_line_goes_through_means_of_both_at_common_steps(make: Any) -> None:
    runs = (
        run_of(make, 0, [(0, 0, 0.1), (5, 50, 0.2), (10, 100, 0.4), (20, 200, 0.6)]),
        run_of(make, 1, [(0, 0, 0.1), (10, 120, 0.5), (18, 210, 0.8)]),
    )
    [panel] = panels(make.results([Row("a", "a", {}, runs)]), "bytes")
    [line] = panel.lines
    assert line.x == (0, 110, 205)  # step 5 is one run's alone; the end is both their ends
    assert line.y == pytest.approx((0.1, 0.45, 0.7))
    assert (line.low, line.high) == ((0.1, 0.4, 0.6), (0.1, 0.5, 0.8))  # of two runs, their range
    assert (line.n, line.missing) == (2, "")


def test_a_band_is_students_interval(make: Any) -> None:
    values = [0.5, 0.6, 0.64]
    [panel] = panels(make.results([make.row("a", values)]), "seconds")
    [line] = panel.lines
    mean = Mean.of(values)
    assert mean.half is not None
    assert line.low[-1] == pytest.approx(mean.mean - mean.half)
    assert line.high[-1] == pytest.approx(mean.mean + mean.half)


def test_of_nothing_spent_a_logarithmic_axis_has_no_place(make: Any) -> None:
    results = make.results([make.row("a", [0.5])])
    linear, log = (panels(results, kind)[0].lines[0] for kind in ("bytes", "bytes:log"))
    assert linear.x[0] == 0
    assert log.x == linear.x[1:]


# The frontier.


def test_the_frontier_is_who_nobody_beats(make: Any) -> None:
    wants = {"small": (0.6, 0.1), "beaten": (0.5, 0.2), "large": (0.9, 1.0), "tied": (0.9, 1.0)}
    rows = [
        Row(name, name, {}, (replace(make.finished(0, accuracy, ratio), seed=0),))
        for name, (accuracy, ratio) in wants.items()
    ]
    found = {mark.row.title: mark for mark in frontier(make.results(rows))}
    assert {name for name, mark in found.items() if mark.leads} == {"small", "large", "tied"}
    summary = rows[0].runs[0].summary
    assert summary is not None
    assert found["small"].x == summary.bytes_up + summary.bytes_down
    assert (found["small"].y, found["small"].half) == (0.6, None)
    assert frontier(make.results([Row("a", "a", {}, (make.lost(0, "failed"),))])) == ()


def test_a_frontier_may_be_against_what_a_probe_found(make: Any) -> None:
    rows = [make.row("a", [0.5, 0.7]), make.row("b", [0.8]), make.row("c", [0.9])]
    leaks = {"a": 0.1, "b": 0.3}
    rows = [
        replace(row, runs=tuple(replace(run, found={"x y": leaks[row.title]}) for run in row.runs))
        if row.title in leaks
        else row
        for row in rows
    ]
    results = make.results(rows, draw=("frontier:x y",))
    assert wanted(results) == ("frontier:x y",)
    assert is_still("frontier:x y")
    assert not is_still("frontier")
    marks = frontier(results, "frontier:x y")
    assert [(mark.row.title, mark.x, mark.leads) for mark in marks] == [
        ("a", 0.1, True),
        ("b", 0.3, True),
    ]
    axes = draw_frontier(marks, "x y").axes[0]
    assert axes.get_xlabel() == "x y; mean and 95 % interval over the seeds"
    with pytest.raises(ConfigError, match="no run has 'x'; probes found: x y"):
        wanted(replace(results, draw=("frontier:x",)))
    with pytest.raises(ConfigError, match="no run has 'x y'; no probe found numbers"):
        wanted(make.results([make.row("c", [0.9])], draw=("frontier:x y",)))


# Heat maps.


def test_figures_with_settings_are_known_by_their_beginning(cut_by_ratio: Results) -> None:
    for kind in ("ratio", "setting:cut", "ridge", "ridge:x=ratio,y=cut"):
        check_name(kind)
        assert wanted(replace(cut_by_ratio, draw=(kind,))) == (kind,)
        assert is_still(kind)
    assert not is_still("heatmap:x=ratio,y=cut")
    with pytest.raises(ConfigError, match="unknown figure 'settings:cut'"):
        check_name("settings:cut")
    with pytest.warns(Notice, match="the figure setting:lr is left out: unknown setting"):
        assert drawable(replace(cut_by_ratio, draw=("ratio", "setting:lr"))).draw == ("ratio",)
