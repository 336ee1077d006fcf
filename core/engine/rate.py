"""The learning rate of a step: a pure function of its number, so that nothing has to be saved.

Both peers compute it from what the handshake says of the run's length. The formulas are those of
timm's ``CosineLRScheduler`` and ``StepLRScheduler`` with ``warmup_prefix``, stepped every batch;
the cosine is that of transformers' ``get_cosine_schedule_with_warmup``, too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from splitlab.core.contract.errors import ConfigError, unknown_name

__all__ = ["Rate"]


def _constant(step: int, steps: int) -> float:
    return 1.0


def _cosine(step: int, steps: int, *, least: float = 0.0) -> float:
    if step >= steps:
        return least
    return least + 0.5 * (1 - least) * (1 + math.cos(math.pi * step / steps))


def _step(step: int, steps: int, *, every: float = 0.333, rate: float = 0.1) -> float:
    return float(rate ** (step // max(1, _steps(every, steps))))


_SHAPES: Mapping[str, Callable[..., float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}
"""By name, what is left of the learning rate at a step of so many after the warm-up."""

_LIMITS = {"least": (0.0, 1.0), "every": (1e-6, 1e9), "rate": (0.0, 1.0)}


def _steps(amount: float, steps: int) -> int:
    """Return an amount in steps; less than 1 is a share of these."""
    # Such as 0.07 of 100, which is more than 7 by a rounding.
    return math.ceil(round(amount * steps, 6)) if amount < 1 else int(amount)


@dataclass(frozen=True)
class Rate:
    """The learning rate of every step of a run.

    Attributes:
        lr: the highest.
        shape: ``constant``, ``cosine`` or ``step``.
        settings: of the shape, all of them.
        warmup: share of the run's steps, or steps if 1 or more, in which it rises from 0.
    """

    lr: float
    shape: str
    settings: Mapping[str, float]
    warmup: float

    @classmethod
    def parse(cls, lr: float, schedule: str = "constant", warmup: float = 0.0) -> Rate:
        """Read ``NAME[:key=value,…]``; `ConfigError` for what is unknown or outside its range."""
        shape, _, text = schedule.partition(":")
        if shape not in _SHAPES:
            raise unknown_name("value of --lr-schedule", shape, _SHAPES)
        settings = dict(inspect.getfullargspec(_SHAPES[shape]).kwonlydefaults or {})
        for pair in filter(None, text.split(",")):
            key, _, value = pair.partition("=")
            if key not in settings:
                raise ConfigError(
                    f"--lr-schedule {schedule}: {shape} has no setting {key!r}; allowed: "
                    f"{', '.join(settings) or 'none'}"
                )
            settings[key] = _number(f"--lr-schedule {schedule}: {key}", value, *_LIMITS[key])
        every = settings.get("every", 0.0)
        if not _share_or_whole(every):
            raise ConfigError(
                f"--lr-schedule {schedule}: every={every:g} is not allowed; a share of the steps "
                "below 1, or 1 or more whole steps"
            )
        if not 0 <= warmup <= 1e9 or not _share_or_whole(warmup):
            raise ConfigError(
                f"--warmup {warmup} is not allowed; a share of the steps from 0 to 1, or 1 or more "
                "whole steps"
            )
        return cls(lr, shape, settings, warmup)

    @property
    def brief(self) -> str:
        """The schedule with the settings alone that are no defaults."""
        usual = inspect.getfullargspec(_SHAPES[self.shape]).kwonlydefaults or {}
        told = [f"{key}={_shown(n)}" for key, n in self.settings.items() if n != usual[key]]
        return ":".join(filter(None, (self.shape, ",".join(told))))

    @property
    def varies(self) -> bool:
        """Whether it is another one at some steps."""
        return self.shape != "constant" or self.warmup > 0

    @property
    def needs_steps(self) -> bool:
        """Whether it follows from how many steps the run is to last."""
        shares = [self.warmup] if self.warmup else []
        shares += [self.settings["every"]] if self.shape == "step" else []
        return self.shape == "cosine" or any(share < 1 for share in shares)

    def at(self, step: int, steps: int | None) -> float:
        """Return the learning rate of a step.

        Args:
            step: its number, from 0.
            steps: how many the run is to last, where `needs_steps`; a cosine stays at its end
                after them, and others go on.
        """
        steps = steps or 0
        warmup = _steps(self.warmup, steps)
        if step < warmup:
            return step * (self.lr / warmup)
        left = max(0, steps - warmup)
        return self.lr * _SHAPES[self.shape](step - warmup, left, **self.settings)

    def __str__(self) -> str:
        settings = ",".join(f"{key}={_shown(value)}" for key, value in self.settings.items())
        shape = f"{self.shape}:{settings}" if settings else self.shape
        return f"{shape}, warm-up {_shown(self.warmup)}" if self.warmup else shape


def _share_or_whole(amount: float) -> bool:
    return amount < 1 or float(amount).is_integer()


def _shown(value: float) -> str:
    """Return a number briefly, but with all its digits: peers compare what they say."""
    return repr(float(value)).removesuffix(".0")


def _number(what: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ConfigError(f"{what}={text} is not allowed; from {low:g} to {high:g}")
    return value
