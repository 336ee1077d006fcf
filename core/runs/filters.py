"""Which records of runs are meant, and in which order: ``accuracy>0.8``, ``tag=x``, ``-steps``.

A key is one of the record, or an option as it is typed (``batch-size``, ``tag``). Text is compared
as it is, but for spaces; ``~`` finds a part of it, in whatever case. What is not known of a run is
``none``, and neither more nor less than anything.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.runs.config import Config, flag

__all__ = ["Filter", "in_order"]

_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_FORM = re.compile(r"\s*([\w-]+)\s*(!=|>=|<=|=|>|<|~)\s*(.*?)\s*", re.DOTALL)

T = TypeVar("T")


@dataclass(frozen=True)
class Filter:
    """One condition on a record.

    Attributes:
        key: of the record.
        sign: ``=``, ``!=``, ``>``, ``<``, ``>=``, ``<=`` or ``~``.
        value: as it was typed.
    """

    key: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str, known: Collection[str]) -> Filter:
        """Read ``KEY=VALUE`` or the same with another sign.

        Raises:
            ConfigError: it is nothing like that, or the key is not known.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"--filter {text!r} is not allowed; write KEY=VALUE, or !=, >, <, >=, <=, or ~ for "
                "a part of the value, as in 'accuracy>0.8'"
            )
        return cls(_key(found[1], known, "--filter"), found[2], found[3])

    def keeps(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record meets the condition.

        Raises:
            ConfigError: a number is compared with what is none.
        """
        have = record[self.key]
        if self.key == "tags":
            return self._of_tags([tag for tag in have.split(",") if tag])
        if self.sign == "~":
            return have is not None and self.value.lower() in str(have).lower()
        if self.sign in ("=", "!="):
            return self._is(have) == (self.sign == "=")
        if have is None:
            return False
        return _ORDERS[self.sign](have, self.value if isinstance(have, str) else self._number())

    def _of_tags(self, tags: list[str]) -> bool:
        if self.sign == "~":
            return any(self.value.lower() in tag.lower() for tag in tags)
        if self.sign not in ("=", "!="):
            raise ConfigError(f"--filter tag{self.sign}{self.value}: write tag=, tag!= or tag~")
        has = self.value in tags or (not tags and self.value == "none")
        return has == (self.sign == "=")

    def _is(self, have: Any) -> bool:
        if have is None or isinstance(have, bool):
            return str(have).lower() == self.value.lower()
        if isinstance(have, str):
            return have.replace(" ", "") == self.value.replace(" ", "")
        return self.value.lower() != "none" and bool(have == self._number())

    def _number(self) -> float:
        try:
            return float(self.value)
        except ValueError:
            raise ConfigError(
                f"--filter {self.key}{self.sign}{self.value}: {self.key} is a number; write "
                f"one, as in {self.key}{self.sign}1"
            ) from None


def in_order(
    items: Iterable[T],
    record: Callable[[T], Mapping[str, Any]],
    key: str,
    known: Collection[str],
) -> list[T]:
    """Return items sorted by ``KEY`` of their records, or by ``-KEY`` falling.

    Those that have no such value, or none that is finite, come last; equal ones stay in their
    order.

    Raises:
        ConfigError: the key is not known.
    """
    name = _key(key.removeprefix("-"), known, "--sort")
    pairs = [(item, record(item)[name]) for item in items]
    without = [item for item, value in pairs if not _comparable(value)]
    those = [(item, value) for item, value in pairs if _comparable(value)]
    those.sort(key=lambda pair: pair[1], reverse=key.startswith("-"))
    return [item for item, _ in those] + without


def _comparable(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _key(typed: str, known: Collection[str], option: str) -> str:
    """Return the record's key for a key as it is typed: of options, ``plugin`` is ``plugins``."""
    options = {flag(name).lstrip("-"): name for name in Config.__dataclass_fields__}
    name = options.get(typed, typed.replace("-", "_"))
    if name not in known:
        raise unknown_name(f"key of {option}", typed, known)
    return name
