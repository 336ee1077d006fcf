"""Checks that the constructors of methods share: shares, choices, and either-or."""

from __future__ import annotations

from collections.abc import Sequence

from splitlab.core import ConfigError

__all__ = ["DEFAULT_RATIO", "check_choice", "check_share", "either", "refusal"]

DEFAULT_RATIO = 0.1
"""ξ that a method meets if it is given neither ``ratio`` nor its own parameter."""


def refusal(name: str, value: object, allowed: str, remedy: str) -> ConfigError:
    """Return the error for a parameter's value: what was given, what is allowed, the way out."""
    return ConfigError(f"{name}={value} is refused; allowed: {allowed}; {remedy}")


def check_share(name: str, value: float) -> None:
    """Refuse what is not in (0, 1]."""
    if not 0 < value <= 1:
        raise refusal(name, value, "more than 0, at most 1", f"for example {name}={DEFAULT_RATIO}")


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse what is not among the allowed values."""
    if value not in allowed:
        raise refusal(name, value, ", ".join(map(str, allowed)), f"for example {name}={allowed[0]}")


def either(**given: object) -> None:
    """Refuse more than one of these parameters; None means: not given."""
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise refusal(
            named[1],
            given[named[1]],
            f"one of {', '.join(given)}",
            f"leave out {named[1]} or {named[0]}",
        )
