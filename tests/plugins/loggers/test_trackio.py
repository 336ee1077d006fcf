"""Trackio's local project holds what the run logged, each step once; nothing is printed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import LoggedRun


@pytest.fixture(scope="module", autouse=True)
def trackio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Import it with a folder of the test's own, which it asks for but once."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield pytest.importorskip("trackio", exc_type=ImportError)


def read(project: str, name: str) -> dict[str, list[tuple[int, float]]]:
    from trackio.sqlite_storage import SQLiteStorage

    found: dict[str, list[tuple[int, float]]] = {}
    for point in SQLiteStorage.get_logs(project, name):
        for key, number in point.items():
            if key not in ("step", "timestamp"):
                found.setdefault(key, []).append((point["step"], number))
    return found


def test_what_a_run_logged_is_read_back_and_each_step_once_when_it_goes_on(
    log: Callable[..., Path],
    again: Callable[..., None],
    logged: Callable[[Path], Any],
    id_of: Callable[[Path], str],
    trackio: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = log("trackio:project=mine")
    name = f"a run-{id_of(folder)[:8]}"
    assert read("mine", name) == logged(folder)
    [run] = trackio.Api().runs("mine")
    assert run.name == name
    assert (run.config["plugins"], run.config["batch_size"]) == ("quantize", 8)
    assert run.config["tags"] == "a tag b"
    again(folder)
    found, wanted = read("mine", name), logged(folder)
    for key in [key for key in found if key.startswith("summary/")]:
        assert [step for step, _ in found[key]] == [4, 5]  # what it ended with, both times
        del found[key], wanted[key]
    assert found == wanted
    assert len(list(trackio.Api().runs("mine"))) == 1
    assert capfd.readouterr() == ("", "")


def test_what_is_no_finite_number_is_logged_as_that(trackio: Any, tmp_path: Path) -> None:
    from splitlab.plugins.loggers.trackio import Trackio

    logger = Trackio(project="other")
    logger.begin(LoggedRun("a" * 16, "r", tmp_path, 0, {}))
    logger.log(1, {"train/loss": math.nan})
    logger.end("diverged", {})
    [(step, number)] = read("other", f"r-{'a' * 8}")["train/loss"]
    assert (step, math.isnan(number)) == (1, True)


def test_one_that_could_not_begin_can_end(trackio: Any) -> None:
    from splitlab.plugins.loggers.trackio import Trackio

    Trackio().end("failed", {})
