"""Seconds of every data hook, by plugin: the file to copy for a probe of your own.

    splitlab run --plugin adc --plugin quantize --probe time

After every step ``metrics.jsonl`` holds, under ``time``, the seconds that each data hook of each
plugin took in it, such as ``"adc after_client_forward"``; ``server-metrics.jsonl`` holds those of
the server. A GPU may work on after a hook has returned; what it then does is not counted.
"""

from collections import defaultdict
from collections.abc import Mapping

from splitlab.core import hookimpl

__all__ = ["Time"]


class Time:
    """Seconds of every data hook, by plugin, in every step."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)

    @hookimpl
    def plugin_ran(self, label: str, hook: str, nanoseconds: int) -> None:
        """Add up what every call took."""
        self._spent[f"{label} {hook}"] += nanoseconds / 1e9

    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        """Return the seconds since the last step, evaluations included, and begin anew."""
        spent, self._spent = self._spent, defaultdict(float)
        return spent
