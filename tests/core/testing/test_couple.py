"""Peers that are watched."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import Cut, hookimpl
from splitlab.core.contract.errors import Diverged
from splitlab.core.contract.transfer import pretending
from splitlab.core.testing.couple import Couple


class Refuses:
    """Expects in vain, where the step's verdicts are fetched last."""

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        cut.expect((cut.activations * 0).sum() > 0, lambda: Diverged("refused"))


def test_what_is_told_late_is_told_with_its_step(tiny: Any) -> None:
    with pretending():
        couple = Couple(tiny, [tiny.bound(Refuses)])
        with pytest.raises(Diverged, match="refused"):
            couple.train(tiny.batch(), 0)
