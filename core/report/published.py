"""Curves that others published, to be drawn beside ours: a CSV file that a study names.

Its columns: ``source`` (a citation), ``method`` (as rows are called), ``ratio`` (share of the
uncompressed bytes that the source charges) and ``accuracy``, both 0 to 1. Every other column is an
option of `splitlab run` with the value that the source had, such as ``dataset`` and ``budget``: a
curve is shown beside runs that have all of these in common, and beside no others.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitlab.core.contract.errors import ConfigError

__all__ = ["Curve", "Published", "published", "read_curves"]

_OWN = ("source", "method", "ratio", "accuracy")


@dataclass(frozen=True)
class Curve:
    """What a source says of one method.

    Attributes:
        source: a citation.
        method: as rows are called.
        regime: options that its runs had, by name, as texts.
        points: ratio and accuracy, by rising ratio.
    """

    source: str
    method: str
    regime: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Published:
    """What is drawn beside some results.

    Attributes:
        curves: those of their regime.
        note: whose they are; or why there are none.
    """

    curves: tuple[Curve, ...] = ()
    note: str = ""


def read_curves(path: Path) -> tuple[Curve, ...]:
    """Return the curves of a file, in its order.

    Raises:
        ConfigError: it cannot be read, or is not as it should be; the line is named.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file, restkey="", strict=True)
            rows = [(lines.line_num, row) for row in lines]
            columns = [*(lines.fieldnames or ())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the published curves {path}: {reason}") from None
    lacking = [name for name in _OWN if name not in columns]
    if lacking:
        told = f"it has no column {lacking[0]}; it takes {', '.join(_OWN)} and options"
        raise ConfigError(f"the published curves {path} cannot be used: {told}")
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    options = [name for name in columns if name not in _OWN]
    for number, row in rows:
        if None in row.values() or "" in row:
            raise ConfigError(f"{path}, line {number}: it has not the columns of the first line")
        key = (row["source"], row["method"], *(row[name] for name in options))
        place = (_share(path, number, row, "ratio"), _share(path, number, row, "accuracy"))
        found.setdefault(key, []).append(place)
    return tuple(
        Curve(source, method, dict(zip(options, values, strict=True)), tuple(sorted(points)))
        for (source, method, *values), points in found.items()
    )


def _share(path: Path, number: int, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        told = f"{name} {row[name]!r} is not allowed; it is a share, 0 to 1"
        raise ConfigError(f"{path}, line {number}: {told}")
    return value


def published(curves: Sequence[Curve], common: Iterable[tuple[str, str]]) -> Published:
    """Return the curves that are of the regime of some runs.

    Args:
        curves: of `read_curves`.
        common: what these runs have in common, see `Results`.
    """
    ours = dict(common)
    kept = tuple(c for c in curves if all(ours.get(k) == v for k, v in c.regime.items()))
    if kept:
        return Published(kept, f"dashed: {'; '.join(dict.fromkeys(c.source for c in kept))}")
    if not curves:
        return Published()
    near = min(curves, key=lambda curve: len(_other(curve, ours)))
    other = [f"{name} {near.regime[name]}" for name in _other(near, ours)]
    return Published((), f"no curve of {near.source}: the nearest is of {', '.join(other)}")


def _other(curve: Curve, ours: Mapping[str, str]) -> list[str]:
    return [name for name, value in curve.regime.items() if ours.get(name) != value]
