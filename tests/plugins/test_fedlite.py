"""FedLite, driven by its hooks, and the codebooks that it sends.

Shapes: B rows, N tokens, D width; G groups of M subvectors of F numbers, L centroids.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
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
from splitlab.core.catalogue.tables import ROOT
from splitlab.core.engine.conversation import hold
from splitlab.plugins.adc import ADC
from splitlab.plugins.common.kmeans import codebooks
from splitlab.plugins.fedlite import FedLite


@dataclass
class Peers:
    """Two instances and what crossed between them."""

    client: FedLite
    server: FedLite
    tiny: Any

    def up(
        self, tensor: torch.Tensor, step: int = 0, *, training: bool = True
    ) -> tuple[torch.Tensor, Message]:
        """Return what the server rebuilds, and the message as it was on the wire."""
        return self._send(Kind.ACTIVATION, tensor, step, training)

    def down(self, tensor: torch.Tensor, step: int = 0) -> tuple[torch.Tensor, Message]:
        """Return what the client's backward pass takes, and the message on the wire."""
        arrived, wire = self._send(Kind.GRADIENT, tensor, step, True)
        cut = Cut(
            activations=torch.zeros(1),
            targets=torch.zeros(1),
            step=step,
            training=True,
            gradient=arrived,
        )
        self.client.gradient_return(cut)
        assert cut.gradient is not None
        return cut.gradient, wire

    def _send(
        self, kind: Kind, tensor: torch.Tensor, step: int, training: bool
    ) -> tuple[torch.Tensor, Message]:
        name = "activations" if kind is Kind.ACTIVATION else "gradient"
        message = Message(kind, step, training=training)
        message.put(name, tensor.detach().clone(), Role.PAYLOAD)
        up = kind is Kind.ACTIVATION
        sender, receiver = (self.client, self.server) if up else (self.server, self.client)
        sender.before_send(message)
        wire, message = self.tiny.travel(message), self.tiny.travel(message)
        receiver.after_receive(message)
        assert [*message] == [name]
        return message[name], wire


@pytest.fixture
def peers(tiny: Any) -> Any:
    def make(B: int = 6, N: int = 5, D: int = 8, **parameters: Any) -> Peers:
        pair = FedLite(**parameters), FedLite(**parameters)
        for plugin, role in zip(pair, ("client", "server"), strict=True):
            plugin.setup(tiny.peer(role, batch_size=B, tokens=N, width=D))
        return Peers(*pair, tiny)

    return make


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nbytes(message: Message) -> int:
    return sum(message[name].nbytes for name in message)


def objective(points: torch.Tensor, books: torch.Tensor, codes: torch.Tensor) -> float:
    own = books.gather(1, codes[..., None].expand_as(points))
    return float((points - own).double().square().sum())


# --- Codebooks ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_few_different_points_come_back_as_they_were(data: st.DataObject) -> None:
    G, M, F = (data.draw(st.integers(1, n), name) for n, name in ((3, "G"), (20, "M"), (3, "F")))
    values = st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e3])
    points = torch.tensor(data.draw(st.lists(values, min_size=G * M * F, max_size=G * M * F)))
    points = points.view(G, M, F)
    different = max(len({tuple(p) for p in group}) for group in points.tolist())
    L = data.draw(st.integers(different, different + 3), "L")
    seed, iterations = data.draw(st.integers(0, 9)), data.draw(st.sampled_from([1, 10]))
    books, codes = codebooks(points, L, generator=draw(seed), iterations=iterations)
    assert books.shape == (G, min(L, M), F)
    assert codes.shape == (G, M)
    torch.testing.assert_close(
        books.gather(1, codes[..., None].expand_as(points)), points, rtol=1e-5, atol=1e-3
    )


