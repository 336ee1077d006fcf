"""``splitlab trace``: the table and the JSON of a step, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from splitlab.core.command.main import main


def test_the_command(small_data: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data-dir", small_data, "--batch-size", "8", "--threads", "1"]
    flags += ["--weights", "none", "--device", "cpu"]
    arguments = ["trace", "--plugin", "adc", "--repeats", "1", *flags]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in ("client part", "adc after_client_forward", "adc.clusters (side)", "sum down"):
        assert word in text
    assert "step 1 of adc:" in text
    assert "medians of 1 further steps" in text
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stack"] == ["adc"]
    assert facts["stages"][0]["tensors"][0]["shape"] == [8, 50, 64]
    assert sum(facts["stages"][2]["frame"].values()) / facts["base_bytes"] < 0.1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--step", "0"], "--step 0 is not allowed; 1"),
        (["--repeats", "0"], "--repeats 0 is not allowed; from 1"),
        (["--plugin", "acd"], "unknown plugin 'acd'"),
        (["--dataset", "fashion"], "unknown data set 'fashion'"),
    ],
)
def test_bad_input(arguments: list[str], told: str, fails: Callable[..., str]) -> None:
    assert told in fails("trace", *arguments)


@pytest.mark.parametrize("option", ["--transport", "--budget", "--output"])
def test_options_that_a_step_would_ignore_are_refused(
    option: str, refuses: Callable[..., str]
) -> None:
    assert f"unknown option {option}: other commands take it, this one does not" in refuses(
        "trace", option, "x"
    )
