"""Bit errors: how many bits flip, where they may, and what becomes of numbers they make huge."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.testing.couple import Couple
from splitlab.plugins.bit_errors import BitErrors, bpsk_errors, errors
from splitlab.plugins.common.channels import octets_of


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def codes(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randint(0, 100, shape, generator=draw).to(dtype)


def received(
    tiny: Any,
    plugin: BitErrors,
    values: torch.Tensor,
    kind: Kind = Kind.ACTIVATION,
    step: int = 3,
    *,
    training: bool = True,
) -> torch.Tensor:
    """Return what another peer gets of values, over a real frame."""
    message = Message(kind, step, training=training)
    message.put("x", values, Role.PAYLOAD)
    message.put("ranges", noise(4), Role.SIDE)
    message.put("targets", torch.arange(4), Role.TARGETS)
    plugin.setup(tiny.peer())
    plugin.before_send(message)
    arrived = tiny.travel(message)
    plugin.after_receive(arrived)
    assert [*arrived] == ["x", "ranges", "targets"]
    assert torch.equal(arrived["ranges"], noise(4)), "side information is not spoilt"
    assert torch.equal(arrived["targets"], torch.arange(4)), "labels are not spoilt"
    assert (arrived["x"].dtype, arrived["x"].shape) == (values.dtype, values.shape)
    return arrived["x"]


def flipped(a: torch.Tensor, b: torch.Tensor) -> int:
    wrong = octets_of(a) ^ octets_of(b)
    return sum(int((wrong >> bit & 1).sum()) for bit in range(8))


@pytest.mark.parametrize("rate", [1e-4, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_so_many_bits_flip(tiny: Any, rate: float, dtype: torch.dtype) -> None:
    values = codes(400, 100, dtype=dtype)
    plugin = BitErrors(rate=rate)
    count = flipped(values, received(tiny, plugin, values))
    bits = values.nbytes * 8
    assert abs(count - bits * rate) < 5 * math.sqrt(bits * rate * (1 - rate)) + 1
    assert plugin.metrics() == {"flipped_bits": count}
    assert plugin.metrics() == {}, "of the step that is over"


def test_errors_are_anywhere_once_each_and_independent() -> None:
    bits, rate = 200_000, 0.05
    places = errors(bits, rate, torch.Generator().manual_seed(0))
    gaps = places.diff()
    assert (gaps > 0).all()
    assert int(places[0]) >= 0
    assert int(places[-1]) < bits
    assert abs(float((gaps == 1).double().mean()) - rate) < 5 * math.sqrt(rate / len(gaps))
    halves = (places < bits / 2).double().mean()
    assert abs(float(halves) - 0.5) < 5 * 0.5 / math.sqrt(len(places))
    assert len(errors(bits, 0.0, torch.Generator())) == 0
    assert len(errors(0, 0.1, torch.Generator())) == 0


def test_bits_of_a_signal_to_noise_ratio() -> None:
    # Of a normal number's tail: Q(1), Q(sqrt(10)) and Q(10), from tables.
    assert math.isclose(bpsk_errors(0), 0.158655, rel_tol=1e-5)
    assert math.isclose(bpsk_errors(10), 7.8270e-4, rel_tol=1e-4)
    assert math.isclose(bpsk_errors(20), 7.6199e-24, rel_tol=1e-4)
    assert bpsk_errors(-100) == pytest.approx(0.5, abs=1e-4)


def test_the_rate_of_a_signal_to_noise_ratio(tiny: Any) -> None:
    values = codes(400, 100)
    count = flipped(values, received(tiny, BitErrors(snr=0), values))
    assert abs(count / values.numel() / 8 - 0.158655) < 5 * 0.37 / math.sqrt(values.numel() * 8)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn],
)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_numbers_stay_within_what_was_sent(tiny: Any, dtype: torch.dtype, scale: float) -> None:
    values = (noise(10, 20, 30) * scale).to(dtype)
    plugin = BitErrors(rate=0.01)
    got = received(tiny, plugin, values).double()
    peak = values.double().abs().flatten(1).amax(1)
    assert got.isfinite().all()
    assert (got.abs().flatten(1).amax(1) <= peak).all()
    assert not torch.equal(got, values.double())
    told = plugin.metrics()
    assert 0 < told["zeroed_numbers"] <= float((got == 0).sum())
    assert told["flipped_bits"] > told["zeroed_numbers"]


def test_what_was_not_finite_arrives_as_nan(tiny: Any) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        values = noise(3, 4, 5)
        values[1, 2, 3] = bad
        plugin = BitErrors(rate=0.02)
        got = received(tiny, plugin, values)
        assert got[1].isnan().all()
        assert got[[0, 2]].isfinite().all()


def test_as_many_bytes_as_without(tiny: Any) -> None:
    plugin = BitErrors()
    plugin.setup(tiny.peer())
    message = Message(Kind.ACTIVATION)
    message.put("codes", codes(100), Role.PAYLOAD)
    message.put("book", noise(5, 6), Role.PAYLOAD)
    plugin.before_send(message)
    assert [(name, message[name].nbytes) for name in message] == [
        ("codes", 100),
        ("book", 120),
        ("bit-errors.book", 20),
    ]


def test_draws_follow_the_step_and_nothing_else(tiny: Any) -> None:
    values = codes(100, 100)
    once = received(tiny, BitErrors(rate=0.01), values, step=4)
    assert torch.equal(once, received(tiny, BitErrors(rate=0.01), values, step=4))
    assert not torch.equal(once, received(tiny, BitErrors(rate=0.01), values, step=5))
    down = received(tiny, BitErrors(rate=0.01), values, Kind.GRADIENT, step=4)
    assert not torch.equal(once, down)


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_directions_and_evaluation(tiny: Any, direction: Any) -> None:
    values = noise(4, 50, 6)
    for kind, way in ((Kind.ACTIVATION, "up"), (Kind.GRADIENT, "down")):
        got = received(tiny, BitErrors(rate=0.01, direction=direction), values, kind)
        assert torch.equal(got, values) == (direction not in ("both", way))
    for evaluation in (True, False):
        plugin = BitErrors(rate=0.01, direction=direction, evaluation=evaluation)
        got = received(tiny, plugin, values, training=False)
        acts = evaluation and direction != "down"
        assert torch.equal(got, values) != acts
        assert plugin.traits().evaluation == acts
        assert plugin.metrics() == {}


def test_predictions_pass_by(tiny: Any) -> None:
    ids = torch.arange(4, dtype=torch.uint8)
    plugin = BitErrors(rate=0.5)
    assert torch.equal(received(tiny, plugin, ids, Kind.PREDICTION, training=False), ids)


def test_a_message_that_does_not_fit(tiny: Any) -> None:
    plugin = BitErrors()
    plugin.setup(tiny.peer())
    message = Message(Kind.ACTIVATION)
    message.put("x", noise(4, 5), Role.PAYLOAD)
    with pytest.raises(ProtocolError, match=r"'bit-errors\.x' is missing"):
        plugin.after_receive(message)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bit-errors:rate=0.6", "rate=0.6 is refused; allowed: 0 to 0.5"),
        ("bit-errors:gradient_rate=-1", "gradient_rate=-1.0 is refused"),
        ("bit-errors:rate=0.1,snr=3", "snr=3.0 is refused; allowed: one of rate, snr"),
        ("bit-errors:snr=300", "snr=300.0 is refused; allowed: -100 to 100 dB"),
    ],
)
def test_settings_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind("plugins", name).build()


@pytest.mark.parametrize("method", ["zstd", "fedlite"])
def test_what_cannot_decode_any_bits_is_refused(tiny: Any, method: str) -> None:
    with pytest.raises(ConfigError, match=r"'bit-errors' needs any bits.*works: bit-errors"):
        tiny.pair([bind("plugins", name) for name in (method, "bit-errors")])


@pytest.mark.parametrize("method", ["none", "quantize", "aqsgd", "splitfc", "sl-acc", "topk"])
def test_training_goes_on_with_many_errors(tiny: Any, method: str) -> None:
    couple = Couple(tiny, [bind("plugins", name) for name in (method, "bit-errors:rate=0.05")])
    losses = [couple.train(tiny.batch(step), step) for step in range(3)]
    assert all(map(math.isfinite, losses))