def test_objective_never_grows_and_centroids_are_means() -> None:
    points = noise(2, 300, 3).exp()
    found = []
    for iterations in range(1, 12):
        books, codes = codebooks(points, 16, generator=draw(), iterations=iterations)
        found.append(objective(points, books, codes))
        for group in range(2):
            for code in codes[group].unique().tolist():
                mean = points[group][codes[group] == code].mean(0)
                torch.testing.assert_close(books[group, code], mean)
    assert all(later <= 1.00001 * value for value, later in itertools.pairwise(found))
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("F", [1, 3])
def test_codes_name_the_nearest_centroid(F: int) -> None:
    points = noise(2, 400, F, dtype=torch.float64)
    books, codes = codebooks(points, 8, generator=draw(), iterations=200)
    nearest = torch.cdist(points, books).argmin(dim=-1)  # converged: the means are the centroids
    assert torch.equal(codes, nearest)


def test_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    points = noise(2, 300, 2, dtype=torch.float64)
    whole = codebooks(points, 8, generator=draw())
    monkeypatch.setattr("splitlab.plugins.common.kmeans._PIECE", {"cpu": 2 * 8 * 7})
    pieces = codebooks(points, 8, generator=draw())
    assert torch.equal(whole[1], pieces[1])
    torch.testing.assert_close(whole[0], pieces[0])


def test_idle_centroids_are_put_to_use() -> None:
    # The draw meets one value nearly always; the farthest points are all alike, too.
    points = torch.zeros(1, 200_000, 1)
    points[0, :40] = 5.0
    points[0, 40:45] = -3.0
    points[0, 45] = 4.0
    books, codes = codebooks(points, 4, generator=draw())
    assert sorted(books[0, codes[0].unique()].flatten().tolist()) == pytest.approx(
        [-3, 0, 4, 5], abs=1e-5
    )


def test_a_sample_is_nearly_as_good() -> None:
    points = noise(1, 20_000, 2)
    whole = objective(points, *codebooks(points, 16, generator=draw()))
    sampled = objective(points, *codebooks(points, 16, generator=draw(), sample=1000))
    tiny_sample = objective(points, *codebooks(points, 16, generator=draw(), sample=1))
    assert sampled < 1.05 * whole
    assert tiny_sample < 2 * whole


def test_a_shift_and_a_scale_change_nothing() -> None:
    points = noise(1, 100, 2)
    _, codes = codebooks(points, 8, generator=draw())
    for changed in (points * 2**60, points * 2**-60, points + 1024):
        assert torch.equal(codebooks(changed, 8, generator=draw())[1], codes)


# --- The method -----------------------------------------------------------------------------------


def test_one_centroid_is_the_mean(peers: Any) -> None:
    X = noise(6, 5, 8)
    rebuilt, wire = peers(size=4, centroids=1).up(X)
    torch.testing.assert_close(rebuilt, X.view(-1, 4).mean(0).repeat(60).view_as(X))
    assert wire["activations"].numel() == 0

    # Two groups: the first and the second half of a row's places.
    rebuilt, _ = peers(size=4, centroids=1, groups=2).up(X)
    halves = X.view(6, 2, 5, 4)
    expected = halves.mean(dim=(0, 2), keepdim=True).expand_as(halves)
    torch.testing.assert_close(rebuilt, expected.reshape_as(X))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_are_of_places_and_have_codebooks_of_their_own(peers: Any, groups: int) -> None:
    X = noise(6, 5, 8)
    rebuilt, wire = peers(size=2, centroids=4, groups=groups).up(X)
    book = wire["fedlite.codebook"]
    assert book.shape == (groups, 4, 2)
    places = rebuilt.view(6, groups, -1, 2)
    for group in range(groups):
        used = {tuple(v) for v in places[:, group].reshape(-1, 2).tolist()}
        assert used <= {tuple(v) for v in book[group].tolist()}
        assert len(used) > 1


def test_exact_with_as_many_centroids_as_subvectors(peers: Any) -> None:
    X = noise(6, 5, 8)
    rebuilt, wire = peers(size=2, centroids=200).up(X)
    torch.testing.assert_close(rebuilt, X, rtol=1e-5, atol=1e-6)
    assert wire["fedlite.codebook"].shape == (1, 120, 2)


