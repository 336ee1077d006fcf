"""From a configuration to a peer: what is decided, and what both peers must agree on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from splitlab.core import Config, ConfigError
from splitlab.core.run.config import DEFAULT_DATASET
from splitlab.core.run.plan import choose_device, resolve
from splitlab.core.run.workers import build_client, build_server, limited_threads

CPU = torch.device("cpu")
SMALL = Config(image_size=8, batch_size=6, cut=1, threads=1, seed=3, weights="none")


def agreement(**changes: Any) -> dict[str, str]:
    classes = changes.pop("classes", 4)
    return build_client(resolve(dataclasses.replace(SMALL, **changes)), classes, CPU).agreement


def test_resolving_decides_everything_but_what_needs_data() -> None:
    config = resolve(Config())
    assert (config.dataset, config.image_size, config.cut) == (DEFAULT_DATASET, 28, 3)
    assert config.threads
    assert config.threads >= 1
    assert resolve(config) == config
    assert resolve(Config(data_dir="x")).dataset is None
    given = Config(dataset="cifar10", image_size=32, cut=0, threads=5)
    assert resolve(given) == given


def test_resolving_meets_unknown_names_first() -> None:
    with pytest.raises(ConfigError, match="unknown plugin 'nope'"):
        resolve(Config(plugins=("nope",), model="nor this"))
    with pytest.raises(ConfigError, match="unknown model 'vit-mni'"):
        resolve(Config(model="vit-mni"))


def test_both_peers_agree_and_share_no_tensor() -> None:
    config = resolve(dataclasses.replace(SMALL, plugins=("adc",)))
    client, server = build_client(config, 4, CPU), build_server(config, 4, CPU)
    assert client.agreement == server.agreement
    assert client.batch_bytes == server.batch_bytes == 4 * 6 * 5 * 64
    assert client.worker.peer.role == "client"
    assert server.worker.peer.role == "server"
    facts = dataclasses.asdict(client.worker.peer) | {"role": "server"}
    assert facts == dataclasses.asdict(server.worker.peer)
    assert not client.worker.state()[0].keys() & server.worker.state()[0].keys()


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
