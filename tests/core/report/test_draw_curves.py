"""Small multiples: lines differ, axes are shared, grey that goes too far is cut off and told."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core.report.draw_curves import GREY, draw_panels
from splitlab.core.report.figures import panels
from splitlab.core.report.results import Results


def test_a_panel_a_method_with_the_same_axes(methods: Results) -> None:
    figure = draw_panels(panels(methods, "bytes"), "bytes")
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title("left") for axes in drawn[:2]] == ["adc", "topk"]
    assert len(drawn) == 11
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in drawn}) == 1
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn[0].lines}
    assert len(looks) == 5  # three ratios, what is uncompressed, and where that ends
    assert [text.get_text() for text in drawn[3].texts] == ["ratio 0.05: 1 of 5 diverged"]


def test_the_reference_is_cut_off_where_the_others_end(methods: Results) -> None:
    figure = draw_panels(panels(methods, "bytes"), "bytes")
    grey = next(line for line in figure.axes[0].lines if line.get_color() == GREY)
    assert max(grey.get_xdata()) > 2 * figure.axes[0].get_xlim()[1]
    assert "dotted: where the grey line ends" in figure.get_supxlabel()
    log = draw_panels(panels(methods, "bytes:log"), "bytes:log")
    assert max(grey.get_xdata()) < log.axes[0].get_xlim()[1]
    assert "dotted" not in log.get_supxlabel()


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        (1, "one run each"),
        (2, "mean over 2 seeds; band: from the lower to the higher run"),
        (3, "mean over 3 seeds; band: 95 % interval of the mean"),
    ],
)
def test_what_a_band_is_stands_below(make: Any, seeds: int, told: str) -> None:
    results = make.results([make.row("a", [0.5, 0.6, 0.7][:seeds])])
    label = draw_panels(panels(results, "bytes"), "bytes").get_supxlabel()
    assert label == f"training bytes over the link, both directions (MB)\n{told}"
    assert draw_panels((), "bytes").get_supxlabel().endswith("no run is finished")


def test_many_lines_all_look_different_and_have_legends_of_their_own(make: Any) -> None:
    values = range(40)
    rows = [make.row(f"a{k}", [0.5], method="a", settings={"k": k}) for k in values]
    results = make.results(rows, [make.axis("k", tuple(values))])
    [axes] = draw_panels(panels(results, "bytes"), "bytes").axes
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 40
    assert axes.get_legend() is not None
