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
    on_gpu = device.type == "cuda"
    derived = derive_seed(seed, *purpose)
    with torch.random.fork_rng([device] if on_gpu else []):
        # Not torch.manual_seed: that reseeds every GPU, also those whose state is not put back.
        torch.default_generator.manual_seed(derived)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(derived)
        yield
