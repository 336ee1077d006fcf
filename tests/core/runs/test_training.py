"""The options about training: what is refused, what both peers agree on, and that runs go on."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest
import torch

from splitlab.core import Config, ConfigError, Interrupted, ProtocolError, run
from splitlab.core.models.compiled import Compiled
from splitlab.core.runs.checkpoint import plan_mark
from splitlab.core.runs.plan import Decided, Plan, make, make_for_server
from splitlab.core.runs.reporter import Reporter
from splitlab.core.runs.serve import serve
from splitlab.core.runs.workers import build_client, build_server
from splitlab.core.session.protocol import compare

pytestmark = pytest.mark.usefixtures("starts_fast")

SMALL = Config(image_size=8, batch_size=6, cut=1, threads=1, seed=3, weights="none", device="cpu")

# All at once; 7 steps end in the middle of an accumulation.
EVERYTHING: dict[str, Any] = {
    "lr_schedule": "cosine:least=0.1",
    "warmup": 0.2,
    "clip_norm": 0.5,
    "accumulate": 3,
    "ema": 0.6,
    "label_smoothing": 0.1,
    "drop_path": 0.3,
    "mixup": 0.4,
    "train": ("blocks", "last"),
    "augment": "timm:rand-m9-mstd0.5-inc1",
    "precision": "bf16",
}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"clip_norm": 0.0}, "--clip-norm 0.0 is not allowed; from 1e-09"),
        ({"accumulate": 0}, "--accumulate 0 is not allowed; from 1"),
        ({"ema": 1.0}, "--ema 1.0 is not allowed"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0 is not allowed"),
        ({"drop_path": -0.1}, "--drop-path -0.1 is not allowed"),
        ({"mixup": -1.0}, "--mixup -1.0 is not allowed"),
        ({"lr_schedule": "linear"}, "unknown value of --lr-schedule 'linear'"),
        ({"precision": "fp16"}, "unknown value of --precision 'fp16'.*known: bf16, fp32, tf32"),
        ({"warmup": 1.5}, "--warmup 1.5 is not allowed"),
        ({"train": ("all", "head")}, "--train all and --train with other names exclude each other"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Config(**options)


def test_peers_agree_on_what_is_not_as_always_and_only_on_that() -> None:
    plain = SMALL.agreed()
    assert plain == replace(SMALL, train=("all",)).agreed() == {}
    assert replace(SMALL, augment="paper", mixup=0.4).agreed() == {}  # the client's own
    assert replace(SMALL, train=("last", "last")).agreed() == {"train": "last"}
    names = {"lr schedule", "clip norm", "accumulate", "ema", "label smoothing", "drop path"}
    agreed = replace(SMALL, **EVERYTHING).agreed()
    assert agreed.keys() == names | {"train", "precision"}
    assert agreed["lr schedule"] == "cosine:least=0.1, warm-up 0.2"


def agreement(**options: Any) -> dict[str, str]:
    plan, _ = make_for_server(Decided.of(replace(SMALL, **options)), 4, peers_here=1)
    return dict(plan.agreement)


@pytest.mark.parametrize(
    "options",
    [
        *({"ema": 0.5}, {"warmup": 3}, {"train": ("last",)}, {"drop_path": 0.1}, {"accumulate": 2}),
        *({"precision": "tf32"}, {"precision": "bf16"}),
    ],
)
def test_checkpoints_of_another_training_are_of_another_plan(options: dict[str, Any]) -> None:
    assert plan_mark(agreement(**options)) != plan_mark(agreement())


# The length of the run.


def test_both_peers_know_the_run_s_steps_where_the_rate_follows_them(noise_data: str) -> None:
    config = replace(SMALL, data_dir=noise_data, budget="epochs=2.5", lr_schedule="cosine")
    plan, model, _ = make(Decided.of(config))
    served, _ = make_for_server(Decided.of(config), 4, peers_here=1, samples=20)
    assert plan.schedule == served.schedule
    assert plan.schedule is not None
    assert plan.schedule.steps == plan.expected_steps == 10
    assert build_client(plan, model).peer.schedule == build_server(served, model).peer.schedule
    constant = Plan.of(replace(config, lr_schedule="constant", warmup=3)).schedule
    assert constant is not None
    assert constant.steps is None  # so that handshakes are as they were


@pytest.mark.parametrize("options", [{"lr_schedule": "cosine"}, {"warmup": 0.1}])
def test_a_length_that_nobody_can_foresee_is_refused(
    noise_data: str, options: dict[str, Any]
) -> None:
    unforeseen = replace(SMALL, data_dir=noise_data, plugins=("zstd",), budget="bytes=1MB")
    with pytest.raises(ConfigError, match=r"needs --budget steps=…, .* foresee it of .* bytes=1MB"):
        Plan.of(replace(unforeseen, **options))
    Plan.of(replace(unforeseen, lr_schedule="step:every=5", warmup=2))
    # It charges every step for what it was.
    by_step = replace(unforeseen, plugins=("sl-acc",), budget="nominal=1.0", **options)
    with pytest.raises(ConfigError, match=r"needs --budget steps=… or epochs=… with .* a constant"):
        Plan.of(by_step)
    Plan.of(replace(by_step, budget="epochs=1"))


def test_the_length_is_foreseen_where_a_plugin_s_setting_follows_it(noise_data: str) -> None:
    config = replace(
        SMALL, data_dir=noise_data, plugins=("quantize:bits=8..2",), budget="nominal=1"
    )
    schedule = Plan.of(config).schedule
    assert schedule is not None
    assert schedule.steps == Plan.of(replace(config, plugins=("quantize:bits=5",))).expected_steps
    with pytest.raises(
        ConfigError, match=r"\(quantize:bits=8..2\) needs .* give one value for each"
    ):
        Plan.of(replace(config, budget="bytes=1MB"))
    with pytest.raises(ConfigError, match="one value for each setting and a constant rate"):
        Plan.of(replace(config, budget="bytes=1MB", lr_schedule="cosine"))
    few = replace(config, plugins=("quantize:bits=8..4..2",), budget="steps=2")
    with pytest.raises(ConfigError, match=r"8..4..2 has 3 values, .* steps=2 2 steps; give more"):
        Plan.of(few)


# Whole runs.


def test_a_setting_changes_in_mid_run(real: Any, easy_data: str, tmp_path: Path) -> None:
    options = {**real.SMALL, "data_dir": easy_data, "budget": "steps=6"}
    steps: dict[str, list[tuple[float, int]]] = {}
    for stack in ("quantize:bits=4", "quantize:bits=4..4", "quantize:bits=4..8"):
        folder = tmp_path / stack
        run(output=str(folder), plugins=[stack], **options)
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        steps[stack] = [(r["loss"], r["bytes_up"]) for r in records if r["kind"] == "train"]
    stays, same, changes = steps.values()
    assert same == stays
    assert changes[:3] == stays[:3]
    assert all(
        wide[1] > 1.5 * narrow[1] for wide, narrow in zip(changes[3:], stays[3:], strict=True)
    )


@pytest.mark.parametrize("transport", ["inprocess", "tcp"])
@pytest.mark.parametrize("stop", [4, 5])
def test_interrupted_in_an_accumulation_and_resumed_equals_uninterrupted(
    real: Any, easy_data: str, tmp_path: Path, transport: str, stop: int
) -> None:
    options = {**real.SMALL, **EVERYTHING, "budget": "steps=7", "eval_every": 2}
    options |= {"plugins": ["adc:ratio=0.5..0.3", "quantize:bits=4..8..6"], "data_dir": easy_data}
    run(output=str(tmp_path / "whole" / "r"), **options)
    asked = iter([False] * stop + [True])
    with pytest.raises(Interrupted, match=rf"step {stop}.*--resume"):
        run(
            output=str(tmp_path / "parts" / "r"),
            should_stop=lambda: next(asked),
            transport=transport,
            **options,
        )
    run(resume=tmp_path / "parts" / "r")
    assert real.losses(tmp_path / "parts" / "r") == real.losses(tmp_path / "whole" / "r")


def test_where_settings_change_a_larger_budget_is_in_steps_or_epochs(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    options = {**real.SMALL, "data_dir": easy_data, "plugins": ["quantize:bits=8..4"]}
    run(output=str(tmp_path / "r"), budget="nominal=0.1", **options)
    with pytest.raises(ConfigError, match=r"bits=8..4 changes in mid-run.* go on with nominal=0.1"):
        run(resume=tmp_path / "r", budget="nominal=0.2")
    run(output=str(tmp_path / "s"), budget="steps=4", **options)
    assert run(resume=tmp_path / "s", budget="steps=6").summary.steps == 6


def test_a_server_elsewhere_hears_the_length_of_the_run_in_the_handshake(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    how = {"lr_schedule": "cosine", "warmup": 0.3, "accumulate": 2, "label_smoothing": 0.1}
    how |= {"plugins": ("quantize:bits=4..8..3",)}
    options = {**real.SMALL, **how, "data_dir": easy_data, "budget": "steps=6"}
    run(output=str(tmp_path / "here"), **options)
    said: Queue[str] = Queue()
    decided = Decided.of(Config(**real.SMALL, **how, transport="tcp"))
    arguments: dict[str, Any] = {"say": said.put, "output": str(tmp_path / "server"), "wait": 60.0}
    server = Thread(target=serve, args=(decided, 4), kwargs=arguments)
    server.start()
    address = said.get(timeout=60).split()[-1]
    run(connect=address, transport="tcp", output=str(tmp_path / "there"), **options)
    server.join(60)
    assert "served 6 steps" in said.get(timeout=60)
    assert real.losses(tmp_path / "there") == real.losses(tmp_path / "here")


def test_killed_over_tcp_and_resumed_equals_not_killed(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    chosen = {"lr_schedule": "cosine", "warmup": 0.1, "accumulate": 2, "ema": 0.9}
    ends = {"budget": "steps=40", "checkpoint_every": 3, "eval_every": 20}
    run(data_dir=easy_data, output=str(tmp_path / "whole" / "r"), **real.SMALL, **chosen, **ends)
    parts = tmp_path / "parts" / "r"
    flags = real.flags(easy_data, parts, transport="tcp", **chosen, **ends)
    victim = subprocess.Popen(real.command("run", "--quiet", *flags))
    real.wait_for_steps(parts, 8, victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    assert not (parts / "summary.json").exists()
    run(resume=parts)
    assert real.losses(parts) == real.losses(tmp_path / "whole" / "r")


def test_a_run_that_is_extended_in_an_accumulation_equals_the_longer_one(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    options = {**real.SMALL, "data_dir": easy_data, "eval_every": 4, "accumulate": 3, "ema": 0.5}
    run(output=str(tmp_path / "a"), budget="steps=8", **options)
    run(output=str(tmp_path / "b"), budget="steps=4", **options)
    run(resume=tmp_path / "b", budget="steps=8")
    assert real.losses(tmp_path / "a") == real.losses(tmp_path / "b")


@pytest.mark.parametrize("train", ["last", "patch_embed"])
def test_what_is_frozen_stays_though_the_rest_is_trained(
    real: Any, easy_data: str, tmp_path: Path, train: str
) -> None:
    config = Config(**real.SMALL, data_dir=easy_data, train=(train,), cut=2)
    plan, model, data = make(Decided.of(config))
    client, server = build_client(plan, model), build_server(plan, model)
    before = {k: v.clone() for w in (client, server) for k, v in w.state()[0].items()}
    conversation = client.train(next(iter(data.train.batches(32))), 0)
    with pytest.raises(StopIteration):
        conversation.send(server.handle(next(conversation)))
    after = {k: v for w in (client, server) for k, v in w.state()[0].items() if k in before}
    changed = {k for k, v in after.items() if '"model"' in k and not torch.equal(v, before[k])}
    trained = "head." if train == "last" else "patch_embed."
    assert changed
    assert all(trained in name for name in changed)


def test_a_run_of_compiled_parts_says_so_and_ends_with_the_same_losses(
    real: Any, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = partial(Compiled, backend="eager")  # traced, and run by the same kernels
    monkeypatch.setattr("splitlab.core.models.segments.Compiled", eager)

    class Notes(Reporter):
        said: list[str] = []  # noqa: RUF012

        def starting(self, what: str) -> None:
            self.said.append(what)

    options = {**real.SMALL, "data_dir": easy_data, "budget": "steps=3", "plugins": ["adc"]}
    run(output=str(tmp_path / "plain"), **options)
    run(output=str(tmp_path / "compiled"), compile="default", reporter=Notes(), **options)
    assert real.losses(tmp_path / "compiled") == real.losses(tmp_path / "plain")
    assert "compiling the parts in the first steps, which takes long" in Notes.said
    with pytest.raises(ConfigError, match=r"overhead overwrites the gradients that --accumulate 2"):
        Config(compile="reduce-overhead", accumulate=2)


@pytest.mark.parametrize("plugins", [[], ["adc"]])
def test_bf16_halves_what_activations_and_gradients_weigh_and_tf32_changes_nothing_on_a_cpu(
    real: Any, easy_data: str, tmp_path: Path, plugins: list[str]
) -> None:
    options = {**real.SMALL, "data_dir": easy_data, "budget": "steps=2", "plugins": plugins}
    found = {
        precision: run(output=str(tmp_path / precision), precision=precision, **options)
        for precision in ("fp32", "tf32", "bf16")
    }
    counts = {name: result.ledger.counts["training"] for name, result in found.items()}
    for way, kind in (("up", "activation"), ("down", "gradient")):
        assert 2 * counts["bf16"][way][kind] == counts["fp32"][way][kind]
    assert counts["bf16"]["up"]["targets"] == counts["fp32"]["up"]["targets"]
    ratios = {name: result.summary.ratio_measured for name, result in found.items()}
    assert 0.5 < ratios["bf16"] / ratios["fp32"] < 0.6  # labels, side information and headers stay
    assert found["bf16"].summary.ratio_nominal == found["fp32"].summary.ratio_nominal
    assert counts["tf32"] == counts["fp32"]
    assert real.losses(tmp_path / "tf32") == real.losses(tmp_path / "fp32")


def test_peers_of_different_precision_are_refused_in_a_line() -> None:
    with pytest.raises(ProtocolError) as caught:
        compare(agreement(precision="bf16"), agreement())
    assert "\n" not in str(caught.value)
    assert "precision: client bf16, server the default; give both" in str(caught.value)


def test_mixed_targets_are_merged_and_seen_in_the_ledger(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    options = {**real.SMALL, "data_dir": easy_data, "budget": "steps=2", "plugins": ["adc"]}
    plain = run(output=str(tmp_path / "plain"), **options)
    mixed = run(output=str(tmp_path / "mixed"), mixup=0.4, **options)
    # A class id is one byte a sample; of four classes a float each.
    before, after = (result.ledger.counts["training"]["up"] for result in (plain, mixed))
    assert after["targets"] == 4 * 4 * before["targets"]
    assert after["side"] == before["side"]
