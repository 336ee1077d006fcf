"""Messages: roles, order, freezing, and errors that say what is there."""

from __future__ import annotations

import pytest
import torch

from splitlab.core import Kind, Message, PluginError, Role
from splitlab.core.contract.message import WORDS


def message() -> Message:
    made = Message(Kind.ACTIVATION, 3, meta={"a": 1})
    made.put("x", torch.zeros(2, 3), Role.PAYLOAD)
    made.put("ids", torch.zeros(2, dtype=torch.uint8), Role.TARGETS)
    made.put("y", torch.ones(4), Role.PAYLOAD)
    return made


def test_a_message_holds_named_tensors_in_order() -> None:
    made = message()
    assert list(made) == ["x", "ids", "y"]
    assert len(made) == 3
    assert "x" in made
    assert "z" not in made
    assert made.names(Role.PAYLOAD) == ("x", "y")
    assert made.names(Role.SIDE) == ()
    assert made.role("ids") is Role.TARGETS
    assert made["y"].sum() == 4


def test_defaults_are_those_of_a_training_step() -> None:
    made = Message(Kind.GRADIENT)
    assert (made.step, made.training, made.stacked, made.meta) == (0, True, True, {})
    assert (made.elapsed_ns, made.frame_bytes) == (0, 0)


def test_metadata_is_the_messages_own() -> None:
    meta = {"a": 1}
    made = Message(Kind.CONTROL, meta=meta)
    made.meta["b"] = 2
    assert meta == {"a": 1}


def test_put_replaces_a_tensor_and_its_role() -> None:
    made = message()
    made.put("x", torch.ones(1), Role.SIDE)
    assert made.role("x") is Role.SIDE
    assert made["x"].shape == (1,)
    assert len(made) == 3


def test_take_removes_and_returns() -> None:
    made = message()
    assert made.take("x").shape == (2, 3)
    assert list(made) == ["ids", "y"]
    assert made.names(Role.PAYLOAD) == ("y",)


def test_tensors_may_be_replaced_while_iterating() -> None:
    made = message()
    for name in made:
        made.put(f"{name}.packed", made.take(name), Role.SIDE)
    assert list(made) == ["x.packed", "ids.packed", "y.packed"]
    for name in made:
        made.take(name)
    assert len(made) == 0


@pytest.mark.parametrize("use", [lambda m: m["z"], lambda m: m.take("z"), lambda m: m.role("z")])
def test_a_missing_tensor_is_told_with_those_that_are_there(use: object) -> None:
    with pytest.raises(
        PluginError, match="ACTIVATION message has no tensor 'z'; it has: x, ids, y"
    ):
        use(message())  # type: ignore[operator]
    with pytest.raises(PluginError, match="it has: none"):
        use(Message(Kind.ACTIVATION))  # type: ignore[operator]


def test_a_frozen_message_refuses_changes_and_can_be_read() -> None:
    made = message()
    made.sent(100)
    assert made.frame_bytes == 100
    with pytest.raises(
        PluginError, match="cannot put 'x': this ACTIVATION message was sent already"
    ):
        made.put("x", torch.zeros(1), Role.SIDE)
    with pytest.raises(PluginError, match="cannot take 'x'"):
        made.take("x")
    assert made["x"].shape == (2, 3)


def test_live_tensors_are_refused() -> None:
    live = torch.zeros(2, requires_grad=True)
    for tensor in (live, live * 2):
        with pytest.raises(PluginError, match="'x' of a GRADIENT message is still on the autograd"):
            Message(Kind.GRADIENT).put("x", tensor, Role.PAYLOAD)
    Message(Kind.GRADIENT).put("x", live.detach(), Role.PAYLOAD)


def test_to_moves_every_tensor_and_returns_the_message() -> None:
    made = message()
    assert made.to(torch.device("meta")) is made
    assert all(made[name].is_meta for name in made)


def test_its_text_shows_shapes_and_no_numbers() -> None:
    assert repr(message()) == (
        "<Message ACTIVATION step=3 {x: payload float32[2, 3], ids: targets uint8[2], "
        "y: payload float32[4]}>"
    )


def test_the_numbers_of_the_wire_format_stay() -> None:
    assert {kind.name: kind.value for kind in Kind} == {
        "HELLO": 1,
        "ACTIVATION": 2,
        "GRADIENT": 3,
        "PREDICTION": 4,
        "CONTROL": 5,
        "ERROR": 6,
    }
    assert [role.value for role in Role] == ["payload", "targets", "side"]


def test_notes_are_read_back_last_first_and_leave_nothing() -> None:
    made = Message(Kind.ACTIVATION)
    made.push("a", [1])
    made.push("b", "x")
    made.push("a", {"bits": 3})
    assert made.notes == {"a": [[1], {"bits": 3}], "b": ["x"]}
    assert [made.pop("a"), made.pop("a"), made.pop("a")] == [{"bits": 3}, [1], None]
    assert made.notes == {"b": ["x"]}
    assert made.meta == {}


def test_words_are_no_notes() -> None:
    for word in WORDS:
        made = Message(Kind.GRADIENT, meta={word: 1.0})
        assert made.pop(word) is None
        made.push(word, 2)
        assert made.meta == {word: 1.0}
        assert made.pop(word) == 2


def test_a_message_that_was_sent_takes_no_notes() -> None:
    made = message()
    made.push("p", 1)
    made.sent(100)
    assert made.frame_bytes == 100
    for act in (lambda: made.push("p", 2), lambda: made.pop("p")):
        with pytest.raises(PluginError, match="note of 'p': this ACTIVATION message was sent"):
            act()
