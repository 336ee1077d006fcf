"""Whole runs in this process: what they leave, what they refuse, and that they learn."""

from __future__ import annotations

import gc
import importlib
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, SplitlabError, hookimpl, run
from splitlab.core.contract.errors import Notice
from splitlab.core.runs import plan as plans
from splitlab.core.runs.disk import hold
from splitlab.core.runs.records import read_ledger, read_summary
from splitlab.core.runs.reporter import Reporter

pytestmark = pytest.mark.usefixtures("starts_fast")


def test_run_folder_holds_what_the_documentation_says(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    result = run(
        plugins=["adc"], data_dir=easy_data, output=str(folder), budget="epochs=2", **real.SMALL
    )
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.toml",
        "run.json",
        "environment.json",
        "metrics.jsonl",
        "times.jsonl",
        "ledger.json",
        "summary.json",
        "state.json",
        "checkpoints",
    }
    records = [json.loads(line) for line in real.losses(folder)]
    train = [r for r in records if r["kind"] == "train"]
    evaluations = [r for r in records if r["kind"] == "eval"]
    assert [r["step"] for r in train] == list(range(1, 9))
    assert [r["step"] for r in evaluations] == [4, 8]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(result.summary.text())
    assert read_summary(folder) == result.summary
    assert read_ledger(folder).counts == result.ledger.counts
    assert summary["steps"] == 8
    assert summary["epochs"] == pytest.approx(2)
    assert summary["bytes_up"] == sum(r["bytes_up"] for r in train)
    assert summary["bytes_down"] == sum(r["bytes_down"] for r in train)
    assert summary["accuracy"] == evaluations[-1]["accuracy"]
    assert summary["ratio_nominal"] == pytest.approx(0.1)
    # T, k of a batch of 32 (the last of an epoch has 16) over 50 tokens: T = 10 and 5, k = 15.
    payload = 2 * (3 * 10 + 5) * 15 * 64 * 4
    counts = json.loads((folder / "ledger.json").read_text())["training"]
    assert counts["up"]["activation"] == counts["down"]["gradient"] == payload
    assert counts["up"]["targets"] == counts["up"]["side"] == 2 * 112
    uncompressed = 2 * 2 * 112 * 50 * 64 * 4
    measured = (summary["bytes_up"] + summary["bytes_down"]) / uncompressed
    assert summary["ratio_measured"] == pytest.approx(measured)


def test_learns(real: Any, easy_data: str, tmp_path: Path) -> None:
    result = run(data_dir=easy_data, output=str(tmp_path / "r"), budget="epochs=8", **real.SMALL)
    assert result.summary["accuracy"] > 0.9


