"""AQ-SGD: its quantizer, then samples that come back, at two peers that must not drift apart.

Shapes: B samples, N tokens, D features.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import (
    ConfigError,
    Cut,
    Diverged,
    Kind,
    Message,
    PluginError,
    ProtocolError,
    Role,
)
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins.aqsgd import AQSGD, dequantize, quantize
from splitlab.plugins.common.bits import packed_bytes

B, N, D = 6, 5, 16


def make_plugin(role: Any = "client", *, augmented: bool = False, **params: Any) -> AQSGD:
    plugin = AQSGD(**params)
    plugin.setup(
        Tiny().peer(
            role,
            grid=None,
            seed=0,
            classes=4,
            tokens=N,
            width=D,
            prefix_tokens=1,
            class_token=True,
            cut=1,
            batch_size=B,
            device=torch.device("cpu"),
            augmented=augmented,
        )
    )
    return plugin


def tokens(seed: int = 0, samples: int = B) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(samples, N, D, generator=draw) * torch.linspace(0.1, 4, D)


def sent(
    plugin: AQSGD, values: torch.Tensor, ids: list[int], *, step: int = 0, training: bool = True
) -> Message:
    """Do what the engine does between the client's part and the link."""
    targets = torch.zeros(len(values), dtype=torch.int64)
    cut = Cut(
        activations=values,
        targets=targets,
        step=step,
        training=training,
        sample_ids=torch.tensor(ids),
    )
    plugin.after_client_forward(cut)
    message = Message(Kind.ACTIVATION, step, training=training)
    message.put("activations", cut.activations, Role.PAYLOAD)
    for name, tensor in cut.side.items():
        message.put(name, tensor, Role.SIDE)
    plugin.before_send(message)
    return message


def received(tiny: Any, message: Message, plugin: AQSGD) -> torch.Tensor:
    message = tiny.travel(message)
    plugin.after_receive(message)
    assert list(message) == ["activations"]
    assert message.notes == {}
    return message["activations"]


def visit(
    tiny: Any, peers: tuple[AQSGD, AQSGD], values: torch.Tensor, ids: list[int]
) -> torch.Tensor:
    """Send a batch, check that both peers then hold the same, and return what arrived."""
    back = received(tiny, sent(peers[0], values, ids), peers[1])
    ours, theirs = (plugin.state_dict() for plugin in peers)
    assert torch.equal(ours["ids"], theirs["ids"])
    assert torch.equal(ours["table"].view(torch.int16), theirs["table"].view(torch.int16))
    rows = [ours["ids"].tolist().index(i) for i in ids]
    assert torch.equal(back, ours["table"][rows].to(values.dtype))
    return back


def pair(**params: Any) -> tuple[AQSGD, AQSGD]:
    return make_plugin(**params), make_plugin("server", **params)


# --- The quantizer --------------------------------------------------------------------------------


def test_vector() -> None:
    values = torch.tensor([[1.0], [-0.5], [0.25], [0.1]])
    scale = torch.ones(1, dtype=torch.float16)
    codes = quantize(values, scale, 4)
    assert codes.view(-1).tolist() == [7, -4, 2, 1]
    assert dequantize(codes, scale, 4).view(-1).tolist() == [0.875, -0.5, 0.25, 0.125]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3, 1.0, 1e3])
def test_codes_are_those_of_the_official_code(bits: int, size: float) -> None:
    """It adds 10⁻⁶ to a scale in float16, where that may be nothing, or more."""
    draw = torch.Generator().manual_seed(bits)
    values = size * torch.randn(2000, 16, generator=draw) * torch.rand(16, generator=draw)
    scale = values.abs().amax(0).half()
    padded = torch.tensor([float(s) + 1e-6 for s in scale]).half()
    half = 2.0 ** (bits - 1)
    wanted = (values / padded.float() * half).round().clamp(-half, half - 1)
    assert torch.equal(quantize(values, scale, bits), wanted)


