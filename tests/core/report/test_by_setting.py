"""Lines against a setting or the measured ratio: which rows are on one, where, and what is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.by_setting import series
from splitlab.core.report.results import Axis, Results


def test_a_line_a_method_against_the_measured_ratio(methods: Results) -> None:
    found = {line.label: line for line in series(methods, "ratio")}
    assert list(found) == list(dict.fromkeys(row.method for row in methods.rows))
    [whole] = found["none"].places
    assert whole.x == pytest.approx(1.02)  # what was measured, and not what is charged
    assert [place.x for place in found["adc"].places] == pytest.approx([0.051, 0.102, 0.204])
    rows = [row for row in methods.rows if row.method == "adc"]
    assert [place.row for place in found["adc"].places] == rows
    accuracy = rows[0].accuracy
    assert accuracy is not None
    assert (found["adc"].places[0].y, found["adc"].places[0].half) == (accuracy.mean, accuracy.half)
    assert (found["svd"].missing, len(found["svd"].places)) == (1, 2)


def test_other_settings_make_lines_of_their_own(cut_by_ratio: Results) -> None:
    labels = [line.label for line in series(cut_by_ratio, "ratio")]
    assert labels == [f"{name}, cut {cut}" for name in ("adc", "none") for cut in (1, 2, 3)]
    by_cut = {line.label: line for line in series(cut_by_ratio, "setting:cut")}
    assert [*by_cut] == ["adc, ratio 0.05", "adc, ratio 0.1", "adc, ratio 0.2", "none"]
    assert [place.x for place in by_cut["none"].places] == [1, 2, 3]
    assert by_cut["adc, ratio 0.05"].missing == 1


def test_what_has_no_such_setting_is_level(cut_by_ratio: Results) -> None:
    lines = series(cut_by_ratio, "setting:ratio")
    assert all(line.level is None for line in lines if line.method == "adc")
    for line in lines:
        if line.method == "none":
            assert line.places == ()
            assert line.level is not None


def test_a_setting_that_is_none(cut_by_ratio: Results, make: Any) -> None:
    with pytest.raises(ConfigError, match="unknown setting in numbers 'cuts'"):
        series(cut_by_ratio, "setting:cuts")
    with pytest.raises(ConfigError, match="differ in no setting in numbers"):
        series(make.results([make.row("a", [0.5])]), "setting:cut")
    mixed = replace(cut_by_ratio, axes=(Axis("ratio", (0.1, 0.2, "0.2..0.1")),))
    with pytest.raises(ConfigError, match=r"there is ratio=0.2..0.1, which is no number; leave"):
        series(mixed, "setting:ratio")
