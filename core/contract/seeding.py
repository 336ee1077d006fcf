"""One seed for everything: every random draw has its own generator, derived from seed and purpose.

No draw depends on global random state or on how many draws came before it, so a resumed run draws
what the uninterrupted run would have drawn, and two peers draw alike without talking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "generator", "isolated_rng"]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on the run's seed and on nothing but the purpose."""
    text = "\x1f".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose, e.g. ``generator(seed, "kmeans", step)``."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


@contextmanager
def isolated_rng(seed: int, *purpose: str | int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and put their state back afterwards.

    For code that draws from global state by itself: timm's weight initialization and its dropout.
    """
    # Neither torch.manual_seed, which reseeds every GPU, nor torch.random.fork_rng, which takes
    # longer than many a hook that is called in here.
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    before = [each.get_state() for each in generators]
    derived = derive_seed(seed, *purpose)
    for each in generators:
        each.manual_seed(derived)
    try:
        yield
    finally:
        for each, state in zip(generators, before, strict=True):
            each.set_state(state)
