"""Analog channels: signal to noise as asked for, fading as its distribution says, both ways."""

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
from splitlab.plugins.analog import AWGN, Rayleigh


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def built(tiny: Any, plugin: Any) -> Any:
    plugin.setup(tiny.peer())
    return plugin


def make(
    values: torch.Tensor, kind: Kind = Kind.ACTIVATION, step: int = 3, *, training: bool = True
) -> Message:
    message = Message(kind, step, training=training)
    message.put("x", values, Role.PAYLOAD)
    message.put("places", torch.arange(4), Role.SIDE)
    return message


def received(tiny: Any, plugin: Any, values: torch.Tensor, **where: Any) -> torch.Tensor:
    """Return what another peer gets of values, over a real frame."""
    message = make(values, **where)
    built(tiny, plugin).before_send(message)
    arrived = tiny.travel(message)
    plugin.after_receive(arrived)
    assert list(arrived) == ["x", "places"]
    assert not arrived.notes
    assert torch.equal(arrived["places"], torch.arange(4)), "side information is not spoilt"
    assert arrived["x"].dtype == values.dtype
    assert arrived["x"].shape == values.shape
    return arrived["x"]


def error(values: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """Return the power of the error over that of the values, of every row."""
    wrong = (got - values).double().square().flatten(1).mean(1)
    return wrong / values.double().square().flatten(1).mean(1)


@pytest.mark.parametrize("snr", [-10.0, 0.0, 10.0, 30.0])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e25])
def test_every_row_has_the_snr_that_was_asked_for(tiny: Any, snr: float, scale: float) -> None:
    size = torch.tensor([1.0, 100.0, 1e-4])[:, None, None]
    values = noise(3, 100, 200) * size * scale
    measured = -10 * error(values, received(tiny, AWGN(snr=snr), values)).log10()
    # The mean of 20,000 squares of a normal number is within 1% for 68%, and 0.2 dB are 4.7%.
    assert (measured - snr).abs().max() < 0.2


def test_the_noise_is_white_gaussian(tiny: Any) -> None:
    values = torch.ones(2, 100, 200)
    n = (received(tiny, AWGN(snr=0), values) - values).flatten()
    count = len(n)
    assert n.mean().abs() < 5 / math.sqrt(count)
    assert (n[:-1] * n[1:]).mean().abs() < 5 / math.sqrt(count), "neighbours are not correlated"
    assert abs(float(n.pow(4).mean()) - 3) < 5 * math.sqrt(96 / count), "4th moment of a normal"
    assert abs(float((n.abs() < 1).double().mean()) - 0.6827) < 5 * 0.47 / math.sqrt(count)


def test_what_leaves_has_power_1_and_as_many_bytes(tiny: Any) -> None:
    values = noise(3, 50, 40) * 1e-3
    message = make(values)
    built(tiny, AWGN(snr=100)).before_send(message)
    power = message["x"].square().flatten(1).mean(1)
    torch.testing.assert_close(power, torch.ones(3), rtol=1e-3, atol=0)
    assert message["x"].nbytes == values.nbytes
    assert message["awgn.x"].shape == (3,)
    whole = make(values)
    built(tiny, AWGN(snr=100, per="tensor")).before_send(whole)
    assert whole["awgn.x"].shape == (1,)


def expected_mmse(noise_power: float) -> float:
    """Return the mean of s² / (g² + s²) over g² ~ Exp(1), by the midpoint rule in its quantiles."""
    quantile = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    gain = -torch.log1p(-quantile)
    return float((noise_power / (gain + noise_power)).mean())


