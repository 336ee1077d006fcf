"""Accuracy against settings as a picture: lines, what is published dashed, what is told below."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from splitlab.core.report.by_setting import series
from splitlab.core.report.draw_settings import draw_settings
from splitlab.core.report.published import Curve, Published
from splitlab.core.report.results import Results

BESIDE = Published(
    (
        Curve("who", "adc:tau=1", {}, ((0.05, 0.6), (0.1, 0.7))),
        Curve("who", "other", {}, ((0.2, 0.5),)),
    ),
    "dashed: who",
)


def test_what_is_published_is_dashed_in_the_colour_of_its_method(methods: Results) -> None:
    figure = draw_settings(series(methods, "ratio"), "ratio", BESIDE)
    [axes] = figure.axes
    dashed = {str(line.get_label()): line for line in axes.get_lines() if line.get_ls() == "--"}
    assert [*dashed] == ["adc:tau=1, published", "other, published"]
    own = {str(each.get_label()): each for each in axes.containers}
    assert dashed["adc:tau=1, published"].get_color() == own["adc"].lines[0].get_color()  # type: ignore[attr-defined]
    assert "dashed: who" in figure.get_supxlabel()
    assert "1 row without a finished run" in figure.get_supxlabel()
    assert axes.get_xscale() == "log"


def test_a_setting_has_the_values_that_were_run_and_nothing_published(
    cut_by_ratio: Results,
) -> None:
    figure = draw_settings(series(cut_by_ratio, "setting:cut"), "setting:cut", BESIDE)
    [axes] = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3"]
    assert axes.get_xlabel() == "cut"
    assert not [line for line in axes.get_lines() if line.get_ls() == "--"]
    assert "who" not in figure.get_supxlabel()


def test_nothing_is_drawn_where_no_run_is_finished(make: Any) -> None:
    rows = [make.row("a", [], runs=(make.lost(0, "diverged"),))]
    figure = draw_settings(series(make.results(rows), "ratio"), "ratio", Published())
    assert figure.get_supxlabel() == "no run is finished"


def test_of_many_lines_each_has_a_panel_with_the_others_behind_it(make: Any) -> None:
    rows = [
        make.row(f"{name} {snr}", [0.5, 0.6], method=name, settings={"stack": name, "snr": snr})
        for name in (*"abcdefgh", "a:x=1,y=2 + b")
        for snr in (0, 10)
    ]
    rows.append(make.row("none", [0.7], settings={"stack": "none", "snr": None}))
    results = make.results(rows, [make.axis("snr", (0, 10, None))])
    figure = draw_settings(series(results, "setting:snr"), "setting:snr", Published())
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title("left") for axes in drawn] == [*"abcdefgh", "a:x=1, y=2 + b"]
    for axes in drawn:
        levels = [line for line in axes.get_lines() if set(line.get_ydata()) == {0.7}]
        assert (len(axes.containers), len(levels)) == (1, 1)
        assert len(axes.get_lines()) == 1 + 1 + 8  # its own, the level, the others
    told = figure.get_supxlabel()
    assert told.startswith("snr (dB)\n")
    assert "level: none; light grey: the other panels' lines" in told


def test_of_one_ratio_the_axis_shows_its_surroundings(make: Any) -> None:
    def ran(name: str, ratio: float) -> Any:
        run = make.finished(0, 0.5)
        summary = replace(run.summary, ratio_measured=ratio)
        return make.row(name, [], settings={"stack": name}, runs=(replace(run, summary=summary),))

    rows = [ran(f"{i}", 0.094 + i * 1e-5) for i in range(9)]
    results = make.results([ran("none", 1.0), *rows])
    figure = draw_settings(series(results, "ratio"), "ratio", Published())
    figure.canvas.draw()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    assert low < 0.05 < 0.15 < high < 0.5
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 1 <= len(ticks) <= 4
