"""The probe of times: every data hook of every plugin, anew in every step."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import run
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.hooks import DATA_HOOKS
from splitlab.plugins.probes import time
from splitlab.plugins.probes.time import Time


def test_calls_of_one_hook_are_added_up_and_forgotten_with_the_step() -> None:
    probe = Time()
    probe.plugin_ran(label="a", hook="before_send", nanoseconds=1_500_000)
    probe.plugin_ran(label="a", hook="before_send", nanoseconds=500_000)
    probe.plugin_ran(label="a#2", hook="before_send", nanoseconds=3_000_000)
    probe.plugin_ran(label="a", hook="after_receive", nanoseconds=1)
    assert dict(probe.metrics()) == pytest.approx(
        {"a before_send": 2e-3, "a#2 before_send": 3e-3, "a after_receive": 1e-9}
    )
    assert dict(probe.metrics()) == {}
    probe.plugin_ran(label="a", hook="before_send", nanoseconds=7)
    assert dict(probe.metrics()) == pytest.approx({"a before_send": 7e-9})


def test_it_says_which_hooks_it_hears_of() -> None:
    for said in (inspect.getdoc(Time), inspect.getdoc(time), entries("probes")["time"].summary):
        assert said is not None
        assert said.lower().startswith("seconds of every data hook, by plugin")


def test_a_run_logs_the_hooks_of_each_peer(small_images: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights": "none", "batch_size": 8, "threads": 1, "device": "cpu"}
    result = run(
        plugins=["adc:ratio=0.5", "quantize"],
        probes=["time"],
        data_dir=small_images,
        output=str(tmp_path / "r"),
        budget="steps=2",
        **options,
    )
    for file, hooks in (
        ("metrics.jsonl", {"adc after_client_forward", "quantize before_send"}),
        ("server-metrics.jsonl", {"adc before_server_forward", "quantize after_receive"}),
    ):
        lines = map(json.loads, (result.folder / file).read_text().splitlines())
        steps = [line["metrics"]["time"] for line in lines if line["kind"] == "train"]
        assert len(steps) == 2
        for seconds in steps:
            assert hooks <= seconds.keys()
            assert {name.split()[1] for name in seconds} <= {*DATA_HOOKS}  # and none of the others
            assert all(0 <= spent < 60 for spent in seconds.values())
