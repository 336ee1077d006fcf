"""How the runs of a study are performed, by the text that the user writes.

inside                  one after the other, in this process
processes:N             N at a time, each in a process of this machine
ray:cpus=1,gpus=0.25    as tasks of a Ray cluster
"""

from __future__ import annotations

import math

from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.studies.job import Executor

__all__ = ["EXECUTORS", "executor"]

EXECUTORS = ("inside", "processes:N", "ray[:cpus=C,gpus=G]")
"""What `executor` takes."""

_MOST_PROCESSES = 1024


def executor(text: str, ray_address: str | None = None) -> Executor:
    """Return the executor that a text means.

    Args:
        text: one of `EXECUTORS`.
        ray_address: of a Ray cluster, such as ``ray://host:10001`` or ``auto``; Ray's own rule by
            default: ``$RAY_ADDRESS``, one that runs on this machine, or a new one.

    Raises:
        ConfigError: it means none, or needs a package that is not installed.
    """
    name, colon, settings = text.partition(":")
    if ray_address is not None and name != "ray":
        raise ConfigError(
            f"--ray-address {ray_address} goes with --executor ray, not {text}; drop it"
        )
    if name == "inside":
        if colon:
            raise ConfigError(f"--executor {text} is not allowed; inside takes no settings")
        from splitlab.core.studies.inside import Inside

        return Inside()
    if name == "processes":
        from splitlab.core.studies.processes import Processes

        return Processes(_number(text, settings))
    if name == "ray":
        from splitlab.core.studies.ray import Ray

        return Ray(**_shares(text, settings), address=ray_address)
    raise unknown_name("executor", text, EXECUTORS)


def _number(text: str, settings: str) -> int:
    number = int(settings) if settings.isascii() and settings.isdecimal() else 0
    if not 1 <= number <= _MOST_PROCESSES:
        raise ConfigError(
            f"--executor {text} is not allowed; write how many runs at a time, from 1 to "
            f"{_MOST_PROCESSES}, as in processes:4"
        )
    return number


def _shares(text: str, settings: str) -> dict[str, float]:
    """Return what each task takes of its node, by ``cpus`` and ``gpus``."""
    found: dict[str, float] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in ("cpus", "gpus"):
            raise unknown_name(f"setting of --executor {text}", key, ("cpus", "gpus"))
        try:
            amount = float(value)
        except ValueError:
            amount = math.nan
        whole = amount <= 1 or amount.is_integer()  # as Ray divides them
        if not 0 <= amount <= 4096 or not whole or key in found or (key, amount) == ("cpus", 0):
            raise ConfigError(
                f"--executor {text}: {setting} is not allowed; write each once, as a whole number "
                "or a share of one, as in ray:cpus=2,gpus=0.25"
            )
        found[key] = amount
    return found
