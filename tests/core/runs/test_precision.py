"""What a device computes in, and what a GPU may round."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from splitlab.core import ConfigError
from splitlab.core.runs.precision import autocast, products

CPU = torch.device("cpu")


def test_autocast_is_of_bf16_alone() -> None:
    assert autocast("fp32", CPU) is autocast("tf32", CPU) is None
    assert autocast("bf16", CPU) is torch.bfloat16


def test_a_device_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ConfigError, match=r"bf16 cannot be used on cuda:1.*fp32 or tf32"):
        autocast("bf16", torch.device("cuda:1"))


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_float32_products_round_with_tf32_alone_and_as_before_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = switches()
    for precision, allowed in (("tf32", True), ("fp32", False), ("bf16", False)):
        with products(precision):
            assert switches() == (allowed, allowed)
        assert switches() == before
    with pytest.raises(KeyError), products("tf32"):
        raise KeyError
    assert switches() == before


def test_without_a_gpu_nothing_is_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = switches()
    with products("tf32"):
        assert switches() == before


@pytest.mark.gpu
def test_on_a_gpu_fp32_multiplies_in_float32_though_tf32_was_allowed() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=draws, dtype=torch.float64).cuda()
    with products("tf32"), products("fp32"):
        wrong = (a.float() @ b.float() - a @ b).abs().max()
    assert wrong < 2**-24 * 256 * float(a.abs().max() * b.abs().max())
