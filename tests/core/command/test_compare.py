"""``splitlab compare``: what it refuses, what it shows, and what a signal leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config, SplitlabError
from splitlab.core.command.main import main

FLAGS = ["--threads", "1", "--budget", "steps=2", "--weights", "none", "--device", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], r"nothing to compare; name every stack with --plugin, or with --output DIR"),
        (["--output", "c"], r"--output c is empty; say what to compare with --plugin"),
        (["--plugin", "adc", "--executor", "processes:0"], r"--executor processes:0 is not"),
        (["--plugin", "adc", "--executor", "threads"], r"unknown executor 'threads'"),
        (["--plugin", "adc", "--ray-address", "x"], r"--ray-address x goes with --executor ray"),
        (["--plugin", "acd"], r"unknown plugin 'acd' \(did you mean 'adc'\?\)"),
        (["--plugin", "adc++adc"], r"'adc\+\+adc' has an empty member; write plugins joined"),
        (["--plugin", "adc:ratio=0"], r"ratio=0.0 is refused"),
        (["--plugin", "adc", "--plugin", "adc"], "the stack adc is given twice; drop one"),
        (["--plugin", "adc", "--plugin", "adc:ratio=0.1"], "adc and adc:ratio=0.1 are the same"),
        (
            ["--plugin", "adc", "--ratio", "0"],
            r"ratio 0.0 is not allowed; more than 0, at most 1",
        ),
        (["--plugin", "adc", "--ratio", "1.5"], r"ratio 1.5 is not allowed"),
        (["--plugin", "adc", "--ratio", "nan"], r"ratio nan is not allowed"),
        (["--plugin", "adc:ratio=0.1", "--ratio", "0.2"], r"ratio 0.2 is not allowed here"),
        (["--plugin", "adc", "--client-speed", "0"], "--client-speed 0 is not allowed"),
        (["--plugin", "adc", "--seeds", "0"], r"--seeds 0 is not allowed; write how many"),
        (["--plugin", "adc", "--seeds", "-1"], r"--seeds -1 is not allowed"),
        (["--plugin", "adc", "--seeds", "two"], r"--seeds two is not allowed"),
        (["--plugin", "adc", "--seeds", "1,,2"], r"--seeds 1,,2 is not allowed"),
        (["--plugin", "adc", "--seeds", "1,1"], r"not allowed; write how many"),
        (["--plugin", "adc", "--seeds", "1,9999999999999999999"], r"--seed 9+ is not allowed"),
        (["--plugin", "adc", "--seeds", "1,2", "--seed", "3"], r"exclude each other; keep one"),
        (["--plugin", "adc-token-select+adc"], r"cannot work: .*a stack that works: adc \+"),
        (["--plugin", "adc", "--model", "vit-maxi"], r"unknown model"),
        (["--plugin", "adc", "--dataset", "fashion"], r"unknown data set 'fashion'"),
        (["--plugin", "adc", "--data-dir", "nowhere"], r"nowhere"),
        (["--plugin", "adc", "--device", "cuda:99"], r"--device cuda:99 cannot be used here"),
        (["--plugin", "adc", "--transport", "pigeon"], r"unknown transport 'pigeon'"),
        (["--plugin", "adc", "--cut", "99"], r"cut"),
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
    if "--plugin" in arguments and "--device" not in arguments:
        arguments = [*arguments, "--device", "cpu"]
    assert re.search(told, fails("compare", *arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("default::splitlab.core.contract.errors.Notice")
def test_the_command(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    def fail(config: Config) -> None:
        if config.plugins == ("adc-token-select",):
            raise SplitlabError("the loss is nan")

    runs.before = fail
    file = tmp_path / "c.toml"
    file.write_text('plugins = ["adc", "adc-token-select"]\nbudget = "steps=2"\nthreads = 1\n')
    arguments = ["compare", "--config", "c.toml", "--seeds", "1", "--output", "c"]
    assert main(arguments) == 1
    out, error = capsys.readouterr()
    assert error == (
        "splitlab: error: a run failed: adc-token-select, seed 0: the loss is nan; run it again "
        f"with: splitlab study --output {tmp_path / 'c'} --retry\n"
    )
    assert "run 2 of 2: adc-token-select, seed 0" in out
    assert re.search(r"^ adc +0\.5000 ± — ", out, re.MULTILINE)
    assert re.search(r"^ adc-token-select +— +0/1 ", out, re.MULTILINE)
    assert "adc-token-select: seed 0 failed: the loss is nan" in out
    assert "written in c: report.html, table.md" in out
    assert (tmp_path / "c" / "report.html").is_file()
    assert main([*arguments, "--quiet"]) == 1
    assert capsys.readouterr().out == ""
    assert len(runs.log) == 2  # what failed would fail again
    runs.before = lambda config: None
    assert main([*arguments, "--retry", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in told["runs"]] == ["finished", "finished"]
    more = ["--ratio", "0.2", "--accuracy", "0.5"]  # it was 0.1
    assert main(["compare", "--output", "c", *more, "--quiet"]) == 0
    told = capsys.readouterr().err
    assert "note: 2 rows are not of the study any more" in told
    assert "note: the time to accuracy is left out: " in told  # these runs trained no step
    assert runs.log[3:] == ["run adc:ratio=0.2 0", "run adc-token-select:ratio=0.2 0"]


@pytest.mark.parametrize(("columns", "tables"), [("200", 1), ("90", 2)])
def test_the_display_on_a_terminal(
    columns: str,
    tables: int,
    runs: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unlistened: None,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", columns)

    def fail(config: Config) -> None:
        if config.plugins == ("adc-token-select",):
            raise SplitlabError("the loss is nan")

    runs.before = fail
    stacks = ["--plugin", "adc", "--plugin", "adc-token-select"]
    assert main(["compare", *stacks, "--seeds", "1", "--output", "c", *FLAGS]) == 1
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "run 1 of 2: adc, seed 0: done   accuracy 0.5000, 1 steps" in out
    assert " 75%  1 of 2 runs" in out  # half of the second of two
    assert "run 2 of 2: adc-token-select, seed 0: failed the loss is nan" in out
    assert len(re.findall(r"^ row ", out, re.MULTILINE)) == tables
    assert "0.5000 ± —" in out


def test_sigterm_leaves_what_can_be_resumed(
    small_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    arguments = ["compare", "--plugin", "adc", "--seeds", "1", "--output", str(tmp_path / "c")]
    arguments += ["--data-dir", small_data, "--batch-size", "8", *FLAGS[:2], *FLAGS[4:]]
    arguments += ["--budget", "steps=100000", "--eval-every", "100000"]
    logs = tmp_path / "c"
    gone = threading.Event()

    def terminate() -> None:
        while not gone.wait(0.02):
            if any('"train"' in log.read_text() for log in logs.glob("*/seed-0/metrics.jsonl")):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=terminate)
    watcher.start()
    try:
        assert main(arguments) == 130
    finally:
        gone.set()
        watcher.join()
    assert "0 of 1 runs are finished; go on with: splitlab study" in capsys.readouterr().err
    (log,) = logs.glob("*/seed-0/metrics.jsonl")
    steps = log.read_text().count('"kind": "train"')
    assert steps >= 1
    assert (log.parent / "checkpoints" / f"step-{steps:08d}" / "client.safetensors").is_file()
