from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler, StepLRScheduler

from splitlab.core import ConfigError
from splitlab.core.engine.rate import Rate

STEPS = 40


def timms(kind: Any, **settings: Any) -> list[float]:
    """The learning rates of timm's scheduler, stepped after every update as its train.py does."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = kind(optimizer, t_in_epochs=False, warmup_prefix=True, **settings)
    found = []
    for update in range(STEPS + 3):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(num_updates=update + 1)
    return found


def ours(schedule: str, warmup: float) -> list[float]:
    rate = Rate.parse(0.3, schedule, warmup)
    return [rate.at(step, STEPS) for step in range(STEPS + 3)]


@pytest.mark.parametrize("warmup", [0, 1, 0.1, 7])
def test_the_cosine_is_timms_and_so_is_the_warmup(warmup: float) -> None:
    steps = math.ceil(warmup * STEPS) if warmup < 1 else int(warmup)
    wanted = timms(CosineLRScheduler, t_initial=STEPS - steps, warmup_t=steps)
    assert ours("cosine", warmup) == pytest.approx(wanted, rel=1e-12, abs=1e-15)
    wanted = timms(CosineLRScheduler, t_initial=STEPS - steps, warmup_t=steps, lr_min=0.03)
    assert ours("cosine:least=0.1", warmup) == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("warmup", [0, 4, 0.25])
@pytest.mark.parametrize(("every", "decay_t"), [(6, (6, 6, 6)), (0.25, (10, 9, 8))])
def test_the_steps_are_timms(warmup: float, every: float, decay_t: tuple[int, ...]) -> None:
    # A share is of what the warm-up leaves.
    steps = {0: 0, 4: 4, 0.25: 10}[warmup]
    interval = dict(zip((0, 4, 10), decay_t, strict=True))[steps]
    wanted = timms(StepLRScheduler, decay_t=interval, decay_rate=0.2, warmup_t=steps)
    assert ours(f"step:every={every},rate=0.2", warmup) == pytest.approx(wanted, rel=1e-12)


def test_a_constant_rate_is_exactly_the_one_that_was_given() -> None:
    rate = Rate.parse(0.1)
    assert {rate.at(step, None) for step in range(9)} == {0.1}
    assert not rate.varies
    assert not rate.needs_steps


@pytest.mark.parametrize(
    ("schedule", "warmup", "needs"),
    [
        ("cosine", 0, True),
        ("step", 0, True),
        ("step:every=30", 0, False),
        ("step:every=30", 0.1, True),
        ("constant", 0.1, True),
        ("constant", 100, False),
    ],
)
def test_shares_need_the_length_of_the_run(schedule: str, warmup: float, needs: bool) -> None:
    assert Rate.parse(0.1, schedule, warmup).needs_steps is needs


def test_a_share_is_not_rounded_up_for_a_float_s_error() -> None:
    rate = Rate.parse(0.1, "constant", 0.07)
    assert next(step for step in range(100) if rate.at(step, 100) == 0.1) == 7
    assert Rate.parse(0.1, "constant", 0.071).at(7, 100) < 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("cosine:least=0.1234567", 0), ("cosine:least=0.1234568", 0)),
        (("constant", 1234567), ("constant", 1234568)),
    ],
)
def test_its_text_tells_it_from_every_other(one: Any, other: Any) -> None:
    assert str(Rate.parse(0.1, *one)) != str(Rate.parse(0.1, *other))
    assert str(Rate.parse(0.1, "cosine", 3.0)) == "cosine:least=0, warm-up 3"


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("warmup", [0, 0.99, 5])
def test_the_shortest_runs_have_a_rate_too(steps: int, schedule: str, warmup: float) -> None:
    rate = Rate.parse(0.1, schedule, warmup)
    assert all(0 <= rate.at(step, steps) <= 0.1 for step in range(steps + 2))


@pytest.mark.parametrize(
    ("schedule", "warmup", "told"),
    [
        ("cosin", 0, "unknown value of --lr-schedule 'cosin' .did you mean 'cosine'"),
        ("cosine:last=0", 0, "cosine has no setting 'last'; allowed: least"),
        ("constant:x=1", 0, "constant has no setting 'x'; allowed: none"),
        ("step:rate=2", 0, "rate=2 is not allowed; from 0 to 1"),
        ("step:every=x", 0, "every=x is not allowed"),
        ("step:every=2.5", 0, "every=2.5 is not allowed; a share of the steps below 1, or 1"),
        ("cosine:least=nan", 0, "least=nan is not allowed"),
        ("cosine", 2.5, "--warmup 2.5 is not allowed"),
        ("cosine", -1, "--warmup -1 is not allowed"),
        ("cosine", math.nan, "--warmup nan is not allowed"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: str, warmup: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Rate.parse(0.1, schedule, warmup)


@pytest.mark.parametrize(
    ("schedule", "brief"),
    [
        ("constant", "constant"),
        ("cosine:least=0", "cosine"),
        ("cosine:least=0.10", "cosine:least=0.1"),
        ("step:rate=0.2,every=5", "step:every=5,rate=0.2"),
        ("step:rate=0.1", "step"),
    ],
)
def test_schedules_that_mean_the_same_are_one(schedule: str, brief: str) -> None:
    assert Rate.parse(0.1, schedule).brief == brief
