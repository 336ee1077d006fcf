"""The record, the table and the curves of a comparison, from run folders that are made by hand."""

from __future__ import annotations

import csv
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config, ConfigError
from splitlab.core.report.table import Spread, Table
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.records import EvaluationRecord, State, StepRecord, Summary
from splitlab.core.studies.comparison import Comparison, Contender, Outcome, differs

COMMON = Config(dataset="fashion-mnist-mini", cut=3, image_size=28, threads=1, budget="steps=4")
A = Contender("a", "a-recon", "a", ("a:ratio=0.1",), "a:ratio=0.1")
B = Contender(
    "b+c", "b + c:bits=4", "b+c", ("b", "c:bits=4"), "b + c:bits=4", "without --ratio 0.1"
)
SCORES = {
    ("a", 0): (0.5, 0.6),
    ("a", 1): (0.7, 0.9),
    ("b+c", 0): (0.2, 0.3),
    ("b+c", 1): (0.4, 0.5),
}


def summary(accuracy: float, up: int = 2_000_000, **more: Any) -> Summary:
    facts: dict[str, Any] = {
        "accuracy": accuracy,
        "loss": 1.0,
        "steps": 4,
        "epochs": 0.5,
        "seconds": 4.0,
        "client_seconds": 2.0,
        "server_seconds": 1.5,
        "link_seconds": 0.25,
        "ratio_nominal": 0.1,
        "ratio_measured": 0.125,
        "bytes_up": up,
        "bytes_down": 1_000_000,
        **{"stack": ("a",), "transport": "inprocess", "dataset": "fashion-mnist-mini"},
        **{"model": "vit-mini", "cut": 3, "seed": 0},
        **more,
    }
    return Summary(**facts)


def write_run(
    comparison: Comparison, contender: Contender, seed: int, scores: tuple[float, ...], **more: Any
) -> RunFolder:
    """Write the folder of a finished run with these accuracies, evaluated every second step."""
    config = comparison.run_config(contender, seed)
    folder = RunFolder.create(str(comparison.run_folder(contender, seed)), config.plugins)
    folder.write_config(replace(config, eval_every=2, checkpoint_every=2))
    for i, accuracy in enumerate(scores, start=1):
        folder.log(StepRecord(2 * i, 1.0, 1, 1))
        size = 1_500_000 * i + 1000 * seed
        folder.log(EvaluationRecord(2 * i, accuracy, 1.0, True, 0, 0, training_bytes=size))
    folder.write_summary(summary(scores[-1], **more))
    return folder


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    made = Comparison(tmp_path / "comparison", COMMON, (), ())
    for key, scores in SCORES.items():
        contender = A if key[0] == "a" else B
        more = {"accuracy_uncompressed": scores[-1] + 0.05} if contender is B else {}
        write_run(made, contender, key[1], scores, **more)
    made.grow([A, B], [0, 1])
    return made


def test_rows_are_means_and_sample_deviations(comparison: Comparison) -> None:
    first, second = comparison.rows()
    assert first.accuracy == Spread(0.75, statistics.stdev([0.6, 0.9]))
    assert first.uncompressed is None
    assert second.uncompressed == Spread(pytest.approx(0.45), pytest.approx(0.2 / 2**0.5))
    assert (first.bytes_up, first.bytes_down) == (2_000_000, 1_000_000)
    assert (first.steps, first.epochs, first.nominal, first.measured) == (4, 0.5, 0.1, 0.125)
    assert (first.client_seconds, first.server_seconds, first.link_seconds) == (2.0, 1.5, 0.25)
    assert (first.finished, first.runs, first.note) == (2, 2, "")
    assert second.note == "without --ratio 0.1"


def test_a_single_run_has_no_deviation(comparison: Comparison) -> None:
    comparison.seeds = (1,)
    row = comparison.rows()[0]
    assert row.accuracy == Spread(0.9, None)
    assert str(row.accuracy) == "0.9000 ± —"
    assert comparison.curves()[0].spread is None


