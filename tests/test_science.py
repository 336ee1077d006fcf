"""The script of the paper's regime: a slice, what it packs, and the next one elsewhere."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import science

from splitlab.core.catalogue.tables import catalogue
from splitlab.core.studies.find import definition_of
from splitlab.core.studies.study import Study

MODEL = "vit:image_size=28,patch=7,channels=1,width=16,depth=4,heads=1"
SMALL = {"batch_size": 12, "eval_points": 1, "threads": 1}


@pytest.fixture
def asked(small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What every slice of one small study is asked, but for folders and time."""
    (tmp_path / "pictures").symlink_to(small_data)
    monkeypatch.setattr(science, "PLACE", tmp_path / "links")
    monkeypatch.setattr(science, "REGIME", {**science.REGIME, **SMALL})
    monkeypatch.setattr(science, "STUDIES", {"adc/split-point": {"cut": [1]}})
    monkeypatch.chdir(tmp_path)
    return [
        *("--data", "pictures", "--weights", "none", "--model", MODEL, "--device", "cpu"),
        *("--studies", "adc/split-point", "--seeds", "2", "--at-once", "1", "--epochs", "2"),
    ]


def states(folder: Path) -> list[str]:
    found = Study.read(folder.absolute() / "adc-split-point")
    assert found is not None
    return [run.state for row in found.results().rows for run in row.runs]


def test_a_slice_is_packed_and_goes_on_elsewhere(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def stop_in_the_second_run(self: Any) -> bool:
        nonlocal calls
        calls += 1
        self.is_over = calls >= 10  # before every run, and after its steps: 4 of 2 epochs
        return self.is_over

    with monkeypatch.context() as patched:
        patched.setattr("splitlab.core.studies.conduct._Limit.should_stop", stop_in_the_second_run)
        assert science.main([*asked, "--output", "here"]) == 0
    assert states(Path("here")) == ["finished", "missing", "interrupted", "missing"]
    assert "| adc/split-point | 1 | 3 | 0 | 0 | " in capsys.readouterr().out
    with tarfile.open("here.tar") as tar:
        names = tar.getnames()
    kept = [name for name in names if "checkpoints" in name]
    assert len(kept) == 2  # of the run under way: the newest step of client and server
    assert all(name.startswith("adc-split-point/adc") for name in kept)
    assert not [name for name in names if name.endswith(".lock")]
    assert science.main([*asked, "--output", "there", "--from", "here.tar"]) == 0
    assert states(Path("there")) == ["finished"] * 4
    out = capsys.readouterr().out
    assert "  1 of 4 runs are finished\n" in out
    assert Path("there/summary.md").read_text().endswith("\n")
    assert not [*Path("there").rglob("*.safetensors")]
    science.slim(Path("here"), restart=True)
    science.pack(Path("here"), Path("light.tar"))
    assert science.main([*asked, "--output", "anew", "--from", "light.tar"]) == 0
    assert states(Path("anew")) == ["finished"] * 4
    assert science.main([*asked, "--output", "there", "--from", "here.tar"]) == 2
    assert "has studies already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "say where data and weights are: --data FOLDER --weights FILE"),
        (["--data", "nowhere", "--weights", "none"], "--data nowhere is not there"),
        (["--data", ".", "--weights", "none", "--at-once", "0"], "--at-once is 1 to 64"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("DATA", "WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="2"):
        science.main(arguments)
    assert told in capsys.readouterr().err


def test_every_study_of_the_paper_is_run_at_its_kind_of_budget() -> None:
    known = {name for name in catalogue()["studies"] if name.startswith(("adc/", "lean/"))}
    searches = {"lean/search", "lean/convergence-search"}  # which are made on other data
    assert science.STUDIES.keys() == known - searches
    assert science._budget(definition_of("adc/ratios"), 3) == "nominal=3"
    assert science._budget(definition_of("adc/balance"), 0.5) == "epochs=0.5"
