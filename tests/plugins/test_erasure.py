"""Erasure: how many packets are lost, what takes their place, and what is sent again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.testing import FreshPeers, check_plugin
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.seen import difference
from splitlab.plugins.erasure import Erasure


def ones(*shape: int, value: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype)


def sent(
    tiny: Any,
    plugin: Erasure,
    values: torch.Tensor,
    kind: Kind = Kind.ACTIVATION,
    step: int = 3,
    *,
    training: bool = True,
) -> Message:
    message = Message(kind, step, training=training)
    message.put("x", values, Role.PAYLOAD)
    message.put("ranges", ones(4), Role.SIDE)
    plugin.setup(tiny.peer())
    plugin.before_send(message)
    return tiny.travel(message)


def received(
    tiny: Any, plugin: Erasure, values: torch.Tensor, *where: Any, **more: Any
) -> torch.Tensor:
    arrived = sent(tiny, plugin, values, *where, **more)
    plugin.after_receive(arrived)
    assert [*arrived] == ["x", "ranges"]
    assert torch.equal(arrived["ranges"], ones(4)), "side information is never lost"
    assert (arrived["x"].dtype, arrived["x"].shape) == (values.dtype, values.shape)
    return arrived["x"]


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_whole_packets_are_lost_at_their_rate(tiny: Any, rate: float) -> None:
    plugin = Erasure(rate=rate, packet=40)
    got = received(tiny, plugin, ones(200, 100, 2))
    packets = got.view(-1, 10)
    gone = (packets == 0).all(1)
    assert (gone | (packets == 1).all(1)).all(), "all of a packet or nothing"
    assert abs(float(gone.double().mean()) - rate) < 5 * math.sqrt(rate * (1 - rate) / len(gone))
    assert plugin.metrics() == {"lost_packets": float(gone.sum())}
    assert plugin.metrics() == {}, "of the step that is over"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64, torch.bfloat16])
def test_any_dtype_and_a_last_packet_that_is_shorter(tiny: Any, dtype: torch.dtype) -> None:
    got = received(tiny, Erasure(rate=0.5, packet=16), ones(7, 11, 13, dtype=dtype))
    each = 16 // dtype.itemsize
    for packet in got.flatten().split(each):
        assert packet.double().unique().tolist() in ([0.0], [1.0])
    assert 0 < float(got.double().mean()) < 1


def test_the_last_value_takes_its_place(tiny: Any) -> None:
    plugin = Erasure(rate=0.5, packet=40, lost="last")
    first = received(tiny, plugin, ones(10, 100), step=0)
    assert sorted(first.unique().tolist()) == [0, 1], "there was nothing before"
    second = received(tiny, plugin, ones(10, 100, value=2), step=1)
    gone = second != 2
    assert gone.any()
    assert torch.equal(second[gone], first[gone])
    held = {name: last.clone() for name, last in plugin.state_dict().items()}
    received(tiny, plugin, ones(10, 100, value=3), step=0, training=False)
    assert all(torch.equal(held[name], last) for name, last in plugin.state_dict().items())
    longer = received(tiny, plugin, ones(20, 100, value=4), step=2)
    assert set(longer[10:].unique().tolist()) == {0, 4}, "nothing came there before"
    shorter = received(tiny, plugin, ones(3, 100, value=5), step=3)
    assert set(shorter.unique().tolist()) <= {0, 1, 2, 4, 5}
    down = received(tiny, plugin, ones(10, 100, value=6), Kind.GRADIENT, step=3)
    assert set(down.unique().tolist()) == {0, 6}, "each direction has a memory of its own"


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_what_is_sent_again_is_counted(tiny: Any, rate: float) -> None:
    values = torch.randn(100, 100, 2, generator=torch.Generator().manual_seed(0))
    plugin = Erasure(rate=rate, packet=40, lost="resend")
    message = sent(tiny, plugin, values)
    packets, again = values.nbytes // 40, message["erasure.x"].nbytes / 40
    # Each is lost k times with probability (1 - p) p^k: mean p / (1 - p), variance p / (1 - p)².
    assert abs(again - packets * rate / (1 - rate)) <= 5 * math.sqrt(packets * rate) / (1 - rate)
    assert plugin.metrics() == {"lost_packets": again}
    assert message.role("erasure.x") is Role.SIDE
    plugin.after_receive(message)
    assert torch.equal(message["x"], values)
    assert "erasure.x" not in message


def test_no_loss_at_rate_0(tiny: Any) -> None:
    values = ones(10, 100)
    for lost in ("zeros", "last", "resend"):
        assert torch.equal(received(tiny, Erasure(rate=0, lost=lost), values), values)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["both", "up", "down"])
@pytest.mark.parametrize("lost", ["zeros", "last", "resend"])
def test_directions_and_evaluation(tiny: Any, direction: Any, lost: Any) -> None:
    values = ones(100, 100)
    resend = lost == "resend"
    for kind, way in ((Kind.ACTIVATION, "up"), (Kind.GRADIENT, "down")):
        plugin = Erasure(rate=0.5, packet=40, direction=direction, lost=lost)
        acts = direction in ("both", way)
        assert torch.equal(received(tiny, plugin, values, kind), values) == (resend or not acts)
        assert ("lost_packets" in plugin.metrics()) == acts
    for evaluation in (True, False):
        plugin = Erasure(rate=0.5, packet=40, direction=direction, lost=lost, evaluation=evaluation)
        acts = evaluation and direction != "down"
        got = received(tiny, plugin, values, training=False)
        assert torch.equal(got, values) == (resend or not acts)
        assert plugin.traits().evaluation == acts


def test_predictions_pass_by(tiny: Any) -> None:
    ids = torch.ones(4000, dtype=torch.uint8)
    got = received(tiny, Erasure(rate=0.9, packet=8), ids, Kind.PREDICTION, training=False)
    assert torch.equal(got, ids)


def test_a_message_that_does_not_fit(tiny: Any) -> None:
    plugin = Erasure(lost="resend")
    message = sent(tiny, plugin, ones(10, 100))
    message.take("erasure.x")
    with pytest.raises(ProtocolError, match=r"'erasure\.x' is missing"):
        plugin.after_receive(message)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("erasure:rate=1", "rate=1.0 is refused; allowed: 0 to 0.9"),
        ("erasure:gradient_rate=-1", "gradient_rate=-1.0 is refused"),
        ("erasure:packet=12", "packet=12 is refused; allowed: multiples of 8"),
        ("erasure:packet=0", "packet=0 is refused"),
        ("erasure:lost=none", "lost takes zeros"),
    ],
)
def test_settings_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind("plugins", name).build()


def test_only_what_is_sent_again_follows_a_string_of_bytes(tiny: Any) -> None:
    pytest.importorskip("zstandard")
    with pytest.raises(ConfigError, match="'erasure' needs any bits"):
        tiny.pair([bind("plugins", name) for name in ("zstd", "erasure")])
    couple = Couple(tiny, [bind("plugins", name) for name in ("zstd", "erasure:lost=resend")])
    assert math.isfinite(couple.train(tiny.batch(), 0))


def test_resuming_with_a_memory(tiny: Any) -> None:
    stack = [bind("plugins", name) for name in ("none", "erasure:rate=0.4,packet=64,lost=last")]

    def run(couple: Couple, steps: range) -> Couple:
        for step in steps:
            couple.train(tiny.batch(step), step)
        return couple

    whole, first, again = (
        run(Couple(tiny, stack), range(4)),
        Couple(tiny, stack),
        Couple(tiny, stack),
    )
    run(first, range(2))
    for old, new in ((first.client, again.client), (first.server, again.server)):
        new.load_state(*old.state())
    run(again, range(2, 4))
    assert difference(whole.arrived[4:], again.arrived) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["erasure:lost=last,packet=64", "erasure:lost=resend,packet=64"])
def test_other_settings_hold_what_every_plugin_must(name: str, fresh: FreshPeers) -> None:
    check_plugin(name, fresh=fresh).raise_if_failed()
