"""``splitlab report``: what is printed, what is written where, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.command.main import main
from splitlab.core.report.estimate import profiles
from splitlab.core.runs.config import Config
from splitlab.core.runs.records import (
    EvaluationRecord,
    State,
    StepRecord,
    Summary,
    version_line,
)

SUMMARY = {
    **{"accuracy": 0.5, "loss": 1.25, "steps": 7, "epochs": 1.0, "seconds": 3.0},
    **{"client_seconds": 1.0, "server_seconds": 1.0, "link_seconds": 1.0},
    **{"ratio_nominal": 1.0, "ratio_measured": 1.1, "bytes_up": 1500, "bytes_down": 500},
    **{"transport": "inprocess", "dataset": "d", "model": "vit-mini", "cut": 3, "seed": 0},
}


def made(path: Path, accuracy: float | None, plugins: list[str], seed: int) -> None:
    """Write what a run would have left; without an accuracy one that failed."""
    path.mkdir(parents=True)
    config = Config.from_mapping({"dataset": "d", "cut": 3, "plugins": plugins, "seed": seed})
    (path / "config.toml").write_text(config.to_toml())
    (path / "run.json").write_text(json.dumps({"id": path.name}))
    lines = [version_line()]
    if accuracy is None:
        (path / "state.json").write_text(State("failed", 3, "no memory").text())
    else:
        values = SUMMARY | {"accuracy": accuracy, "seed": seed, "stack": ("topk",)}
        (path / "summary.json").write_text(Summary(**values).text())  # type: ignore[arg-type]
        for step, share in ((0, 0.0), (7, 1.0)):
            record = EvaluationRecord(
                step, 0.1 + (accuracy - 0.1) * share, 1.0, True, 0, 0, int(2000 * share)
            )
            lines.append(record.line())
    (path / "metrics.jsonl").write_text("".join(lines))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three rows of runs in ``runs``."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        made(tmp_path / f"runs/none-{seed}", 0.80 + 0.01 * seed, [], seed)
        made(tmp_path / f"runs/topk-{seed}", 0.50 + 0.02 * seed, ["topk:ratio=0.1"], seed)
        made(tmp_path / f"runs/half-{seed}", None, ["topk:ratio=0.5"], seed)
    return tmp_path


def test_without_a_file_the_table_is_printed(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "runs"]) == 0
    out = capsys.readouterr().out
    assert "dataset d, " in out
    assert "0.8100 ± 0.0248" in out
    assert "topk:ratio=0.5: seeds 0, 1, 2 failed: no memory" in out
    assert "reference" in out  # what is uncompressed, unless another one is named
    assert "written" not in out
    assert not (there / "table.csv").exists()


def test_a_table_that_is_too_wide_is_two(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unittest import mock

    with mock.patch("splitlab.core.command.show.width", return_value=80):
        assert main(["report", "runs/none-0", "runs/none-1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split()[:1] == ["row"] for line in lines) == 2


def test_files_are_written_where_they_are_wanted(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--csv", "c", "--figures", "f", "--figure", "bytes", "--latex", "p/t.tex"]
    assert main(["report", "runs", *options, "--reference", "topk:ratio=0.1"]) == 0
    out = capsys.readouterr().out
    names = ["c/table.csv", "c/runs.csv", "c/evaluations.csv"]
    names += [f"f/bytes.{suffix}" for suffix in ("pdf", "svg", "png")]
    names += ["p/t.tex", "p/t-document.tex"]
    assert out.splitlines() == [
        "written in c: table.csv, runs.csv, evaluations.csv",
        "written in f: bytes.pdf, bytes.svg, bytes.png",
        "written in p: t.tex, t-document.tex",
    ]
    assert all((there / name).stat().st_size for name in names)
    table = {
        row["row"]: row for row in csv.DictReader((there / "c/table.csv").read_text().splitlines())
    }
    assert [title for title, row in table.items() if row["is_reference"] == "True"] == [
        "topk:ratio=0.1"
    ]
    assert "\\detokenize{../f/bytes.pdf}" in (there / "p/t-document.tex").read_text()


def test_a_page_is_written(there: Path) -> None:
    assert main(["report", "runs", "--html", "r.html"]) == 0
    assert "topk:ratio=0.1" in (there / "r.html").read_text(encoding="utf-8")


def test_time_to_accuracy_over_links(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (there / "runs").glob("[nt]o*"):
        size = 1448 * (1 if folder.name.startswith("topk") else 100)
        with (folder / "metrics.jsonl").open("a") as log:
            log.writelines(StepRecord(n, 2.0, size, size).line() for n in range(1, 8))
    options = ["--link", "rate=1514kbit", "--client-speed", "0.5", "--accuracy", "0.51"]
    assert main(["report", "runs", *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    # 2 s of the client, 1 s each of server and link, and a packet or a hundred each way.
    assert "topk:ratio=0.1 rate=1514kbit 3 587 ms 4.11 s 3% 4.11 s (2 of 3)" in out
    assert "none rate=1514kbit 3 2.17 s 15.2 s 74% 15.2 s" in out
    assert "the client is assumed to compute 0.5 times as fast" in out
    files = ["--csv", "c", "--figures", "f", "--figure", "bytes", "--html", "r.html"]
    assert main(["report", "runs", *files, "--client-speed", "1"]) == 0
    assert "links.csv" in capsys.readouterr().out
    with (there / "c" / "links.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["link"] for row in rows] == [*profiles()] * 2
    assert (there / "f" / "links.png").stat().st_size
    assert 'id="links-title"' in (there / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs", "--link", "lta"], "unknown link 'lta' (did you mean 'lte'?)"),
        (["runs", "--client-speed", "0"], "--client-speed 0 is not allowed"),
        (["runs", "--link", "lte"], "has trained no step, so there is nothing to estimate"),
        (["gone"], "gone is no folder"),
        (["empty"], "no run is in empty; name run folders, or a folder of them"),
        (["runs/half-0"], "none of the 1 runs in runs/half-0 is finished"),
        (["runs", "--reference", "tpok"], "no row is called 'tpok'"),
        (["runs", "--figure", "bytes"], "--figure without --figures DIR or --html FILE"),
        (["runs", "--figures", "f", "--figure", "byte"], "unknown figure 'byte'"),
        (["runs", "--figures", "f", "--figure", "joules"], "no run recorded its joules"),
        (["runs", "--csv", "file"], "cannot write file"),
    ],
)
def test_bad_input(arguments: list[str], told: str, there: Path, fails: Callable[..., str]) -> None:
    (there / "empty").mkdir()
    (there / "file").touch()
    assert told in fails("report", *arguments)
    assert not (there / "f").exists()


def test_claims_are_judged_by_the_runs(
    there: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    Path("claims.toml").write_text(
        '[["runs"]]\nclaim = "It pays."\nwhere = "p. 1"\ncompare = [["topk", "none"]]\n'
    )
    assert main(["report", "runs", "--claims", "claims.toml"]) == 0
    out = capsys.readouterr().out
    assert "It pays. (p. 1)" in out
    assert "topk:ratio=0.1 against none: did not hold (Δ = -0.2900, p < 0.001, n = 3)" in out
    assert "topk:ratio=0.5 against none: cannot be told from these 0 seeds (n = 0)" in out
    assert "claims nothing of 'none-0'" in fails("report", "runs/none-0", "--claims", "claims.toml")
