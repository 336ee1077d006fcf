"""What the tests of runs share: small data, and whole runs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forking import behind
from images import write_images

from splitlab.core.runs.reading import VERSION

SMALL = {
    "weights": "none",
    "batch_size": 32,
    "threads": 1,
    "model": "vit-mini",
    "lr": 1e-3,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def easy_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 112 training and 40 test images of 4 classes that are easily told."""
    return write_images(tmp_path_factory.mktemp("easy"), 112, 40, 4, easy=True)


@pytest.fixture(scope="session")
def noise_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 20 training and 8 test images of 4 classes."""
    return write_images(tmp_path_factory.mktemp("noise"), 20, 8, 4)


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 20 training and 8 test images of 2 classes."""
    return write_images(tmp_path_factory.mktemp("two"), 20, 8, 2)


def losses(folder: Path) -> list[str]:
    """Return every record of metrics.jsonl: losses in full precision, bytes, accuracies."""
    version, *lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(version) == {"kind": "records", "version": VERSION}
    return lines


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "splitlab", *arguments]


def flags(data: str, output: Path, **options: object) -> list[str]:
    chosen = {**SMALL, "data_dir": data, "output": output, **options}
    return [text for k, v in chosen.items() for text in (f"--{k.replace('_', '-')}", str(v))]


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    metrics = folder / "metrics.jsonl"  # its first line is no record
    while not metrics.exists() or metrics.read_text().count("\n") <= steps:
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{behind(pid)}/task").glob("*/children")
    return [int(text) for file in threads for text in file.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Real:
    """The functions above, in one place for the tests."""

    SMALL = SMALL
    losses = staticmethod(losses)
    command = staticmethod(command)
    flags = staticmethod(flags)
    wait_for_steps = staticmethod(wait_for_steps)
    children = staticmethod(children)
    alive = staticmethod(alive)


@pytest.fixture(scope="session")
def real() -> Real:
    """Return them."""
    return Real()
