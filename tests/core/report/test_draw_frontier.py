"""The frontier: its rows are named, and no name covers another one or a mark."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from matplotlib.text import Text

from splitlab.core.report.draw_frontier import draw_frontier
from splitlab.core.report.draw_picture import style
from splitlab.core.report.figures import frontier
from splitlab.core.report.results import Results


def test_names_of_the_frontier_do_not_overlap(methods: Results) -> None:
    marks = frontier(methods)
    with style():
        figure = draw_frontier(marks)
        [axes] = figure.axes
        named = [text.get_text() for text in axes.texts]
        assert sorted(named) == sorted(mark.row.title for mark in marks if mark.leads)
        figure.canvas.draw()
        boxes = [
            Text.get_window_extent(text) for text in axes.texts
        ]  # without its line to the mark
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        places = axes.transData.transform([(mark.x, mark.y) for mark in marks])
        assert not any(box.contains(x, y) for box in boxes for x, y in places)
        inside = axes.get_window_extent()
        assert all(
            inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes
        )


def test_long_names_stand_below_and_their_marks_have_numbers(make: Any) -> None:
    rows = [
        make.row(f"a method whose name is as long as it can be, lr {i}", [0.5 + i / 10])
        for i in range(3)
    ]
    for i, row in enumerate(rows):
        runs = (make.finished(0, 0.5 + i / 10, 0.1 * (i + 1)),)
        rows[i] = replace(row, runs=runs)
    figure = draw_frontier(frontier(make.results(rows)))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "3"]
    told = [f"{i + 1}  {row.title}" for i, row in enumerate(rows)]
    assert figure.get_supxlabel() == "\n".join(told)


def test_the_axis_ends_where_accuracies_do(make: Any) -> None:
    results = make.results([make.row("a", [0.05, 0.4]), make.row("b", [0.5, 0.9])])
    low, high = draw_frontier(frontier(results)).axes[0].get_ylim()
    assert -0.05 < low < 0.05  # the intervals are from -2 to 3
    assert 0.95 < high < 1.05


def test_bytes_of_one_size_are_on_a_linear_axis(make: Any, methods: Results) -> None:
    rows = [make.row("a", [0.5]), make.row("b", [0.6])]
    assert draw_frontier(frontier(make.results(rows))).axes[0].get_xscale() == "linear"
    assert draw_frontier(frontier(methods)).axes[0].get_xscale() == "log"
    assert len(draw_frontier(()).axes[0].texts) == 0


def test_every_method_is_in_the_legend_to_its_last_line(make: Any) -> None:
    rows = [make.row(f"method {i}", [0.5, 0.5 + i / 100]) for i in range(30)]
    with style():
        figure = draw_frontier(frontier(make.results(rows)))
        figure.canvas.draw()
        [legend] = figure.legends
        assert len(legend.get_texts()) == 31
        box = legend.get_window_extent()
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_long_names_in_the_legend_leave_the_axes_their_width(make: Any) -> None:
    rows = [make.row("a method of so many settings that its name is longer than axes are", [0.5])]
    with style():
        long = draw_frontier(frontier(make.results(rows)))
        short = draw_frontier(frontier(make.results([make.row("a", [0.5])])))
        long.canvas.draw()
    assert long.get_figwidth() > short.get_figwidth()
    [axes] = long.axes
    assert axes.xaxis.label.get_window_extent().x0 >= 0
