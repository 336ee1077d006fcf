"""From a configuration to a peer: what is decided, and what both peers must agree on."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from splitlab.core import Config, ConfigError
from splitlab.core.data.load import NORMALISATION, load_data
from splitlab.core.runs.config import DEFAULT_DATASET
from splitlab.core.runs.plan import (
    Decided,
    Plan,
    load_configured_data,
    make_for_server,
)

CPU = torch.device("cpu")
SMALL = Config(image_size=8, batch_size=6, cut=1, threads=1, seed=3, weights="none", device="cpu")


def test_everything_is_decided_but_what_needs_data() -> None:
    decided = Decided.of(Config())
    config, facts = decided.config, decided.model
    assert (config.dataset, config.image_size, config.cut) == (DEFAULT_DATASET, 28, 3)
    assert (facts.image_size, facts.cut) == (28, 3)
    assert config.threads
    assert config.threads == decided.threads >= 1
    assert Decided.of(config).config == config
    assert Decided.of(Config(data_dir="x")).config.dataset is None
    given = Config(dataset="cifar10", image_size=32, cut=0, threads=5)
    assert Decided.of(given).config == given


def test_deciding_meets_unknown_names_first() -> None:
    with pytest.raises(ConfigError, match="unknown plugin 'nope'"):
        Decided.of(Config(plugins=("nope",), model="nor this"))
    with pytest.raises(ConfigError, match="unknown model 'vit-mni'"):
        Decided.of(Config(model="vit-mni"))
    with pytest.raises(ConfigError, match=r"^link 'paced': rate=20 is not allowed"):
        Decided.of(Config(links=("rate=20",)))


def test_a_plan_takes_the_data_as_it_is_told(noise_data: str) -> None:
    plan = Plan.of(dataclasses.replace(SMALL, data_dir=noise_data, test_share=0.2))
    assert (plan.data.train, plan.data.test) == (16, 4)
    assert plan.data.notices[0].endswith("t10k is not used; --test-split t10k tests on it")
    assert (
        Plan.of(dataclasses.replace(SMALL, data_dir=noise_data, test_split="t10k")).data.test == 8
    )
    with pytest.raises(ConfigError, match="has no 'val' part"):
        Plan.of(dataclasses.replace(SMALL, data_dir=noise_data, test_split="val"))
    with pytest.raises(ConfigError, match="--label-column x: IDX files have no columns"):
        Plan.of(dataclasses.replace(SMALL, data_dir=noise_data, label_column="x"))


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224", "vit_base_patch16_clip_224"]
)
def test_weights_from_elsewhere_get_images_as_they_were_trained_on(
    name: str, noise_data: str, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.touch()  # it is not read yet
    options: dict[str, Any] = {"model": name, "data_dir": noise_data, "image_size": 32}
    made_for = timm.get_pretrained_cfg(name)
    assert made_for is not None
    for trained in ({"pretrained": True}, {"weights": str(weights)}):
        data = load_configured_data(Decided.of(Config(**options, **trained)))
        assert (data.mean, data.std) == (tuple(made_for.mean), tuple(made_for.std))
    new = load_configured_data(Decided.of(Config(**options)))
    assert (tuple(new.mean), tuple(new.std)) == NORMALISATION[3]


def test_a_plan_knows_the_run_before_its_first_step(noise_data: str) -> None:
    config = dataclasses.replace(SMALL, data_dir=noise_data, budget="epochs=1.5")
    plan = Plan.of(config)
    assert (plan.classes, plan.data.train, plan.data.test) == (4, 20, 8)
    data = load_data(None, noise_data, image_size=28, channels=1, seed=1)
    assert (plan.data.fingerprint, plan.data.notices) == (data.fingerprint, ())
    assert (plan.data.mean, plan.data.std) == NORMALISATION[1]
    assert plan.steps_per_epoch == plan.eval_every == plan.checkpoint_every == 4
    assert (plan.config.eval_every, plan.config.checkpoint_every) == (4, 4)
    assert plan.nominal == (1, 1)
    assert plan.step_bytes == (plan.batch_bytes, plan.batch_bytes)
    assert (plan.model.cut, plan.threads, plan.device) == (1, 1, CPU)
    half = dataclasses.replace(config, plugins=("adc:ratio=0.5",), eval_every=3)
    halved = Plan.of(half)
    assert (halved.eval_every, halved.checkpoint_every) == (3, 3)
    assert sum(halved.nominal) / 2 == pytest.approx(0.5)


def test_bf16_is_expected_to_send_half_but_for_codes(noise_data: str) -> None:
    config = dataclasses.replace(SMALL, data_dir=noise_data, precision="bf16")
    plan = Plan.of(config)
    assert plan.batch_bytes == Plan.of(dataclasses.replace(config, precision="fp32")).batch_bytes
    assert plan.step_bytes == (plan.batch_bytes / 2, plan.batch_bytes / 2)
    assert plan.peer("client").autocast is plan.peer("server").autocast is torch.bfloat16
    eight = Plan.of(dataclasses.replace(config, plugins=("quantize:bits=8",)))
    assert eight.step_bytes == (plan.batch_bytes / 4, plan.batch_bytes / 4)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("steps=7", 7),
        ("steps=1e300", 2**62),
        ("epochs=1e308", 4 * (2**62 // 20) + 1),
        ("epochs=1.5", 6),
        ("epochs=0.8", 3),
        ("nominal=1.0", 4),
        ("nominal=3.0", 12),
        ("bytes=100kB", 8),
        ("bytes=150kB", 12),
    ],
)
def test_how_many_steps_are_expected(noise_data: str, budget: str, steps: int) -> None:
    # A full batch is 7,680 bytes each way; 20 images are 3.33 full batches, in 4 steps.
    plan = Plan.of(dataclasses.replace(SMALL, data_dir=noise_data, budget=budget))
    assert plan.expected_steps == steps


def test_the_server_invents_nothing_that_the_client_decides() -> None:
    plan, _ = make_for_server(Decided.of(SMALL), 4, peers_here=1)
    assert plan.classes == 4
    assert (plan.config.eval_every, plan.config.checkpoint_every) == (None, None)
    for name in ("data", "budget", "eval_every", "checkpoint_every", "expected_steps"):
        assert not hasattr(plan, name)


PLUGINS = """
from splitlab.core import Keys, hookimpl

