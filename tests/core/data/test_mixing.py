from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.data import Mixup

from splitlab.core.contract.batch import Batch
from splitlab.core.data.mixing import mixup


def batch(count: int = 6) -> Batch:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 8, 8, generator=draws)
    return Batch(images, torch.randint(5, (count,), generator=draws), torch.arange(count))


def mixed(count: int = 6, *, step: int = 0, seed: int = 0) -> Batch:
    return mixup(batch(count), 0.8, classes=5, seed=seed, step=step)


def test_it_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = mixed()
    timms = Mixup(mixup_alpha=0.8, num_classes=5, label_smoothing=0.0)
    # The share that was drawn is read from the targets of a sample that was mixed with another.
    [row] = [i for i in range(3) if batch().targets[i] != batch().targets[5 - i]][:1]
    share = float(ours.targets[row, batch().targets[row]])
    monkeypatch.setattr(timms, "_params_per_batch", lambda: (share, False))
    one = batch()
    images, targets = timms(one.images.clone(), one.targets.clone())
    torch.testing.assert_close(ours.images, images)
    torch.testing.assert_close(ours.targets, targets.float().to(ours.targets))
    assert torch.equal(ours.sample_ids, one.sample_ids)


def test_targets_are_probabilities_also_of_an_odd_batch() -> None:
    odd = mixed(5)
    torch.testing.assert_close(odd.targets.sum(-1), torch.ones(5))
    assert odd.targets.dtype is torch.float32
    assert torch.equal(odd.images[2], batch(5).images[2]) or torch.allclose(
        odd.images[2], batch(5).images[2]
    )


def test_seed_and_step_alone_decide_the_draw() -> None:
    state = torch.get_rng_state()
    assert torch.equal(mixed(step=3).images, mixed(step=3).images)
    assert torch.equal(torch.get_rng_state(), state)
    draws = [mixed(step=step, seed=seed).images for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert not any(torch.equal(draws[0], other) for other in draws[1:])


def test_nothing_is_mixed_without_alpha() -> None:
    one: Any = batch()
    assert mixup(one, 0.0, classes=5, seed=0, step=0) is one
