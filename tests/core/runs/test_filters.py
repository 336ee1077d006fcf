"""Filters and orders of records: what they keep, and what is told of those that cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.runs.filters import Filter, in_order

RECORD: dict[str, Any] = {
    "state": "finished",
    "stack": "adc:ratio=0.05 + quantize",
    "tags": "x,first try",
    "accuracy": 0.5,
    "batch_size": 16,
    "cut": None,
    "pretrained": False,
    "begun": "2026-11-26 17:00:00",
    "plugins": "adc:ratio=0.05+quantize",
}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("state=finished", True),
        ("state=Finished", False),
        (" state = finished ", True),
        ("state!=finished", False),
        ("stack~ADC", True),
        ("stack~topk", False),
        ("stack=adc:ratio=0.05+quantize", True),
        ("plugin~ratio=0.05", True),
        ("plugins=adc:ratio=0.05 + quantize", True),
        ("tag=x", True),
        ("tag=first try", True),
        ("tag=first", False),
        ("tag~first", True),
        ("tag!=x", False),
        ("tag!=y", True),
        ("tags=none", False),
        ("accuracy>0.4", True),
        ("accuracy>0.5", False),
        ("accuracy>=.5", True),
        ("accuracy<1e0", True),
        ("accuracy<=0.4", False),
        ("accuracy=0.50", True),
        ("accuracy!=none", True),
        ("batch-size=16", True),
        ("batch_size>=17", False),
        ("cut=none", True),
        ("cut=3", False),
        ("cut!=3", True),
        ("cut<3", False),
        ("cut>3", False),
        ("pretrained=false", True),
        ("begun>2026-11", True),
        ("begun<2026-11-26", False),
    ],
)
def test_a_filter(text: str, kept: bool) -> None:
    assert Filter.parse(text, RECORD).keeps(RECORD) is kept


def test_what_is_nan_is_neither_more_nor_less() -> None:
    record = {"accuracy": float("nan")}
    for sign in ("<", ">", "<=", ">=", "="):
        assert not Filter.parse(f"accuracy{sign}0.5", record).keeps(record)


def test_a_run_without_tags() -> None:
    assert Filter.parse("tag=none", RECORD).keeps({"tags": ""})
    assert not Filter.parse("tag~n", RECORD).keeps({"tags": ""})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("finished", "--filter 'finished' is not allowed; write KEY=VALUE"),
        ("=x", "--filter '=x' is not allowed"),
        (
            "accurcy>1",
            r"unknown key of --filter 'accurcy' \(did you mean 'accuracy'\?\); known: ac",
        ),
        ("accuracy>high", "accuracy>high: accuracy is a number; write one, as in accuracy>1"),
        ("accuracy=high", "accuracy is a number"),
        ("tag>x", "--filter tag>x: write tag=, tag!= or tag~"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Filter.parse(text, RECORD).keeps(RECORD)


def test_order() -> None:
    values = [0.5, None, 0.25, float("nan"), 0.75]
    records = [{"accuracy": value, "batch_size": i % 2} for i, value in enumerate(values)]

    def order(key: str) -> list[int]:
        indices = range(len(records))
        return in_order(indices, lambda i: records[i], key, records[0])

    assert order("accuracy") == [2, 0, 4, 1, 3]
    assert order("-accuracy") == [4, 0, 2, 1, 3]
    assert order("batch-size") == [0, 2, 4, 1, 3]
    assert order("-batch_size") == [1, 3, 0, 2, 4]
    with pytest.raises(ConfigError, match=r"unknown key of --sort 'acc'.*known: accuracy, batch"):
        order("-acc")
