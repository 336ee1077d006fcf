"""Heat maps: numbers in their cells, ink that can be read, hatches where there is no run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from splitlab.core.report.draw_maps import _luminance, draw_maps
from splitlab.core.report.draw_picture import style
from splitlab.core.report.heat_maps import maps
from splitlab.core.report.results import Results, Row


def test_cells_hold_mean_and_interval(cut_by_ratio: Results) -> None:
    found = maps(cut_by_ratio)
    figure = draw_maps(found)
    accuracy, spent = figure.axes[:2]
    texts = [text.get_text() for text in accuracy.texts]
    mean = found.maps[0].cells[0, 0].accuracy
    assert mean is not None
    assert texts[:2] == [f"{mean.mean:.3f}", f"± {mean.half:.3f}"]
    assert (len(texts), texts.count("diverged")) == (2 * 8 + 1, 1)
    assert len(spent.texts) == 9
    assert [bool(patch.get_hatch()) for patch in accuracy.patches].count(True) == 1
    for axes in (accuracy, spent):
        assert axes.get_xlabel() == "ratio"
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3"]
    assert accuracy.get_ylabel() == "cut"
    assert "none, cut 1: 0." in figure.get_supxlabel()
    assert "hatched: no finished run" in figure.get_supxlabel()


def test_a_logarithmic_scale_of_bytes_has_plain_numbers(make: Any) -> None:
    from matplotlib.text import Text

    rows = [
        Row(f"{a}{b}", "a", {"a": a, "b": b}, (make.finished(0, 0.5, (10**-a) * b, 6),))
        for a in (0, 1, 2)
        for b in (0.5, 1.0)
    ]
    results = make.results(rows, [make.axis("a", (0, 1, 2)), make.axis("b", (0.5, 1.0))])
    figure = draw_maps(maps(results))
    figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert [text for text in texts if "$" in text] == []


def test_maps_stand_as_far_apart_as_their_titles_need(make: Any) -> None:
    from matplotlib.text import Text

    stacks = [f"a-method-with-a-long-name-{i}" for i in range(4)]
    with style():
        figure = draw_maps(maps(make.grid(cuts=(1, 2), stacks=stacks)))
        figure.draw_without_rendering()
    titles = [t for t in figure.findobj(Text) if t.get_text().startswith("a-method")]
    boxes = [title.get_window_extent() for title in titles]
    assert len(boxes) == 8
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_ink_can_be_read_on_every_colour(cut_by_ratio: Results) -> None:
    from matplotlib.colors import to_rgb

    accuracy = draw_maps(maps(cut_by_ratio)).axes[0]
    inks = set()
    for patch in accuracy.patches:
        if patch.get_hatch():
            continue
        x, y = patch.get_x() + 0.5, patch.get_y() + 0.5
        ink = next(
            t
            for t in accuracy.texts
            if abs(t.get_position()[1] - y) < 0.4 and t.get_position()[0] == x
        )
        inks.add(ink.get_color())
        light, dark = sorted(
            (_luminance(*to_rgb(ink.get_color())), _luminance(*patch.get_facecolor()[:3])),
            reverse=True,
        )
        assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG 2, AA
    assert inks == {"black", "white"}


def test_luminance_is_that_of_the_standard() -> None:
    assert _luminance(1, 1, 1) == pytest.approx(1)
    assert _luminance(0, 0, 0) == 0
    assert _luminance(1, 0, 0) == pytest.approx(0.2126)


def test_maps_of_other_settings_stand_in_a_grid(make: Any) -> None:
    figure = draw_maps(maps(make.grid(cuts=(1, 2), stacks=("adc", "topk", "svd"))))
    titles = [axes.get_title("left") for axes in figure.axes if axes.axison]
    assert [title for title in titles if title] == ["adc", "topk", "svd"] * 2


def test_rows_in_no_map_are_counted_and_runs_once_have_no_interval(make: Any) -> None:
    rows = [make.row(f"a{x}{y}", [0.5], settings={"x": x, "y": y}) for x in (1, 2) for y in (1, 2)]
    rows += [make.row(f"none {i}", [0.5], settings={"x": None, "y": None}) for i in range(6)]
    axes = [make.axis("x", (1, 2, None)), make.axis("y", (1, 2, None))]
    figure = draw_maps(maps(make.results(rows, axes)))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.500"] * 4
    assert "2 more rows are in the table only" in figure.get_supxlabel()


def test_a_ridge_frames_the_best_of_every_line_of_equal_products(cut_by_ratio: Results) -> None:
    found = maps(cut_by_ratio, "ridge")  # 0.05 x 2 and 0.1 x 1; 0.1 x 2 and 0.2 x 1
    plain, figure = draw_maps(found), draw_maps(found, ridge=True)
    for before, axes in zip(plain.axes[:2], figure.axes[:2], strict=True):
        links = axes.get_lines()[len(before.get_lines()) :]
        ends = [[*zip(*link.get_data(), strict=True)] for link in links]
        assert len(ends) == 2  # each from near one cell to near the other, beside their numbers
        for (i, j), (k, m) in ends:
            assert (k - i, m - j) == pytest.approx((0.4, -0.4))
        assert len(axes.patches) - len(before.patches) == 2
    assert "framed: the best of each" in figure.get_supxlabel()
    assert "framed" not in plain.get_supxlabel()
