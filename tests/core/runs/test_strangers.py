"""A stranger is a line; a flood of them is a few, with their number."""

from __future__ import annotations

import pytest

from splitlab.core.runs import strangers
from splitlab.core.runs.strangers import Strangers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(strangers, "time", made)
    return made


def test_a_few_are_told_each_and_the_rest_are_counted(clock: Clock) -> None:
    said: list[str] = []
    met = Strangers(said.append)
    for number in range(1000):
        met.add(f"tcp://there:{number}: why")
    assert said == [f"turned away tcp://there:{number}: why" for number in range(20)]
    clock.now = 6.0
    met.add("tcp://there:1: once more")
    assert said[20:] == ["turned away tcp://there:1: once more (and 980 others before)"]
    met.add("tcp://there:2: at the end")
    met.close()
    met.close()
    assert said[21:] == ["turned away 1 more, the last of them tcp://there:2: at the end"]
    assert (met.count, met.last) == (1002, "tcp://there:2: at the end")


def test_a_slow_trickle_is_told_whole(clock: Clock) -> None:
    said: list[str] = []
    met = Strangers(said.append)
    for number in range(100):
        clock.now += 5.0
        met.add(str(number))
    met.close()
    assert said == [f"turned away {number}" for number in range(100)]


def test_what_strangers_say_does_nothing_to_the_terminal(clock: Clock) -> None:
    said: list[str] = []
    Strangers(said.append).add("tcp://there:1: \x1b[2J\r\nsplitlab: all is well")
    assert said == [r"turned away tcp://there:1: \x1b[2J splitlab: all is well"]