@pytest.mark.parametrize("snr", [0.0, 10.0])
@pytest.mark.parametrize("fading", ["block", "iid"])
def test_the_error_behind_fading_is_that_of_the_best_linear_receiver(
    tiny: Any, snr: float, fading: Any
) -> None:
    values = noise(4000, 5, 11)  # an odd number of numbers in a row
    got = error(values, received(tiny, Rayleigh(snr=snr, fading=fading), values))
    assert abs(float(got.mean()) / expected_mmse(10 ** (-snr / 10)) - 1) < 0.1
    spread = float(got.std() / got.mean())
    assert (spread > 0.35) == (fading == "block"), f"one fade for a row, or many: {spread}"


def test_zero_forcing_leaves_the_signal_whole(tiny: Any) -> None:
    values = torch.ones(2000, 2, 10)
    got = received(tiny, Rayleigh(snr=0, fading="block", equalizer="zf"), values)
    noise_power = (got - values).square().flatten(1).mean(1)
    # 1 / g² has a median of 1 / ln 2, and no mean.
    assert abs(float(noise_power.median()) * math.log(2) - 1) < 0.15
    assert abs(float((got - values).median())) < 0.05, "unbiased, where mmse shrinks"
    shrunk = received(tiny, Rayleigh(snr=0, fading="block"), values)
    assert 0.3 < float(shrunk.mean()) < 0.5, "the mean of g² / (g² + 1) is 0.404"


def test_two_numbers_are_a_symbol(tiny: Any) -> None:
    values = torch.ones(1, 1, 6)
    got = received(tiny, Rayleigh(snr=100, fading="iid", equalizer="zf"), values)
    torch.testing.assert_close(got, values, rtol=1e-2, atol=0)  # equalized, whatever the fades
    plugin = built(tiny, Rayleigh(snr=0, fading="iid"))
    gain = plugin._gain(torch.ones(2, 5), torch.Generator().manual_seed(0))
    assert gain.shape == (2, 5)
    assert torch.equal(gain[:, 0], gain[:, 1])
    assert gain[0].unique().numel() == 3


CHANNELS = [AWGN, Rayleigh]


@pytest.mark.parametrize("channel", CHANNELS)
def test_draws_follow_the_step_and_nothing_else(tiny: Any, channel: Any) -> None:
    values = noise(4, 5, 6)
    once = received(tiny, channel(), values, step=4)
    assert torch.equal(once, received(tiny, channel(), values, step=4))
    assert not torch.equal(once, received(tiny, channel(), values, step=5))
    assert not torch.equal(once, received(tiny, channel(), values, step=4, kind=Kind.GRADIENT))


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_directions_and_evaluation(tiny: Any, channel: Any, direction: Any) -> None:
    values = noise(4, 5, 6)
    for kind, way in ((Kind.ACTIVATION, "up"), (Kind.GRADIENT, "down")):
        got = received(tiny, channel(direction=direction), values, kind=kind)
        assert torch.equal(got, values) == (direction not in ("both", way))
    for evaluation in (True, False):
        plugin = channel(direction=direction, evaluation=evaluation)
        got = received(tiny, plugin, values, training=False)
        acts = evaluation and direction != "down"
        assert torch.equal(got, values) != acts
        assert plugin.traits().evaluation == acts


def test_predictions_pass_by(tiny: Any) -> None:
    ids = torch.arange(4, dtype=torch.uint8)
    assert torch.equal(received(tiny, AWGN(), ids, kind=Kind.PREDICTION, training=False), ids)


def test_gradients_have_an_snr_of_their_own(tiny: Any) -> None:
    values = noise(2, 100, 200)
    plugin = AWGN(snr=30, gradient_snr=0)
    up = error(values, received(tiny, plugin, values))
    down = error(values, received(tiny, plugin, values, kind=Kind.GRADIENT))
    assert up.max() < 2e-3 < 0.9 < down.min()


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_dtypes_come_back(tiny: Any, channel: Any, dtype: torch.dtype) -> None:
    values = noise(3, 4, 5, dtype=dtype)
    got = received(
        tiny, channel(snr=20, equalizer="zf") if channel is Rayleigh else channel(), values
    )
    assert got.float().isfinite().all()


