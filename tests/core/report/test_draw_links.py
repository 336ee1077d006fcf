"""Time to accuracy over links: a point a row on every link, and who has none."""

from __future__ import annotations

from typing import Any

from splitlab.core.report.draw_links import draw_links


def test_rows_that_reach_it_are_points_and_the_others_are_named(make: Any) -> None:
    found = make.over_links()
    figure = draw_links(found)
    [axes] = figure.axes
    points = {line.get_label(): [*line.get_xdata()] for line in axes.get_lines()}
    assert points == {"a": [3.0, 40.0], "b": [5.0, 30.0]}
    assert [text.get_text() for text in axes.get_yticklabels()] == [*found.links]
    assert axes.get_xscale() == "log"
    told = " ".join(figure.get_supxlabel().split())
    assert told.startswith("until an accuracy of 0.5000")
    assert told.endswith("Not reached by every run of c <d>")
    figure.draw_without_rendering()