def test_vector_on_the_wire(tiny: Any) -> None:
    """The first visit is 0, so that the change is the vector itself."""
    peers = pair(bits=4, gradient_bits=4)
    visit(tiny, peers, torch.zeros(4, 1, 1), [0, 1, 2, 3])
    values = torch.tensor([1.0, -0.5, 0.25, 0.1]).view(4, 1, 1)
    message = sent(peers[0], values, [0, 1, 2, 3])
    assert message["aqsgd.scales"].tolist() == [1.0]
    assert message["activations"].tolist() == [15 + 4 * 16, 10 + 9 * 16]  # codes + 8, low first
    back = received(tiny, message, peers[1])
    assert back.view(-1).tolist() == [0.875, -0.5, 0.25, 0.125]

    for size in (1.0, 2.0**-30):  # powers of two leave the codes of a gradient as they are
        gradient = Message(Kind.GRADIENT)
        gradient.put("gradient", values * size, Role.PAYLOAD)
        peers[1].before_send(gradient)
        peers[0].after_receive(gradient)
        expected = torch.tensor([0.875, -0.5, 0.25, 0.125]) * size
        assert torch.equal(gradient["gradient"].view(-1), expected)


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 999), size=st.floats(1e-3, 1e3))
def test_error_of_the_quantizer(bits: int, seed: int, size: float) -> None:
    values = tokens(seed).view(-1, D) * size
    scale = values.abs().amax(0).half()
    codes = quantize(values, scale, bits)
    half = 2 ** (bits - 1)
    assert float(codes.min()) >= -half
    assert float(codes.max()) <= half - 1
    error = (dequantize(codes, scale, bits) - values).abs()
    # Half a step; a whole one for the largest, as +1 has no code; 1e-6 and float16 make scales off.
    bound = torch.where(values > scale.float() * (1 - 0.5 / half), 1.0, 0.5) * scale.float() / half
    assert (error <= bound * 1.001 + 1e-3 * scale.float() + 2e-6).all()


# --- Visits ---------------------------------------------------------------------------------------


def test_the_first_visit_is_exact(tiny: Any) -> None:
    values = tokens()
    back = visit(tiny, pair(), values, list(range(B)))
    assert torch.equal(back, values.half().float())


def test_errors_shrink_from_visit_to_visit(tiny: Any) -> None:
    peers = pair(bits=3)
    ids = list(range(B))
    visit(tiny, peers, tokens(0), ids)
    errors = [float((visit(tiny, peers, tokens(1), ids) - tokens(1)).abs().max()) for _ in range(6)]
    floor = 2 * float(tokens(1).half().float().sub(tokens(1)).abs().max())
    for before, after in itertools.pairwise(errors):
        assert after <= max(before / 3, floor), errors
    assert errors[-1] <= floor


def test_new_and_known_samples_in_one_batch(tiny: Any) -> None:
    peers = pair()
    visit(tiny, peers, tokens(0, 3), [50_000, 2, 9])
    message = sent(peers[0], tokens(1), [7, 9, 0, 2, 50_000, 1])
    assert message["aqsgd.whole"].shape == (3, N, D)
    assert message["activations"].shape == (packed_bytes(3 * N * D, 4),)
    back = received(tiny, message, peers[1])
    new, known = [0, 2, 5], [1, 3, 4]
    assert torch.equal(back[new], tokens(1)[new].half().float())
    scale = (tokens(1)[known] - tokens(0, 3)[[2, 1, 0]].half()).abs().amax((0, 1))
    assert ((back - tokens(1))[known].abs() <= scale / 8 * 1.01).all()
    visit(tiny, peers, tokens(2), [0, 1, 2, 7, 9, 50_000])
    assert "aqsgd.whole" not in sent(peers[0], tokens(3), [0, 1, 2, 7, 9, 50_000])


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_peers_never_drift_apart(tiny: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    peers = pair(bits=data.draw(st.integers(2, 8)))
    for step in range(data.draw(st.integers(1, 5))):
        ids = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=B, unique=True))
        size = data.draw(st.sampled_from([0.0, 1e-9, 1.0, 1e3]))
        back = visit(tiny, peers, (tokens(step, len(ids)) * size).to(dtype), ids)
        assert back.dtype == dtype
        assert back.isfinite().all()


def test_gradients(tiny: Any) -> None:
    client, server = pair()
    values = tokens() * 1e-7 * torch.logspace(-4, 0, D)
    message = Message(Kind.GRADIENT, 4)
    message.put("gradient", values, Role.PAYLOAD)
    server.before_send(message)
    assert sum(message[name].nbytes for name in message) == B * N * D + 2 * D
    message = tiny.travel(message)
    client.after_receive(message)
    error = (message["gradient"] - values).abs().amax((0, 1)) / values.abs().amax((0, 1))
    assert (error <= 1.06 / 128).all(), "also where gradients are as small as 1e-11"
    assert client.state_dict() == {}, "nothing is remembered of gradients"


