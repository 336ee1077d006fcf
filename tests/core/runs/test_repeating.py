"""Torch repeats itself inside of a run that asks for it, and is as before behind it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.backends import cudnn
from torch.utils import deterministic

from splitlab.core import Config, ConfigError, run
from splitlab.core.runs.repeating import repeating

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def modes() -> tuple[bool, bool, bool]:
    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled, deterministic.fill_uninitialized_memory, cudnn.benchmark


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch find a GPU that nobody has used, in a process without cuBLAS' variable."""
    monkeypatch.setenv(WORKSPACE, "")  # so that it is put back
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_a_gpu_repeats_itself_inside(device: str, a_gpu: None) -> None:
    before, cudnn_before = modes(), cudnn.benchmark
    cudnn.benchmark = True
    try:
        with repeating(Config(device=device, deterministic=True)):
            assert modes() == (True, False, False)
            assert os.environ[WORKSPACE] == ":4096:8"
        assert modes() == (before[0], before[1], True)
    finally:
        cudnn.benchmark = cudnn_before


def test_it_is_put_back_behind_an_error(a_gpu: None) -> None:
    before = modes()
    with pytest.raises(KeyError), repeating(Config(device="cuda", deterministic=True)):
        raise KeyError
    assert modes() == before


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"device": "cpu", "deterministic": True}])
def test_otherwise_nothing_changes(options: dict[str, Any], a_gpu: None) -> None:
    before = modes()
    with repeating(Config(**options)):
        assert modes() == before
        assert WORKSPACE not in os.environ


def test_a_choice_that_repeats_itself_is_left(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with repeating(Config(device="cuda", deterministic=True)):
        assert os.environ[WORKSPACE] == ":16:8"


def test_too_late_is_said(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    late = pytest.raises(ConfigError, match=r"comes too late.*set it to :4096:8 before")
    with late, repeating(Config(device="auto", deterministic=True)):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_it_decides_no_number(noise_data: str, tmp_path: Path) -> None:
    logs = []
    for chosen in (False, True):
        folder = tmp_path / str(chosen)
        run(
            Config(plugins=("adc",), data_dir=noise_data, output=str(folder), device="cpu"),
            **{"batch_size": 8, "budget": "steps=2", "weights": "none", "threads": 1},
            deterministic=chosen,
        )
        logs.append((folder / "metrics.jsonl").read_text())
    assert logs[0] == logs[1]
