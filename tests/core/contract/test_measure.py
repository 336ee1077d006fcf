"""Requests are values: equal ones are one, and they say in a word what they are."""

from __future__ import annotations

import dataclasses

import pytest

from splitlab.core.contract.measure import Attention, Keys, Measurement


def test_equal_requests_are_one_and_different_ones_are_not() -> None:
    requests = [Attention(), Attention("mean", "last"), Attention("max"), Keys(), Keys()]
    assert len(set(requests)) == 3
    assert {Attention(): 1}[Attention(heads="mean")] == 1
    assert Attention(layer="rollout") != Attention()


def test_a_request_cannot_change() -> None:
    request = Attention()
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.heads = "max"  # type: ignore[misc]
    assert isinstance(request, Measurement)
