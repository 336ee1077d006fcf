"""Packing codes into few bits, beside copying them: bytes of codes per second on one thread.

Run with ``pytest -o addopts= --benchmark-only -s benchmarks/bench_bits.py``. The codes are those
of a DeiT-T batch of 128, as one tensor of uint8. The best of some rounds counts, so that whatever
else the machine does in between is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from splitlab.plugins.common.bits import pack, uniform_codes, uniform_values, unpack

COUNT = 128 * 197 * 192
LEAST_SPEED = 1e9  # codes of one byte per second
ROUNDS = 30


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_codes(bits: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(2**bits, (COUNT,), generator=draw, dtype=torch.uint8)


def copying_speed(tensor: torch.Tensor) -> float:
    target = torch.empty_like(tensor)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        target.copy_(tensor)
        best = min(best, time.perf_counter() - start)
    return tensor.numel() / best


def speed(benchmark: Any, what: str, function: Callable[[], Any], copied: torch.Tensor) -> float:
    """Return codes per second; prints them beside a copy of the tensor."""
    benchmark.pedantic(function, rounds=ROUNDS, warmup_rounds=2)
    found = COUNT / float(benchmark.stats.stats.min)
    memcpy = copying_speed(copied)
    benchmark.extra_info |= {"codes_per_s": found, "copied_per_s": memcpy}
    print(f"\n{what}: {found / 1e9:.2f} G codes/s, copying them: {memcpy / 1e9:.2f} G codes/s")
    return found


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_packing(benchmark: Any, bits: int) -> None:
    codes = make_codes(bits)
    found = speed(benchmark, f"pack {bits} bits", lambda: pack(codes, bits), codes)
    assert found >= LEAST_SPEED


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_unpacking(benchmark: Any, bits: int) -> None:
    codes = make_codes(bits)
    packed = pack(codes, bits)
    found = speed(benchmark, f"unpack {bits} bits", lambda: unpack(packed, bits, COUNT), codes)
    assert found >= LEAST_SPEED


@pytest.mark.parametrize("bits", [3, 5, 6, 7, 12, 16, 17])
def test_other_widths(benchmark: Any, bits: int) -> None:
    codes = make_codes(min(bits, 8)).to(torch.uint8 if bits < 8 else torch.int32)

    def there_and_back() -> None:
        unpack(pack(codes, bits), bits, COUNT)

    # Both ways in one: a quarter of the speed of the common widths is asked for, an eighth beyond
    # 8 bits.
    least = LEAST_SPEED / (8 if bits < 8 else 32)
    assert speed(benchmark, f"pack and unpack {bits} bits", there_and_back, codes) >= least


def test_uniform_levels(benchmark: Any) -> None:
    values = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    low, high = values.aminmax()

    def there_and_back() -> None:
        uniform_values(uniform_codes(values, low, high, 16), low, high, 16)

    assert speed(benchmark, "uniform codes and values", there_and_back, values) >= LEAST_SPEED / 8
