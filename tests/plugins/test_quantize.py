"""The uniform quantizer: published vectors, ranges, bytes, rounding, and what a receiver refuses.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.plugins.adc import ADC
from splitlab.plugins.quantize import Quantize

PERS = ["tensor", "token", "channel", "group"]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def make(
    values: torch.Tensor, kind: Kind = Kind.ACTIVATION, *, step: int = 3, training: bool = True
) -> Message:
    message = Message(kind, step, training=training)
    message.put("x", values, Role.PAYLOAD)
    message.put("targets", torch.arange(4, dtype=torch.uint8), Role.TARGETS)
    return message


def sent(tiny: Any, plugin: Quantize, message: Message, seed: int = 0) -> Message:
    plugin.setup(tiny.peer(seed=seed))
    plugin.before_send(message)
    return message


def there_and_back(tiny: Any, plugin: Quantize, values: torch.Tensor, **facts: Any) -> Any:
    message = sent(tiny, plugin, make(values, **facts))
    arrived = tiny.travel(message)
    plugin.after_receive(arrived)
    assert list(arrived) == ["x", "targets"]
    assert not arrived.notes
    assert arrived["x"].shape == values.shape
    assert arrived["x"].dtype == values.dtype
    return arrived["x"]


# --- The published vectors ------------------------------------------------------------------------

X = [-1, -0.2, 0.1, 0.9, 2]


@pytest.mark.parametrize(
    ("mode", "bits", "values"),
    [
        ("minmax", 1, [-1, -1, -1, 2, 2]),
        ("minmax", 2, [-1, 0, 0, 1, 2]),
        ("minmax", 4, [-1, -0.2, 0.2, 0.8, 2]),
        ("midrise", 2, [-0.625, 0.125, 0.125, 0.875, 1.625]),
        ("midrise", 1, [-0.25, -0.25, -0.25, 1.25, 1.25]),
    ],
)
def test_vectors(tiny: Any, mode: Any, bits: int, values: list[float]) -> None:
    # float64, since in float32 0.9 lies on the border of two of the 16 levels.
    x = torch.tensor(X, dtype=torch.float64)
    back = there_and_back(tiny, Quantize(bits=bits, mode=mode, per="tensor"), x)
    torch.testing.assert_close(back, torch.tensor(values).double(), rtol=0, atol=1e-6)


# --- Bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.GRADIENT])
@pytest.mark.parametrize("bits", [1, 3, 4, 8, 9, 16])
@pytest.mark.parametrize(
    ("settings_", "ranges"),
    [
        ({"per": "tensor"}, 8),
        ({"per": "token"}, 4 * 5 * 7),
        ({"per": "channel"}, 4 * 10),
        ({"per": "group", "group": 5}, 4 * 5 * 7 * 2),
        ({"per": "group", "group": 4}, 4 * 5 * 7 * 3),
        ({"per": "group", "group": 64}, 4 * 5 * 7),
    ],
)
def test_bytes(tiny: Any, settings_: dict[str, Any], ranges: int, bits: int, kind: Kind) -> None:
    plugin = Quantize(bits=bits, **settings_)
    message = sent(tiny, plugin, make(noise(5, 7, 10), kind))
    assert message["x"].nbytes == math.ceil(5 * 7 * 10 * bits / 8)
    assert message.names(Role.SIDE) == ("quantize.x",)
    assert message["quantize.x"].nbytes == ranges
    assert plugin.nominal_ratio() == (bits / 32, bits / 32)


@pytest.mark.parametrize(("per", "total"), [("tensor", 2420744), ("token", 2521600)])
def test_bytes_of_a_deit_batch(tiny: Any, per: Any, total: int) -> None:
    message = sent(tiny, Quantize(bits=4, per=per), make(torch.zeros(128, 197, 192)))
    assert sum(message[name].nbytes for name in ("x", "quantize.x")) == total


# --- What comes back ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    per=st.sampled_from(PERS),
    mode=st.sampled_from(["minmax", "midrise"]),
    bits=st.integers(1, 16),
    group=st.integers(1, 7),
    kind=st.sampled_from([Kind.ACTIVATION, Kind.GRADIENT]),
    scale=st.sampled_from([1e-9, 1.0, 1e6]),
)
def test_error_is_bounded_by_the_step(
    tiny: Any, shape: list[int], per: Any, mode: Any, bits: int, group: int, kind: Any, scale: float
) -> None:
    x = noise(*shape) * scale
    plugin = Quantize(bits=bits, per=per, mode=mode, group=group)
    back = there_and_back(tiny, plugin, x, kind=kind)
    # The range of the whole is the largest; ranges are rounded to 8 bits of precision.
    span = (x.max() - x.min() + 2 * x.abs().max() * 2**-7).item()
    cells = 2**bits if mode == "midrise" else 2**bits - 1
    stochastic = kind is Kind.GRADIENT
    # In midrise the extremes lie half a cell beyond the levels.
    steps = 1.0 if stochastic else 0.5
    assert (back - x).abs().max() <= span / cells * steps * 1.001 + 1e-6 * x.abs().max()


@pytest.mark.parametrize("per", PERS)
def test_ranges_are_those_of_their_part(tiny: Any, per: Any) -> None:
    x = noise(3, 4, 6)
    x[1, 2, 3] = 1e4  # only what shares a range with it is disturbed
    plugin = Quantize(bits=8, per=per, group=3)
    error = (there_and_back(tiny, plugin, x) - x).abs() > 0.05
    disturbed = torch.zeros(3, 4, 6, dtype=torch.bool)
    where = {"tensor": ..., "token": (1, 2), "channel": (..., 3), "group": (1, 2, slice(3, 6))}
    disturbed[where[per]] = True
    assert not (error & ~disturbed).any()
    assert (error & disturbed).any()


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("mode", ["minmax", "midrise"])
@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.GRADIENT])
def test_constant_tensors(tiny: Any, per: Any, mode: Any, kind: Any) -> None:
    plugin = Quantize(bits=3, per=per, mode=mode, group=4)
    assert torch.equal(
        there_and_back(tiny, plugin, torch.zeros(2, 3, 5), kind=kind), torch.zeros(2, 3, 5)
    )
    for constant in (3.5, -1e-7, 1e30):
        x = torch.full((2, 3, 5), constant)
        back = there_and_back(tiny, plugin, x, kind=kind)
        torch.testing.assert_close(back, x, rtol=2**-7, atol=0)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize(
    "x", [torch.tensor([1e37, -1.0, 0.5]), noise(1), noise(1, 1, 1), noise(4, 1)]
)
def test_extremes_stay_finite(tiny: Any, per: Any, x: torch.Tensor) -> None:
    for kind in (Kind.ACTIVATION, Kind.GRADIENT):
        assert there_and_back(tiny, Quantize(per=per), x, kind=kind).isfinite().all()


def test_what_is_not_finite_is_seen_and_kept_apart(tiny: Any) -> None:
    x = noise(2, 3, 8)
    x[0, 1, 2], x[1, 0, 5] = torch.nan, torch.inf
    back = there_and_back(tiny, Quantize(bits=4), x)
    assert back.isnan().all(-1).tolist() == [[False, True, False], [True, False, False]]
    clean = x.clone()
    clean[0, 1], clean[1, 0] = 0, 0
    expected = there_and_back(tiny, Quantize(bits=4), clean)
    kept = ~back.isnan()
    assert torch.equal(back[kept], expected[kept])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("per", PERS)
def test_other_dtypes(tiny: Any, dtype: torch.dtype, per: Any) -> None:
    x = noise(3, 4, 8, dtype=dtype)
    x[0, 0, 0] = 60_000 if dtype == torch.float16 else 300.0
    back = there_and_back(tiny, Quantize(bits=16, per=per, group=8), x)
    assert (back - x).abs().max() <= x.abs().max() * 2**-7
    if per == "token":
        torch.testing.assert_close(back[1:], x[1:], rtol=2**-7, atol=1e-3)


def test_ranges_never_overflow_float16(tiny: Any) -> None:
    x = torch.tensor([[65504.0, -65504.0, 1.0]], dtype=torch.float16)  # as bfloat16 65536
    assert there_and_back(tiny, Quantize(bits=8), x).tolist()[0][:2] == [65504, -65504]


def test_quantizing_twice_changes_nothing(tiny: Any) -> None:
    for bits in (1, 3, 8):
        plugin = Quantize(bits=bits, per="tensor")
        once = there_and_back(tiny, plugin, noise(4, 5, 6))
        torch.testing.assert_close(there_and_back(tiny, plugin, once), once, rtol=1e-6, atol=1e-6)


def test_gradients_are_right_on_average(tiny: Any) -> None:
    x = (noise(16) * 1e-7).expand(4000, 16)
    back = there_and_back(tiny, Quantize(bits=2, per="tensor"), x, kind=Kind.GRADIENT)
    error = (back.mean(0) - x[0]).abs()
    assert (error <= 3.5 * (back.std(0) / 4000**0.5) + 1e-13).all()
    nearest = Quantize(bits=2, per="tensor", gradient_rounding="nearest")
    biased = there_and_back(tiny, nearest, x, kind=Kind.GRADIENT)
    assert (biased.mean(0) - x[0]).abs().max() > 5 * error.max()


def test_midrise_is_better_at_one_bit(tiny: Any) -> None:
    x = noise(2, 10, 64)
    errors = [
        (there_and_back(tiny, Quantize(bits=1, mode=mode), x) - x).norm()
        for mode in ("midrise", "minmax")
    ]
    assert errors[0] < 0.6 * errors[1]


# --- Directions, evaluation, randomness -----------------------------------------------------------


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_directions(tiny: Any, direction: Any) -> None:
    plugin = Quantize(bits=4, direction=direction)
    for kind, way in ((Kind.ACTIVATION, "up"), (Kind.GRADIENT, "down")):
        message = sent(tiny, plugin, make(noise(2, 3), kind))
        assert (message["x"].dtype == torch.uint8) == (direction in ("both", way))
    up, down = plugin.nominal_ratio()
    assert (up, down) == (0.125 if direction != "down" else 1, 0.125 if direction != "up" else 1)


def test_gradients_in_bits_of_their_own(tiny: Any) -> None:
    plugin = Quantize(bits=4, gradient_bits=8)
    sizes = [
        sent(tiny, plugin, make(noise(2, 8), kind))["x"].nbytes
        for kind in (Kind.ACTIVATION, Kind.GRADIENT)
    ]
    assert sizes == [8, 16]
    assert plugin.nominal_ratio() == (0.125, 0.25)
    there_and_back(tiny, plugin, noise(2, 8), kind=Kind.GRADIENT)


@pytest.mark.parametrize(
    ("ratio", "bits"), [(1 / 32, 1), (0.1, 3), (0.125, 4), (0.29, 9), (0.5, 16), (1.0, 16)]
)
def test_ratio_becomes_bits(tiny: Any, ratio: float, bits: int) -> None:
    plugin = Quantize(ratio=ratio)
    assert plugin.nominal_ratio() == (bits / 32, bits / 32)
    assert Quantize().nominal_ratio() == (3 / 32, 3 / 32)


def test_every_floating_point_payload(tiny: Any) -> None:
    message = make(noise(4, 6))
    message.put("factor", noise(3), Role.PAYLOAD)
    message.put("codes", torch.arange(3, dtype=torch.uint8), Role.PAYLOAD)
    message.put("number", torch.tensor(2.5), Role.PAYLOAD)
    message.put("empty", torch.zeros(0, 3), Role.PAYLOAD)
    message.put("scales", noise(2), Role.SIDE)
    plugin = Quantize(bits=8)
    sent(tiny, plugin, message)
    assert message["factor"].dtype == torch.uint8
    assert message["number"].item() == 2.5
    assert message["scales"].dtype == torch.float32
    plugin.after_receive(message)
    assert torch.allclose(message["factor"], noise(3), atol=0.02)
    assert message["codes"].tolist() == [0, 1, 2]
    assert message["empty"].shape == (0, 3)
    assert "quantize.factor" not in message


def test_evaluation_is_left_alone_unless_asked(tiny: Any) -> None:
    for evaluation in (False, True):
        plugin = Quantize(evaluation=evaluation)
        message = sent(tiny, plugin, make(noise(2, 3), training=False))
        assert (message["x"].dtype == torch.uint8) == evaluation == plugin.traits().evaluation
    prediction = sent(
        tiny, Quantize(evaluation=True), make(noise(3), Kind.PREDICTION, training=False)
    )
    assert prediction["x"].dtype == torch.float32
    assert not Quantize(evaluation=True, direction="down").traits().evaluation


def test_seed_and_step_decide_and_nothing_else(tiny: Any) -> None:
    def codes(seed: int = 0, step: int = 0, **settings_: Any) -> torch.Tensor:
        plugin = Quantize(bits=2, **settings_)
        return sent(tiny, plugin, make(noise(8, 8), Kind.GRADIENT, step=step), seed)["x"]

    before = torch.get_rng_state()
    first = codes()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(codes(), first)
    assert not torch.equal(codes(step=1), first)
    assert not torch.equal(codes(seed=1), first)
    assert torch.equal(
        codes(gradient_rounding="nearest"), codes(gradient_rounding="nearest", step=1)
    )


@pytest.mark.parametrize("per", PERS)
def test_training_through_real_frames(tiny: Any, per: Any) -> None:
    plain = tiny.train(*tiny.pair(optimizer="sgd"), range(2))
    bound = tiny.bound(Quantize, bits=8, per=per, rounding="stochastic")
    assert next(tiny.client([bound]).train(tiny.batch(), 0))["activations"].dtype == torch.uint8
    losses = tiny.train(*tiny.pair([bound], optimizer="sgd"), range(2))
    assert losses == pytest.approx(plain, rel=0.2)
    assert losses == tiny.train(*tiny.pair([bound], optimizer="sgd"), range(2))


def test_behind_adc(tiny: Any) -> None:
    stack = [tiny.bound(ADC, ratio=0.4), tiny.bound(Quantize, bits=8)]
    client, server = tiny.pair(stack)

    def ask(up: Message) -> Message:
        assert up["activations"].dtype == torch.uint8
        return server.handle(up)

    assert math.isfinite(hold(client.train(tiny.batch(), 0), ask).loss)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"ratio": 0.03}, "ratio=0.03 is refused; allowed: 1/32 "),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"ratio": 0.5, "bits": 4}, "bits=4 is refused; allowed: one of ratio, bits"),
        ({"bits": 0}, "bits=0 is refused; allowed: 1 to 16"),
        ({"bits": 17}, "bits=17"),
        ({"gradient_bits": 17}, "gradient_bits=17"),
        ({"gradient_bits": 4, "direction": "up"}, "gradient_bits=4 .* direction=both or down"),
        ({"mode": "log"}, "mode=log is refused; allowed: minmax, midrise"),
        ({"per": "row"}, "per=row is refused; allowed: tensor, token, channel, group"),
        ({"group": 0}, "group=0"),
        ({"rounding": "up"}, "rounding=up"),
        ({"gradient_rounding": "up"}, "gradient_rounding=up"),
        ({"direction": "left"}, "direction=left"),
    ],
)
def test_bad_parameters(settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Quantize(**settings_)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.take("x"), "no codes or no ranges of 'x'"),
        (lambda m: m.take("quantize.x"), "no codes or no ranges of 'x'"),
        (
            lambda m: m.put("x", m["x"][:-1], Role.PAYLOAD),
            r"\[2, 3, 8\] arrived as torch.uint8 \[23",
        ),
        (lambda m: m.put("x", m["x"].char(), Role.PAYLOAD), "torch.int8"),
        (lambda m: m.put("quantize.x", m["quantize.x"][:1], Role.SIDE), "the ranges of x"),
        (lambda m: m.put("quantize.x", m["quantize.x"].float(), Role.SIDE), "the ranges of x"),
        (lambda m: m.notes.update(quantize=[7]), "note 7"),
        (lambda m: m.notes.update(quantize=[{"x": []}]), "should hold dtype and shape"),
        (lambda m: m.notes.update(quantize=[{"x": ["int8", 2, 3, 8]}]), "int8"),
        (lambda m: m.notes.update(quantize=[{"x": ["float32", -2, -3, 8]}]), "-2"),
        (lambda m: m.notes.update(quantize=[{"x": ["float32", *[1] * 99]}]), "1, 1"),
        (lambda m: m.notes.update(quantize=[{"x": ["float32", 10**9, 10**9]}]), "1000000000"),
    ],
)
def test_receiver_refuses(tiny: Any, change: Any, says: str) -> None:
    plugin = Quantize(bits=4)
    message = sent(tiny, plugin, make(noise(2, 3, 8)))
    change(message)
    with pytest.raises(ProtocolError, match=says):
        plugin.after_receive(message)


def test_a_direction_that_is_not_quantized_has_no_note(tiny: Any) -> None:
    message = sent(tiny, Quantize(), make(noise(2, 3), Kind.GRADIENT))
    with pytest.raises(ProtocolError, match="a GRADIENT message has a note"):
        Quantize(direction="up").after_receive(message)


def test_built_by_name() -> None:
    text = "quantize:bits=4,gradient_bits=none,per=group,group=32,mode=midrise,direction=both"
    plugin = bind("plugins", text).build()
    assert isinstance(plugin, Quantize)
    traits = plugin.traits()
    assert (traits.needs, traits.changes) == ({"numbers"}, {"numbers"})
    assert traits.gradient == "straight-through"


@pytest.mark.gpu
@pytest.mark.parametrize("per", PERS)
def test_gpu_agrees_with_the_cpu(tiny: Any, per: Any) -> None:
    x = noise(8, 20, 48)
    plugin = Quantize(bits=4, per=per)
    plugin.setup(tiny.peer(device=torch.device("cuda")))
    message = make(x.cuda())
    plugin.before_send(message)
    plugin.after_receive(message)
    torch.testing.assert_close(message["x"].cpu(), there_and_back(tiny, plugin, x))


def test_each_direction_has_its_own_mode_and_ranges(tiny: Any) -> None:
    wanted = {"bits": 4, "per": "token", "gradient_per": "channel", "gradient_mode": "midrise"}
    client, server = tiny.pair([tiny.bound(Quantize, **wanted)])
    answers = []

    def ask(up: Message) -> Message:
        assert up["quantize.activations"].shape == (2, 30)
        down = server.handle(tiny.travel(up))
        assert down["quantize.gradient"].shape == (2, 16)
        answers.append(down)
        return tiny.travel(down)

    hold(client.train(tiny.batch(), 0), ask)
    same = tiny.server([tiny.bound(Quantize, bits=4, gradient_per="channel")]).handle(
        tiny.travel(next(tiny.client([tiny.bound(Quantize, bits=4)]).train(tiny.batch(), 0)))
    )
    assert not torch.equal(same["gradient"], answers[0]["gradient"])
    for name in ("gradient_mode", "gradient_per"):
        with pytest.raises(ConfigError, match=f"{name}=.* direction=both or down"):
            Quantize(direction="up", **{name: wanted[name]})
