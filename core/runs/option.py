"""What a field of `Config` is made of: a default, a help text, the group that explains it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any

from splitlab.core.contract.errors import ConfigError

__all__ = ["GROUPS", "check_ranges", "flag_of", "option"]

# What a field is about: how its option is grouped where all are explained, in this order.
GROUPS = (
    "the data",
    "the model",
    "the method",
    "the training",
    "the link",
    "the run: its end, what is measured and written",
    "the machine",
)


def option(default: Any, help: str, *, group: str, **metadata: Any) -> Any:
    """Return a field; the help text and group stand beside it, and so does what else is known."""
    return field(default=default, metadata={"help": help, "group": group, **metadata})


def flag_of(config: Any, name: str) -> str:
    """Return the command-line option of a field: ``batch_size`` → ``--batch-size``."""
    spec = config.__dataclass_fields__[name]
    return str(spec.metadata.get("flag", "--" + name.replace("_", "-")))


def check_ranges(config: Any, ranges: Iterable[tuple[str, float, float]]) -> None:
    """Raise `ConfigError` for a number that is outside of its range, both ends included."""
    for name, low, high in ranges:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(
                f"{flag_of(config, name)} {value} is not allowed; from {low} to {high}"
            )
