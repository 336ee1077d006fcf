"""Means over seeds, how sure they are, and whether two of them differ.

Nothing here knows runs or tables. The t distribution and the tests are scipy's, which is imported
when it is needed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = ["LEVEL", "Difference", "Mean", "compare", "holm"]

LEVEL = 0.05
"""Below it a p-value tells a difference; intervals are of one minus it."""

_ROUNDING = 1e-9
"""Values that are this close, relative to their size, are the same value but for rounding."""


@dataclass(frozen=True)
class Mean:
    """A mean and how sure it is.

    Attributes:
        mean: of the values.
        std: sample standard deviation; None of a single value.
        half: half the width of the mean's 95 % interval by Student's t; None of a single value.
        n: how many values.
    """

    mean: float
    std: float | None
    half: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Summarise at least one value."""
        n, mean = len(values), statistics.fmean(values)
        if n == 1:
            return cls(mean, None, None, n)
        std = statistics.stdev(values)
        return cls(mean, std, _quantile(n - 1) * std / math.sqrt(n) if std else 0.0, n)


@dataclass(frozen=True)
class Difference:
    """What a test says of the means of two samples.

    Attributes:
        mean: of the first minus that of the second.
        p: two-sided p-value of their being equal; None where no test can tell: of a single value,
            and of means that differ while nothing varies, as two seeds of coarse accuracies do.
        test: ``paired`` by seed, or ``Welch``; empty without a p-value.
    """

    mean: float
    p: float | None
    test: str


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Test whether two means differ: by seed if both have the same seeds, else by Welch's test.

    Args:
        first: values by seed, at least one.
        second: the same of the other.
    """
    mean = statistics.fmean(first.values()) - statistics.fmean(second.values())
    paired = first.keys() == second.keys()
    p = _paired(first, second) if paired else _welch([*first.values()], [*second.values()])
    return Difference(mean, p, "" if p is None else "paired" if paired else "Welch")


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number, after Holm (1979); None stays and counts not.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        found[i] = highest
    return found


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    if len(first) < 2:
        return None
    a, b = zip(*((first[seed], second[seed]) for seed in sorted(first)), strict=True)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    scale = max(map(abs, (*a, *b)))
    if _constant(differences, scale):
        return 1.0 if max(map(abs, differences)) <= _ROUNDING * scale else None
    from scipy import stats

    return float(stats.ttest_rel(a, b).pvalue)


def _welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    if min(len(first), len(second)) < 2:
        return None
    scale = max(map(abs, (*first, *second)))
    if _constant(first, scale) and _constant(second, scale):
        return 1.0 if _constant([*first, *second], scale) else None
    from scipy import stats

    parts = [
        each
        for values in (first, second)
        for each in (statistics.fmean(values), statistics.stdev(values), len(values))
    ]
    # Of samples scipy would warn if one of them does not vary, which is no mistake here.
    return float(stats.ttest_ind_from_stats(*parts, equal_var=False).pvalue)


def _constant(values: Sequence[float], scale: float) -> bool:
    return max(values) - min(values) <= _ROUNDING * scale


@cache
def _quantile(degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(1 - LEVEL / 2, degrees))