def test_curves_are_over_real_bytes(comparison: Comparison) -> None:
    first, second = comparison.curves()
    assert first.label == "a-recon"
    assert first.x == [1_500_500, 3_000_500]  # means over both seeds
    assert first.y == [pytest.approx(0.6), pytest.approx(0.75)]
    assert first.spread == [pytest.approx(0.2 / 2**0.5), pytest.approx(0.3 / 2**0.5)]
    assert second.y[-1] == pytest.approx(0.4)


def test_runs_that_end_at_other_steps_share_their_end(comparison: Comparison) -> None:
    log = comparison.run_folder(A, 1) / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 4', '"step": 3'))  # a budget in bytes
    curve = comparison.curves()[0]
    assert curve.x == [1_500_500, 3_000_500]
    assert curve.y[-1] == pytest.approx(0.75)


def test_table_as_text(comparison: Comparison) -> None:
    table = Table.of(comparison.rows())
    assert table.header == (
        *("stack", "accuracy", "uncompressed", "up MB", "down MB", "nominal", "measured"),
        *("client s", "server s", "link s", "epochs", "steps", "runs", "note"),
    )
    assert table.rows[0] == (
        *("a-recon", "0.7500 ± 0.2121", "—", "2", "1", "0.1000", "0.1250"),
        *("2.0", "1.5", "0.2", "0.50", "4", "2/2", ""),
    )
    comparison.contenders = (A,)
    assert not {"uncompressed", "note"} & set(Table.of(comparison.rows()).header)


def test_files(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        "splitlab.core.studies.comparison.draw_curves", lambda *args, **_: drawn.append(args)
    )
    comparison.contenders = (replace(A, title="a|b"), B)
    comparison.write()
    folder = comparison.folder
    lines = (folder / "table.md").read_text().splitlines()
    assert "budget steps=4" in lines[0]
    assert lines[0].endswith("seeds 0, 1.")
    assert lines[2].startswith("| stack | accuracy |")
    assert lines[4].startswith("| a\\|b | 0.7500 ± 0.2121 |")
    columns = {line.count(" | ") for line in lines[2:6]}
    assert len(columns) == 1
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stack"] for row in rows] == ["a|b", "b + c:bits=4"]
    assert float(rows[0]["accuracy_std"]) == statistics.stdev([0.6, 0.9])
    assert rows[0]["uncompressed_mean"] == ""
    assert {path for path in comparison.files() if path.suffix in (".png", ".pdf")} == {
        *drawn[0][1]
    }
    texts = [path.read_bytes() for path in sorted(folder.glob("*.*"))]
    comparison.write()
    assert [path.read_bytes() for path in sorted(folder.glob("*.*"))] == texts


def test_the_record_is_read_back(comparison: Comparison) -> None:
    key = ("b+c", 1)
    (comparison.run_folder(B, 1) / "summary.json").unlink()
    comparison.outcomes[key] = Outcome(*key, error="the loss is nan")
    comparison.write_record()
    again = Comparison.read(comparison.folder)
    assert again == comparison
    assert again.failures() == ["b + c:bits=4, seed 1: the loss is nan"]
    assert again.rows()[1].note == "seed 1 failed: the loss is nan; without --ratio 0.1"
    assert again.rows()[1].accuracy == Spread(0.3, None)
    record = json.loads((comparison.folder / "results.json").read_text())
    assert [(run["folder"], run["seed"], run["state"]) for run in record["runs"]] == [
        *(("a", 0, "finished"), ("a", 1, "finished")),
        *(("b+c", 0, "finished"), ("b+c", 1, "failed")),
    ]
    assert record["runs"][0]["summary"]["accuracy"] == 0.6