# --- Bytes and ratio ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bytes(bits: int) -> None:
    plugin = make_plugin(bits=bits, gradient_bits=bits)
    assert plugin.nominal_ratio(None) == (bits / 32, bits / 32)

    def size(ids: list[int]) -> int:
        message = sent(plugin, tokens(), ids)
        assert message["aqsgd.ids"].dtype == torch.int32
        return sum(message[name].nbytes for name in message)

    assert size([0, 1, 2, 3, 4, 5]) == 4 * B + 2 * B * N * D
    later = 4 * B + 2 * D
    assert size([0, 1, 2, 3, 4, 5]) == later + packed_bytes(B * N * D, bits)
    assert size([0, 1, 6, 3, 4, 7]) == later + packed_bytes(4 * N * D, bits) + 2 * 2 * N * D


def test_ids_that_need_8_bytes(tiny: Any) -> None:
    peers = pair()
    visit(tiny, peers, tokens(0, 2), [2**40, 1])
    message = sent(peers[0], tokens(1, 2), [1, 2**40])
    assert message["aqsgd.ids"].dtype == torch.int64
    assert "aqsgd.whole" not in message
    received(tiny, message, peers[1])


@pytest.mark.parametrize(
    ("ratio", "bits"), [(0.0625, 2), (0.1, 3), (0.125, 4), (0.24, 7), (0.25, 8)]
)
def test_ratio(tiny: Any, ratio: float, bits: int) -> None:
    client, server = pair(ratio=ratio)
    assert client.nominal_ratio(None) == (ratio, ratio)
    ids = list(range(B))
    visit(tiny, (client, server), tokens(0), ids)
    up = sent(client, tokens(1), ids)
    assert up["activations"].nbytes == packed_bytes(B * N * D, bits) <= ratio * 4 * B * N * D
    down = Message(Kind.GRADIENT)
    down.put("gradient", tokens(), Role.PAYLOAD)
    server.before_send(down)
    assert down["gradient"].nbytes == packed_bytes(B * N * D, bits)


# --- State, evaluation, training ------------------------------------------------------------------


def test_state_goes_on_where_it_was(tiny: Any) -> None:
    first = pair()
    assert first[0].state_dict() == {}
    for seed, ids in enumerate([[4, 1, 8], [1, 3, 2], [8, 4, 9]]):
        visit(tiny, first, tokens(seed, 3), ids)
    second = pair()
    states = [old.state_dict() for old in first]
    kept = states[0]["table"].clone()
    for state, new in zip(states, second, strict=True):
        new.load_state_dict(state)
    for seed, ids in enumerate([[1, 9, 20], [2, 1, 4], [20, 8, 3]]):
        values = tokens(10 + seed, 3)
        assert torch.equal(visit(tiny, first, values, ids), visit(tiny, second, values, ids))
    assert torch.equal(states[0]["table"], kept), "a copy on either way"
    first[0].load_state_dict({})
    assert first[0].state_dict() == {}


def test_peers_that_do_not_remember_the_same(tiny: Any) -> None:
    client, server = pair()
    visit(tiny, (client, server), tokens(), list(range(B)))
    message = sent(client, tokens(), list(range(B)))
    with pytest.raises(ProtocolError, match=r"has seen 0, .* resume both from the same checkpoint"):
        received(tiny, message, make_plugin("server"))
    message = sent(make_plugin(), tokens(), list(range(B)))
    with pytest.raises(ProtocolError, match=r"has seen 6, .* resume both from the same checkpoint"):
        received(tiny, message, server)


def test_evaluation_passes_untouched() -> None:
    plugin = make_plugin()
    message = sent(plugin, tokens(), list(range(B)), training=False)
    assert list(message) == ["activations"]
    assert torch.equal(message["activations"], tokens())
    plugin.after_receive(message)
    prediction = Message(Kind.PREDICTION, training=False)
    prediction.put("predictions", torch.arange(4, dtype=torch.uint8), Role.PAYLOAD)
    plugin.before_send(prediction)
    plugin.after_receive(prediction)
    assert prediction["predictions"].tolist() == [0, 1, 2, 3]
    assert plugin.state_dict() == {}


