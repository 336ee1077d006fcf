"""NSC-SL's reconstruction, driven by its hooks; what it shares with PowerSGD is tested there.

Shapes: B rows, N tokens, D width; G matrices of M by F, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import ROOT, entries
from splitlab.core.engine.conversation import hold
from splitlab.plugins.adc import ADC
from splitlab.plugins.nsc_sl import NSCSL

NAMES = {Kind.ACTIVATION: "activations", Kind.GRADIENT: "gradient"}
MATS = ["tokens", "sample", "batch"]


@dataclass
class Peers:
    """Two instances and what crossed between them."""

    client: NSCSL
    server: NSCSL
    tiny: Any

    def send(
        self, kind: Kind, tensor: torch.Tensor, step: int = 0, *, training: bool = True
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return what the receiver rebuilds, and the tensors that were on the wire."""
        message = Message(kind, step, training=training)
        message.put(NAMES[kind], tensor.detach().clone(), Role.PAYLOAD)
        up = kind is Kind.ACTIVATION
        sender, receiver = (self.client, self.server) if up else (self.server, self.client)
        sender.before_send(message)
        message = self.tiny.travel(message)
        wire = {name: message[name] for name in message}
        receiver.after_receive(message)
        assert [*message] == [NAMES[kind]]
        return message[NAMES[kind]], wire


@pytest.fixture
def peers(tiny: Any) -> Any:
    def make(B: int = 6, N: int = 5, D: int = 8, **parameters: Any) -> Peers:
        pair = NSCSL(**parameters), NSCSL(**parameters)
        for plugin, role in zip(pair, ("client", "server"), strict=True):
            plugin.setup(tiny.peer(role, batch_size=B, tokens=N, width=D))
        return Peers(*pair, tiny)

    return make


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def matrices(tensor: torch.Tensor, mat: str) -> torch.Tensor:
    B, N, D = tensor.shape
    shapes = {"tokens": (1, B * N, D), "sample": (B, N, D), "batch": (1, B, N * D)}
    return tensor.reshape(shapes[mat])


def nbytes(wire: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in wire.values())


def with_spectrum(values: list[float], M: int = 12) -> torch.Tensor:
    """Return a matrix (1, M, F) with these singular values."""
    U = torch.linalg.qr(noise(M, len(values), dtype=torch.float64)).Q
    V = torch.linalg.qr(noise(len(values), len(values), seed=1, dtype=torch.float64)).Q
    return (U * torch.tensor(values, dtype=torch.float64) @ V.T).float()[None]


