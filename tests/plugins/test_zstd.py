"""Lossless compression of whole messages: every bit comes back, and no bomb goes off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.core.wire.encode import encode
from splitlab.plugins.quantize import Quantize
from splitlab.plugins.zstd import Zstd

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def random_bits(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Any bit patterns, NaNs with payloads among them, with some structure in the upper bytes."""
    draw = torch.Generator().manual_seed(seed)
    octets = torch.randint(256, (*shape, dtype.itemsize), generator=draw, dtype=torch.uint8)
    octets[..., -1] = octets[..., -1] % 3 + 126
    return octets.view(dtype).squeeze(-1)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (a, b)))


def built(tiny: Any, **settings_: Any) -> Zstd:
    plugin = Zstd(**settings_)
    plugin.setup(tiny.peer())
    return plugin


def make(kind: Kind = Kind.ACTIVATION, *, training: bool = True) -> Message:
    message = Message(kind, 3, training=training)
    message.put("activations", noise(6, 5, 16), Role.PAYLOAD)
    message.put("targets", torch.zeros(600, dtype=torch.int32), Role.TARGETS)
    message.put("scales", noise(50).half(), Role.SIDE)
    message.put("tiny", torch.arange(3), Role.SIDE)
    return message


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 9), max_size=4),
    shuffle=st.booleans(),
    level=st.sampled_from([1, 3, 19]),
    seed=st.integers(0, 9),
)
def test_every_bit_comes_back(
    tiny: Any, dtype: torch.dtype, shape: list[int], shuffle: bool, level: int, seed: int
) -> None:
    plugin = built(tiny, shuffle=shuffle, level=level)
    tensor = random_bits(dtype, *shape, seed=seed)
    message = Message(Kind.ACTIVATION)
    message.put("x", tensor.clone(), Role.PAYLOAD)
    plugin.before_send(message)
    arrived = tiny.travel(message)
    plugin.after_receive(arrived)
    assert same_bits(arrived["x"], tensor)
    assert not arrived.notes


@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.GRADIENT, Kind.PREDICTION])
def test_all_roles_in_every_message(tiny: Any, kind: Kind) -> None:
    plugin, message = built(tiny), make(kind, training=kind is not Kind.PREDICTION)
    before = {name: (message[name], message.role(name)) for name in message}
    size = len(b"".join(encode(make(kind)).buffers()))
    plugin.before_send(message)
    compressed = [name for name in message if message[name] is not before[name][0]]
    assert compressed == ["activations", "targets"], "the others would become larger"
    assert all(message[name].dtype == torch.uint8 for name in compressed)
    frame = encode(message)
    assert len(b"".join(frame.buffers())) < size, "smaller with its notes"
    arrived = tiny.travel(message)
    built(tiny).after_receive(arrived)
    assert list(arrived) == list(before)
    for name, (tensor, role) in before.items():
        assert same_bits(arrived[name], tensor)
        assert arrived.role(name) is role


def test_what_becomes_no_smaller_travels_as_it_is(tiny: Any) -> None:
    message = Message(Kind.ACTIVATION)
    octets = random_bits(torch.uint8, 4000)
    octets = torch.randint(256, octets.shape, dtype=torch.uint8, generator=torch.Generator())
    message.put("x", octets, Role.PAYLOAD)
    built(tiny).before_send(message)
    assert message["x"] is octets
    assert not message.notes


def test_shuffled_floats_become_shorter(tiny: Any) -> None:
    sizes = []
    for shuffle in (True, False):
        message = Message(Kind.ACTIVATION)
        message.put("x", noise(40_000), Role.PAYLOAD)
        built(tiny, shuffle=shuffle).before_send(message)
        sizes.append(message["x"].nbytes)
    assert sizes[0] < 0.9 * 160_000
    assert sizes[0] < 0.97 * sizes[1]


def test_shuffle_puts_bytes_of_one_weight_together() -> None:
    from splitlab.plugins.zstd import _to_bytes

    words = torch.tensor([0x04030201, 0x7C0B0A09], dtype=torch.int32)
    assert _to_bytes(words, True).tolist() == [1, 9, 2, 10, 3, 11, 4, 0x7C]
    assert _to_bytes(words, False).tolist() == [1, 2, 3, 4, 9, 10, 11, 0x7C]


def test_other_memory_layouts(tiny: Any) -> None:
    message = Message(Kind.ACTIVATION)
    message.put("x", noise(40, 60).T, Role.PAYLOAD)
    built(tiny).before_send(message)
    assert message["x"].dtype == torch.uint8
    built(tiny).after_receive(message)
    assert torch.equal(message["x"], noise(40, 60).T)


def test_a_run_is_the_same_bit_for_bit(tiny: Any) -> None:
    plain = tiny.train(*tiny.pair(), range(3))
    assert tiny.train(*tiny.pair([tiny.bound(Zstd)]), range(3)) == plain