def test_training_visits_samples_again(tiny: Any) -> None:
    def losses() -> tuple[list[float], list[int]]:
        client, server = tiny.pair([tiny.bound(AQSGD)])
        found, sizes = [], []
        for step in range(4):

            def ask(up: Message) -> Message:
                up = tiny.travel(up)
                sizes.append(sum(up[name].nbytes for name in up))
                return tiny.travel(server.handle(up))

            found.append(hold(client.train(tiny.batch(step % 2), step), ask).loss)
        states = [worker.stack.state_dict()["aqsgd"] for worker in (client, server)]
        assert torch.equal(states[0]["table"], states[1]["table"])
        assert len(states[0]["ids"]) == 2 * B
        return found, sizes

    first, sizes = losses()
    assert (first, sizes) == losses()
    assert sizes[2] < sizes[0] / 3
    plain = tiny.pair()
    assert first[0] == pytest.approx(tiny.train(*plain, [0])[0], rel=1e-3)


# --- Edges and refusals ---------------------------------------------------------------------------


def test_largest_float16(tiny: Any) -> None:
    peers = pair()
    values = tokens()
    values[0, 0, 0], values[1, 1, 1] = 1e6, -1e6
    back = visit(tiny, peers, values, list(range(B)))
    assert back[0, 0, 0] == 65504
    assert back[1, 1, 1] == -65504
    for _ in range(3):
        assert visit(tiny, peers, -values, list(range(B))).isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite(tiny: Any, bad: float) -> None:
    client, server = pair()
    values = tokens()
    values[2, 3, 4] = bad
    for plugin in (client, server):
        with pytest.raises(Diverged, match=r"'aqsgd': the activations hold .* not finite"):
            sent(plugin, values, list(range(B)))
        assert plugin.state_dict() == {}
        sent(plugin, tokens(), list(range(B)))
    before = client.state_dict()["table"]
    for ids in (list(range(B)), [0, 1, 20, 3, 4, 5]):
        with pytest.raises(Diverged, match=r"'aqsgd': the activations hold .* not finite"):
            sent(client, values, ids)
    assert torch.equal(client.state_dict()["table"], before), "nothing of it is remembered"

    message = Message(Kind.GRADIENT)
    message.put("gradient", values, Role.PAYLOAD)
    server.before_send(message)
    client.after_receive(message)
    assert message["gradient"][..., 4].isnan().all()
    message["gradient"][..., 4] = values[..., 4] = 0
    assert (message["gradient"] - values).norm() < 0.02 * values.norm()


@pytest.mark.parametrize("values", [torch.zeros(1, 1, 1), torch.full((1, N, D), 3.0)])
def test_small_batches(tiny: Any, values: torch.Tensor) -> None:
    peers = pair()
    for _ in range(2):
        assert torch.equal(visit(tiny, peers, values, [5]), values)
    message = Message(Kind.GRADIENT)
    message.put("gradient", torch.zeros_like(values), Role.PAYLOAD)
    peers[1].before_send(message)
    peers[0].after_receive(message)
    assert not message["gradient"].any()


def test_augmentation_is_refused() -> None:
    with pytest.raises(ConfigError, match="use --augment none, and no --mixup"):
        make_plugin(augmented=True)


@pytest.mark.parametrize("ids", [None, torch.arange(B - 1)])
def test_without_the_id_of_every_sample(ids: torch.Tensor | None) -> None:
    cut = Cut(
        activations=tokens(),
        targets=torch.zeros(B, dtype=torch.int64),
        step=0,
        training=True,
        sample_ids=ids,
    )
    with pytest.raises(PluginError, match="needs the id of every sample"):
        make_plugin().after_client_forward(cut)


def test_the_same_sample_twice(tiny: Any) -> None:
    with pytest.raises(PluginError, match="6 rows with 5 different"):
        sent(make_plugin(), tokens(), [0, 1, 2, 3, 4, 0])
    message = sent(make_plugin(), tokens(), list(range(B)))
    message["aqsgd.ids"][0] = 5
    with pytest.raises(ProtocolError, match="ids of a batch's samples repeat"):
        received(tiny, message, make_plugin("server"))


