"""Global random state is put back; what two instances share and change is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from splitlab.core.testing.state import Belongings, GlobalRandom


def test_global_random_state_is_put_back_and_draws_are_seen() -> None:
    def states() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        ]

    before = states()
    with GlobalRandom(1) as world:
        assert world.disturbed() == []
        first = torch.rand(1), random.random(), np.random.rand()
        assert world.disturbed() == ["torch", "random", "numpy"]
    assert states() == before
    with GlobalRandom(1):
        assert (torch.rand(1), random.random(), np.random.rand()) == first
    with GlobalRandom(2):
        assert torch.rand(1) != first[0]


class Owner:
    __slots__ = ("deep", "tensor")
    table = [1, 2]  # noqa: RUF012

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.deep: dict[str, Any] = {"list": [np.zeros(2)], "draws": torch.Generator()}


def test_what_two_instances_share_and_change_is_named_by_its_path() -> None:
    shared = torch.zeros(2)
    one, other = Owner(shared), Owner(shared)

    def changed(change: Callable[[], object]) -> list[str]:
        found = Belongings(one), Belongings(other)
        change()
        return Belongings.changed_together(*found)

    assert changed(lambda: None) == []
    assert changed(lambda: one.deep["list"].append(3)) == []
    assert changed(lambda: shared.add_(1)) == ["Owner.tensor"]
    assert changed(lambda: Owner.table.append(3)) == ["Owner.table"]
    assert changed(lambda: setattr(Owner, "table", [])) == ["Owner"]
    other.deep["list"] = one.deep["list"]
    assert changed(lambda: one.deep["list"].append(3)) == ["Owner.deep['list']"]
    assert changed(lambda: np.copyto(one.deep["list"][0], 5)) == ["Owner.deep['list'][0]"]
    other.deep["draws"] = one.deep["draws"]
    assert changed(lambda: one.deep["draws"].seed()) == ["Owner.deep['draws']"]
