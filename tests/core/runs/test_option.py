from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from splitlab.core import ConfigError
from splitlab.core.runs.option import GROUPS, check_ranges, flag_of, option


@dataclass(frozen=True)
class Some:
    some_number: float | None = option(1.0, "a number", group=GROUPS[0])
    other: int = option(1, "another", group=GROUPS[0], flag="--another")


def test_help_and_group_stand_beside_the_default() -> None:
    [first, second] = dataclasses.fields(Some)
    assert first.metadata == {"help": "a number", "group": "the data"}
    assert (first.default, second.metadata["flag"]) == (1.0, "--another")
    assert (flag_of(Some, "some_number"), flag_of(Some(), "other")) == (
        "--some-number",
        "--another",
    )


def test_numbers_outside_their_range_are_refused_by_their_option() -> None:
    ranges = [("some_number", 0.5, 2), ("other", 0, 3)]
    for some in (Some(), Some(None), Some(0.5, 3)):
        check_ranges(some, ranges)
    for some, told in (
        (Some(0.4), "--some-number 0.4 is not allowed; from 0.5 to 2"),
        (Some(float("nan")), "--some-number nan is not allowed"),
        (Some(1.0, 4), "--another 4 is not allowed; from 0 to 3"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_ranges(some, ranges)