built = []


class Counted:
    def __init__(self):
        built.append(self)

    @hookimpl
    def run_end(self): ...


class Asks:
    @hookimpl
    def setup(self, peer):
        peer.request("the probe", Keys())
"""


def test_a_probe_that_asks_for_what_the_model_lacks_is_refused(
    noise_data: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(PLUGINS)
    cnn = f"{Path(__file__).parents[3]}/examples/small_cnn.py:small_cnn"
    config = dataclasses.replace(SMALL, data_dir=noise_data, probes=(f"{tmp_path}/mine.py:Asks",))
    assert Plan.of(config).probes[0].label == "Asks"
    with pytest.raises(ConfigError, match="'the probe' needs "):
        Plan.of(dataclasses.replace(config, model=cnn, image_size=28))


WIDE = """
from torch import nn
from splitlab.core import Segments


def wide(*, classes: int) -> Segments:
    segments = [nn.Flatten(), nn.Linear(64, classes), nn.Linear(classes, classes)]
    return Segments(segments, channels=1, image_size=8)
"""


def test_a_model_whose_cut_depends_on_the_classes_is_refused(
    noise_data: str, tmp_path: Path
) -> None:
    (tmp_path / "wide.py").write_text(WIDE)
    config = dataclasses.replace(SMALL, data_dir=noise_data, model=f"{tmp_path}/wide.py:wide")
    assert Plan.of(dataclasses.replace(config, cut=0)).model.layout.width == 64
    with pytest.raises(ConfigError, match=r"makes 1 tokens × \d+ at cut 1 with \d+ classes, and 1"):
        Plan.of(dataclasses.replace(config, cut=1))


def test_a_stack_is_built_once_for_a_plan(noise_data: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGINS)
    config = dataclasses.replace(
        SMALL, data_dir=noise_data, plugins=(f"{tmp_path}/mine.py:Counted",)
    )
    plan = Plan.of(config)
    built = inspect.getmodule(plan.stack[0].factory).built  # type: ignore[union-attr]
    assert len(built) == 1


@pytest.mark.parametrize(
    ("said", "threads"), [("3", 3), (" 2,1", 2), ("", None), ("0", None), ("x", None), ("-1", None)]
)
def test_threads_are_those_of_omp_unless_given(
    said: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = Decided.of(Config()).threads
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert Decided.of(Config()).threads == (threads or cores)
    assert Decided.of(Config(threads=5)).threads == 5