def test_evaluation_and_predictions(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(Zstd)])

    def ask(up: Message) -> Message:
        up = tiny.travel(up)
        assert up["activations"].dtype == torch.uint8
        return tiny.travel(server.handle(up))

    found = hold(client.query(tiny.batch(), 0, stacked=True), ask)
    plain_client, plain_server = tiny.pair()
    answer = plain_server.handle(next(plain_client.query(tiny.batch(), 0, stacked=True)))
    assert torch.equal(found.ids, answer["predictions"].long())
    assert found.loss_sum == answer.meta["loss_sum"]
    assert Zstd().traits().evaluation


def test_behind_a_quantizer(tiny: Any) -> None:
    stack = [tiny.bound(Quantize, bits=8), tiny.bound(Zstd)]
    losses = tiny.train(*tiny.pair(stack), range(2))
    assert losses == tiny.train(*tiny.pair(stack[:1]), range(2))
    with pytest.raises(ConfigError, match="needs numbers"):
        tiny.pair(stack[::-1])


# --- What a receiver refuses ----------------------------------------------------------------------


def frame(tiny: Any, *, note: Any, data: bytes = b"") -> Message:
    message = Message(Kind.ACTIVATION)
    message.push("zstd", note)
    octets = torch.frombuffer(bytearray(data or b"x"), dtype=torch.uint8)
    message.put("x", octets, Role.PAYLOAD)
    return message


BOMB = zstandard.ZstdCompressor().compress(bytes(10_000_000))
SHORT = zstandard.ZstdCompressor().compress(bytes(64))


@pytest.mark.parametrize(
    ("note", "data", "says"),
    [
        ({"x": ["uint8", 64]}, BOMB, "does not hold 64 bytes"),
        ({"x": ["uint8", 10_000_000]}, BOMB, "would grow to 10000000 bytes; allowed: 10"),
        ({"x": ["float64", 2**40, 2**40]}, SHORT, "would grow to"),
        ({"x": ["uint8", 65]}, SHORT, "does not hold 65 bytes"),
        ({"x": ["float32", 64]}, SHORT, "does not hold 256 bytes"),
        ({"x": ["uint8", 64]}, SHORT[:-3], "'x' cannot be unpacked"),
        ({"x": ["uint8", 64]}, SHORT + b"more", "'x' cannot be unpacked"),
        ({"x": ["uint8", 64]}, SHORT + SHORT, "'x' cannot be unpacked"),
        ({"x": ["uint8", 64]}, b"no zstd at all", "'x' cannot be unpacked"),
        (
            {"x": ["uint8"]},
            zstandard.ZstdCompressor(write_content_size=False).compress(b"a"),
            "does not hold 1 bytes",
        ),
        ({"y": ["uint8", 64]}, SHORT, "no string of bytes 'y'"),
        ({"x": ["bool", 64]}, SHORT, "should hold dtype and shape"),
        ({"x": ["uint8", -64]}, SHORT, "should hold dtype and shape"),
        ({"x": ["uint8", 64.0]}, SHORT, "should hold dtype and shape"),
        ({"x": ["uint8", *[1] * 80]}, SHORT, "should hold dtype and shape"),
        ({"x": []}, SHORT, "should hold dtype and shape"),
        ({"x": None}, SHORT, "should hold dtype and shape"),
        ({}, SHORT, "names no tensors"),
        ([1], SHORT, "names no tensors"),
    ],
)
def test_receiver_refuses(tiny: Any, note: Any, data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        built(tiny).after_receive(frame(tiny, note=note, data=data))


def test_receiver_refuses_many_that_are_too_much_together(tiny: Any) -> None:
    message = Message(Kind.ACTIVATION)
    million = zstandard.ZstdCompressor().compress(bytes(900_000))
    for i in range(3):
        data = torch.frombuffer(bytearray(million), dtype=torch.uint8)
        message.put(f"x{i}", data, Role.SIDE)
    message.push("zstd", {f"x{i}": ["uint8", 900_000] for i in range(3)})
    with pytest.raises(ProtocolError, match="would grow to 2700000 bytes"):
        built(tiny).after_receive(message)


def test_receiver_refuses_what_is_no_string_of_bytes(tiny: Any) -> None:
    message = frame(tiny, note={"x": ["uint8", 64]})
    message.put("x", noise(4), Role.PAYLOAD)
    with pytest.raises(ProtocolError, match="no string of bytes 'x'"):
        built(tiny).after_receive(message)


@pytest.mark.parametrize("level", [0, 23])
def test_bad_levels(level: int) -> None:
    with pytest.raises(ConfigError, match=f"level={level} is refused; allowed: 1 to 22"):
        Zstd(level=level)


def test_built_by_name() -> None:
    plugin = bind("plugins", "zstd:level=3,shuffle=false").build()
    assert isinstance(plugin, Zstd)
    assert (plugin.traits().needs, plugin.traits().changes) == ({"plain"}, {"plain"})
    assert plugin.nominal_ratio() == (1, 1)
    with pytest.raises(ConfigError, match="ratio"):
        bind("plugins", "zstd:ratio=0.5")
