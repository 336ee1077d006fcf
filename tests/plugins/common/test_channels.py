"""What channels share: directions, rows, bytes, and draws that depend on the message alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Kind, Message, Role
from splitlab.plugins.common.channels import (
    by_kind,
    check_db,
    octets_of,
    payloads,
    rows_of,
    seeded,
)


@pytest.mark.parametrize(
    ("direction", "gradient", "expected"),
    [
        ("both", None, {Kind.ACTIVATION: 3.0, Kind.GRADIENT: 3.0}),
        ("both", 5.0, {Kind.ACTIVATION: 3.0, Kind.GRADIENT: 5.0}),
        ("up", None, {Kind.ACTIVATION: 3.0}),
        ("down", None, {Kind.GRADIENT: 3.0}),
        ("down", 5.0, {Kind.GRADIENT: 5.0}),
    ],
)
def test_directions(direction: Any, gradient: float | None, expected: dict[Kind, float]) -> None:
    assert by_kind("snr", 3.0, gradient, direction, check_db) == expected


@pytest.mark.parametrize(
    ("value", "gradient", "direction", "words"),
    [
        (3.0, None, "sideways", "direction=sideways is refused; allowed: both, up, down"),
        (101.0, None, "both", "snr=101.0 is refused; allowed: -100 to 100 dB"),
        (float("nan"), None, "both", "snr=nan is refused"),
        (3.0, -101.0, "both", "gradient_snr=-101.0 is refused"),
        (3.0, 5.0, "up", "gradient_snr=5.0 is refused; allowed: direction=both or down"),
    ],
)
def test_settings_that_are_refused(
    value: float, gradient: float | None, direction: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        by_kind("snr", value, gradient, direction, check_db)


def test_rows_and_bytes() -> None:
    values = torch.arange(24, dtype=torch.int16).view(2, 3, 4)
    assert rows_of(values).shape == (2, 12)
    assert rows_of(values[0, 0]).shape == (1, 4)
    assert rows_of(values[0, 0, 0]).shape == (1, 1)
    turned = values.transpose(0, 1)
    assert octets_of(turned).view(torch.int16).tolist() == turned.flatten().tolist()
    assert octets_of(torch.tensor(1.0)).shape == (4,)


def test_only_payload_that_is_not_empty() -> None:
    message = Message(Kind.ACTIVATION)
    message.put("x", torch.ones(2), Role.PAYLOAD)
    message.put("nothing", torch.ones(0), Role.PAYLOAD)
    message.put("y", torch.ones(2), Role.SIDE)
    message.put("targets", torch.ones(2), Role.TARGETS)
    assert [name for name, _ in payloads(message)] == ["x"]


def test_every_message_has_its_own_draw_and_both_peers_the_same(tiny: Any) -> None:
    one, other = tiny.peer(), tiny.peer(role="server")

    def first(peer: Any, kind: Kind, step: int, name: str = "x", training: bool = True) -> int:
        message = Message(kind, step, training=training)
        return seeded(peer, "awgn", message, name).initial_seed()

    drawn = {
        first(one, Kind.ACTIVATION, 0),
        first(one, Kind.GRADIENT, 0),
        first(one, Kind.ACTIVATION, 1),
        first(one, Kind.ACTIVATION, 0, "y"),
        first(one, Kind.ACTIVATION, 0, training=False),
    }
    assert len(drawn) == 5
    assert first(other, Kind.ACTIVATION, 1) == first(one, Kind.ACTIVATION, 1)
