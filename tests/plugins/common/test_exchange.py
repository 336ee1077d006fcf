"""What a message-level method notes of its payload, and what a receiver refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import Kind, Message, PluginError, ProtocolError, Role
from splitlab.core.contract.transfer import pretending
from splitlab.plugins.common.exchange import (
    Told,
    coded_name,
    describe,
    described,
    payload_name,
    take_checked,
)


def message_of(**payloads: torch.Tensor) -> Message:
    message = Message(Kind.ACTIVATION)
    for name, tensor in payloads.items():
        message.put(name, tensor, Role.PAYLOAD)
    return message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_note_says_shape_and_dtype(tiny: Any, dtype: torch.dtype) -> None:
    note = describe(torch.empty(2, 3, 4, dtype=dtype))
    assert described("x", note, tiny.peer()) == ((2, 3, 4), dtype)


@pytest.mark.parametrize(
    "note",
    [
        None,
        [2, 3, 4],
        {"shape": [2, 3], "dtype": "float32"},
        {"shape": [2, 3, 0], "dtype": "float32"},
        {"shape": [2, 3, True], "dtype": "float32"},
        {"shape": [2, 3, 4.0], "dtype": "float32"},
        {"shape": [2**20, 2**20, 1], "dtype": "float32"},
        {"shape": [16 * 6 + 1, 5, 16], "dtype": "float32"},
        {"shape": [2, 3, 4], "dtype": "int64"},
        {"shape": [2, 3, 4], "dtype": ["float32"]},
        {"shape": [2, 3, 4]},
    ],
)
def test_notes_that_are_refused(tiny: Any, note: Any) -> None:
    with pytest.raises(ProtocolError, match=r"plugin 'x': the note .* says"):
        described("x", note, tiny.peer())


@pytest.mark.parametrize(
    "payloads",
    [
        {},
        {"a": torch.ones(2, 3)},
        {"a": torch.ones(2, 3, 4, dtype=torch.uint8)},
        {"a": torch.ones(0, 3, 4)},
        {"a": torch.ones(2, 3, 4), "b": torch.ones(2, 3, 4)},
    ],
)
def test_payloads_that_are_no_tokens(payloads: dict[str, torch.Tensor]) -> None:
    with pytest.raises(PluginError, match="plugin 'x' compresses one floating-point tensor"):
        payload_name(message_of(**payloads), "x")


def test_the_payload_is_found() -> None:
    message = message_of(gradient=torch.ones(2, 3, 4))
    message.put("note", torch.ones(2), Role.SIDE)
    assert payload_name(message, "x") == coded_name(message, "x") == "gradient"
    with pytest.raises(ProtocolError, match="plugin 'x': 0 payloads"):
        coded_name(message_of(), "x")


def test_taking_checks() -> None:
    message = message_of(a=torch.ones(2, 3))
    with pytest.raises(ProtocolError, match="plugin 'x': tensor 'b' is missing"):
        take_checked(message, "x", "b", torch.float32, [2, 3])
    for dtype, shape in ((torch.float16, [2, 3]), (torch.float32, [3, 2])):
        message = message_of(a=torch.ones(2, 3))
        with pytest.raises(ProtocolError, match=r"a arrived as torch.float32 \[2, 3\], expected"):
            take_checked(message, "x", "a", dtype, shape, Role.PAYLOAD)
    message = message_of(a=torch.ones(2, 3))
    with pytest.raises(ProtocolError, match="a arrived as payload, expected as side"):
        take_checked(message, "x", "a", torch.float32, [2, 3])
    taken = take_checked(message, "x", "a", torch.float32, [2, 3], Role.PAYLOAD)
    assert taken.shape == (2, 3)
    assert "a" not in message


def test_sizes_are_read_once_for_every_form_and_expected_again() -> None:
    told, message = Told(), Message(Kind.ACTIVATION)

    def read(numbers: list[int], form: str) -> list[int]:
        return told.read(message, torch.tensor(numbers), form, lambda: ProtocolError("others"))

    assert read([3, 4], "a") == [3, 4]
    assert read([5, 6], "a") == [5, 6]  # at hand they are read every time
    with pretending():
        assert read([3, 4], "a") == [3, 4]
        assert read([7], "b") == [7]
        assert read([3, 4], "a") == [3, 4]
        message.verdicts.fetch().settle()
        assert read([3, 5], "a") == [3, 4]
        with pytest.raises(ProtocolError, match="others"):
            message.verdicts.fetch().settle()
        assert read([1, 2, 3], "a") == [1, 2, 3]  # of another length: nothing to compare with
