"""TensorBoard reads back from its event files what the run logged, each step once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import LoggedRun, Logger

pytest.importorskip("tensorboard")
from splitlab.plugins.loggers.tensorboard import TensorBoard


def read(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        return found.Reload()


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(folder)
    return {
        name: [(point.step, point.value) for point in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def assert_same(found: dict[str, list[tuple[int, float]]], wanted: Any) -> None:
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in expected], name
        numbers = [number for _, number in expected]
        assert [number for _, number in found[name]] == pytest.approx(numbers, rel=1e-6), name


def test_what_a_run_logged_is_read_back_and_each_step_once_when_it_goes_on(
    log: Callable[..., Path],
    again: Callable[..., None],
    logged: Callable[[Path], Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = log("tensorboard")
    assert_same(points(folder / "tensorboard"), logged(folder))
    again(folder)
    found = points(folder / "tensorboard")
    ends = [name for name in found if name.startswith("summary/")]
    for name in ends:  # those of the first end are of a step that is made once more
        assert [step for step, _ in found[name]] == [5]
    assert_same(found, logged(folder))
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert capfd.readouterr() == ("", "")


def test_options_are_hyperparameters(log: Callable[..., Path]) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    folder = log("tensorboard")
    metadata = read(folder / "tensorboard").summary_metadata
    content = metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    known = {name: value for name, value in start.hparams.items()}
    assert known["plugins"].string_value == "quantize"
    assert known["batch_size"].number_value == 8
    assert known["pretrained"].bool_value is False
    assert known["tags"].string_value == "a tag b"
    content = metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert "summary/accuracy" in {info.name.tag for info in experiment.metric_infos}


def test_a_folder_for_all_runs_has_one_for_each_which_a_new_name_leaves(tmp_path: Path) -> None:
    for id, name, step in (("a" * 16, "one", 0), ("b" * 16, "one", 0), ("a" * 16, "renamed", 1)):
        logger: Logger = TensorBoard(folder=str(tmp_path / "all"))
        logger.begin(LoggedRun(id, name, tmp_path / "r", step, {"seed": 1}))
        logger.log(step + 1, {"train/loss": 1.0 + step})
        logger.end("interrupted", {})
    folders = {path.name for path in (tmp_path / "all").iterdir()}
    assert folders == {f"one-{'a' * 8}", f"one-{'b' * 8}"}
    assert points(tmp_path / "all" / f"one-{'a' * 8}") == {"train/loss": [(1, 1.0), (2, 2.0)]}
    assert not (tmp_path / "r").exists()


def test_one_that_could_not_begin_can_end(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    logger = TensorBoard(folder=str(tmp_path / "taken"))
    with pytest.raises(OSError, match="taken"):
        logger.begin(LoggedRun("a" * 16, "one", tmp_path, 0, {}))
    logger.end("failed", {})
