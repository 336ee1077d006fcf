"""What a hostile peer sends is refused in one line, whatever the stack (tests/helpers/hostile.py).

Here a share of all changes is tried, another one for every stack; `make fuzz` tries them all, and
goes on from there.
"""

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Any

import pytest
import torch
from hostile import STACKS, Table, answered, changes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitlab.core import Kind, Message, ProtocolError, SplitlabError
from splitlab.core.contract.errors import Diverged
from splitlab.core.session.states import State
from splitlab.core.testing.tiny import freeze, thaw

SHARE = 29
"""One of so many changes is tried for each stack and question."""

SECONDS = 1.0

HARMLESS = ("zeros", "flat", "all ones", "shuffled", "largest", "[0]", *Kind.__members__)
"""Changes that another good message may come of, by what their names end with."""


def tried(good: Message, offset: int) -> list[tuple[str, Any]]:
    return [*changes(good)][offset % SHARE :: SHARE]


def outcome(call: Any) -> SplitlabError | None:
    """Return how a message was refused, in time and in one line, if it was."""
    gc.disable()  # which may take as long, where many tests ran before
    started, found = time.thread_time(), None
    try:
        call()
    except SplitlabError as error:
        found = error
    finally:
        gc.enable()
    assert time.thread_time() - started < SECONDS
    assert found is None or ("\n" not in str(found) and 0 < len(str(found)) < 2000)
    return found


@pytest.mark.parametrize("what", ["train", "query", "past"])
@pytest.mark.parametrize("name", STACKS)
def test_a_server_refuses_what_no_client_sends(name: str, what: str) -> None:
    table = Table(STACKS[name])
    _, good = table.question(what)
    raw, offset = freeze(good), [*STACKS].index(name) * 7
    for label, change in tried(good, offset):
        message = thaw(raw)
        change(message)
        table.session._state = State.READY
        refusal = outcome(partial(table.ask, message))
        if refusal is None or isinstance(refusal, Diverged):
            table = Table(STACKS[name])  # it has learned from it
        if refusal is None and not label.endswith(HARMLESS):
            assert message.training is not good.training, label  # good for an evaluation, too


@pytest.mark.parametrize("what", ["train", "query"])
@pytest.mark.parametrize("name", STACKS)
def test_a_client_refuses_what_no_server_answers(name: str, what: str) -> None:
    offset = [*STACKS].index(name) * 5
    good = answered(STACKS[name], what, lambda message: None)
    for label, change in tried(good, offset):
        refusal = outcome(partial(answered, STACKS[name], what, change))
        same = label.startswith("predictions torch.")  # whole numbers in another type
        assert refusal or same or label.endswith((*HARMLESS, "loss 0")), label


WRONG: dict[str, Any] = {
    "no tokens": lambda m: m.put("activations", torch.zeros(3, 0, 16), m.role("activations")),
    "a token too many": lambda m: m.put(
        "activations", torch.zeros(3, 6, 16), m.role("activations")
    ),
    "a sea of tokens": lambda m: m.put(
        "activations", torch.zeros(1, 100_000, 16), m.role("activations")
    ),
    "float16": lambda m: m.put("activations", m["activations"].half(), m.role("activations")),
    "float8": lambda m: m.put(
        "activations", m["activations"].to(torch.float8_e5m2), m.role("activations")
    ),
    "float8 targets": lambda m: m.put(
        "targets", m["targets"].float().to(torch.float8_e4m3fn), m.role("targets")
    ),
    "the last step": lambda m: setattr(m, "step", 2**64 - 1),
    "a stranger's note": lambda m: m.push("stranger", 1),
    "a word too many": lambda m: m.meta.update(loss=1.0),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["none", "c3sl", "adc", "zstd"])
def test_what_was_once_taken_is_refused(name: str, wrong: str) -> None:
    table = Table(STACKS[name])
    _, good = table.question("train")
    if name == "zstd" and "activations" in good and good["activations"].dtype is torch.uint8:
        return  # its bytes are no activations
    WRONG[wrong](good)
    assert isinstance(outcome(lambda: table.ask(good)), SplitlabError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5.0, 1e308, 0, None, "1", True])
@pytest.mark.parametrize("what", ["train", "query"])
def test_a_loss_that_no_training_has_is_refused(what: str, value: Any) -> None:
    word = "loss" if what == "train" else "loss_sum"

    def change(message: Message) -> None:
        message.meta[word] = value

    wanted = Diverged if value != value or value == float("inf") else ProtocolError
    assert isinstance(outcome(lambda: answered(["none"], what, change)), wanted)


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """Flip bits of a frame's tensors or header, or change what it says, twice at the most."""
    return [
        draw(
            st.tuples(st.just("bit"), st.integers(0, 2**20))
            | st.tuples(st.just("change"), st.integers(0, 2**20))
        )
        for _ in range(draw(st.integers(1, 2)))
    ]


@given(st.sampled_from([*STACKS]), st.sampled_from(["train", "query"]), mutations())
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], database=None
)
def test_a_mutated_frame_is_taken_or_refused(name: str, what: str, steps: Any) -> None:
    mutated(name, what, steps)


TABLES: dict[str, Table] = {}


def mutated(name: str, what: str, steps: list[tuple[str, int]]) -> None:
    """Send a server a good message of its client's with these changes."""
    table = TABLES.pop(name, None) or Table(STACKS[name])
    _, message = table.question(what)
    for how, number in steps:
        if how == "change":
            every = [*changes(message)]
            try:
                every[number % len(every)][1](message)
            except (SplitlabError, KeyError, RuntimeError, IndexError, TypeError):
                return  # the first change has taken away what the second one is for
        elif len(message):
            tensor = message[[*message][number % len(message)]]
            if tensor.numel() and tensor.is_contiguous():
                octets = tensor.view(-1).view(torch.uint8)
                octets[number % len(octets)] ^= 1 << number % 8
    try:
        message = thaw(freeze(message))
    except SplitlabError:
        return  # it cannot be sent
    refusal = outcome(lambda: table.ask(message))
    if isinstance(refusal, ProtocolError):
        table.session._state = State.READY
        TABLES[name] = table
