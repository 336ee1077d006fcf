"""Requests are values: equal ones are one, and they say in a word what they are."""

from __future__ import annotations

import dataclasses

import pytest

from splitlab.core.contract.measure import (
    MEASUREMENTS,
    Attention,
    HeadAttention,
    Keys,
    Measured,
    Measurement,
)
from splitlab.core.contract.part import Layout
from splitlab.core.contract.traits import ASPECTS, Ground, Traits


def test_equal_requests_are_one_and_different_ones_are_not() -> None:
    requests = [Attention(), Attention("mean", "last"), Attention("max"), Keys(), Keys()]
    assert len(set(requests)) == 3
    assert {Attention(): 1}[Attention(heads="mean")] == 1
    assert Attention(layer="rollout") != Attention()


def test_what_was_not_asked_for_says_how_to_ask() -> None:
    found = Measured({Keys(): 1})
    assert found[Keys()] == 1
    assert found.get(Attention()) is None
    with pytest.raises(LookupError, match=r"ask for it in setup, with peer\.request\(NAME, Atten"):
        found[Attention()]


def test_what_comes_later_is_computed_once_and_only_when_it_is_read() -> None:
    taken: list[str] = []

    def take() -> int:
        taken.append("heads")
        return 7

    found = Measured(Measured({Keys(): 1}, {HeadAttention(): take}))
    assert found[Keys()] == 1
    assert taken == []
    assert (found[HeadAttention()], found[HeadAttention()]) == (7, 7)
    assert taken == ["heads"]


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_a_kind_says_all_that_others_know_of_it(kind: type[Measurement]) -> None:
    assert kind.words != Measurement.words
    assert ASPECTS[kind.aspect] == kind.known
    for aspect, gone in ((name, kind.aspect) for name in kind.gone_with):
        assert gone in Traits(changes={aspect}).takes_away
    others = ASPECTS.keys() - {*kind.gone_with, kind.aspect, "plain"}
    assert all(kind.aspect not in Traits(changes={name}).takes_away for name in others)


def test_the_ground_asks_for_every_kind() -> None:
    ground = Ground.of(Layout(5, 8, grid=(2, 2)), lambda request: f"{request.words}, alas")
    assert ground.lacks == {kind.aspect: f"{kind.words}, alas" for kind in MEASUREMENTS}


def test_a_request_cannot_change() -> None:
    request = Attention()
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.heads = "max"  # type: ignore[misc]
    assert isinstance(request, Measurement)
