"""Casts of payload tensors: formats, scales, what saturates, and messages that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.plugins.cast import Cast
from splitlab.plugins.quantize import Quantize

FORMATS = ["fp16", "bf16", "fp8_e4m3", "fp8_e5m2"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# The largest relative error of a normal number: half the distance of two neighbours.
ERRORS = {"fp16": 2**-11, "bf16": 2**-8, "fp8_e4m3": 2**-4, "fp8_e5m2": 2**-3}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def make(kind: Kind = Kind.ACTIVATION, *, training: bool = True, **tensors: Any) -> Message:
    message = Message(kind, 3, training=training)
    for name, tensor in tensors.items():
        message.put(name, tensor, Role.PAYLOAD)
    message.put("targets", torch.arange(4, dtype=torch.uint8), Role.TARGETS)
    return message


def there_and_back(
    plugin: Cast, values: torch.Tensor, kind: Kind = Kind.ACTIVATION
) -> torch.Tensor:
    message = make(kind, x=values)
    plugin.before_send(message)
    plugin.after_receive(message)
    assert list(message) == ["x", "targets"]
    assert not message.notes
    return message["x"]


@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.GRADIENT])
@pytest.mark.parametrize("dtype", FORMATS)
def test_bytes_and_precision(tiny: Any, dtype: Any, kind: Kind) -> None:
    values = noise(4, 5, 6) * 1e-3
    plugin = Cast(dtype=dtype)
    message = make(kind, x=values)
    plugin.before_send(message)
    size = 2 if "16" in dtype else 1
    assert message["x"].nbytes == values.numel() * size
    assert message.names(Role.SIDE) == (() if size == 2 else ("cast.x",))
    assert sum(message[name].nbytes for name in message.names(Role.SIDE)) == (4 if size == 1 else 0)
    assert plugin.nominal_ratio() == (size / 4, size / 4)
    arrived = tiny.travel(message)
    Cast(dtype=dtype).after_receive(arrived)
    assert arrived["x"].dtype == torch.float32
    peak = values.abs().max()
    # Beyond the normal numbers of the format the error is absolute.
    allowed = torch.maximum(values.abs() * ERRORS[dtype], peak * 2**-9)
    assert ((arrived["x"] - values).abs() <= allowed).all()
    if size == 2:
        assert torch.equal(arrived["x"], values.to(DTYPES[dtype]).float())
    else:
        assert arrived["x"].abs().max() == peak, "the largest number of the format is used"


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("original", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_comes_back(dtype: Any, original: torch.dtype) -> None:
    values = noise(3, 4, dtype=original)
    back = there_and_back(Cast(dtype=dtype), values)
    assert back.dtype == original
    assert torch.allclose(back, values, rtol=ERRORS[dtype], atol=2**-8)
    if "16" in dtype and original.itemsize == 2:
        assert back is values, "nothing to be gained"


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-30, 1e-7, 1e5, 1e30, 3.3e38])
def test_any_magnitude_is_finite(dtype: Any, scale: float) -> None:
    values = torch.tensor([1.0, -0.5, 0.25, 0.0]) * scale
    back = there_and_back(Cast(dtype=dtype), values)
    assert back.isfinite().all()
    assert (back.sign() * values.sign() >= 0).all()
    if "8" in dtype and scale > 1e-35:
        torch.testing.assert_close(back, values)
    if dtype == "bf16":
        torch.testing.assert_close(back, values, rtol=2**-7, atol=1e-40)
    if dtype == "fp16" and scale > 65504:
        torch.testing.assert_close(back, values.clamp(-65504, 65504), rtol=2**-10, atol=0)


def test_largest_floats_saturate() -> None:
    values = torch.tensor([1.0, -1.0]) * torch.finfo(torch.float32).max
    for dtype in FORMATS[1:]:
        back = there_and_back(Cast(dtype=dtype), values)  # type: ignore[arg-type]
        torch.testing.assert_close(back, values, rtol=2**-7, atol=0)


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_finite(dtype: Any) -> None:
    back = there_and_back(Cast(dtype=dtype), torch.tensor([1.0, torch.nan, 2.0]))
    assert back.isnan().tolist() == [False, True, False]
    assert back[[0, 2]].tolist() == [1, 2]
    for infinity in (torch.inf, -torch.inf):
        back = there_and_back(Cast(dtype=dtype), torch.tensor([1.0, infinity, 2.0]))
        assert back.isnan().tolist() == [False, True, False]
        assert back[[0, 2]].tolist() == ([0, 0] if "8" in dtype else [1, 2])


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_directions(direction: Any) -> None:
    plugin = Cast(dtype="fp16", direction=direction)
    for kind, way in ((Kind.ACTIVATION, "up"), (Kind.GRADIENT, "down")):
        message = make(kind, x=noise(2, 3))
        plugin.before_send(message)
        assert (message["x"].dtype == torch.float16) == (direction in ("both", way))
        plugin.after_receive(message)
        assert message["x"].dtype == torch.float32
    up, down = plugin.nominal_ratio()
    assert (up, down) == (0.5 if direction != "down" else 1, 0.5 if direction != "up" else 1)


def test_gradients_in_a_format_of_their_own() -> None:
    plugin = Cast(dtype="fp8_e4m3", gradient_dtype="fp8_e5m2")
    found = []
    for kind in (Kind.ACTIVATION, Kind.GRADIENT):
        message = make(kind, x=noise(2, 3))
        plugin.before_send(message)
        found.append(message["x"].dtype)
    assert found == [torch.float8_e4m3fn, torch.float8_e5m2]
    assert Cast(dtype="bf16", gradient_dtype="fp8_e5m2").nominal_ratio() == (0.5, 0.25)


def test_only_floating_point_payload() -> None:
    message = make(x=noise(2, 3), codes=torch.arange(3, dtype=torch.uint8), none=noise(0, 2))
    message.put("scales", noise(2), Role.SIDE)
    Cast(dtype="fp8_e4m3").before_send(message)
    assert message["codes"].dtype == torch.uint8
    assert message["scales"].dtype == torch.float32
    Cast(dtype="fp8_e4m3").after_receive(message)
    assert message["none"].shape == (0, 2)


def test_evaluation_is_left_alone_unless_asked() -> None:
    for evaluation in (False, True):
        plugin = Cast(evaluation=evaluation)
        message = make(training=False, x=noise(2, 3))
        plugin.before_send(message)
        assert (message["x"].dtype == torch.bfloat16) == evaluation == plugin.traits().evaluation
        plugin.after_receive(message)
        assert message["x"].dtype == torch.float32
    prediction = make(Kind.PREDICTION, training=False, predictions=noise(3))
    Cast(evaluation=True).before_send(prediction)
    assert prediction["predictions"].dtype == torch.float32
    assert not Cast(evaluation=True, direction="down").traits().evaluation


@pytest.mark.parametrize("dtype", FORMATS)
def test_training_through_real_frames(tiny: Any, dtype: Any) -> None:
    bound = [tiny.bound(Cast, dtype=dtype)]
    sent = next(tiny.client(bound).train(tiny.batch(), 0))["activations"]
    assert sent.element_size() == (1 if dtype.startswith("fp8") else 2)
    plain = tiny.train(*tiny.pair(optimizer="sgd"), range(2))
    losses = tiny.train(*tiny.pair(bound, optimizer="sgd"), range(2))
    assert losses == pytest.approx(plain, rel=0.2)
    assert losses == tiny.train(*tiny.pair(bound, optimizer="sgd"), range(2))


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_no_arithmetic_follows_eight_bits(tiny: Any, dtype: Any) -> None:
    for name in ("powersgd", "sl-acc", "fedlite"):
        with pytest.raises(ConfigError, match=rf"{name!r} needs (layout|features) .* works: "):
            tiny.pair([tiny.bound(Cast, dtype=dtype), bind("plugins", name)])


def test_in_front_of_a_quantizer(tiny: Any) -> None:
    stack = [tiny.bound(Cast, dtype="fp8_e4m3"), tiny.bound(Quantize, bits=8, per="tensor")]
    losses = tiny.train(*tiny.pair(stack, optimizer="sgd"), range(2))
    assert losses == pytest.approx(tiny.train(*tiny.pair(optimizer="sgd"), range(2)), rel=0.3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratio": 0.1}, "ratio=0.1 is refused; allowed: 0.5 and 0.25; .* quantize"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"ratio": 0.5, "dtype": "fp16"}, "dtype=fp16 is refused; allowed: one of ratio, dtype"),
        ({"dtype": "fp4"}, "dtype=fp4 is refused; allowed: fp16, bf16, fp8_e4m3, fp8_e5m2"),
        ({"gradient_dtype": "fp4"}, "gradient_dtype=fp4"),
        ({"direction": "left"}, "direction=left is refused; allowed: both, up, down"),
        ({"direction": "up", "gradient_dtype": "bf16"}, "gradient_dtype=bf16 .* direction=both"),
    ],
)
def test_bad_parameters(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Cast(**settings)


def test_ratio_chooses_the_format() -> None:
    for ratio, dtype in ((0.5, torch.bfloat16), (0.25, torch.float8_e4m3fn), (None, None)):
        message = make(x=noise(2, 3))
        Cast(ratio=ratio).before_send(message)
        assert message["x"].dtype == (dtype or torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.take("x"), "does not name tensors"),
        (lambda m: m.take("cast.x"), "without one float32 scale"),
        (lambda m: m.put("cast.x", noise(2), Role.SIDE), "without one float32 scale"),
        (lambda m: m.put("cast.x", torch.tensor(1), Role.SIDE), "without one float32 scale"),
        (lambda m: m.put("x", torch.zeros(3, dtype=torch.uint8), Role.PAYLOAD), "torch.uint8"),
        (lambda m: m.notes.update(cast=[{"x": "int8"}]), "cast back to int8"),
        (lambda m: m.notes.update(cast=[{"x": ["float32"]}]), "cast back to"),
        (lambda m: m.notes.update(cast=[3]), "does not name tensors"),
    ],
)
def test_receiver_refuses(change: Any, says: str) -> None:
    plugin, message = Cast(dtype="fp8_e4m3"), make(x=noise(2, 3))
    plugin.before_send(message)
    change(message)
    with pytest.raises(ProtocolError, match=says):
        plugin.after_receive(message)


def test_built_by_name() -> None:
    plugin = bind("plugins", "cast:dtype=fp8_e4m3,gradient_dtype=fp8_e5m2,direction=both").build()
    assert isinstance(plugin, Cast)
    assert plugin.traits().needs == {"numbers"}
    assert plugin.traits().changes == {"layout"}  # no arithmetic on 8 bits
    assert not Cast().traits().changes
    assert plugin.traits().gradient == "straight-through"
