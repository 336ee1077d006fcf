from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import ConfigError
from splitlab.core.runs.device import choose_device

CPU = torch.device("cpu")


def test_devices_that_cannot_compute_are_refused() -> None:
    assert choose_device("cpu", "client", peers_here=1) == CPU
    for name in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(ConfigError, match=f"--device {name} cannot be used here: ") as refusal:
            choose_device(name, "client", peers_here=1)
        assert "; these can: auto, cpu" in str(refusal.value)


def test_a_refused_device_is_told_without_a_list_of_backends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def zeros(*sizes: int, **options: object) -> torch.Tensor:
        raise RuntimeError("Could not run 'x' with arguments from the 'MPS' backend. This could …")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(ConfigError, match=r"'MPS' backend; these can: auto, cpu, cuda:0, cuda:1$"):
        choose_device("mps", "client", peers_here=1)


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
    if gpus:  # a GPU, whichever
        assert choose_device("cuda", role, peers_here=peers) == torch.device(device)
