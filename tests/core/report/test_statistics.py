"""Intervals and tests agree with scipy and with tables; degenerate samples have defined answers."""

from __future__ import annotations

import pytest

from splitlab.core.report.statistics import Mean, compare, holm

A = {0: 0.81, 1: 0.83, 2: 0.80, 3: 0.85}
B = {0: 0.78, 1: 0.82, 2: 0.79, 3: 0.80}


def test_an_interval_is_students() -> None:
    # Mean 2, deviation 1; t of two degrees of freedom at 97.5 % is 4.3027 in every table.
    mean = Mean.of([1.0, 2.0, 3.0])
    assert (mean.mean, mean.std, mean.n) == (2.0, 1.0, 3)
    assert mean.half == pytest.approx(4.30265 / 3**0.5, abs=1e-5)
    assert Mean.of([0.25]) == Mean(0.25, None, None, 1)
    assert Mean.of([0.1, 0.1, 0.1]) == Mean(pytest.approx(0.1), 0.0, 0.0, 3)


def test_samples_with_the_same_seeds_are_paired() -> None:
    from scipy import stats

    found = compare(A, B)
    assert found.test == "paired"
    assert found.mean == pytest.approx(0.025)
    # Differences 0.03, 0.01, 0.01, 0.05: mean 0.025, deviation 0.019149, t = 2.6112, 3 degrees.
    assert found.p == pytest.approx(2 * stats.t.sf(2.611165, 3), abs=1e-6)
    assert found.p == pytest.approx(stats.ttest_rel([*A.values()], [*B.values()]).pvalue)
    backwards = dict(sorted(B.items(), reverse=True))
    assert compare(A, backwards) == found  # by seed, not by place


@pytest.mark.parametrize(
    "other", [{0: 0.78, 1: 0.82, 2: 0.79}, {7: 0.78, 8: 0.82, 9: 0.79, 10: 0.80}]
)
def test_other_samples_are_welchs(other: dict[int, float]) -> None:
    from scipy import stats

    found = compare(A, other)
    expected = stats.ttest_ind([*A.values()], [*other.values()], equal_var=False).pvalue
    assert (found.test, found.p) == ("Welch", pytest.approx(expected))


def test_one_sample_may_be_constant() -> None:
    found = compare(A, {7: 0.5, 8: 0.5})
    # Welch's statistic is then that of one sample against a number.
    from scipy import stats

    assert found.p == pytest.approx(stats.ttest_1samp([*A.values()], 0.5).pvalue)


@pytest.mark.parametrize(
    ("first", "second", "p", "test"),
    [
        ({0: 0.5}, {0: 0.5}, None, ""),
        ({0: 0.5}, {1: 0.4, 2: 0.6}, None, ""),
        ({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}, 1.0, "paired"),
        ({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5}, None, ""),
        ({0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5, 4: 0.5}, 1.0, "Welch"),
        ({0: 0.5, 1: 0.5}, {2: 0.4, 3: 0.4}, None, ""),
        ({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}, 1.0, "paired"),
    ],
)
def test_where_nothing_varies_no_test_pretends_to_know(
    first: dict[int, float], second: dict[int, float], p: float | None, test: str
) -> None:
    found = compare(first, second)
    assert (found.p, found.test) == (p, test)


def test_holms_correction_of_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04, which may not
    # be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []
