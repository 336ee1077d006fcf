"""Results of run folders: what is alike is a row, what is left out is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.contract.errors import Notice
from splitlab.core.report.collect import common, results_of
from splitlab.core.report.results import Point
from splitlab.core.runs.config import Config
from splitlab.core.runs.records import (
    EvaluationRecord,
    State,
    StepRecord,
    TimeRecord,
    version_line,
)


def made(folder: Path, summary: Any = None, records: Any = (), **options: Any) -> Path:
    """Write what a run of these options would have left."""
    folder.mkdir(parents=True)
    config = Config.from_mapping({"dataset": "d", "cut": 3, **options})
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "run.json").write_text(json.dumps({"id": folder.name}))
    state = "finished" if summary else "failed"
    (folder / "state.json").write_text(State(state, 2, "" if summary else "no memory").text())
    if summary is not None:
        (folder / "summary.json").write_text(summary.text())
    lines = [version_line(), *(record.line() for record in records)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_runs_that_differ_by_seed_are_a_row(tmp_path: Path, make: Any) -> None:
    for seed in (1, 0):
        made(tmp_path / f"a{seed}", make.summary(seed=seed), plugins=["topk:ratio=0.1"], seed=seed)
        made(tmp_path / f"b{seed}", None, plugins=["topk:ratio=0.5"], seed=seed)
    found = results_of([tmp_path])
    assert sorted(row.title for row in found.rows) == ["topk:ratio=0.1", "topk:ratio=0.5"]
    good, bad = sorted(found.rows, key=lambda row: row.title)
    assert [run.seed for run in good.runs] == [0, 1]
    assert [run.state for run in (*good.runs, *bad.runs)] == ["finished"] * 2 + ["failed"] * 2
    assert bad.runs[0].error == "no memory"
    assert (found.seeds, found.name) == ((0, 1), tmp_path.name)
    assert [axis.name for axis in found.axes] == ["ratio"]
    assert ("dataset", "d") in found.common


def test_an_evaluation_knows_what_was_spent_until_then(tmp_path: Path, make: Any) -> None:
    records = [
        EvaluationRecord(0, 0.1, 2.3, True, 0, 0, 0, samples=10),
        StepRecord(1, 2.0, 5, 5, {"meter": {"joules": 1.5}}),
        StepRecord(2, 1.0, 5, 5, {"meter": {"joules": 2.0, "watts": 9.0}}),
        EvaluationRecord(2, 0.5, 1.0, True, 0, 0, 20, samples=10),
    ]
    folder = made(tmp_path / "a", make.summary(), records)
    (folder / "times.jsonl").write_text(TimeRecord(2, 4.0, 3.0).line())
    [row] = results_of([folder]).rows
    assert row.runs[0].points == (
        Point(0, 0.1, 2.3, 0, None, 0.0, 10),
        Point(2, 0.5, 1.0, 20, 3.0, 3.5, 10),
    )


def test_without_a_meter_no_energy_is_known(tmp_path: Path, make: Any) -> None:
    records = [StepRecord(1, 2.0, 5, 5), EvaluationRecord(1, 0.5, 1.0, True, 0, 0, 10)]
    folder = made(tmp_path / "a", make.summary(), records)
    assert results_of([folder]).rows[0].runs[0].points == (Point(1, 0.5, 1.0, 10),)


def test_what_probes_ended_with_is_found_by_their_names(tmp_path: Path, make: Any) -> None:
    folder = made(tmp_path / "a", make.summary())
    for name, text in {"leak": '{"ssim": 0.5, "psnr": null}', "other": '{"ssim": 1}'}.items():
        (folder / "probes" / name).mkdir(parents=True)
        (folder / "probes" / name / "numbers.json").write_text(text)
    found = results_of([folder]).rows[0].runs[0].found
    assert [*found] == ["leak ssim", "leak psnr", "other ssim"]
    assert (found["leak ssim"], found["other ssim"]) == (0.5, 1.0)
    assert math.isnan(found["leak psnr"])
    (folder / "probes" / "leak" / "numbers.json").write_text('{"ssim": "much"}')
    [run] = results_of([folder]).rows[0].runs
    assert run.state == "failed"
    assert "numbers.json holds no numbers by name: could not convert" in run.error


def test_copies_and_damage_are_left_out_aloud(tmp_path: Path, make: Any) -> None:
    made(tmp_path / "whole", make.summary())
    made(tmp_path / "failed")
    with pytest.warns(Notice, match=r"failed is left out: .*whole has its settings and its seed"):
        [row] = results_of([tmp_path]).rows
    assert [run.folder.name for run in row.runs] == ["whole"]
    (tmp_path / "failed" / "config.toml").write_text("cut = 'x'")
    with pytest.warns(Notice, match="failed is left out"):
        assert len(results_of([tmp_path]).rows) == 1


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run is in .*; name run folders"):
        results_of([tmp_path])
    with pytest.raises(ConfigError, match="is no folder"):
        results_of([tmp_path / "gone"])


def test_what_all_have_in_common_is_what_matters_and_what_was_set() -> None:
    options = {"dataset": "d", "weights": "none", "name": "n", "tags": ["t"]}
    configs = [Config.from_mapping({**options, "cut": cut, "seed": cut}) for cut in (1, 2)]
    found = dict(common(configs))
    assert (found["dataset"], found["weights"]) == ("d", "none")
    assert found["batch-size"] == str(configs[0].batch_size)
    assert not {"cut", "seed", "timeout", "workers", "name", "tag"} & found.keys()
