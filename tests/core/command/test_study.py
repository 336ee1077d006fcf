"""``splitlab study``: what it takes, prints, refuses, and ends with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitlab.core import Config, SplitlabError
from splitlab.core.command.main import main
from splitlab.core.contract.errors import Diverged

FLAGS = ["--threads", "1", "--budget", "steps=2", "--weights", "none", "--device", "cpu"]
GRID = ["study", "--plugin", "none", "--plugin", "adc", "--over", "cut=1,2", "--seeds", "1"]


def test_a_study_that_is_said(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    assert main([*GRID, "--zip", "lr=0.1,0.2", "--output", "s", *FLAGS]) == 0
    out = capsys.readouterr().out
    assert "study  4 runs in s" in out
    assert re.search(r"^ adc, cut 2, lr 0\.2 +0\.5000 ± — ", out, re.MULTILINE)
    assert "written in s: report.html, table.md, table.csv" in out
    assert len(runs.log) == 4
    assert main(["study", "--output", "s", "--over", "cut=3", "--zip", "lr=0.3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path / "s")
    assert len(told["runs"]) == 6
    assert len(runs.log) == 6
    assert main(["study", "--output", "s", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_part_of_a_study_says_what_is_left(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    times = iter([0.0, 0.0])
    clock = SimpleNamespace(monotonic=lambda: next(times, 999.0))
    monkeypatch.setattr("splitlab.core.studies.conduct.time", clock)
    assert main([*GRID, "--output", "s", *FLAGS, "--for", "9min"]) == 0
    assert f"3 of 4 runs are left; go on with: splitlab study --output {Path('s').absolute()}" in (
        capsys.readouterr().out
    )
    assert main(["study", "--output", "s", "--for", "1.5 h"]) == 0
    assert "are left" not in capsys.readouterr().out


@pytest.mark.filterwarnings("always::splitlab.core.contract.errors.Notice")
def test_a_figure_that_cannot_be_drawn_costs_no_results(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    Path("mine.toml").write_text('stacks = ["adc"]\nover = { cut = [1] }\ndraw = ["heatmap"]\n')
    assert main(["study", "mine.toml", "--seeds", "1", *FLAGS]) == 0
    assert (tmp_path / "studies" / "mine" / "report.html").is_file()
    assert main(["report", "studies/mine", "--html", "mine.html"]) == 0
    err = capsys.readouterr().err
    assert err.count("note: the figure heatmap is left out: heatmap needs two settings") == 2
    assert main(["report", "studies/mine", "--html", "x.html", "--figure", "heatmap"]) != 0


def test_a_dry_run_writes_nothing(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GRID, "--over", "ratio=0.1,0.2", "--output", "s", "--dry-run", *FLAGS]) == 0
    out = capsys.readouterr().out
    assert "6 runs in s, of which 0 are finished" in out
    assert re.search(r"none, cut 1 +0/1 +takes no ratio", out)
    assert list(tmp_path.iterdir()) == []
    assert runs.log == []


def test_a_dry_run_tells_how_runs_share_a_gpu(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    asked = [*GRID, "--output", "s", "--dry-run", *FLAGS, "--executor", "processes:2"]
    for device, shared in (("cpu", False), ("auto", True)):
        assert main([*asked, "--device", device]) == 0
        assert ("up to 2 runs at a time share a GPU" in capsys.readouterr().out) is shared


def test_a_study_of_the_catalogue(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    Path("registry.toml").write_text(
        '[studies."my/grid"]\nstacks = ["adc"]\nseeds = 1\nbase = { weights = "none" }\n'
    )
    assert main(["study", "my/grid", "--device", "cpu", "--budget", "steps=1", "--quiet"]) == 0
    assert (tmp_path / "studies" / "my" / "grid" / "report.html").is_file()


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (SplitlabError("bad"), 1, "a run failed (and 1 more runs): none, cut 1, seed 0: bad; run "),
        (Diverged("nan"), 3, "a run diverged (and 1 more runs): none, cut 1, seed 0: nan"),
    ],
)
def test_runs_that_do_not_end_well(
    error: Exception,
    status: int,
    told: str,
    runs: Any,
    capsys: pytest.CaptureFixture[str],
    unlistened: None,
) -> None:
    def fail(config: Config) -> None:
        if config.plugins == ("none",):
            raise error

    runs.before = fail
    assert main([*GRID, "--output", "s", *FLAGS, "--quiet"]) == status
    assert told in capsys.readouterr().err
    assert "adc, cut 2" in Path("s/table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which study? name one of `splitlab studies`, a TOML file, or with --output"),
        (["method"], "unknown study 'method' (did you mean 'methods'?)"),
        (["--output", "s"], "nothing to run; name every stack with --plugin"),
        (["x.toml"], "cannot read the configuration x.toml"),
        (["methods", "--over", "cut"], "--over cut is not allowed; write KEY=VALUE,VALUE"),
        (["methods", "--over", "cut=1,2", "--zip", "lr=1"], "as many (cut 2, lr 1)"),
        (["methods", "--over", "plugin.acd.ratio=1"], "unknown plugin of the stacks 'acd'"),
        (["methods", "--executor", "processes"], "write how many runs at a time"),
        (["methods", "--seeds", "0"], "--seeds 0 is not allowed"),
        (
            ["methods", "--for", "9"],
            "--for 9 is not allowed; write how long, as in 90s, 9min or 2h",
        ),
    ],
)
def test_bad_input(
    arguments: list[str],
    told: str,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    unlistened: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in fails("study", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--zip", "cut=1,2"], "--zip cut=1,2 goes along with an --over, which stands before it"),
        (["--name", "x"], "--name"),
        (["--dry-run", "--json"], "--json: not allowed with argument --dry-run"),
    ],
)
def test_mistyped(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "methods", *arguments])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
