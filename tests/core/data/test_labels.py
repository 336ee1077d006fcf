"""Labels: what becomes a class, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core.data.labels import class_ids


@pytest.mark.parametrize(
    ("values", "ids"),
    [([3, 0], [3, 0]), ([1.0, 0.0], [1, 0]), ([True, False], [1, 0]), ([-1], [-1]), ([], [])],
)
def test_whole_numbers_are_ids(values: list[Any], ids: list[int]) -> None:
    found, names = class_ids(values, "here", "label")
    assert (found.tolist(), names) == (ids, None)


def test_texts_are_numbered_in_their_order() -> None:
    found, names = class_ids(["dog", "cat", "dog"], "here", "label")
    assert (found.tolist(), names) == ([1, 0, 1], ("cat", "dog"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, None], "row 1: column kind is empty"),
        (["a", None], "row 1: column kind is empty"),
        ([None, "a"], "row 0: column kind is empty"),
        ([0.0, float("nan")], "row 1: column kind is empty"),
        ([0.0, 1.5], "row 1: column kind holds 1.5;"),
        ([0.0, float("inf")], "row 1: column kind holds inf;"),
        ([0, 2**64 - 1], "row 1: column kind holds 18446744073709551615,"),
        ([1e300], "row 0: column kind holds 1e+300,"),
    ],
)
def test_what_is_no_class_is_named(refusal: Any, values: list[Any], words: str) -> None:
    message = refusal(lambda: class_ids(values, "here (train)", "kind"))
    assert message.startswith(f"here (train), {words}")
    assert "--label-column" in message
