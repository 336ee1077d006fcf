"""From a configuration to a peer: what is decided, and what both peers must agree on."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import numpy as np
import pytest
import torch

from splitlab.core import Config, ConfigError
from splitlab.core.run.config import DEFAULT_DATASET
from splitlab.core.run.plan import Plan, choose_device, make, make_for_server, settled
from splitlab.core.run.workers import build_client, build_server, limited_threads

CPU = torch.device("cpu")
SMALL = Config(image_size=8, batch_size=6, cut=1, threads=1, seed=3, weights="none", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of IDX files: 20 training and 8 test images of 4 classes."""
    folder = tmp_path_factory.mktemp("idx")
    draws = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 8)):
        labels = np.arange(count, dtype=np.uint8) % 4
        images = draws.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{what}-ubyte").write_bytes(head + array.tobytes())
    return str(folder)


def agreement(**changes: Any) -> dict[str, str]:
    classes = changes.pop("classes", 4)
    plan, _ = make_for_server(dataclasses.replace(SMALL, **changes), classes, peers_here=1)
    return dict(plan.agreement)


def test_settling_decides_everything_but_what_needs_data() -> None:
    config, facts = settled(Config())
    assert (config.dataset, config.image_size, config.cut) == (DEFAULT_DATASET, 28, 3)
    assert (facts.image_size, facts.cut) == (28, 3)
    assert config.threads
    assert config.threads >= 1
    assert settled(config)[0] == config
    assert settled(Config(data_dir="x"))[0].dataset is None
    given = Config(dataset="cifar10", image_size=32, cut=0, threads=5)
    assert settled(given)[0] == given


def test_settling_meets_unknown_names_first() -> None:
    with pytest.raises(ConfigError, match="unknown plugin 'nope'"):
        settled(Config(plugins=("nope",), model="nor this"))
    with pytest.raises(ConfigError, match="unknown model 'vit-mni'"):
        settled(Config(model="vit-mni"))


def test_both_peers_agree_and_share_no_tensor(folder: str) -> None:
    config = dataclasses.replace(SMALL, plugins=("adc",), data_dir=folder)
    plan, model, _ = make(config)
    served, served_model = make_for_server(config, 4, peers_here=1)
    client, server = build_client(plan, model), build_server(served, served_model)
    assert plan.agreement == served.agreement
    assert plan.batch_bytes == served.batch_bytes == 4 * 6 * 5 * 64
    assert client.peer.role == "client"
    assert server.peer.role == "server"
    assert_same_facts(client.peer, server.peer)
    # In one process both parts come from one model, and still each has memory of its own.
    beside = build_server(plan, model)
    assert not client.state()[0].keys() & beside.state()[0].keys()
    for own in client.state()[0].values():
        for other in beside.state()[0].values():
            assert own.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()


def assert_same_facts(client: Any, server: Any) -> None:
    """Both peers know the same but for their role; ``unable`` is a method of each one's part."""
    facts = [
        {spec.name: getattr(peer, spec.name) for spec in dataclasses.fields(peer)}
        for peer in (client, server)
    ]
    for known in facts:
        known.pop("role")
        known.pop("unable", None)
    assert facts[0] == facts[1]


def test_a_plan_knows_the_run_before_its_first_step(folder: str) -> None:
    config = dataclasses.replace(SMALL, data_dir=folder, budget="epochs=1.5")
    plan = Plan.of(config)
    assert (plan.data.classes, plan.data.train, plan.data.test) == (4, 20, 8)
    assert plan.steps_per_epoch == plan.eval_every == plan.checkpoint_every == 4
    assert (plan.config.eval_every, plan.config.checkpoint_every) == (4, 4)
    assert plan.nominal == (1, 1)
    assert plan.step_bytes == (plan.batch_bytes, plan.batch_bytes)
    assert (plan.cut, plan.threads, plan.device) == (1, 1, CPU)
    half = dataclasses.replace(config, plugins=("adc:ratio=0.5",), eval_every=3)
    halved = Plan.of(half)
    assert (halved.eval_every, halved.checkpoint_every) == (3, 3)
    assert sum(halved.nominal) / 2 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("steps=7", 7), ("epochs=1.5", 6), ("nominal=1.0", 4), ("bytes=100kB", 7)],
)
def test_how_many_steps_are_expected(folder: str, budget: str, steps: int) -> None:
    # A full batch is 7,680 bytes each way; 20 images are 3.33 full batches.
    plan = Plan.of(dataclasses.replace(SMALL, data_dir=folder, budget=budget))
    assert plan.expected_steps == steps


def test_the_server_knows_of_the_data_how_many_classes_there_are() -> None:
    plan, _ = make_for_server(SMALL, 4, peers_here=1)
    assert (plan.data.name, plan.data.classes, plan.data.train, plan.data.test) == ("", 4, 0, 0)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("stack", {"plugins": ("adc:ratio=0.5",)}),
        ("image size", {"image_size": 12}),
        ("cut", {"cut": 2}),
        ("classes", {"classes": 5}),
        ("batch size", {"batch_size": 7}),
        ("optimizer", {"optimizer": "sgd"}),
        ("optimizer", {"lr": 1e-3}),
        ("optimizer", {"weight_decay": 1e-3}),
        ("seed", {"seed": 4}),
        ("weights", {"weights": "default", "image_size": 28}),
    ],
)
def test_whatever_changes_the_numbers_changes_the_agreement(key: str, changes: Any) -> None:
    base = agreement(image_size=28) if "weights" in changes else agreement()
    changed = agreement(**changes)
    assert base.keys() == changed.keys()
    assert base[key] != changed[key]


def test_what_leaves_the_numbers_alone_leaves_the_agreement_alone() -> None:
    assert agreement() == agreement(timeout=5.0, workers=2, budget="steps=3", eval_every=1)
    assert agreement(plugins=("adc",)) == agreement(plugins=("adc:ratio=0.10",))


def test_the_order_of_the_stack_is_agreed_on() -> None:
    one, two = "evit:ratio=0.5", "adc-token-select"
    assert agreement(plugins=(one, two))["stack"] != agreement(plugins=(two, one))["stack"]
    assert agreement()["stack"] == "none"


def test_devices_that_cannot_compute_are_refused() -> None:
    assert choose_device("cpu", "client", peers_here=1) == CPU
    for name in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(ConfigError, match=f"--device {name} cannot be used here: "):
            choose_device(name, "client", peers_here=1)


@pytest.mark.parametrize(
    ("gpus", "role", "peers", "rank", "device"),
    [
        (0, "server", 2, None, "cpu"),
        (1, "client", 2, None, "cuda:0"),
        (1, "server", 2, None, "cuda:0"),
        (2, "client", 2, None, "cuda:0"),
        (2, "server", 2, None, "cuda:1"),
        (2, "server", 1, None, "cuda:0"),
        (4, "server", 1, "3", "cuda:3"),
        (4, "client", 1, "5", "cuda:1"),
    ],
)
def test_gpus_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, gpus: int, role: Any, peers: int, rank: str | None, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device("auto", role, peers_here=peers) == torch.device(device)


def _fail_with_threads(count: int) -> None:
    with limited_threads(count):
        assert torch.get_num_threads() == count
        raise KeyError


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError):
        _fail_with_threads(before + 1)
    assert torch.get_num_threads() == before