def test_more_centroids_are_closer(peers: Any) -> None:
    X = noise(6, 5, 8)
    errors = [float((peers(size=2, centroids=L).up(X)[0] - X).norm()) for L in (1, 2, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize("bits", [None, 4])
def test_correction(peers: Any, bits: int | None) -> None:
    X = noise(6, 5, 8, dtype=torch.float64)
    G = noise(6, 5, 8, seed=1, dtype=torch.float64)
    returned = {}
    for correction in (0.0, 0.25):
        pair = peers(size=2, centroids=4, correction=correction, gradient_bits=bits)
        rebuilt, _ = pair.up(X)
        returned[correction], wire = pair.down(G)
    torch.testing.assert_close(
        returned[0.25] - returned[0.0], 0.25 * (X - rebuilt), rtol=0, atol=1e-12
    )
    assert torch.equal(returned[0.0], G) == (bits is None)
    assert ("fedlite.scale" in wire) == (bits is not None)


def test_the_correction_is_of_its_step_and_the_clients_alone(peers: Any) -> None:
    X, G = noise(6, 5, 8), noise(6, 5, 8, seed=1)
    pair = peers(size=2, centroids=4, correction=1.0)
    pair.up(X, step=3)
    assert torch.equal(pair.down(G, step=4)[0], G)
    assert torch.equal(pair.down(G, step=3)[0], G)  # used up
    pair.up(X, step=5)
    cut = Cut(activations=X, targets=torch.zeros(1), step=5, training=True, gradient=G)
    pair.server.gradient_return(cut)
    assert torch.equal(cut.gradient, G)
    cut.gradient = G[:3]
    with pytest.raises(PluginError, match=r"step 6: plugin 'fedlite' was given \[6, 5, 8\]"):
        pair.client.gradient_return(cut)
    assert pair.client.traits().gradient == "corrected"
    assert FedLite(correction=0).traits().gradient == "straight-through"


def test_gradient_bits_are_unbiased(peers: Any) -> None:
    G = noise(2, 2, 8)
    G[0, 1] = 0.0
    pair = peers(2, 2, 8, gradient_bits=2, correction=0)
    draws = torch.stack([pair.down(G, step)[0] for step in range(200)])
    scale = G.abs().amax(-1, keepdim=True)
    assert torch.equal(draws[:, 0, 1], torch.zeros(200, 8))
    levels = (draws + scale) / (2 * scale / 3)
    levels[:, 0, 1] = 0.0
    torch.testing.assert_close(levels, levels.round().clamp(0, 3), rtol=0, atol=1e-5)
    error = (draws.mean(0) - G) / scale.clamp(min=1e-9)
    assert error.abs().max() < 4 * (2 / 3) / 2 / math.sqrt(200)


@pytest.mark.parametrize("bits", [1, 3, 8, 9, 16])
def test_gradient_is_within_a_step(peers: Any, bits: int) -> None:
    G = noise(6, 5, 8) * 1e-6
    returned, wire = peers(gradient_bits=bits, correction=0).down(G)
    step = 2 * G.abs().amax(-1, keepdim=True) / (2**bits - 1)
    assert bool(((returned - G).abs() <= 1.01 * step).all())
    assert wire["gradient"].numel() == math.ceil(240 * bits / 8)
    assert wire.role("fedlite.scale") is Role.SIDE


# --- Bytes and ratio ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "L", "groups", "bits"),
    [(2, 4, 1, None), (4, 16, 1, 3), (1, 5, 2, 1), (8, 3, 5, 16), (8, 1, 1, 8)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_bytes(
    peers: Any, size: int, L: int, groups: int, bits: int | None, dtype: torch.dtype
) -> None:
    B, N, D = 6, 5, 8
    pair = peers(size=size, centroids=L, groups=groups, gradient_bits=bits)
    X = noise(B, N, D, dtype=dtype)
    rebuilt, up = pair.up(X)
    returned, down = pair.down(X)
    number, count = X.element_size(), B * N * D // size
    L = min(L, count // groups)
    packed = math.ceil(count * math.ceil(math.log2(L)) / 8)
    assert nbytes(up) == number * groups * L * size + packed
    if bits is None:
        assert nbytes(down) == X.nbytes
    else:
        assert nbytes(down) == math.ceil(X.numel() * bits / 8) + number * B * N
    assert rebuilt.dtype == returned.dtype == dtype
    assert rebuilt.shape == returned.shape == X.shape
    assert up["fedlite.codebook"].dtype == dtype
    assert {up.role(name) for name in up} == {Role.PAYLOAD}
    if dtype is torch.float32:
        shares = nbytes(up) / X.nbytes, nbytes(down) / X.nbytes
        assert pair.client.nominal_ratio() == pytest.approx(shares)


@pytest.mark.parametrize(("q", "L", "up"), [(9456, 16, 605_440), (18912, 64, 1_816_064)])
def test_bytes_of_a_deit(tiny: Any, q: int, L: int, up: int) -> None:
    plugin = FedLite(size=37_824 // q, centroids=L)
    plugin.setup(tiny.peer(batch_size=128, tokens=197, width=192))
    assert plugin.nominal_ratio() == pytest.approx((up / 19_365_888, 1.0))


def test_default_is_near_a_tenth_up(tiny: Any) -> None:
    plugin = FedLite()
    plugin.setup(tiny.peer(batch_size=128, tokens=197, width=192))
    assert plugin.nominal_ratio() == pytest.approx((0.094, 1.0), abs=1e-3)


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.8, 1.0])
@pytest.mark.parametrize("bits", [None, 2])
def test_ratio_is_met_in_the_mean(peers: Any, ratio: float, bits: int | None) -> None:
    pair = peers(16, 17, 16, ratio=ratio, gradient_bits=bits, iterations=2)
    X = noise(16, 17, 16)
    _, up = pair.up(X)
    _, down = pair.down(X)
    mean = (nbytes(up) + nbytes(down)) / (2 * X.nbytes)
    assert mean <= ratio
    assert pair.client.nominal_ratio() == pytest.approx(
        (nbytes(up) / X.nbytes, nbytes(down) / X.nbytes)
    )
    whole = "fedlite.scale" not in down
    assert whole == (bits is None and ratio > 0.5)
    if bits is None and ratio <= 0.3:
        assert mean > 0.85 * ratio


@pytest.mark.parametrize(
    ("ratio", "up", "down"),
    [(0.1, 0.0938, 0.0990), (0.05, 0.0627, 0.0365), (0.02, 0.0030, 0.0365), (0.55, 0.0938, 1.0)],
)
def test_what_a_ratio_chooses_for_a_deit(tiny: Any, ratio: float, up: float, down: float) -> None:
    plugin = FedLite(ratio=ratio)
    plugin.setup(tiny.peer(batch_size=128, tokens=197, width=192))
    assert plugin.nominal_ratio() == pytest.approx((up, down), abs=1e-4)


def test_a_small_last_batch_keeps_the_ratio_if_it_can(peers: Any) -> None:
    pair = peers(16, 17, 16, ratio=0.2)
    X = noise(1, 17, 16)
    rebuilt, up = pair.up(X)
    _, down = pair.down(X)
    assert nbytes(up) + nbytes(down) <= 2 * 0.2 * X.nbytes
    assert rebuilt.shape == X.shape


# --- Edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 1, 8])
@pytest.mark.parametrize("B", [1, 6])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e38, 1e-40])
def test_finite(peers: Any, bits: int | None, B: int, value: float) -> None:
    pair = peers(gradient_bits=bits, size=2, centroids=4)
    X = torch.zeros(B, 5, 8)
    X[0, 1] = value
    rebuilt, _ = pair.up(X)
    returned, _ = pair.down(X)
    assert rebuilt.isfinite().all()
    assert returned.isfinite().all()
    if value <= 1.0:
        torch.testing.assert_close(rebuilt, X)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_not_finite(peers: Any, bad: float, dtype: torch.dtype) -> None:
    pair = peers(gradient_bits=4, size=2, centroids=4)
    X, G = noise(6, 5, 8, dtype=dtype), noise(6, 5, 8, seed=1, dtype=dtype)
    X[1, 2, 3] = bad
    with pytest.raises(Diverged, match=r"step 1: plugin 'fedlite': the activations .* not finite"):
        pair.up(X)
    X[1, 2, 3] = 0
    pair.up(X)
    G[2, 3, 4] = bad
    returned, _ = pair.down(G, 1)
    assert {(b, n) for b, n, _ in (~returned.isfinite()).nonzero().tolist()} == {(2, 3)}


def test_evaluation_is_left_alone(peers: Any) -> None:
    X = noise(6, 5, 8)
    pair = peers(gradient_bits=4)
    rebuilt, wire = pair.up(X, training=False)
    assert torch.equal(rebuilt, X)
    assert wire["activations"].dtype == torch.float32
    ids = Message(Kind.PREDICTION, training=False)
    ids.put("predictions", torch.tensor([1, 2], dtype=torch.uint8), Role.PAYLOAD)
    pair.server.before_send(ids)
    pair.client.after_receive(ids)
    assert ids["predictions"].tolist() == [1, 2]


def test_draws_depend_on_nothing_but_seed_and_step(peers: Any) -> None:
    X = noise(6, 5, 8)

    def run(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = peers(gradient_bits=2, iterations=1)
        return pair.up(X, step)[0], pair.down(X, step)[0]

    one = run(0)
    state = torch.get_rng_state()
    torch.rand(7)
    two = run(0)
    torch.set_rng_state(state)
    other = run(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- Whole steps, stacks --------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"ratio": 0.2}, {"size": 4, "groups": 4}])
