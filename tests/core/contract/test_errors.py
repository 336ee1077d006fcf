"""Errors are told by blame, and an unknown name gets its nearest."""

from __future__ import annotations

import pytest
import torch

from splitlab.core.contract import errors
from splitlab.core.contract.errors import told, unknown_name


def test_the_tree_of_the_docstring_is_the_tree() -> None:
    parents = {
        "ConfigError": "SplitlabError",
        "PluginError": "SplitlabError",
        "LinkError": "SplitlabError",
        "ProtocolError": "LinkError",
        "NetworkError": "LinkError",
        "SplitlabError": "Exception",
    }
    kinds = {name for name in errors.__all__ if name.endswith("Error")}
    assert {name: getattr(errors, name).__base__.__name__ for name in kinds} == parents


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("tpc", ["tcp", "gloo"], "unknown x 'tpc' (did you mean 'tcp'?); known: gloo, tcp; help"),
        ("zzz", ["tcp", "gloo"], "unknown x 'zzz'; known: gloo, tcp; help"),
        ("a", [], "unknown x 'a'; known: none; help"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one_and_all(
    name: str, known: list[str], text: str
) -> None:
    error = unknown_name("x", name, known, "; help")
    assert type(error) is errors.ConfigError
    assert str(error) == text


def test_what_raised_is_told_with_the_last_line_that_is_not_torchs() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Unflatten(0, (2, 2))(torch.zeros(3))
    first = str(caught.value).split("\n")[0]
    assert told(caught.value) == f"RuntimeError: {first} (test_errors.py:43)"
    assert told(ValueError("a\nb")) == "ValueError: a"
    assert told(AssertionError()) == "AssertionError"
