"""Estimates: a recorded run's steps over another link, by hand and beside a run over that link."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError, run
from splitlab.core.catalogue.binding import bind
from splitlab.core.report.estimate import estimate, profiles
from splitlab.core.runs.config import Config
from splitlab.core.runs.listing import Run, find_runs
from splitlab.core.runs.records import EvaluationRecord, State, StepRecord, version_line

LINKS = """
class PerByte:
    def __init__(self, *, up: float = 1.0, down: float = 1.0) -> None:
        self.rates = {"client": up, "server": down}
    def wrap(self, link, role): return link
    def seconds(self, role, frame_bytes, *purpose): return frame_bytes * self.rates[role]

class Mute:
    def wrap(self, link, role): return link
"""


def evaluation(step: int, accuracy: float) -> EvaluationRecord:
    return EvaluationRecord(step, accuracy, 1.0, True, 0, 0, 0)


RECORDS = (
    evaluation(0, 0.1),
    StepRecord(1, 2.0, 10, 1),
    StepRecord(2, 2.0, 20, 2),
    evaluation(2, 0.5),
    StepRecord(3, 2.0, 30, 3),
    StepRecord(4, 2.0, 40, 4),
    evaluation(4, 0.4),
)


@pytest.fixture
def recorded(tmp_path: Path, make: Any) -> Any:
    """Return a function that writes a run of four steps: client 8, server 4, link 2 seconds."""
    (tmp_path / "ways.py").write_text(LINKS)

    def record(records: Any = RECORDS, links: tuple[str, ...] = (), done: bool = True) -> Run:
        folder = tmp_path / "runs" / "a"
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(Config(dataset="d", cut=3, links=links).to_toml())
        (folder / "run.json").write_text(json.dumps({"id": "a"}))
        state = "finished" if done else "failed"
        (folder / "state.json").write_text(State(state, 4).text())
        if done:
            seconds = {"client_seconds": 8.0, "server_seconds": 4.0, "link_seconds": 2.0}
            (folder / "summary.json").write_text(make.summary(steps=4, **seconds).text())
        lines = [version_line(), *(each.line() for each in records)]
        (folder / "metrics.jsonl").write_text("".join(lines))
        [found] = find_runs(folder)
        return found

    return record


def test_a_step_takes_its_bytes_and_the_mean_of_what_was_computed(
    recorded: Any, tmp_path: Path
) -> None:
    way = f"{tmp_path}/ways.py:PerByte:up=2.0,down=10.0"
    [found] = estimate(recorded(), [way])
    assert found.link_seconds == pytest.approx(2 * 100 + 10 * 10)
    assert found.seconds == pytest.approx(300 + 8 + 4 + 2)
    assert (found.accuracy, found.reached_step) == (0.5, 2)
    assert found.reached_seconds == pytest.approx(2 * 30 + 10 * 3 + (8 + 4 + 2) / 2)
    assert (found.link, found.steps, found.client_speed) == (way, 4, 1.0)


def test_a_slower_client_takes_longer_and_nobody_else(recorded: Any, tmp_path: Path) -> None:
    way = f"{tmp_path}/ways.py:PerByte:up=0.0,down=0.0"
    [found] = estimate(recorded(), [way], client_speed=0.1)
    assert found.link_seconds == 0
    assert found.seconds == pytest.approx(10 * 8 + 4 + 2)


@pytest.mark.parametrize(("accuracy", "step"), [(0.1, 0), (0.3, 2), (0.5, 2), (0.51, None)])
def test_the_first_evaluation_with_an_accuracy_counts(
    recorded: Any, tmp_path: Path, accuracy: float, step: int | None
) -> None:
    [found] = estimate(recorded(), [f"{tmp_path}/ways.py:PerByte"], accuracy=accuracy)
    assert (found.accuracy, found.reached_step) == (accuracy, step)
    assert (found.reached_seconds is None) == (step is None)
    if step == 0:
        assert found.reached_seconds == 0


def test_what_the_recorded_link_paced_is_taken_off(recorded: Any, tmp_path: Path) -> None:
    own = f"{tmp_path}/ways.py:PerByte:up=0.015,down=0.0"  # 1.5 of the 2 seconds
    [found] = estimate(recorded(links=(own,)), [f"{tmp_path}/ways.py:PerByte"])
    assert found.seconds == pytest.approx(110 + 8 + 4 + 0.5)


def test_every_profile_can_be_estimated(recorded: Any) -> None:
    found = estimate(recorded(), profiles())
    assert [each.link for each in found] == profiles()
    assert len(found) > 4
    assert all(each.seconds > each.link_seconds > 0 for each in found)


def test_what_cannot_be_estimated_says_why(recorded: Any, tmp_path: Path) -> None:
    mute = f"{tmp_path}/ways.py:Mute"
    good = recorded()
    with pytest.raises(ConfigError, match=r"Mute cannot tell how long a frame takes, .*lte"):
        estimate(good, [mute])
    with pytest.raises(ConfigError, match=r"unknown link 'lta' .did you mean 'lte'"):
        estimate(good, ["lta"])
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"--client-speed \S+ is not allowed; a share"):
            estimate(good, profiles(), client_speed=speed)
    with pytest.raises(ConfigError, match=r"--accuracy 80 is not allowed; 0 to 1"):
        estimate(good, profiles(), accuracy=80.0)


def test_a_run_over_a_link_that_cannot_tell_is_refused(recorded: Any, tmp_path: Path) -> None:
    mute = f"{tmp_path}/ways.py:Mute"
    with pytest.raises(ConfigError, match=r"runs/a was over --link .*Mute, which cannot tell what"):
        estimate(recorded(links=(mute,)), profiles())


def test_an_unfinished_run_is_refused(recorded: Any) -> None:
    with pytest.raises(ConfigError, match=r"runs/a is failed, and only a finished run knows"):
        estimate(recorded(done=False), profiles())


@pytest.mark.long
def test_a_run_over_the_link_takes_what_was_estimated(small_data: str, tmp_path: Path) -> None:
    link = "rate=2mbit,delay=150ms,jitter=20ms,loss=0.01"
    common: dict[str, Any] = {
        "model": "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2",
        "data_dir": small_data,
        "plugins": ["quantize:bits=8"],
        "budget": "steps=6",
        "batch_size": 8,
        "weights": "none",
        "threads": 1,
        "device": "cpu",
    }
    run(output=str(tmp_path / "bare"), **common)
    late = run(output=str(tmp_path / "late"), links=[link], **common).summary
    [bare] = find_runs(tmp_path / "bare")
    [found] = estimate(bare, [link])
    took = late.client_seconds + late.server_seconds + late.link_seconds
    assert took == pytest.approx(found.seconds, rel=0.10)
    # And back: over the link that it had, it takes what it took.
    [slow] = find_runs(tmp_path / "late")
    [again] = estimate(slow, [link])
    assert again.seconds == pytest.approx(took, rel=0.01)
    assert again.link_seconds == found.link_seconds
    assert bind("links", link).label not in profiles()
