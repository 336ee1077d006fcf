"""Errors are told by blame, and an unknown name gets its nearest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from splitlab.core.contract import errors
from splitlab.core.contract.errors import reason, unknown_name, when, where


def test_the_tree_of_the_docstring_is_the_tree() -> None:
    parents = {
        "ConfigError": "SplitlabError",
        "PluginError": "SplitlabError",
        "WorkerError": "SplitlabError",
        "LinkError": "SplitlabError",
        "ProtocolError": "LinkError",
        "NetworkError": "LinkError",
        "DamagedError": "ProtocolError",
        "RefusedError": "NetworkError",
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


@pytest.mark.parametrize(
    "line", ["{}['loss']", "torch.zeros(2) @ torch.zeros(3)", "json.loads('?')", "unknown_name(1)"]
)
def test_an_error_is_placed_in_the_users_code_where_it_left_it(tmp_path: Path, line: str) -> None:
    file = tmp_path / "m.py"
    file.write_text(f"\ndef fails():\n    {line}\n")
    names = {"torch": torch, "json": json, "unknown_name": unknown_name}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of every kind
        names["fails"]()  # type: ignore[operator]
    assert where(caught.value) == " (m.py:3)"


def test_a_step_is_called_as_logs_count_it() -> None:
    assert (when(0), when(2, training=False)) == ("step 1", "evaluation batch 3")


def test_an_error_that_never_passed_the_users_code_has_no_place() -> None:
    assert where(KeyError("loss")) == ""


def test_what_raised_is_told_in_one_line_with_the_last_line_that_is_not_torchs() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Unflatten(0, (2, 2))(torch.zeros(3))
    told = reason(caught.value)
    assert told.startswith("RuntimeError: ")
    assert re.search(r" \(test_errors\.py:\d+\)$", told)
    assert reason(ValueError("a\nb")) == "ValueError: a b"
    assert reason(AssertionError()) == "AssertionError"


def test_an_operation_that_cannot_repeat_itself_is_named_with_the_way_out() -> None:
    torchs = RuntimeError(
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.…"
    )
    assert reason(torchs) == (
        "RuntimeError: cumsum_cuda_kernel has no deterministic implementation on this device; "
        "leave out --deterministic, or choose --device cpu or another method"
    )


def test_what_cannot_be_parsed_is_found_where_it_stands() -> None:
    with pytest.raises(SyntaxError) as caught:
        compile("x = 1\n\ny = (\n", "/somewhere/bad.py", "exec")
    assert re.fullmatch(r"SyntaxError: .* \(bad\.py:3\)", reason(caught.value))
    assert "line 3" not in reason(caught.value)
