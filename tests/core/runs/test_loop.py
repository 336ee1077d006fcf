"""The loop of a run: its budget, its evaluations, and going on from a checkpoint."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError, SplitlabError, run
from splitlab.core.contract.errors import Diverged, Interrupted, WorkerError
from splitlab.core.contract.transfer import pretending
from splitlab.core.runs.checkpoint import Checkpoints
from splitlab.core.runs.origin import Origin
from splitlab.core.runs.records import read_records, read_state
from splitlab.core.runs.reporter import Progress, Reporter
from splitlab.core.wire.ledger import Ledger

pytestmark = pytest.mark.usefixtures("starts_fast")


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("steps=3", 3), ("epochs=1.5", 6), ("nominal=0.2", 8), ("bytes=300kB", 5)],
)
def test_budget(real: Any, budget: str, steps: int, easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_every": 100, **real.SMALL}
    result = run(
        plugins=["adc"],
        data_dir=easy_data,
        output=str(tmp_path / "r"),
        budget=budget,
        **options,
    )
    assert result.summary["steps"] == steps


def test_repeats_exactly_and_seed_matters(real: Any, easy_data: str, tmp_path: Path) -> None:
    def go(name: str, seed: int) -> list[str]:
        options = {"plugins": ["adc"], "seed": seed, "budget": "steps=3", **real.SMALL}
        run(data_dir=easy_data, output=str(tmp_path / name), **options)
        return real.losses(tmp_path / name)

    assert go("a", 1) == go("b", 1)
    assert go("a2", 1) != go("c", 2)


def test_both_evaluations_are_reported_where_a_plugin_acts(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    plugin = str(Path(__file__).parents[3] / "examples/half_precision.py:HalfPrecision")
    options: dict[str, Any] = {"plugins": [plugin], "budget": "steps=2", **real.SMALL}
    both = run(data_dir=easy_data, output=str(tmp_path / "b"), **options)
    assert "accuracy_uncompressed" in both.summary
    # Half of the activations, and all of the others: 1.5 times one evaluation.
    one = 40 * 50 * 64 * 4
    assert both.ledger.counts["evaluation"]["up"]["activation"] == one * 3 // 2
    plain = run(data_dir=easy_data, output=str(tmp_path / "u"), evaluate="uncompressed", **options)
    assert "accuracy_uncompressed" not in plain.summary
    assert plain.ledger.counts["evaluation"]["up"]["activation"] == one
    assert plain.summary["ratio_measured"] == pytest.approx(0.5, abs=0.01)


def test_a_loss_that_is_not_finite_ends_the_run(real: Any, easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {**real.SMALL, "lr": 1e6, "optimizer": "sgd", "budget": "steps=50"}
    told = r" is (nan|inf|not finite); lower --lr, or check the model$"
    with pytest.raises(SplitlabError, match=told) as caught:
        run(data_dir=easy_data, output=str(tmp_path / "r"), **options)
    logged = (record.step for record in read_records(tmp_path / "r"))
    assert str(caught.value).startswith(f"step {max(logged, default=0) + 1}: ")  # as logs count
    with pytest.raises(SplitlabError, match=r"or check the model and the stack$"):
        run(data_dir=easy_data, output=str(tmp_path / "s"), plugins=["none"], **options)


def test_a_loss_that_was_never_finite_is_not_put_down_to_the_rate(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    model = tmp_path / "nan.py"
    model.write_text(
        "from torch import nn\nfrom splitlab.core import Segments\n"
        "class Nan(nn.Flatten):\n"
        "    def forward(self, x): return super().forward(x) * float('nan')\n"
        "def made(*, classes: int): return Segments("
        "[Nan(), nn.Linear(784, classes)], channels=1, image_size=28)\n"
    )
    options = {**real.SMALL, "model": f"{model}:made"}
    with pytest.raises(Diverged, match=r"step 1: the loss is nan; check the model$"):
        run(data_dir=easy_data, output=str(tmp_path / "r"), budget="steps=2", **options)


def test_an_evaluation_that_is_not_finite_ends_the_run(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    options = {**real.SMALL, "lr": 1e6, "optimizer": "adam", "budget": "steps=1"}
    with pytest.raises(Diverged, match=r"^after step 1: evaluation batch 1: .* lower --lr"):
        run(data_dir=easy_data, output=str(tmp_path / "r"), **options)
    assert not (tmp_path / "r/summary.json").exists()
    state = read_state(tmp_path / "r")
    assert state is not None
    assert (state.state, state.step) == ("diverged", 1)
    assert "after step 1" in state.error


def test_every_step_is_charged_what_its_plugins_say(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    plugin = tmp_path / "halves.py"
    plugin.write_text(
        "from splitlab.core import hookimpl\n"
        "class Halves:\n"
        "    @hookimpl\n"
        "    def nominal_ratio(self, step):\n"
        "        return (0.5, 0.5) if step is not None and step % 2 else (1.0, 1.0)\n"
    )
    options = {"plugins": [f"{plugin}:Halves"], "budget": "steps=2", **real.SMALL}
    found = run(data_dir=easy_data, output=str(tmp_path / "r"), **options).summary
    assert found.ratio_nominal == 0.75
    assert (found.budget, found.budget_used) == ("steps=2", 2)


# Going on from a checkpoint.


def test_a_stop_before_the_first_step_makes_none(real: Any, easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": "steps=4", "output": str(tmp_path / "r"), **real.SMALL}
    with pytest.raises(Interrupted, match=r"^interrupted before step 1$"):
        run(data_dir=easy_data, should_stop=lambda: True, **options)
    assert not (tmp_path / "r").exists()
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match=r"interrupted after step 2; go on"):
        run(data_dir=easy_data, should_stop=lambda: next(asked), **options)
    with pytest.raises(Interrupted, match=r"before step 3; go on from the checkpoint of step 2"):
        run(resume=tmp_path / "r", should_stop=lambda: True)
    assert len(real.losses(tmp_path / "r")) == 2


def test_interrupted_and_resumed_equals_uninterrupted(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "plugins": ["adc"],
        "budget": "steps=9",
        "eval_every": 4,
        **real.SMALL,
    }
    whole = run(data_dir=easy_data, output=str(tmp_path / "whole"), **options)
    asked = iter([False] * 5 + [True])
    with pytest.raises(Interrupted, match=r"step 5.*--resume"):
        run(
            data_dir=easy_data,
            output=str(tmp_path / "parts"),
            should_stop=lambda: next(asked),
            **options,
        )
    resumed = run(resume=tmp_path / "parts")
    assert real.losses(tmp_path / "parts") == real.losses(tmp_path / "whole")
    for key in ("accuracy", "loss", "steps", "bytes_up", "bytes_down", "ratio_measured"):
        assert resumed.summary[key] == whole.summary[key]


@pytest.mark.parametrize(
    ("augment", "hows"),
    [
        (
            "device:scale=0.5,hflip=0.5,erase=0.3",
            [{"cache": "memory", "workers": 2}, {"cache": "gpu"}, {"cache": "none"}],
        ),
        (
            "paper",
            [
                {"cache": "memory"},
                {"cache": "memory", "workers": 2, "worker_kind": "processes"},
                {"cache": "none", "workers": 2},
            ],
        ),
    ],
)
@pytest.mark.timeout(120)
def test_neither_caches_nor_workers_decide_a_number(
    real: Any, augment: str, hows: list[dict[str, Any]], easy_data: str, tmp_path: Path
) -> None:
    options = {**real.SMALL, "data_dir": easy_data, "augment": augment, "eval_every": 4}
    run(**options, budget="steps=6", output=str(tmp_path / "plain"))
    *others, last = hows
    for number, how in enumerate(others):
        folder = tmp_path / str(number)
        run(**options, budget="steps=3", output=str(folder), **how)  # within the first epoch
        run(resume=folder, budget="steps=6", **(last if number else {}))
        # It was evaluated once more, at its end.
        told = [line for line in real.losses(folder) if '"step": 3, "acc' not in line]
        assert told == real.losses(tmp_path / "plain")


@pytest.mark.timeout(120)
def test_a_process_that_decodes_and_is_killed_ends_the_run_in_one_line(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    others = {*real.children(os.getpid())}

    class Kills(Reporter):
        def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
            for child in {*real.children(os.getpid())} - others:
                os.kill(child, signal.SIGKILL)

    how = {"cache": "none", "augment": "paper", "workers": 1, "worker_kind": "processes"}
    options = {**real.SMALL, **how, "batch_size": 8, "checkpoint_every": 1, "budget": "steps=9"}
    folder = tmp_path / "r"
    with pytest.raises(WorkerError, match="was killed by SIGKILL, out of memory") as caught:
        run(data_dir=easy_data, output=str(folder), reporter=Kills(), **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f" with: splitlab run --resume {folder}")
    state = read_state(folder)
    assert state is not None
    assert state.state == "failed"
    assert state.step >= 1
    # The way out that it names is open.
    assert run(resume=folder, budget="steps=4", worker_kind="threads").summary.steps == 4


LATE = '''
from splitlab.core import Cut, hookimpl
from splitlab.core.contract.errors import Diverged


class Late:
    """Finds at its third step that something is wrong, when the device says so."""

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        ok = cut.activations.detach().isfinite().all() & (cut.step != 2)
        cut.expect(ok, lambda: Diverged(f"{cut.when}: no"))
'''


def test_no_peer_keeps_a_step_that_diverged_and_is_told_late(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    (tmp_path / "late.py").write_text(LATE)
    options: dict[str, Any] = {"eval_every": 9, "checkpoint_every": 1, "budget": "steps=9"}
    folder, plugins = tmp_path / "r", [str(tmp_path / "late.py:Late")]
    with pretending(), pytest.raises(Diverged, match=r"^step 3: no"):
        run(data_dir=easy_data, plugins=plugins, output=str(folder), **options, **real.SMALL)
    assert Checkpoints(folder, "client").steps() == [1, 2]
    assert Checkpoints(folder, "server").steps() == [1, 2]


def test_a_server_ahead_of_its_client_goes_back(real: Any, easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": "steps=4", "eval_every": 2, **real.SMALL}
    run(data_dir=easy_data, output=str(tmp_path / "r"), **options)
    checkpoints = tmp_path / "r" / "checkpoints"
    before = real.losses(tmp_path / "r")
    # As if the peers had been killed after the server wrote step 4, before the client did.
    (checkpoints / "step-00000004" / "client.safetensors").unlink()
    resumed = run(resume=tmp_path / "r")
    assert resumed.summary["steps"] == 4
    assert real.losses(tmp_path / "r") == before
    left = sorted(str(path.relative_to(checkpoints)) for path in checkpoints.glob("*/*"))
    assert left == [
        f"step-0000000{step}/{role}.safetensors" for step in (2, 4) for role in ("client", "server")
    ]


@pytest.mark.parametrize("transport", ["inprocess", "tcp"])
def test_killed_and_resumed_equals_not_killed(
    real: Any, transport: str, easy_data: str, tmp_path: Path
) -> None:
    options = {"budget": "steps=40", "checkpoint_every": 3, "eval_every": 20}
    run(
        plugins=["adc"],
        data_dir=easy_data,
        output=str(tmp_path / "whole" / "r"),
        **real.SMALL,
        **options,
    )
    parts = tmp_path / "parts" / "r"  # its name travels too
    options |= {"transport": transport, "plugin": "adc"}
    victim = subprocess.Popen(
        real.command("run", "--quiet", *real.flags(easy_data, parts, **options))
    )
    real.wait_for_steps(parts, 8, victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    assert not (parts / "summary.json").exists()
    run(resume=parts)
    assert real.losses(parts) == real.losses(tmp_path / "whole" / "r")


def test_a_finished_run_can_be_extended(real: Any, easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_every": 3, **real.SMALL}
    run(data_dir=easy_data, output=str(tmp_path / "a"), budget="steps=6", **options)
    run(data_dir=easy_data, output=str(tmp_path / "b"), budget="steps=3", **options)
    longer = run(resume=tmp_path / "b", budget="steps=6")
    assert longer.summary["steps"] == 6
    assert run(resume=tmp_path / "b").summary["steps"] == 6  # the new budget is kept
    assert real.losses(tmp_path / "a") == real.losses(tmp_path / "b")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("role", ["client", "server"])
def test_the_command_that_is_offered_goes_on_from_an_older_checkpoint(
    real: Any, role: str, noise_data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a run"  # a name to be quoted
    options: dict[str, Any] = {**real.SMALL, "batch_size": 10, "eval_every": 2}
    run(data_dir=noise_data, output=str(folder), budget="steps=6", **options)
    before = real.losses(folder)
    flip(folder / "checkpoints" / "step-00000006" / f"{role}.safetensors")
    with pytest.raises(SplitlabError, match="is damaged") as caught:
        run(resume=folder)
    assert real.losses(folder) == before
    offered = re.search("; go on from step 4 with: (.*)$", str(caught.value))
    assert offered is not None
    words = shlex.split(offered[1])
    assert words == ["splitlab", "run", "--resume", str(folder), "--from-step", "4"]
    # Of the other peer, too, what is newer is forgotten.
    run(resume=words[3], from_step=int(words[5]))
    assert real.losses(folder) == before
    for step in (4, 6):
        flip(folder / "checkpoints" / f"step-0000000{step}" / f"{role}.safetensors")
    with pytest.raises(SplitlabError, match=r"go on from step 0 with: .* --from-step 0$"):
        run(resume=folder)
    run(resume=folder, from_step=0)
    assert real.losses(folder) == before


def test_a_step_to_go_on_from_must_be_one(real: Any, noise_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {**real.SMALL, "batch_size": 10, "eval_every": 2}
    with pytest.raises(ConfigError, match=r"--from-step 2 goes with --resume RUN"):
        run(data_dir=noise_data, output=str(tmp_path / "r"), from_step=2, **options)
    run(data_dir=noise_data, output=str(tmp_path / "r"), budget="steps=4", **options)
    with pytest.raises(ConfigError, match=r"--from-step -1 is not allowed"):
        run(resume=tmp_path / "r", from_step=-1)
    with pytest.raises(ConfigError, match=r"no checkpoint of step 3 .*\(it has: 2, 4\)$"):
        run(resume=tmp_path / "r", from_step=3)
    refused: dict[str, Any] = {"resume": tmp_path / "r", "budget": "steps=9", "from_step": 3}
    before = (tmp_path / "r/config.toml").read_bytes()
    with pytest.raises(ConfigError, match="no checkpoint of step 3"):
        run(**refused)
    assert (tmp_path / "r/config.toml").read_bytes() == before  # a refused run changes nothing
    assert not (tmp_path / "r/config.next.toml").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("progress", {}),
        ("progress", None),
        ("step", "4"),
        ("step", 3),
        ("samples", -1),
        ("seconds", float("nan")),
        ("ledger", {"training": {"up": {"header": "x"}}}),
        ("ledger", {"nowhere": {"up": {}}}),
        ("metrics_bytes", None),
        ("metrics_bytes", -5),
    ],
)
def test_odd_values_in_a_checkpoint_are_refused(
    real: Any, name: str, value: Any, noise_data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    options: dict[str, Any] = {**real.SMALL, "batch_size": 10, "eval_every": 2}
    run(data_dir=noise_data, output=str(folder), budget="steps=4", **options)
    origin = Origin.read(folder)
    kept = Checkpoints(folder, "client", {"run": origin.id, "seed": "0", "plan": origin.plans[-1]})
    tensors, values = kept.load(4)
    own = values["run"]
    (own["progress"] if name in own["progress"] else own)[name] = value
    kept.save(4, tensors, values)
    with pytest.raises(ConfigError, match=r"step-00000004.* go on from step 2 with") as caught:
        run(resume=folder)
    assert "\n" not in str(caught.value)


def test_files_of_another_run_are_refused(real: Any, noise_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {**real.SMALL, "batch_size": 10, "budget": "steps=2"}
    for name in "ab":
        run(data_dir=noise_data, output=str(tmp_path / name), **options)
    for role in ("server", "client"):
        part = f"checkpoints/step-00000002/{role}.safetensors"
        (tmp_path / "a" / part).write_bytes((tmp_path / "b" / part).read_bytes())
        with pytest.raises(SplitlabError, match=f"{role}.safetensors is of run .*, not of run"):
            run(resume=tmp_path / "a")


def test_a_log_that_cannot_be_written_ends_the_run_which_then_goes_on(
    real: Any, noise_data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**real.SMALL, "batch_size": 10, "eval_every": 2}
    run(data_dir=noise_data, output=str(tmp_path / "whole"), budget="steps=6", **options)
    folder, metrics = tmp_path / "r", tmp_path / "r" / "metrics.jsonl"
    asked = iter(range(20))

    def stop() -> bool:
        if next(asked) == 4:  # after step 4: something takes the log's place
            metrics.rename(tmp_path / "log")
            metrics.mkdir()
        return False

    told = r"metrics.jsonl is no file; move it away; go on from the checkpoint of step 2 with: "
    with pytest.raises(ConfigError, match=told):
        run(data_dir=noise_data, output=str(folder), budget="steps=6", should_stop=stop, **options)
    with pytest.raises(ConfigError, match=r"metrics.jsonl is no file; move it away$"):
        run(resume=folder)
    metrics.rmdir()
    (tmp_path / "log").rename(metrics)
    run(resume=folder)
    assert real.losses(folder) == real.losses(tmp_path / "whole")


def test_a_run_that_is_led_elsewhere_stays_in_its_folder(
    real: Any, noise_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {**real.SMALL, "batch_size": 10, "budget": "steps=2"}

    def stop() -> bool:
        os.chdir(tmp_path / "elsewhere")
        return False

    result = run(data_dir=noise_data, output="r", should_stop=stop, **options)
    assert result.folder == tmp_path / "r"
    assert (tmp_path / "r" / "summary.json").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []


FAILING_REPORT = """
from splitlab.core import hookimpl


class Fails:
    @hookimpl
    def report(self, folder):
        raise ZeroDivisionError("no picture")
"""


def test_a_probe_that_cannot_report_leaves_a_finished_run(
    real: Any, noise_data: str, tmp_path: Path
) -> None:
    (tmp_path / "fails.py").write_text(FAILING_REPORT)
    options = {**real.SMALL, "probes": [f"{tmp_path}/fails.py:Fails"], "budget": "steps=1"}
    with pytest.raises(SplitlabError, match=r"no picture .*the run is complete, its summary is in"):
        run(data_dir=noise_data, output=str(tmp_path / "r"), **options)
    state = read_state(tmp_path / "r")
    assert state is not None
    assert (state.state, state.step) == ("finished", 1)
    assert (tmp_path / "r" / "summary.json").is_file()