def test_trains_through_frames(tiny: Any, parameters: dict[str, Any]) -> None:
    client, server = tiny.pair([tiny.bound(FedLite, **parameters)])
    assert "fedlite.codebook" in next(client.train(tiny.batch(), 0))
    losses = tiny.train(client, server, [0, 1])
    assert all(math.isfinite(loss) for loss in losses)


def test_behind_adc_and_in_front_of_half_precision(tiny: Any) -> None:
    half = bind("plugins", f"{ROOT}/examples/half_precision.py:HalfPrecision")
    stack = [tiny.bound(ADC, ratio=0.5), tiny.bound(FedLite, size=4), half]
    client, server = tiny.pair(stack)

    def ask(message: Message) -> Message:
        assert message["fedlite.codebook"].dtype == torch.float16
        assert message["activations"].dtype == torch.uint8
        answer = server.handle(tiny.travel(message))
        assert answer["gradient"].dtype == torch.float16
        return tiny.travel(answer)

    assert math.isfinite(hold(client.train(tiny.batch(0), 0), ask).loss)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": 0.1, "size": 2}, "size=2 is refused; allowed: one of ratio, size"),
        ({"ratio": 0.1, "centroids": 2}, "one of ratio, centroids"),
        ({"size": 0}, "size=0 is refused; allowed: 1 or more"),
        ({"centroids": 0}, "centroids=0 is refused; allowed: 1 to 65536"),
        ({"centroids": 70_000}, "1 to 65536"),
        ({"groups": 0}, "groups=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"sample": 0}, "sample=0"),
        ({"correction": -1.0}, "correction=-1.0"),
        ({"correction": math.inf}, "correction=inf"),
        ({"gradient_bits": 17}, "gradient_bits=17 is refused; allowed: 1 to 16"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FedLite(**parameters)


def test_a_ratio_that_cannot_be_met(tiny: Any) -> None:
    facts = {"batch_size": 128, "tokens": 197, "width": 192}
    with pytest.raises(ConfigError, match=r"ratio=0.01 .* allowed here: 0.0188 to 1"):
        FedLite(ratio=0.01).setup(tiny.peer(**facts))
    with pytest.raises(ConfigError, match=r"ratio=0.1 .* allowed here: 0.1281 to 1"):
        FedLite(ratio=0.1, gradient_bits=8).setup(tiny.peer(**facts))
    FedLite(ratio=0.0188).setup(tiny.peer(**facts))
    FedLite(ratio=0.1281, gradient_bits=8).setup(tiny.peer(**facts))


@pytest.mark.parametrize("parameters", [{"size": 3}, {"size": 8, "groups": 2}, {"groups": 7}])
def test_a_size_that_does_not_divide(peers: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="do not divide the 40 numbers of a row, 5 tokens of 8"):
        peers(**parameters).up(noise(6, 5, 8))


def arrived(kind: Kind, facts: Any, **tensors: torch.Tensor) -> Message:
    message = Message(kind)
    message.push("fedlite", facts)
    for name, tensor in tensors.items():
        name = f"fedlite.{name}" if name in ("codebook", "scale") else name
        message.put(name, tensor, Role.PAYLOAD)
    return message


BYTES = torch.zeros(30, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("facts", "tensors", "says"),
    [
        ([6, 5], {}, "with facts"),
        ("x", {}, "its facts are"),
        ([6, 5, -8], {}, "its facts are"),
        ([6, 5, True], {}, "its facts are"),
        ([6, 5, 8], {}, "no tensor 'activations'"),
        ([6, 5, 8], {"activations": BYTES}, "no tensor 'fedlite.codebook'"),
        ([60, 5, 8], {"activations": BYTES, "codebook": torch.zeros(1, 4, 2)}, "240 numbers at"),
        ([6, 5, 8], {"activations": BYTES, "codebook": torch.zeros(4, 2)}, "codebooks"),
        ([6, 5, 8], {"activations": BYTES, "codebook": torch.zeros(1, 4, 3)}, "codebooks"),
        ([6, 5, 8], {"activations": BYTES, "codebook": torch.zeros(1, 0, 2)}, "codebooks"),
        ([6, 5, 8], {"activations": BYTES, "codebook": torch.zeros(1, 4, 4)}, "60 of 2 bits"),
        ([6, 5, 8], {"activations": BYTES, "codebook": torch.zeros(1, 1, 2)}, "120 of 0 bits"),
        ([6, 5, 8], {"activations": BYTES + 255, "codebook": torch.zeros(1, 3, 2)}, "3 centroids"),
    ],
)
def test_server_refuses(
    peers: Any, facts: Any, tensors: dict[str, torch.Tensor], says: str
) -> None:
    with pytest.raises(ProtocolError, match=f"step 1: plugin 'fedlite': .*{says}"):
        peers().server.after_receive(arrived(Kind.ACTIVATION, facts, **tensors))


@pytest.mark.parametrize(
    ("facts", "tensors", "says"),
    [
        ([8], {}, "with facts"),
        ([8, 17], {}, "with facts"),
        ([8, 1], {"gradient": BYTES}, "no tensor 'fedlite.scale'"),
        ([8, 1], {"gradient": BYTES, "scale": torch.zeros(6)}, "scales"),
        ([8, 1], {"gradient": BYTES, "scale": BYTES.view(6, 5)}, "scales"),
        ([8, 2], {"gradient": BYTES, "scale": torch.zeros(6, 5)}, "60 bytes"),
    ],
)
def test_client_refuses(
    peers: Any, facts: Any, tensors: dict[str, torch.Tensor], says: str
) -> None:
    with pytest.raises(ProtocolError, match=says):
        peers().client.after_receive(arrived(Kind.GRADIENT, facts, **tensors))


@pytest.mark.parametrize(
    "text",
    ["fedlite", "fedlite:ratio=0.3", "fedlite:size=4,centroids=16,sample=none,gradient_bits=4"],
)
def test_built_by_name(text: str) -> None:
    plugin = bind("plugins", text).build()
    assert isinstance(plugin, FedLite)
    assert not plugin.traits().stateful
    assert all(0 < share <= 1 for share in plugin.nominal_ratio())


@pytest.mark.gpu
@pytest.mark.parametrize("F", [1, 2])
def test_gpu_repeats_itself_and_agrees_with_the_cpu(F: int) -> None:
    points = noise(2, 50_000, F)
    books, codes = codebooks(points, 16, generator=draw())
    torch.use_deterministic_algorithms(True)
    try:
        runs = [codebooks(points.cuda(), 16, generator=draw()) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    found = objective(points, runs[0][0].cpu(), runs[0][1].cpu())
    assert found == pytest.approx(objective(points, books, codes), rel=0.02)
