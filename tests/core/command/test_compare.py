"""``splitlab compare``: what it refuses, what it shows, and what a signal leaves."""

from __future__ import annotations

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

FLAGS = ["--threads", "1", "--budget", "steps=2", "--weights", "none"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], r"nothing to compare; name every stack with --plugin, or with --output DIR"),
        (["--plugin", "acd"], r"unknown plugin 'acd' \(did you mean 'adc'\?\)"),
        (["--plugin", "adc++adc"], r"'adc\+\+adc' has an empty member; write plugins joined"),
        (["--plugin", "adc:ratio=0"], r"ratio=0.0 is refused"),
        (["--plugin", "adc", "--plugin", "adc"], "the stack adc is given twice; drop one"),
        (["--plugin", "adc", "--plugin", "adc:ratio=0.1"], "adc and adc:ratio=0.1 are the same"),
        (
            ["--plugin", "adc", "--ratio", "0"],
            r"--ratio 0.0 is not allowed; more than 0, at most 1",
        ),
        (["--plugin", "adc", "--ratio", "1.5"], r"--ratio 1.5 is not allowed"),
        (["--plugin", "adc", "--ratio", "nan"], r"--ratio nan is not allowed"),
        (["--plugin", "adc:ratio=0.1", "--ratio", "0.2"], r"--ratio 0.2 is not allowed here"),
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
        (["--output", "c", "--budget", "steps=1"], r"--budget without --plugin: nothing is run"),
        (["--output", "c", "--ratio", "0.1"], r"--ratio without --plugin"),
        (["--output", "c"], r"--output c is empty; say what to compare with --plugin"),
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
    assert re.search(told, fails(*arguments))
    assert list(tmp_path.iterdir()) == []


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
    assert error == ("splitlab: error: a run failed: adc-token-select, seed 0: the loss is nan\n")
    assert "run 2 of 2: adc-token-select, seed 0" in out
    assert re.search(r"^ adc +0\.5000 ± — ", out, re.MULTILINE)
    assert re.search(r"^ adc-token-select +— .* 0/1 *$", out, re.MULTILINE)
    assert "adc-token-select: seed 0 failed: the loss is nan" in out
    assert "c/table.md" in out
    assert main([*arguments, "--quiet"]) == 1
    assert capsys.readouterr().out == ""
    assert runs.log[2:] == ["resume adc-token-select 0"]
    assert main(["compare", "--output", "c", "--x-scale", "log"]) == 0
    assert "0.5000 ± —" in capsys.readouterr().out


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
    assert " 75%  run 2 of 2: adc-token-select, seed 0, c" in out  # half of the second of two
    assert "run 2 of 2: adc-token-select, seed 0: failed the loss is nan" in out
    assert len(re.findall(r"^ stack ", out, re.MULTILINE)) == tables
    assert "0.5000 ± —" in out


def test_sigterm_leaves_what_can_be_resumed(
    small_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], unlistened: None
) -> None:
    arguments = ["compare", "--plugin", "adc", "--seeds", "1", "--output", str(tmp_path / "c")]
    arguments += ["--data-dir", small_data, "--batch-size", "8", *FLAGS[:2], *FLAGS[4:]]
    arguments += ["--budget", "steps=100000", "--eval-every", "100000"]
    log = tmp_path / "c" / "adc" / "seed-0" / "metrics.jsonl"
    gone = threading.Event()

    def terminate() -> None:
        while not gone.wait(0.02):
            if log.exists() and log.stat().st_size:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=terminate)
    watcher.start()
    try:
        assert main(arguments) == 130
    finally:
        gone.set()
        watcher.join()
    assert "0 of 1 runs are finished; go on with the same options" in capsys.readouterr().err
    steps = log.read_text().count('"kind": "train"')
    assert steps >= 1
    assert (log.parent / "checkpoints" / f"step-{steps:08d}" / "client.safetensors").is_file()