def test_observers_see_the_hooks_of_both_peers(real: Any, easy_data: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Watch:
        @hookimpl(wrapper=True)
        def before_send(self, message: Any) -> Any:
            before = sum(message[name].nbytes for name in message)
            result = yield
            seen.append((message.kind.name, before))
            return result

    options: dict[str, Any] = {"budget": "steps=1", **real.SMALL}
    run(data_dir=easy_data, output=str(tmp_path / "r"), observers=[Watch()], **options)
    assert [kind for kind, _ in seen[:2]] == ["ACTIVATION", "GRADIENT"]
    assert seen[0][1] == 32 * 50 * 64 * 4 + 32


def test_other_options_are_refused(real: Any, easy_data: str, tmp_path: Path) -> None:
    run(data_dir=easy_data, output=str(tmp_path / "a"), budget="steps=1", **real.SMALL)
    with pytest.raises(ConfigError, match=r"--lr cannot be given with --resume"):
        run(resume=tmp_path / "a", lr=0.1)
    with pytest.raises(ConfigError, match=r"no run folder"):
        run(resume=tmp_path)


def test_what_a_run_is_called_may_change(
    real: Any, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"data_dir": easy_data, "budget": "steps=1", **real.SMALL}
    folder = run(name="mine", tags=("a",), **options).folder
    assert folder == tmp_path / "runs" / "mine"
    assert run(resume=folder, name="yours", tags=("b", "c"), budget="steps=2").folder == folder
    config = folder / "config.toml"
    assert 'name = "yours"\ntags = ["b", "c"]\n' in config.read_text()
    config.write_text(config.read_text().replace('"c"', '"d"'))  # nobody's consent is needed
    steps = [json.loads(line)["step"] for line in real.losses(folder) if '"train"' in line]
    assert run(resume=folder, budget="steps=3").summary.steps == len(steps) + 1 == 3
    assert 'tags = ["b", "d"]' in config.read_text()


def test_existing_output_is_refused_and_untouched(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("precious")
    with pytest.raises(ConfigError, match=r"exists already; move it away"):
        run(data_dir=easy_data, output=str(tmp_path / "mine"), **real.SMALL)
    assert (tmp_path / "mine" / "notes").read_text() == "precious"


def test_a_warmup_that_is_longer_than_the_run_is_told(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data_dir": easy_data, "budget": "steps=2", **real.SMALL}
    told = r"^--warmup 3 is longer than the run, which --budget steps=2 ends after 2 steps"
    with pytest.warns(Notice, match=told):
        run(output=str(tmp_path / "a"), warmup=3.0, **options)
    run(output=str(tmp_path / "b"), warmup=2.0, **options)


def test_a_run_that_never_began_leaves_no_folder(real: Any, easy_data: str, tmp_path: Path) -> None:
    for options in ({"plugins": ["adc:ratio=2"]}, {"cut": 99}, {"transport": "tpc"}):
        with pytest.raises(SplitlabError):
            run(data_dir=easy_data, output=str(tmp_path / "r"), **{**real.SMALL, **options})
        assert not (tmp_path / "r").exists()


class Begun:
    """Stands in for a server's process, and notes what is done with it."""

    log: list[str]

    def __init__(self) -> None:
        self.log.append("started")

    def __enter__(self) -> Begun:
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append("ended")


@pytest.mark.parametrize("handed", [True, False], ids=["handed over", "its own"])
def test_the_servers_process_is_started_first_and_ends_with_a_run_that_fails(
    handed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(Begun, "log", log, raising=False)
    module = importlib.import_module("splitlab.core.runs.run")
    monkeypatch.setattr(module, "ServerProcess", Begun)
    monkeypatch.setattr(
        module.Decided, "of", lambda config: (log.append("decided"), decided(config))[1]
    )
    server: Any = Begun() if handed else None
    for transport, connect in (("tcp", None), ("inprocess", None), ("tcp", "tcp://127.0.0.1:1")):
        if transport == "tcp" and connect is None:
            expected = ["started", "decided", "ended"]
        else:
            log.clear()
            expected = ["decided", "ended"] if handed else ["decided"]
        with pytest.raises(ConfigError, match="no-such-folder"):
            run(
                transport=transport,
                connect=connect,
                data_dir=str(tmp_path / "no-such-folder"),
                server=server,
            )
        assert log == expected


decided = plans.Decided.of


def test_a_run_that_fails_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-folder"):
        run(transport="tcp", data_dir=str(tmp_path / "no-such-folder"))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_made_with_all_threads_of_the_run(
    real: Any, two_classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()

    class Looks(Reporter):
        def loading(self, part: str, done: int, total: int) -> None:
            seen.add(torch.get_num_threads())

    monkeypatch.setattr("splitlab.core.runs.plan.default_threads", lambda: 3)
    options = {**real.SMALL, "threads": None, "data_dir": two_classes, "budget": "steps=1"}
    run(reporter=Looks(), output=str(tmp_path / "r"), **options)
    assert seen == {3}


def test_the_whole_model_is_gone_before_a_second_process_starts(
    real: Any, two_classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("splitlab.core.runs.run")
    made: list[weakref.ref[Any]] = []

    def make(*arguments: Any, **options: Any) -> Any:
        plan, model, data = plans.make(*arguments, **options)
        made.append(weakref.ref(model.module))
        return plan, model, data

    def start(*arguments: Any) -> Any:
        gc.collect()
        raise SplitlabError(f"{len(made)} made, {sum(each() is not None for each in made)} left")

    monkeypatch.setattr(module, "make", make)
    monkeypatch.setattr(module, "Launch", start)
    with pytest.raises(SplitlabError, match="1 made, 0 left"):
        run(transport="tcp", data_dir=two_classes, output=str(tmp_path / "r"), **real.SMALL)


def test_a_run_that_goes_on_elsewhere_is_left_alone(
    real: Any, two_classes: str, tmp_path: Path
) -> None:
    told = []

    def stop() -> bool:
        with pytest.raises(ConfigError, match=r"r is in use by process \d+ on .* since ") as caught:
            run(resume=tmp_path / "r")
        told.append(caught.value)
        return False

    options: dict[str, Any] = {**real.SMALL, "data_dir": two_classes, "budget": "steps=1"}
    run(output=str(tmp_path / "r"), should_stop=stop, **options)
    assert len(told) == 2
    assert not list((tmp_path / "r").glob("*.lock"))
    (tmp_path / "r" / "summary.json.7.tmp").touch()  # a killed process left it
    assert run(resume=tmp_path / "r").summary.steps == 1
    assert not list((tmp_path / "r").glob("*.tmp"))


ASKS = """
from splitlab.core import hookimpl


class Asks:
    @hookimpl
    def setup(self, peer):
        self.peer = peer
        self.first = peer.training_samples

    @hookimpl
    def metrics(self):
        unit, amount = self.peer.budget
        assert unit == "steps"
        return {"all": self.first, "epoch": self.peer.steps_per_epoch, "end": amount}
"""


@pytest.mark.parametrize("transport", ["inprocess", "tcp"])
def test_both_peers_know_how_long_the_run_is_to_last(
    transport: str, two_classes: str, real: Any, tmp_path: Path
) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    options = real.SMALL | {"budget": "steps=1", "plugins": [f"{tmp_path}/asks.py:Asks"]}
    result = run(data_dir=two_classes, output=str(tmp_path / "r"), transport=transport, **options)
    told = [
        json.loads(line)["metrics"]["Asks"]
        for name in ("metrics.jsonl", "server-metrics.jsonl")
        for line in (result.folder / name).read_text().splitlines()
        if "Asks" in line
    ]
    assert len(told) == 2
    assert told[0] == told[1]
    samples, size = told[0]["all"], options["batch_size"]
    assert told[0] == {"all": samples, "epoch": -(-samples // size), "end": 1.0}


def test_a_folder_that_another_run_begins_in_is_left_to_it(
    real: Any, noise_data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**real.SMALL, "data_dir": noise_data, "budget": "steps=1"}
    with hold(tmp_path / "r", "client"):  # it has written nothing yet
        with pytest.raises(ConfigError, match=r"r is in use by process \d+"):
            run(output=str(tmp_path / "r"), **options)
        assert (tmp_path / "r" / "client.lock").is_file()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").touch()  # what a run leaves that is killed in this moment
    assert run(output=str(tmp_path / "r"), **options).summary.steps == 1
