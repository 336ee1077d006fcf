"""Budgets: what is read, and what is refused with which words."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.config import Config


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("steps=500", "steps", 500),
        ("steps=1e3", "steps", 1000),
        ("epochs=10", "epochs", 10),
        ("epochs=.5", "epochs", 0.5),
        ("nominal=1.0", "nominal", 1),
        ("nominal= 2.5", "nominal", 2.5),
        ("bytes=12", "bytes", 12),
        ("bytes=50MB", "bytes", 50_000_000),
        ("bytes=50 MB", "bytes", 50_000_000),
        ("bytes=1.5KiB", "bytes", 1536),
        ("bytes=2GiB", "bytes", 2 << 30),
        ("bytes=1TB", "bytes", 10**12),
        ("bytes=7B", "bytes", 7),
    ],
)
def test_budgets_are_read(text: str, unit: str, amount: float) -> None:
    assert Budget.parse(text) == Budget(unit, amount)
    assert Config(budget=text).budget == text


@pytest.mark.parametrize(
    "text",
    [
        "steps=0",
        "steps=-5",
        "steps=1.5",
        "steps=",
        "steps",
        "steps=ten",
        "steps=5MB",
        "steps=nan",
        "steps=inf",
        "steps=1e999",
        "epochs=1e999",
        "bytes=1e999TB",
        "epochs=0",
        "epochs=1e-999",
        "nominal=0.0",
        "bytes=50mb",
        "bytes=0.5",
        "bytes=1,000",
        "bytes=5 5",
        "steps=٣",
    ],
)
def test_amounts_that_mean_nothing_are_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an amount of .*; write steps=500, epochs=10"):
        Budget.parse(text)
    with pytest.raises(ConfigError):
        Config(budget=text)


@pytest.mark.parametrize(
    ("text", "near"), [("step=5", "'steps'"), ("500", ""), ("", ""), ("=5", "")]
)
def test_unknown_units_name_the_known(text: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"unknown budget .*{near}.*known: bytes, epochs, nominal"
    ):
        Budget.parse(text)


@given(st.text())
def test_any_text_is_a_budget_or_an_error_of_the_user(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert Budget.parse(text).amount > 0
