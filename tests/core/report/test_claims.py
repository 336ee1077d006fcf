"""Claims are read as they are written, meet their rows, and are tested by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.claims import (
    CANNOT,
    HELD,
    NOT,
    Claims,
    apart,
    judge,
    read_claims,
    samples_of,
    samples_of_csv,
)
from splitlab.core.report.long import runs_csv
from splitlab.core.report.results import Axis, Results

FILE = """
[regime]
dataset = ["cifar100", "food101"]
cut = ["3"]
augment = ["paper"]
budget = ["nominal=10"]

[["mine"]]
claim = "Both are above one."
where = "figure 1"
compare = [["both", "one"]]

[["mine"]]
claim = "Both lose at most a point."
where = "table 2"
compare = [[{ method = "both", ratio = 0.20 }, "none"]]
margin = 0.01
note = "of three seeds"

[["mine"]]
claim = "More is better."
where = "figure 3"
compare = [[{ method = "one", ratio = 0.2 }, { method = "one", ratio = 0.1 }], ["x", "one"]]

[["mine"]]
claim = "It is elegant."
where = "the abstract"
compare = []
"""
NOISE = (0.0, 0.002, -0.001, 0.001)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "claims.toml").write_text(FILE)
    return tmp_path / "claims.toml"


@pytest.fixture
def results(make: Any) -> Results:
    """Both is five points above one at 0.1, hardly at 0.2, and half a point below none there."""

    def row(method: str, ratio: float | None, mean: float, wobble: float = 1.0) -> Any:
        settings = {"stack": method, "ratio": ratio}
        accuracies = [mean + wobble * noise for noise in NOISE]
        title = method if ratio is None else f"{method}:ratio={ratio}"
        return make.row(title, accuracies, method=method, settings=settings)

    rows = [
        row("none", None, 0.8),
        row("both", 0.1, 0.75, 2),
        row("both", 0.2, 0.795, 0.5),
        row("one", 0.1, 0.70),
        row("one", 0.2, 0.7945, -1),
    ]
    axes = (Axis("stack", ("none", "both", "one")), Axis("ratio", (None, 0.1, 0.2)))
    return make.results(rows, axes, name="mine")


def test_every_comparison_is_judged_by_a_paired_test(file: Path, results: Results) -> None:
    from scipy import stats

    above, near, more, elegant = judge(samples_of(results), read_claims(file, "mine").claims)
    first, second = above.comparisons
    assert (first.first, first.second, first.verdict, first.n) == (
        "both:ratio=0.1",
        "one:ratio=0.1",
        HELD,
        4,
    )
    alone = [
        stats.ttest_1samp([0.05 + noise for noise in NOISE], 0.0).pvalue,
        stats.ttest_1samp([0.0005 + 1.5 * noise for noise in NOISE], 0.0).pvalue,
    ]
    assert first.difference == pytest.approx(0.0505)
    assert first.p == pytest.approx(2 * alone[0])
    assert second.verdict == CANNOT
    assert second.p == pytest.approx(alone[1])
    assert above.verdict == CANNOT
    assert above.average is not None
    assert above.average.verdict == HELD
    assert above.told.startswith(
        "held in 1, cannot be told from these 4 seeds in 1 of 2 comparisons; on average held (Δ = +"
    )
    # Half a point is within the margin of one; the pair is found although none has no ratio.
    assert near.verdict == HELD
    assert near.average is None
    assert near.told.startswith("held (Δ = -0.0052, p < 0.001")
    assert more.told.startswith("held (Δ = +0.0935, p < 0.001, n = 4)")  # there is no row of x
    assert elegant.told == "not tested here"


def test_what_is_the_other_way_round_did_not_hold(make: Any, file: Path) -> None:
    def judged(both: Any, one: Any) -> Any:
        rows = [make.row("both", both), make.row("one", one)]
        return judge(samples_of(make.results(rows)), read_claims(file, "mine").claims)[0]

    lower = judged([0.50, 0.51, 0.50], [0.60, 0.61, 0.601])
    assert lower.verdict == NOT
    assert lower.told.startswith("did not hold (Δ = -0.1003, p < 0.001, n = 3)")
    part = judged({0: 0.50, 1: 0.51, 5: 0.9}, {0: 0.60, 1: 0.611, 7: 0.1})  # seeds of both
    assert [each.n for each in part.comparisons] == [2]
    single = judged([0.5], [0.6])
    assert single.told == "cannot be told from this 1 seed (Δ = -0.1000, p —, n = 1)"
    assert judged({0: 0.5}, {1: 0.5}).told == "cannot be told from these 0 seeds (n = 0)"
    assert judged([0.5, 0.6], [0.5, 0.6]).verdict == CANNOT  # the same is not above
    one_ratio = [make.row("both:ratio=0.1", [0.5, 0.6]), make.row("one:ratio=0.1", [0.5, 0.6])]
    samples = samples_of(make.results(one_ratio))
    assert len(judge(samples, read_claims(file, "mine").claims)[0].comparisons) == 1
    missing = judge([], read_claims(file, "mine").claims)[0]
    assert missing.told == "not tested: there are no such rows"


def test_the_runs_of_a_csv_file_say_the_same(make: Any, results: Results) -> None:
    for each in (results, make.grid()):
        axes = [axis.name for axis in each.axes]
        assert samples_of_csv(runs_csv(each), axes) == samples_of(each)


def test_it_is_told_in_what_the_paper_s_runs_were_others(file: Path) -> None:
    claims = read_claims(file, "mine")
    common = [("dataset", "food101"), ("cut", "2"), ("budget", "epochs=2")]
    assert apart(claims, common) == [
        "cut 2 (there 3)",
        "augment none (there paper)",
        "budget epochs=2 (there nominal=10)",
    ]
    assert len(apart(claims, common, ["cut"])) == 2
    assert apart(claims, [("data-dir", "food10"), *common[1:]])[0] == (
        "dataset of a folder (there cifar100 or food101)"
    )
    assert read_claims(file, "another").claims == ()
    assert apart(Claims(), common) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[["mine"]]\nclam = "x"', "unknown key 'clam' (did you mean 'claim'?)"),
        ('[["mine"]]\nclaim = "x"\ncompare = []', "has the texts claim and where"),
        ('[["mine"]]\nclaim = "x"\nwhere = "y"\ncompare = ["a"]', "takes pairs of methods"),
        ('[["mine"]]\nclaim = "x"\nwhere = "y"', "compare = None is not allowed"),
        ('[["mine"]]\nclaim = "x"\nwhere = "y"\ncompare = []\nmargin = 2', "margin = 2 is not"),
        ("[mine]\nclaim = 1", 'the claims of mine are written as [["mine"]]'),
        ("[regime]\ncut = 3", "regime is a table of lists of texts"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "claims.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_claims(tmp_path / "claims.toml", "mine")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
