"""Labels as a file has them become class ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from splitlab.core.contract.errors import ConfigError

__all__ = ["CLASS_LIMIT", "Labels", "class_ids"]

CLASS_LIMIT = 100_000  # ids beyond it are a broken label column, not classes

Labels = tuple[torch.Tensor, tuple[str, ...] | None]
"""The ids, (N,) int64 for N samples, and the names of the classes where the labels were texts."""


def class_ids(values: Sequence[Any], where: str, column: str) -> Labels:
    """Return the class of every row: texts are numbered in their order, numbers are ids already.

    Args:
        values: one a row: all texts, or whole numbers, which may be floats or booleans.
        where: what messages call the split.
        column: what they call the labels.

    Raises ConfigError, naming row and value, for a label that is missing or no class.
    """

    def refuse(row: int, why: str) -> ConfigError:
        return ConfigError(
            f"{where}, row {row}: column {column} {why}; classes are whole numbers from 0 or "
            "texts; repair it, or name another column with --label-column"
        )

    if values and isinstance(values[0], str):
        for row, value in enumerate(values):
            if value is None:
                raise refuse(row, "is empty")
        names = tuple(sorted(set(values)))
        ids = {name: number for number, name in enumerate(names)}
        return torch.tensor([ids[value] for value in values], dtype=torch.int64), names
    for row, value in enumerate(values):
        if value is None or value != value:  # NaN is how tables of floats say it
            raise refuse(row, "is empty")
        if isinstance(value, float) and not value.is_integer():
            raise refuse(row, f"holds {value}")
        if abs(value) >= 2**63:
            raise refuse(row, f"holds {value}, which no class id can be")
    return torch.tensor([int(value) for value in values], dtype=torch.int64), None
