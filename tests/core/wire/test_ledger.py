"""The ledger: what it holds adds up to the frames, by phase, direction and kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from splitlab.core import Kind, Message, Role
from splitlab.core.wire.encode import encode
from splitlab.core.wire.ledger import Ledger


def sent(kind: Kind, *, training: bool = True, **tensors: Any) -> Message:
    made = Message(kind, training=training)
    for name, (role, tensor) in tensors.items():
        made.put(name, tensor, role)
    made.sent(encode(made).nbytes)
    return made


PAYLOAD = (Role.PAYLOAD, torch.zeros(2, 3))  # 24 bytes
MORE = (Role.PAYLOAD, torch.zeros(5, dtype=torch.bfloat16))  # 10 bytes
TARGETS = (Role.TARGETS, torch.zeros(7, dtype=torch.uint8))  # 7 bytes
SIDE = (Role.SIDE, torch.zeros(3, dtype=torch.int64))  # 24 bytes


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.ACTIVATION, "activation"),
        (Kind.GRADIENT, "gradient"),
        (Kind.PREDICTION, "prediction"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_bytes_go_where_they_belong(kind: Kind, name: str, training: bool, direction: Any) -> None:
    ledger = Ledger()
    made = sent(kind, training=training, a=PAYLOAD, b=TARGETS, c=SIDE, d=MORE)
    ledger.add(made, direction)
    phase = "training" if training else "evaluation"
    header = made.frame_bytes - 24 - 7 - 24 - 10
    assert header > 0
    expected = {name: 34, "targets": 7, "side": 24, "header": header}
    assert ledger.counts[phase][direction] == expected
    assert ledger.total(direction) == ledger.total(direction, phase) == made.frame_bytes
    other = "down" if direction == "up" else "up"
    assert ledger.total(other) == 0
    assert sum(ledger.total(direction, p) for p in ledger.counts) == made.frame_bytes  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.CONTROL, Kind.ERROR])
@pytest.mark.parametrize("training", [True, False])
def test_talk_is_counted_apart(kind: Kind, training: bool) -> None:
    ledger = Ledger()
    made = sent(kind, training=training)
    ledger.add(made, "up")
    assert ledger.counts["control"]["up"] == {"header": made.frame_bytes}
    assert ledger.total("up", "training") == ledger.total("up", "evaluation") == 0


def test_counts_add_up_over_messages() -> None:
    ledger = Ledger()
    total = 0
    for _ in range(3):
        made = sent(Kind.ACTIVATION, a=PAYLOAD)
        ledger.add(made, "up")
        total += made.frame_bytes
    assert ledger.counts["training"]["up"]["activation"] == 72
    assert ledger.total("up", "training") == total


def test_a_ledger_does_not_share_the_counts_that_it_goes_on_from() -> None:
    old = Ledger()
    old.add(sent(Kind.ACTIVATION, a=PAYLOAD), "up")
    Ledger(old.counts).add(sent(Kind.ACTIVATION, a=PAYLOAD), "up")
    assert old.counts["training"]["up"]["activation"] == 24


def test_counts_go_through_json_and_on() -> None:
    old = Ledger()
    old.add(sent(Kind.ACTIVATION, a=PAYLOAD), "up")
    old.add(sent(Kind.PREDICTION, training=False, a=MORE), "down")
    new = Ledger(json.loads(json.dumps(old.counts)))
    assert new.counts == old.counts
    new.add(sent(Kind.ACTIVATION, a=PAYLOAD), "up")
    assert new.counts["training"]["up"]["activation"] == 48
