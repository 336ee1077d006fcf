"""What a run takes of the machine. The bounds of numbers are tested with the configuration."""

from __future__ import annotations

import dataclasses

import pytest

from splitlab.core import Config, ConfigError
from splitlab.core.runs.machine import Machine
from splitlab.core.runs.option import GROUPS


def test_all_its_options_are_explained_as_the_machines() -> None:
    assert {spec.metadata["group"] for spec in dataclasses.fields(Machine)} == {GROUPS[6]}


def test_processes_that_decode_want_a_number() -> None:
    with pytest.raises(ConfigError, match="--worker-kind processes needs some: give --workers"):
        Config(worker_kind="processes")
    assert Config(worker_kind="processes", workers=2).workers == 2