@pytest.mark.parametrize("channel", CHANNELS)
def test_what_is_not_finite_stays_visible_and_zeros_stay_zeros(tiny: Any, channel: Any) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        values = noise(3, 4, 5)
        values[1, 2, 3] = bad
        got = received(tiny, channel(), values)
        assert not got[1].isfinite().any()
        assert got[[0, 2]].isfinite().all()
    assert not received(tiny, channel(), torch.zeros(2, 3, 4)).any()
    empty = received(tiny, channel(), torch.zeros(0, 3, 4))
    assert empty.shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda message: message.take("awgn.x"), "'awgn.x' is missing"),
        (lambda message: message.put("awgn.x", torch.ones(2), Role.SIDE), "expected .* \\[4\\]"),
        (lambda message: message.put("x", torch.ones(4, 2).int(), Role.PAYLOAD), "arrived as"),
        (lambda message: message.take("x"), "does not name tensors"),
        (lambda message: message.push("awgn", 3), "does not name tensors"),
    ],
)
def test_messages_that_do_not_fit(tiny: Any, spoil: Any, words: str) -> None:
    plugin = built(tiny, AWGN())
    message = make(noise(4, 2, 3))
    plugin.before_send(message)
    spoil(message)
    with pytest.raises(ProtocolError, match=words):
        plugin.after_receive(message)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("awgn:snr=200", "snr=200.0 is refused"),
        ("awgn:per=token", "per=token is not allowed; per takes row"),
        ("rayleigh:fading=slow", "fading takes block"),
        ("rayleigh:equalizer=none", "equalizer takes mmse"),
    ],
)
def test_settings_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind("plugins", name).build()


@pytest.mark.parametrize("channel", ["awgn", "rayleigh"])
@pytest.mark.parametrize("codes", ["quantize", "aqsgd", "fedlite", "sl-acc", "splitfc", "zstd"])
def test_codes_are_refused_with_a_stack_that_works(tiny: Any, channel: str, codes: str) -> None:
    names = (
        ["adc-token-select", codes, channel] if codes in ("quantize", "zstd") else [codes, channel]
    )
    with pytest.raises(ConfigError, match=f"'{channel}' needs analog .*which '{codes}'") as caught:
        tiny.pair([bind("plugins", name) for name in names])
    works = " + ".join(name for name in names if name != codes)
    assert f"a stack that works: {works} (without {codes})" in str(caught.value)


@pytest.mark.parametrize("behind", ["adc", "quantize", "none", "rayleigh"])
def test_nothing_stands_behind_a_channel(tiny: Any, behind: str) -> None:
    with pytest.raises(ConfigError, match="'awgn' is a channel, which stands last") as caught:
        tiny.pair([bind("plugins", name) for name in ("awgn", behind)])
    assert "a stack that works: " in str(caught.value)


@pytest.mark.parametrize("method", ["adc", "topk", "powersgd", "c3sl:ratio=0.5"])
def test_training_and_resuming_through_a_method_and_a_channel(tiny: Any, method: str) -> None:
    def run(couple: Couple, steps: range) -> Couple:
        for step in steps:
            couple.train(tiny.batch(step), step)
        return couple

    stack = [bind("plugins", name) for name in (method, "rayleigh:snr=15,fading=iid")]
    whole = run(Couple(tiny, stack), range(3))
    first = run(Couple(tiny, stack), range(1))
    again = Couple(tiny, stack)
    for old, new in ((first.client, again.client), (first.server, again.server)):
        new.load_state(*old.state())
    run(again, range(1, 3))
    assert difference(whole.arrived[2:], again.arrived) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["awgn:per=tensor,snr=3", "rayleigh:fading=iid,equalizer=zf,snr=20"]
)
def test_other_settings_hold_what_every_plugin_must(name: str, fresh: FreshPeers) -> None:
    check_plugin(name, fresh=fresh).raise_if_failed()
