"""What a run began with is found again, or what has changed is named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError, Plan, run
from splitlab.core.runs.config import Config
from splitlab.core.runs.origin import Origin
from splitlab.core.runs.reporter import Reporter

PLUGIN = """
from splitlab.core import hookimpl
class Mine:
    @hookimpl
    def step_end(self): ...
"""


@pytest.fixture
def options(real: Any) -> dict[str, Any]:
    return {**real.SMALL, "batch_size": 10, "eval_every": 2}


class Hears(Reporter):
    def __init__(self) -> None:
        self.accepted_changes: list[str] = []

    def accepted(self, changes: Any) -> None:
        self.accepted_changes += changes


def test_a_run_that_was_moved_with_all_its_files_goes_on(
    real: Any, noise_data: str, tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(noise_data, "data")
    Path("mine.py").write_text(PLUGIN)
    files: dict[str, Any] = {"plugins": ["mine.py:Mine"], "data_dir": "data"}
    run(output="r", budget="steps=2", **files, **options)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    run(resume="../r", budget="steps=3")  # from elsewhere: files are remembered absolutely
    (tmp_path / "data").rename(tmp_path / "other" / "images")
    (tmp_path / "mine.py").rename(tmp_path / "other" / "moved.py")
    with pytest.raises(ConfigError, match=r"data folder .*data is gone; .* with --data-dir"):
        run(resume="../r", budget="steps=4")
    moved: dict[str, Any] = {"plugins": ["moved.py:Mine"], "data_dir": "images"}
    assert run(resume="../r", budget="steps=4", **moved).summary.steps == 4
    assert run(resume="../r", budget="steps=5").summary.steps == 5  # the new places are kept


def test_what_has_changed_is_refused_until_it_is_accepted(
    real: Any, noise_data: str, tmp_path: Path, options: Any
) -> None:
    data, plugin, folder = tmp_path / "data", tmp_path / "mine.py", tmp_path / "r"
    shutil.copytree(noise_data, data)
    plugin.write_text(PLUGIN)
    run(
        plugins=[f"{plugin}:Mine"],
        data_dir=str(data),
        output=str(folder),
        budget="steps=2",
        **options,
    )
    before = (folder / "run.json").read_text(), (folder / "config.toml").read_text()
    labels = bytearray((data / "train-labels-idx1-ubyte").read_bytes())
    labels[-1] ^= 1
    (data / "train-labels-idx1-ubyte").write_bytes(labels)
    plugin.write_text(PLUGIN + "    rate = 2\n")
    told = r"stack was Mine@\w+ and is now Mine@\w+; data was 20 .*--accept-changes"
    with pytest.raises(ConfigError, match=told):
        run(resume=folder, budget="steps=3")
    assert before == ((folder / "run.json").read_text(), (folder / "config.toml").read_text())
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.001", "lr = 0.5"))
    with pytest.raises(ConfigError, match=r"config.toml was edited: --lr was 0.001 and is now 0.5"):
        run(resume=folder, budget="steps=3")
    hears = Hears()
    run(resume=folder, budget="steps=3", accept_changes=True, reporter=hears)
    assert [text.split()[0] for text in hears.accepted_changes] == ["config.toml", "stack", "data"]
    # They are the run's own now, and its checkpoints of before can be gone on from, too.
    assert run(resume=folder, budget="steps=4").summary.steps == 4
    assert run(resume=folder, budget="steps=4", from_step=3).summary.steps == 4
    with pytest.raises(ConfigError, match=r"--accept-changes goes with --resume RUN"):
        run(accept_changes=True, data_dir=str(data), **options)


def test_a_package_of_another_version_is_a_change(
    real: Any, noise_data: str, tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_method.py").write_text(PLUGIN)
    facts = tmp_path / "their_method-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their-method\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[splitlab.plugins]\ntheirs = their_method:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = Config(plugins=("theirs",), data_dir=noise_data, **options)
    plan = Plan.of(config)
    origin = Origin.of(plan)
    assert "their-method 1.0" in origin.found["stack"]
    assert origin.followed_by(plan, origin.config)[1] == []
    text = (facts / "METADATA").read_text().replace("1.0", "2.0")
    (facts / "METADATA").write_text(text)
    [changed] = origin.followed_by(plan, origin.config)[1]
    assert changed.startswith("stack was theirs")
    assert "their-method 2.0" in changed
    (facts / "METADATA").write_text(text.replace("2.0", "1.0"))
    (tmp_path / "their_method.py").write_text(PLUGIN + "\n")  # edited, as in an editable install
    assert len(origin.followed_by(plan, origin.config)[1]) == 1
    sys.modules.pop("their_method")


def test_it_is_read_back_or_refused(
    real: Any, noise_data: str, tmp_path: Path, options: Any
) -> None:
    origin = Origin.of(Plan.of(Config(data_dir=noise_data, **options)))
    origin.write(tmp_path)
    assert Origin.read(tmp_path) == origin
    file = tmp_path / "run.json"
    values = json.loads(file.read_text())
    for name, value in (
        ("version", 99),
        ("id", None),
        ("plans", []),
        ("plans", [1]),
        ("config", {"x": 1}),
        ("found", []),
        ("found", {"data": 1}),
    ):
        file.write_text(json.dumps(values | {name: value}))
        with pytest.raises(ConfigError, match=r"run.json is damaged \(.*\); run it again"):
            Origin.read(tmp_path)
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"run.json is damaged"):
        Origin.read(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=r"run.json cannot be read \(No such file"):
        Origin.read(tmp_path)
