"""Means of estimates by row and link: what is looked for, who is there first, and as a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.report.estimate import Estimate, profiles
from splitlab.core.report.over_links import (
    OverLinks,
    human_seconds,
    means,
    over_links,
    write_links_csv,
)
from splitlab.core.report.results import Row, RunResult
from splitlab.core.runs.config import Config
from splitlab.core.runs.listing import read_run
from splitlab.core.runs.records import EvaluationRecord, State, StepRecord, version_line


def test_a_row_has_the_means_of_its_runs() -> None:
    def one(run: str, link: str, seconds: float, until: float | None) -> Estimate:
        step = None if until is None else 3
        return Estimate(Path(run), link, 1.0, 10, seconds, 5.0, 0.5, step, until)

    found = [one("a", "x", 10.0, 4.0), one("b", "x", 30.0, None), one("a", "y", 20.0, None)]
    first, second = means({"row": [Path("a"), Path("b")], "empty": [Path("c")]}, found)
    assert (first.title, first.link, first.runs, first.reached) == ("row", "x", 2, 1)
    assert (first.seconds, first.step_seconds, first.reached_seconds) == (20.0, 2.0, 4.0)
    assert first.link_share == pytest.approx((5 / 10 + 5 / 30) / 2)
    assert (second.link, second.runs, second.reached, second.reached_seconds) == ("y", 1, 0, None)


@pytest.fixture
def rows(tmp_path: Path, make: Any) -> Sequence[Row]:
    """Two rows of two runs of two steps each, the second ever better than the first."""

    def left(name: str, seed: int, size: int, accuracies: Sequence[float]) -> RunResult:
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        (folder / "config.toml").write_text(Config(dataset="d", cut=3, seed=seed).to_toml())
        (folder / "run.json").write_text(f'{{"id": "{name}"}}')
        (folder / "state.json").write_text(State("finished", 2).text())
        seconds = {"client_seconds": 2.0, "server_seconds": 1.0, "link_seconds": 0.0}
        (folder / "summary.json").write_text(make.summary(steps=2, **seconds).text())
        lines = [version_line()]
        for step, accuracy in enumerate(accuracies, 1):
            lines.append(StepRecord(step, 2.0, size, size).line())
            lines.append(EvaluationRecord(step, accuracy, 1.0, True, 0, 0, 0).line())
        (folder / "metrics.jsonl").write_text("".join(lines))
        run = read_run(folder)
        return RunResult(folder, seed, run.state, "", run.summary)

    small = tuple(left("small", seed, 1448, (0.3, 0.5 + seed / 10)) for seed in (0, 1))
    large = tuple(left("large", seed, 144_800, (0.6, 0.7)) for seed in (0, 1))
    lost = RunResult(tmp_path / "lost", 2, "failed")
    return (Row("small", "a", {}, (*small, lost)), Row("large", "b", {}, large))


def test_every_run_is_asked_for_the_same_accuracy(rows: Sequence[Row]) -> None:
    found = over_links(rows, ["rate=1514kbit,delay=10ms", "rate=1gbit,delay=0ms"])
    assert (found.accuracy, found.is_asked) == (0.5, False)  # of the worst run of all
    assert "an accuracy of 0.5000, the highest that every run reached" in found.told
    slow, fast = found.links
    by = {(each.title, each.link): each for each in found.means}
    # 1.5 s a step, and a packet or a hundred each way: 8 ms on the link, and 10 ms.
    assert by["small", slow].reached_seconds == pytest.approx(2 * (1.5 + 0.036))
    assert by["large", slow].reached_seconds == pytest.approx(1.5 + 2 * (0.8 + 0.01))
    assert [by[title, slow].reached for title in ("small", "large")] == [2, 2]
    assert found.first(slow) == by["small", slow]
    assert found.first(fast) == by["large", fast]


def test_an_accuracy_of_ones_own_and_a_slower_client(rows: Sequence[Row], tmp_path: Path) -> None:
    found = over_links(rows, ["delay=0ms"], accuracy=0.6, client_speed=0.1)
    small, large = found.means
    assert (small.until, small.reached) == ("21 s (1 of 2)", 1)  # 10 s a step, and 0.5 of a server
    assert large.until == "10.5 s"
    assert found.first("delay=0ms") == large
    assert found.told.endswith("; the client is assumed to compute 0.1 times as fast")
    never = over_links(rows, ["delay=0ms"], accuracy=0.9)
    assert [each.until for each in never.means] == ["never", "never"]
    assert never.first("delay=0ms") is None
    with write_links_csv(found, tmp_path / "new").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["title"] for row in written] == ["small", "large"]
    assert written[0]["client_speed"] == "0.1"
    assert float(written[1]["reached_seconds"]) == 10.5
    assert isinstance(found, OverLinks)
    assert over_links(rows).links == tuple(profiles())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (90, "90 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (864_000, "10 days"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