# --- The factors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("feedback", ["intra", "none"])
def test_matrices_of_a_small_rank_are_rebuilt(peers: Any, mat: str, feedback: str) -> None:
    B, N, D = 6, 7, 9
    shape = matrices(torch.zeros(B, N, D), mat).shape
    low = (noise(shape[0], shape[1], 2) @ noise(shape[0], 2, shape[2], seed=1)).view(B, N, D)
    rebuilt, _ = peers(B, N, D, ratio=1.0, eta=1.0, mat=mat, feedback=feedback).send(
        Kind.ACTIVATION, low
    )
    torch.testing.assert_close(rebuilt, low, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("feedback", ["intra", "none"])
def test_many_iterations_find_the_best_approximation(peers: Any, mat: str, feedback: str) -> None:
    X = noise(6, 7, 9)
    pair = peers(6, 7, 9, ratio=0.5, eta=1.0, mat=mat, feedback=feedback, iterations=60)
    rebuilt, wire = pair.send(Kind.ACTIVATION, X)
    R = wire["nsc_sl.q"].shape[-1]
    assert R >= 2
    values = torch.linalg.svdvals(matrices(X, mat))
    best = float(values[..., R:].square().sum().sqrt())
    assert float((rebuilt - X).norm()) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("gradient", ["natural", "factor"])
def test_columns_are_orthonormal(peers: Any, mat: str, gradient: str) -> None:
    pair = peers(mat=mat, gradient=gradient, ratio=0.5)
    for step in range(2):
        X = noise(6, 5, 8, seed=step)
        _, wire = pair.send(Kind.ACTIVATION, X, step)
        V = wire["nsc_sl.q"]
        V = V if mat == "sample" else V.reshape(1, -1, V.shape[-1])
        eye = torch.eye(V.shape[-1]).expand(V.shape[0], -1, -1)
        torch.testing.assert_close(V.mT @ V, eye, rtol=0, atol=1e-5)
        P = wire["nsc_sl.p"]
        P = P if mat == "sample" else P.reshape(1, -1, P.shape[-1])
        torch.testing.assert_close(P, matrices(X, mat) @ V, rtol=1e-4, atol=1e-5)


def test_probing_the_residual_comes_closer(peers: Any) -> None:
    X = noise(64, 5, 32) * torch.arange(1, 33).pow(-0.5)
    error = {}
    for feedback in ("none", "intra"):
        pair = peers(64, 5, 32, ratio=0.15, eta=1.0, feedback=feedback, iterations=1)
        error[feedback] = (pair.send(Kind.ACTIVATION, X)[0] - X).norm()
    assert error["intra"] < 0.99 * error["none"]


@pytest.mark.parametrize("mat", MATS)
def test_the_warm_start_helps(peers: Any, mat: str) -> None:
    base = noise(6, 7, 12, seed=1) * torch.arange(1, 13).pow(-0.5)
    warm = peers(6, 7, 12, ratio=0.4, eta=1.0, mat=mat, feedback="none", iterations=1)
    for step in range(12):
        error_warm = (warm.send(Kind.ACTIVATION, base, step)[0] - base).norm()
    cold = peers(6, 7, 12, ratio=0.4, eta=1.0, mat=mat, feedback="none", iterations=1)
    error_cold = (cold.send(Kind.ACTIVATION, base, 11)[0] - base).norm()
    assert error_warm < error_cold


# --- The rank -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "R"), [(0.99, 1), (0.9999, 2), (1.0, 2)])
def test_energy_rule(peers: Any, eta: float, R: int) -> None:
    X = with_spectrum([9.1763, 0.1878, 0.0])
    pair = peers(1, 12, 3, ratio=1.0, eta=eta)
    _, wire = pair.send(Kind.ACTIVATION, X)
    assert wire["nsc_sl.q"].shape == (3, R)


@pytest.mark.parametrize("scale", [1.0, 3.3, 0.07, 1e-25, 1e25])
def test_energy_rule_at_every_scale(peers: Any, scale: float) -> None:
    X = with_spectrum([3.0, 2.0, 1.0, 0.0, 0.0, 0.0], M=40) * scale
    for eta, R in ((0.6, 1), (0.9, 2), (1.0, 3)):
        _, wire = peers(1, 40, 6, ratio=1.0, eta=eta).send(Kind.ACTIVATION, X)
        assert wire["nsc_sl.q"].shape == (6, R)


def test_energy_is_that_of_all_samples_together(peers: Any) -> None:
    flat, steep = with_spectrum([1.0, 0.9, 0.8, 0.0]), with_spectrum([100.0, 1.0, 0.0, 0.0])
    pair = peers(2, 12, 4, ratio=1.0, eta=0.99, mat="sample")
    _, wire = pair.send(Kind.ACTIVATION, torch.cat((flat, steep)))
    assert wire["nsc_sl.q"].shape == (2, 4, 1)
    _, wire = pair.send(Kind.ACTIVATION, torch.cat((flat, flat)), 1)
    assert wire["nsc_sl.q"].shape == (2, 4, 3)


@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("gradient", ["natural", "factor"])
def test_rank_is_monotone_in_the_budget(peers: Any, mat: str, gradient: str) -> None:
    X = noise(6, 7, 9)
    G, M, F = matrices(X, mat).shape
    ranks = []
    for budget in range(4 * G * (M + F), 4 * X.numel(), 4 * G * (M + F) // 2):
        pair = peers(6, 7, 9, budget=budget, eta=1.0, mat=mat, gradient=gradient)
        _, wire = pair.send(Kind.ACTIVATION, X)
        assert nbytes(wire) <= budget
        ranks.append(wire["nsc_sl.q"].shape[-1])
    assert ranks == sorted(ranks)
    assert ranks[0] == 1 < ranks[-1]


def test_a_budget_counts_the_bytes_of_the_numbers(peers: Any) -> None:
    X = noise(6, 5, 8)
    for dtype, R in ((torch.float32, 2), (torch.float16, 4), (torch.float64, 1)):
        pair = peers(budget=4 * 2 * 38, eta=1.0)
        _, wire = pair.send(Kind.ACTIVATION, X.to(dtype))
        assert wire["nsc_sl.q"].shape == (8, R)


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("gradient", ["natural", "factor"])
def test_ratio_is_a_cap(peers: Any, ratio: float, mat: str, gradient: str) -> None:
    if ratio == 0.2 and mat != "tokens":
        return
    pair = peers(8, 7, 9, ratio=ratio, mat=mat, gradient=gradient, eta=1.0)
    X = noise(8, 7, 9)
    _, up = pair.send(Kind.ACTIVATION, X)
    _, down = pair.send(Kind.GRADIENT, X)
    assert (nbytes(up) + nbytes(down)) / 2 <= ratio * X.nbytes
    assert pair.client.nominal_ratio(None) == pytest.approx(
        (nbytes(up) / X.nbytes, nbytes(down) / X.nbytes)
    )


@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("gradient", ["natural", "factor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes(peers: Any, mat: str, gradient: str, dtype: torch.dtype) -> None:
    X = noise(6, 5, 8, dtype=dtype)
    G, M, F = matrices(X, mat).shape
    pair = peers(ratio=0.6, eta=0.9, mat=mat, gradient=gradient)
    rebuilt, up = pair.send(Kind.ACTIVATION, X)
    returned, down = pair.send(Kind.GRADIENT, X)
    size, R = X.element_size(), up["nsc_sl.q"].shape[-1]
    assert nbytes(up) == size * G * R * (M + F)
    assert nbytes(down) == size * G * R * (M + (F if gradient == "factor" else 0))
    assert rebuilt.dtype == returned.dtype == dtype
    assert rebuilt.shape == returned.shape == X.shape


def test_default_of_a_deit(tiny: Any) -> None:
    plugin = NSCSL()
    plugin.setup(tiny.peer(batch_size=128, tokens=197, width=192))
    assert plugin.nominal_ratio(None) == pytest.approx((0.0997, 0.0990), abs=1e-4)


# --- Gradients and feedback -----------------------------------------------------------------------


@pytest.mark.parametrize("mat", MATS)
def test_natural_gradient_is_autograds(peers: Any, mat: str) -> None:
    pair = peers(ratio=0.5, mat=mat)
    X = noise(6, 5, 8, dtype=torch.float64).requires_grad_()
    G = noise(6, 5, 8, seed=3, dtype=torch.float64)
    rebuilt, up = pair.send(Kind.ACTIVATION, X)
    returned, down = pair.send(Kind.GRADIENT, G)
    V = up["nsc_sl.q"]
    V = V if mat == "sample" else V.reshape(1, -1, V.shape[-1])
    composed = (matrices(X, mat) @ V @ V.mT).view_as(X)
    torch.testing.assert_close(rebuilt, composed.detach(), rtol=0, atol=1e-9)
    (expected,) = torch.autograd.grad(composed, X, G)
    torch.testing.assert_close(returned, expected, rtol=0, atol=1e-9)
    assert [*down] == ["nsc_sl.p"]
    assert down["nsc_sl.p"].shape == up["nsc_sl.p"].shape


def test_temporal_feedback_telescopes(peers: Any) -> None:
    pair = peers(ratio=0.3, gradient="factor", feedback="temporal")
    gradients = [noise(6, 5, 8, seed=s) for s in range(6)]
    rebuilt = [pair.send(Kind.GRADIENT, g, s)[0] for s, g in enumerate(gradients)]
    residual = pair.server.state_dict()["gradient"]["residual"]
    torch.testing.assert_close(sum(rebuilt), sum(gradients) - residual, rtol=1e-5, atol=1e-5)
    pair.send(Kind.ACTIVATION, gradients[0])
    assert set(pair.client.state_dict()["activations"]) == {"basis"}


def test_beta_scales_the_feedback(peers: Any) -> None:
    G = noise(6, 5, 8)
    out = {}
    for beta in (0.0, 0.5):
        pair = peers(ratio=0.3, gradient="factor", feedback="temporal", beta=beta, iterations=30)
        first, _ = pair.send(Kind.GRADIENT, G)
        out[beta], _ = pair.send(Kind.GRADIENT, G, 1)
        missed = G - first
    reference = peers(ratio=0.3, gradient="factor", iterations=30)
    expected, _ = reference.send(Kind.GRADIENT, G + 0.5 * missed, 1)
    torch.testing.assert_close(out[0.5], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(out[0.0], expected, atol=1e-2)


# --- Edges, state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("B", [1, 2, 6])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30, 1e-30])
def test_finite(peers: Any, mat: str, B: int, value: float) -> None:
    pair = peers(mat=mat, ratio=0.6)
    X = torch.zeros(B, 5, 8)
    X[0, 1] = value
    for step in range(2):
        for kind in NAMES:
            rebuilt, _ = pair.send(kind, X, step)
            torch.testing.assert_close(rebuilt, X, rtol=0, atol=1e-4 * value)


@pytest.mark.parametrize("mat", MATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_leaves_no_trace(peers: Any, mat: str, bad: float) -> None:
    pair = peers(mat=mat, ratio=0.5)
    X = noise(6, 5, 8)
    pair.send(Kind.ACTIVATION, X)
    before = pair.client.state_dict()["activations"]["basis"]
    X[1, 2, 3] = bad
    rebuilt, _ = pair.send(Kind.ACTIVATION, X, 1)
    assert not rebuilt.isfinite().all()
    assert torch.equal(pair.client.state_dict()["activations"]["basis"], before)


def test_evaluation(peers: Any) -> None:
    X = noise(6, 5, 8)
    _, wire = peers(ratio=0.4).send(Kind.ACTIVATION, X, training=False)
    assert [*wire] == ["activations"]
    acting = peers(evaluation=True, ratio=0.4)
    acting.send(Kind.ACTIVATION, X)
    before = acting.client.state_dict()["activations"]["basis"]
    _, wire = acting.send(Kind.ACTIVATION, noise(6, 5, 8, seed=8), 5, training=False)
    assert set(wire) == {"nsc_sl.p", "nsc_sl.q"}
    assert torch.equal(acting.client.state_dict()["activations"]["basis"], before)


@pytest.mark.parametrize("mat", MATS)
def test_state_goes_on_bit_for_bit(peers: Any, mat: str) -> None:
    tensors = [noise(6, 5, 8, seed=s) for s in range(4)]
    tensors[1] = tensors[1][:3]  # a small batch between them
    parameters = {"mat": mat, "ratio": 0.5, "gradient": "factor", "feedback": "temporal"}
    whole, first, second = (peers(**parameters) for _ in range(3))

    def step(pair: Peers, s: int) -> list[torch.Tensor]:
        return [pair.send(kind, tensors[s], s)[0] for kind in NAMES]

    expected = [step(whole, s) for s in range(4)]
    for s in (0, 1):
        step(first, s)
    second.client.load_state_dict(first.client.state_dict())
    second.server.load_state_dict(first.server.state_dict())
    for s in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(step(second, s), expected[s], strict=True))


def test_draws_depend_on_nothing_but_seed_and_step(peers: Any) -> None:
    X = noise(6, 5, 8)
    _, one = peers(ratio=0.3).send(Kind.ACTIVATION, X)
    state = torch.get_rng_state()
    torch.rand(7)
    _, two = peers(ratio=0.3).send(Kind.ACTIVATION, X)
    torch.set_rng_state(state)
    _, other = peers(ratio=0.3).send(Kind.ACTIVATION, X, 1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["nsc_sl.p"], other["nsc_sl.p"])


# --- Whole steps, refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [{}, {"mat": "sample"}, {"mat": "batch", "gradient": "factor", "feedback": "temporal"}],
)
def test_trains_through_frames(tiny: Any, parameters: dict[str, Any]) -> None:
    client, server = tiny.pair([tiny.bound(NSCSL, ratio=0.5, **parameters)])
    assert "nsc_sl.p" in next(client.train(tiny.batch(), 0))
    losses = tiny.train(client, server, [0, 1])
    assert all(math.isfinite(loss) for loss in losses)


def test_behind_adc_and_in_front_of_half_precision(tiny: Any) -> None:
    half = bind("plugins", f"{ROOT}/examples/half_precision.py:HalfPrecision")
    client, server = tiny.pair([tiny.bound(ADC, ratio=0.5), tiny.bound(NSCSL, ratio=0.5), half])

    def ask(message: Message) -> Message:
        assert message["nsc_sl.p"].dtype == message["nsc_sl.q"].dtype == torch.float16
        answer = server.handle(tiny.travel(message))
        assert [*answer] == ["nsc_sl.p"]
        return tiny.travel(answer)

    assert math.isfinite(hold(client.train(tiny.batch(0), 0), ask).loss)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"ratio": 2.0}, "ratio=2.0"),
        ({"ratio": 0.1, "budget": 100}, "budget=100 is refused; allowed: one of ratio, budget"),
        ({"budget": 0}, "budget=0"),
        ({"eta": 0.0}, "eta=0.0"),
        ({"mat": "heads"}, "tokens, sample, batch"),
        ({"gradient": "none"}, "natural, factor"),
        ({"feedback": "both"}, "intra, temporal, none"),
        ({"feedback": "temporal"}, "give gradient=factor with it"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NSCSL(**parameters)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (
            {"ratio": 0.05},
            r"ratio=0.05 is less than the factors of rank 1 .* allowed here: 0.0792 to 1",
        ),
        ({"ratio": 0.05, "gradient": "factor"}, r"allowed here: 0.0959 to 1"),
        ({"ratio": 0.1, "mat": "sample"}, r"6 x \(5 \+ 16\) numbers .* allowed here: 0.1625 to 1"),
        (
            {"budget": 183},
            r"budget=183 is less than the factors of rank 1 .* allowed here: 184 or more",
        ),
    ],
)
def test_refused_in_setup(tiny: Any, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NSCSL(**parameters).setup(tiny.peer())
    allowed = {"budget": 184} if "budget" in parameters else parameters | {"ratio": 0.1625}
    NSCSL(**allowed).setup(tiny.peer())


@pytest.mark.parametrize(
    ("mat", "P", "Q"),
    [
        ("sample", (6, 5, 2), (8, 2)),
        ("sample", (6, 5, 2), (5, 8, 2)),
        ("batch", (6, 5, 2), (5, 8, 2)),
        ("tokens", (6, 5, 2), (5, 8, 2)),
        ("batch", (60, 2), (5, 8, 2)),
    ],
)
def test_server_refuses(peers: Any, mat: str, P: tuple[int, ...], Q: tuple[int, ...]) -> None:
    message = Message(Kind.ACTIVATION)
    message.push("nsc-sl", 1)
    message.put("nsc_sl.p", torch.zeros(P), Role.PAYLOAD)
    message.put("nsc_sl.q", torch.zeros(Q), Role.PAYLOAD)
    with pytest.raises(ProtocolError, match="plugin 'nsc-sl'"):
        peers(mat=mat, ratio=0.5).server.after_receive(message)


def test_it_says_that_it_is_a_reconstruction() -> None:
    assert entries("plugins")["nsc-sl"].facts["reconstruction"] is True
    built = bind("plugins", "nsc-sl:eta=0.9,mat=sample,gradient=factor,feedback=temporal").build()
    assert isinstance(built, NSCSL)
    assert (built.traits().gradient, built.traits().stateful) == ("straight-through", True)
    assert bind("plugins", "nsc-sl").build().traits().gradient == "natural"
