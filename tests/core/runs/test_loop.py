"""The loop of a run: its budget, its evaluations, and going on from a checkpoint."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import SplitlabError, run
from splitlab.core.contract.errors import Diverged, Interrupted
from splitlab.core.runs.records import read_records, read_state


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
    with pytest.raises(
        SplitlabError, match=r"^step 1: an activation at the cut is not finite; check the model$"
    ):
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
