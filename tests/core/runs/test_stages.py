"""The stages of one step: what each left, in words and numbers, and how long it took."""

from __future__ import annotations

import torch

from splitlab.core import Attention, Cut, Kind, Message, Role
from splitlab.core.runs.stages import Recorder, Stage, TensorFacts, watcher

CPU = torch.device("cpu")


def test_what_is_gone_is_said() -> None:
    fact = TensorFacts("codes", "payload", (3, 4), "uint8", 12)
    stage = Stage("client", "m before_send", "m", "before_send", "up", (fact,), ("activations",))
    assert stage.lines() == [("codes", "(3, 4)", "uint8", "12"), ("activations", "gone", "", "")]


def test_a_frame_is_shown_by_what_its_bytes_are_and_with_their_sum() -> None:
    stage = Stage("link", "frame", "", "", "down", frame={"gradient": 1000, "header": 234})
    assert stage.lines() == [
        ("gradient", "", "", "1,000"),
        ("header", "", "", "234"),
        ("sum down", "", "", "1,234"),
    ]


def test_a_tensor_that_does_not_travel_says_what_it_is() -> None:
    fact = TensorFacts("weights", "local", (3,), "float32", 12)
    stage = Stage("server", "m before_server_forward", "m", "", "up", (fact,))
    assert stage.lines() == [("weights (local)", "(3,)", "float32", "12")]
    nothing = Stage("server", "m before_send", "m", "before_send", "down")
    assert nothing.lines() == [("unchanged", "", "", "")]
    assert Stage("client", "backward", "", "", "down").lines() == [("", "", "", "")]


def test_what_is_new_changed_in_place_or_gone_is_noted_and_nothing_else() -> None:
    recorder = Recorder(CPU)
    kept, scaled, dropped = torch.zeros(2), torch.ones(3), torch.zeros(4)
    recorder.begin()
    recorder.look({n: ("side", x) for n, x in (("k", kept), ("s", scaled), ("d", dropped))})
    scaled.mul_(2)
    new = torch.zeros(1, dtype=torch.uint8)
    recorder.note(
        "client", "m", state={"k": ("side", kept), "s": ("side", scaled), "n": ("x", new)}
    )
    [stage] = recorder.take()
    assert stage.tensors == (
        TensorFacts("s", "side", (3,), "float32", 12),
        TensorFacts("n", "x", (1,), "uint8", 1),
    )
    assert stage.gone == ("d",)
    assert stage.direction == "up"
    recorder.turn()
    recorder.note("link", "frame", frame={"header": 3})
    after = recorder.take()[1]
    assert (after.direction, after.tensors, after.gone, after.frame) == (
        "down",
        (),
        (),
        {"header": 3},
    )
    recorder.begin()
    assert recorder.take() == []


def test_a_change_of_role_is_a_change() -> None:
    recorder = Recorder(CPU)
    x = torch.zeros(2)
    recorder.begin()
    recorder.look({"x": ("payload", x)})
    recorder.note("client", "m", state={"x": ("side", x)})
    assert [fact.role for fact in recorder.take()[0].tensors] == ["side"]


def test_a_watcher_tells_what_a_cut_and_a_message_hold() -> None:
    recorder = Recorder(CPU)
    watch = watcher("server", recorder)
    cut = Cut(
        activations=torch.zeros(2, 3, 4), targets=torch.zeros(2).long(), step=0, training=True
    )
    recorder.begin()
    cut.measured[Attention()] = torch.zeros(2, 3)
    cut.side["m.ids"] = torch.zeros(2, dtype=torch.uint8)
    watch.plugin_ran(label="m", hook="before_server_forward", subject=cut)  # type: ignore[attr-defined]
    message = Message(Kind.GRADIENT)
    message.put("gradient", torch.zeros(2, 3, 4), Role.PAYLOAD)
    watch.plugin_ran(label="m", hook="before_send", subject=message)  # type: ignore[attr-defined]
    first, second = recorder.take()
    assert (first.peer, first.what, first.plugin) == ("server", "m before_server_forward", "m")
    assert {fact.name: fact.role for fact in first.tensors} == {
        "activations": "payload",
        "targets": "targets",
        str(Attention()): "local",
        "m.ids": "side",
    }
    assert [fact.name for fact in second.tensors] == ["gradient"]
    assert set(second.gone) == {"activations", "targets", str(Attention()), "m.ids"}