def test_what_is_missing_is_said(comparison: Comparison) -> None:
    comparison.grow([], [2, 3])
    row = comparison.rows()[0]
    assert (row.finished, row.runs, row.note) == (2, 4, "seeds 2, 3 not finished")
    assert Table.of(comparison.rows()).rows[0][-2] == "2/4"
    nothing = Contender("d", "d", "d", ("d",), "d")
    comparison.grow([nothing], [])
    row = comparison.rows()[-1]
    assert row.accuracy is row.bytes_up is row.steps is None
    assert len(comparison.curves()) == 2


class TestFoldersThatAreSomethingElse:
    def test_nothing_yet(self, tmp_path: Path) -> None:
        assert Comparison.read(tmp_path / "new") is None
        assert Comparison.read(tmp_path) is None

    def test_no_comparison(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ConfigError, match=r"is no comparison \(it has no results.json\)"):
            Comparison.read(tmp_path)
        with pytest.raises(ConfigError, match="is no comparison"):
            Comparison.read(tmp_path / "thesis.tex")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "is damaged .JSONDecodeError"),
            ("[]", "is damaged .TypeError"),
            ("{}", "is damaged .KeyError"),
            ('{"splitlab_comparison": 9}', "another version"),
            ('{"splitlab_comparison": 1, "config": {"budgte": "steps=1"}}', "unknown key 'budgte'"),
        ],
    )
    def test_a_damaged_record(self, text: str, told: str, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ConfigError, match=told) as caught:
            Comparison.read(tmp_path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"budget": "steps=9"}, "--budget was steps=9 and is now steps=4"),
            ({"seed": 5}, "--seed was 5 and is now 0"),
            ({"plugins": ()}, r"--plugin was nothing and is now a:ratio=0\.1"),
        ],
    )
    def test_another_run(self, change: Any, told: str, comparison: Comparison) -> None:
        folder = RunFolder.open(comparison.run_folder(A, 0))
        folder.write_config(replace(folder.read_config(), **change))
        comparison.write_record()
        with pytest.raises(ConfigError, match=rf"another run than this comparison's: {told}; move"):
            Comparison.read(comparison.folder)

    @pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
    def test_a_damaged_run(self, name: str, comparison: Comparison) -> None:
        (comparison.run_folder(A, 0) / name).write_text('{"kind": "eval",')
        comparison.write_record()
        with pytest.raises(ConfigError, match=rf"{name} is damaged .*; delete the run"):
            Comparison.read(comparison.folder).curves()  # type: ignore[union-attr]


def test_the_description_names_the_links_where_there_are_any(comparison: Comparison) -> None:
    assert comparison.description().endswith("transport inprocess, seeds 0, 1.")
    comparison.config = replace(COMMON, links=("slow:ms=3",))
    assert "budget steps=4, transport inprocess + slow:ms=3, seeds" in comparison.description()


def test_what_differs() -> None:
    assert differs(COMMON, COMMON) == ""
    assert differs(replace(COMMON, seed=3, plugins=("x",)), COMMON) == ""
    now = replace(COMMON, eval_every=5)
    assert differs(now, COMMON) == "--eval-every was not given and is now 5"


def test_a_run_that_diverged_is_marked_and_in_no_mean(comparison: Comparison) -> None:
    RunFolder(comparison.run_folder(A, 1)).write_state(State("diverged", 3, "step 4: nan"))
    old = RunFolder(comparison.run_folder(B, 0))
    old.write_summary(summary(math.nan))
    RunFolder(comparison.run_folder(B, 1)).write_state(State("diverged", 0, "step 1: inf"))
    comparison.look({})
    a, b = comparison.rows()
    assert a.accuracy == Spread(0.6, None)
    assert (a.diverged, a.finished, b.diverged, b.finished) == (1, 1, 2, 0)
    assert "seed 1 diverged and not in the means: step 4: nan" in a.note
    assert Table.of([b]).rows[0][1] == "diverged"
    assert [curve.label for curve in comparison.curves()] == [
        "a-recon (1 of 2 diverged)",
        "b + c:bits=4 (2 of 2 diverged)",
    ]
    comparison.write()
    assert "NaN" not in (comparison.folder / "results.json").read_text()
