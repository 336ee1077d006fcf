"""What a run has of the machine; the bounds of its numbers are tested with all others."""

from __future__ import annotations

import dataclasses

import pytest

from splitlab.core import Config, ConfigError
from splitlab.core.runs.machine import Machine
from splitlab.core.runs.option import GROUPS


def test_processes_are_so_many() -> None:
    with pytest.raises(ConfigError, match="--worker-kind processes needs some: give --workers"):
        Config(worker_kind="processes")
    assert Config(worker_kind="processes", workers=3).workers == 3


def test_they_are_options_of_a_run_in_a_group_of_their_own() -> None:
    fields = {spec.name: spec for spec in dataclasses.fields(Machine)}
    assert fields.keys() <= {spec.name for spec in dataclasses.fields(Config)}
    assert {spec.metadata["group"] for spec in fields.values()} == {GROUPS[-1]}
