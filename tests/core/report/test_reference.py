"""A reference is one row, or of several those with the settings of the row that is tested."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.reference import context_of, reference_of, references
from splitlab.core.report.results import Results


def test_a_reference_is_the_row_of_that_title(make: Any) -> None:
    a, b = make.row("a", [0.5]), make.row("b", [0.6])
    results = make.results([a, b], reference="b")
    assert references(results) == (b,)
    assert reference_of(results, a) is b
    assert reference_of(results, b) is None
    assert references(make.results([a, b])) == ()


def test_of_several_rows_that_with_the_same_settings(cut_by_ratio: Results) -> None:
    rows = {row.title: row for row in cut_by_ratio.rows}
    for cut in (1, 2, 3):
        assert (
            reference_of(cut_by_ratio, rows[f"adc:ratio=0.1, cut {cut}"])
            is (rows[f"none, cut {cut}"])
        )
    assert reference_of(cut_by_ratio, rows["none, cut 1"]) is None


def test_of_several_rows_with_some_settings_that_with_the_others(make: Any) -> None:
    rows = {
        (tau, select): make.row(
            f"adc:tau={tau},select={select} + half, cut 1",
            [0.5],
            method="adc + half",
            settings={"stack": "adc + half", "tau": tau, "select": select},
        )
        for tau in (0.1, 0.2)
        for select in ("norm", "random")
    }
    results = make.results([*rows.values()], reference="adc:select=norm + half")
    assert references(results) == (rows[0.1, "norm"], rows[0.2, "norm"])
    for tau in (0.1, 0.2):
        assert reference_of(results, rows[tau, "random"]) is rows[tau, "norm"]
        assert reference_of(results, rows[tau, "norm"]) is None
    for other in ("adc:select=size + half", "adc:select=norm", "topk:select=norm + half"):
        with pytest.raises(ConfigError, match="no row is called"):
            references(make.results([*rows.values()], reference=other))


def test_what_is_uncompressed_is_shown_behind_others_without_being_named(make: Any) -> None:
    a, none = make.row("a", [0.5]), make.row("none", [0.6])
    results = make.results([a, none])
    assert context_of(results, a) is none
    assert context_of(results, none) is None
    assert reference_of(results, a) is None
    assert context_of(make.results([a]), a) is None


@pytest.mark.parametrize("text", ["tome:keep=0.5+quantize,cut 1", "tome:keep=0.5 + quantize, cut1"])
def test_spaces_do_not_count(text: str, make: Any) -> None:
    row = make.row("tome:keep=0.5 + quantize, cut 1", [0.5])
    assert references(make.results([row, make.row("b", [0.6])], reference=text)) == (row,)


def test_a_reference_is_a_stack_as_it_is_typed(make: Any) -> None:
    row = make.row("nsc-sl-recon", [0.5])
    assert references(make.results([row, make.row("b", [0.6])], reference="nsc-sl")) == (row,)


def test_a_reference_that_nothing_is_called_names_the_nearest(make: Any) -> None:
    rows = [make.row("topk", [0.5]), make.row("none", [0.6])]
    with pytest.raises(ConfigError, match=r"no row is called 'non'.*'none' or 'topk'"):
        references(make.results(rows, reference="non"))