def test_samples_that_change_their_shape(tiny: Any) -> None:
    client, server = pair()
    visit(tiny, (client, server), tokens(), list(range(B)))
    with pytest.raises(PluginError, match=r"shape \[4, 16\], at an earlier visit they had \[5, 1"):
        sent(client, tokens()[:, 1:], list(range(B)))
    message = sent(make_plugin(), tokens()[:, 1:], list(range(B, 2 * B)))
    with pytest.raises(ProtocolError, match=r"\[4, 16\] arrived, at an earlier visit they had"):
        received(tiny, message, server)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"ratio": 0.1, "bits": 4}, "leave out bits or ratio"),
        ({"ratio": 0.1, "gradient_bits": 4}, "leave out gradient_bits or ratio"),
        ({"ratio": 0.05}, r"0.0625 \(2 bits\) to 0.25 \(8 bits\)"),
        ({"ratio": 0.3}, r"0.0625 \(2 bits\) to 0.25 \(8 bits\)"),
        ({"ratio": -1}, "ratio=-1"),
        ({"bits": 1}, "bits=1 is refused; allowed: 2 to 8"),
        ({"gradient_bits": 9}, "gradient_bits=9"),
        ({"memory": "disk"}, "cpu, device"),
    ],
)
def test_parameters_that_are_refused(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AQSGD(**params)


def change(message: Message, name: str, tensor: torch.Tensor) -> None:
    message.put(name, tensor, message.role(name))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: change(m, "activations", m["activations"][:-1]), "activations arrived as"),
        (lambda m: change(m, "aqsgd.scales", m["aqsgd.scales"][:-1]), "scales arrived as"),
        (lambda m: change(m, "aqsgd.scales", m["aqsgd.scales"] * torch.inf), "not finite"),
        (lambda m: change(m, "aqsgd.whole", m["aqsgd.whole"].float()), "whole arrived as"),
        (lambda m: change(m, "aqsgd.whole", m["aqsgd.whole"][:1]), "whole arrived as"),
        (lambda m: change(m, "aqsgd.ids", m["aqsgd.ids"][:-1]), "ids arrived as"),
        (lambda m: change(m, "aqsgd.ids", m["aqsgd.ids"].float()), "ids arrived as"),
        (lambda m: change(m, "aqsgd.ids", -m["aqsgd.ids"]), "ids of a batch's samples"),
        (lambda m: m.take("aqsgd.ids"), "'aqsgd.ids' is missing"),
        (lambda m: m.notes["aqsgd"][0].update(shape=[B, N, 2 * D]), r"\[5, 32\] arrived"),
        (lambda m: m.notes["aqsgd"].append({}), "shape and dtype"),
    ],
)
def test_what_a_server_refuses(tiny: Any, spoil: Any, says: str) -> None:
    client, server = pair()
    visit(tiny, (client, server), tokens(0, 3), [1, 2, 3])
    message = sent(client, tokens(1), [1, 2, 3, 4, 5, 6])
    spoil(message)
    before = server.state_dict()["table"]
    with pytest.raises(ProtocolError, match=says):
        server.after_receive(message)
    assert torch.equal(server.state_dict()["table"], before), "nothing of it is remembered"


@pytest.mark.parametrize("exponent", [None, 1000, 0.5])
def test_what_a_client_refuses(exponent: Any) -> None:
    client, server = pair()
    message = Message(Kind.GRADIENT)
    message.put("gradient", tokens(), Role.PAYLOAD)
    server.before_send(message)
    message.notes["aqsgd"][0]["e"] = exponent
    with pytest.raises(ProtocolError, match="is no exponent"):
        client.after_receive(message)


def test_by_name() -> None:
    plugin = bind("plugins", "aqsgd:bits=3,memory=device").build()
    assert plugin.nominal_ratio(None) == (3 / 32, 0.25)
    assert AQSGD().nominal_ratio(None) == (0.125, 0.25)


@pytest.mark.gpu
def test_a_gpu_and_a_cpu_do_not_drift_apart(tiny: Any) -> None:
    client, server = pair(bits=5)
    for step in range(5):
        message = sent(client, tokens(step).cuda(), list(range(B)))
        back = received(tiny, message.to(torch.device("cpu")), server)
        ours, theirs = client.state_dict(), server.state_dict()
        assert torch.equal(ours["table"], theirs["table"])
        assert back.isfinite().all()


def test_a_first_visit_is_charged_as_what_it_sends(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(AQSGD)])
    seen = []
    for batch in (tiny.batch(0), tiny.batch(0), tiny.batch(1)):

        def ask(message: Any) -> Any:
            return tiny.travel(server.handle(tiny.travel(message)))

        step = len(seen)
        hold(client.train(batch, step), ask)
        seen.append(client.stack.nominal_ratio(step))
    assert seen == [(0.5, 0.25), (0.125, 0.25), (0.5, 0.25)]
    assert client.stack.charges_by_step
    assert client.stack.nominal_ratio() == (0.125, 0.25)
