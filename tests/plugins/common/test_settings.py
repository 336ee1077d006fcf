"""Checks of parameters: one line that names the value, what is allowed, and the way out."""

from __future__ import annotations

import math

import pytest

from splitlab.core import ConfigError
from splitlab.plugins.common.settings import check_choice, check_share, either, refusal


@pytest.mark.parametrize("value", [1e-9, 0.5, 1, 1.0])
def test_shares_that_can_be(value: float) -> None:
    check_share("ratio", value)


@pytest.mark.parametrize("value", [0, -0.5, 1.0000001, math.nan, math.inf])
def test_shares_that_cannot_be(value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        check_share("keep", value)
    assert str(caught.value) == (
        f"keep={value} is refused; allowed: more than 0, at most 1; for example keep=0.1"
    )


def test_choices() -> None:
    check_choice("bits", 4, (2, 4, 8))
    with pytest.raises(ConfigError) as caught:
        check_choice("bits", 3, (2, 4, 8))
    assert str(caught.value) == "bits=3 is refused; allowed: 2, 4, 8; for example bits=2"


def test_at_most_one_of_several() -> None:
    either(ratio=None, rank=None)
    either(ratio=0.0, rank=None)  # given is what is not None
    either(ratio=None, rank=3)
    with pytest.raises(ConfigError) as caught:
        either(ratio=0.5, rank=3, share=None)
    assert str(caught.value) == (
        "rank=3 is refused; allowed: one of ratio, rank, share; leave out rank or ratio"
    )


def test_a_refusal_is_one_line_of_three_parts() -> None:
    assert str(refusal("a", "b", "c", "d")) == "a=b is refused; allowed: c; d"
