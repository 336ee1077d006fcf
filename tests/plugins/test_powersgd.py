"""PowerSGD, and what all low-rank methods share, driven by their hooks.

Shapes: B rows, N tokens, D width; M = B·N rows and F = D columns of the matrix, R rank.
"""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import ROOT
from splitlab.core.contract.transfer import pretending
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.stack import Stack
from splitlab.plugins.adc import ADC
from splitlab.plugins.common.low_rank import (
    LowRank,
    orthonormal,
    principal,
    rank_for,
    spectrum,
    worth,
)
from splitlab.plugins.powersgd import PowerSGD

NAMES = {Kind.ACTIVATION: "activations", Kind.GRADIENT: "gradient"}


@dataclass
class Peers:
    """Two instances and what crossed between them."""

    client: LowRank
    server: LowRank
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
        assert {message.role(name) for name in message} == {Role.PAYLOAD}
        receiver.after_receive(message)
        assert [*message] == [NAMES[kind]]
        assert set(message.notes) == set()
        return message[NAMES[kind]], wire


@pytest.fixture
def peers(tiny: Any) -> Any:
    def make(B: int = 4, N: int = 5, D: int = 8, **parameters: Any) -> Peers:
        pair = PowerSGD(**parameters), PowerSGD(**parameters)
        for plugin, role in zip(pair, ("client", "server"), strict=True):
            plugin.setup(tiny.peer(role, batch_size=B, tokens=N, width=D))
        return Peers(*pair, tiny)

    return make


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def of_rank(R: int, B: int, N: int, D: int, seed: int = 0) -> torch.Tensor:
    return noise(B, N, R, seed=seed) @ noise(R, D, seed=seed + 1)


def nbytes(wire: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in wire.values())


def best_error(tensor: torch.Tensor, R: int) -> float:
    """Return the error of the best approximation of rank R (Eckart and Young)."""
    values = torch.linalg.svdvals(tensor.reshape(-1, tensor.shape[-1]).double())
    return float(values[R:].square().sum().sqrt())


# --- The factors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["factor", "natural"])
@pytest.mark.parametrize("svd", [False, True])
def test_a_matrix_of_the_rank_is_rebuilt(peers: Any, gradient: str, svd: bool) -> None:
    pair = peers(rank=3, gradient=gradient, svd=svd)
    X = of_rank(3, 4, 5, 8)
    rebuilt, wire = pair.send(Kind.ACTIVATION, X)
    torch.testing.assert_close(rebuilt, X, rtol=1e-5, atol=1e-5)
    assert wire["powersgd.p"].shape == (4, 5, 3)
    assert wire["powersgd.q"].shape == (8, 3)


def test_one_step_is_that_of_the_paper(peers: Any) -> None:
    pair = peers(rank=2)
    M = noise(4, 5, 8)
    _, first = pair.send(Kind.ACTIVATION, M)
    N = noise(4, 5, 8, seed=5)
    _, second = pair.send(Kind.ACTIVATION, N, step=1)
    P = second["powersgd.p"].view(20, 2)
    torch.testing.assert_close(P.T @ P, torch.eye(2))
    torch.testing.assert_close(second["powersgd.q"], N.view(20, 8).T @ P)
    # P spans what the last step's Q gives.
    expected = N.view(20, 8) @ first["powersgd.q"]
    torch.testing.assert_close(P @ (P.T @ expected), expected)


def test_natural_projects_to_the_space_of_the_columns(peers: Any) -> None:
    M = noise(4, 5, 8)
    _, factor = peers(rank=2).send(Kind.ACTIVATION, M)
    _, natural = peers(rank=2, gradient="natural").send(Kind.ACTIVATION, M)
    V = natural["powersgd.q"]
    torch.testing.assert_close(V.T @ V, torch.eye(2))
    torch.testing.assert_close(V @ (V.T @ factor["powersgd.q"]), factor["powersgd.q"])
    torch.testing.assert_close(natural["powersgd.p"], M @ V)


def test_repeated_steps_find_the_best_approximation(peers: Any) -> None:
    pair = peers(rank=2)
    M = noise(4, 5, 8)
    errors = [float((pair.send(Kind.ACTIVATION, M, s)[0] - M).norm()) for s in range(60)]
    assert all(later <= 1.00001 * error for error, later in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(best_error(M, 2), rel=1e-4)
    assert errors[0] > 1.02 * errors[-1]


def test_more_iterations_are_closer(peers: Any) -> None:
    M = noise(4, 5, 8)
    error = {
        n: (peers(rank=2, iterations=n).send(Kind.ACTIVATION, M)[0] - M).norm() for n in (1, 40)
    }
    assert error[40] < error[1]
    assert float(error[40]) == pytest.approx(best_error(M, 2), rel=1e-3)


@pytest.mark.parametrize("shape", [(4, 5, 8), (1, 5, 8), (6, 5, 16)])
def test_svd_is_the_bound(peers: Any, shape: tuple[int, int, int]) -> None:
    M = noise(*shape)
    rebuilt, wire = peers(*shape, rank=2, svd=True).send(Kind.ACTIVATION, M)
    R = wire["powersgd.q"].shape[1]
    assert float((rebuilt - M).norm()) == pytest.approx(best_error(M, R), rel=1e-5)
    one_step, _ = peers(*shape, rank=2).send(Kind.ACTIVATION, M)
    assert (one_step - M).norm() > (rebuilt - M).norm()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_error_is_never_larger_than_the_matrix(tiny: Any, data: st.DataObject) -> None:
    B, N, D = (data.draw(st.integers(1, 6), name) for name in "BND")
    values = data.draw(
        st.lists(
            st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e6, 3.5]),
            min_size=B * N * D,
            max_size=B * N * D,
        )
    )
    X = torch.tensor(values).view(B, N, D)
    gradient = data.draw(st.sampled_from(["factor", "natural"]))
    pair = PowerSGD(rank=1, gradient=gradient), PowerSGD(rank=1, gradient=gradient)
    for plugin in pair:
        plugin.setup(tiny.peer(batch_size=B, tokens=N, width=D))
    rebuilt, _ = Peers(*pair, tiny).send(Kind.ACTIVATION, X)
    assert rebuilt.shape == X.shape
    assert float((rebuilt - X).norm()) <= float(X.norm()) * (1 + 1e-5)


# --- Error feedback -------------------------------------------------------------------------------


@pytest.mark.parametrize("svd", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_error_feedback_telescopes(peers: Any, svd: bool, center: bool) -> None:
    pair = peers(rank=1, svd=svd, center=center, error_feedback=True)
    gradients = [noise(4, 5, 8, seed=s) for s in range(6)]
    rebuilt = [pair.send(Kind.GRADIENT, g, s)[0] for s, g in enumerate(gradients)]
    residual = pair.server.state_dict()["gradient"]["residual"]
    torch.testing.assert_close(sum(rebuilt), sum(gradients) - residual, rtol=1e-5, atol=1e-5)
    assert residual.norm() > 0.1
    assert "gradient" not in pair.client.state_dict()


def test_activations_and_other_shapes_get_no_feedback(peers: Any) -> None:
    pair = peers(rank=1, error_feedback=True)
    X = noise(4, 5, 8)
    pair.send(Kind.ACTIVATION, X)
    assert set(pair.client.state_dict()["activations"]) == {"basis"}
    pair.send(Kind.GRADIENT, X)
    kept = pair.server.state_dict()["gradient"]["residual"]
    small = noise(2, 5, 8, seed=9)
    with_state, _ = pair.send(Kind.GRADIENT, small, 1)
    assert torch.equal(pair.server.state_dict()["gradient"]["residual"], kept)

    without = peers(rank=1)
    without.send(Kind.GRADIENT, X)
    assert torch.equal(without.send(Kind.GRADIENT, small, 1)[0], with_state)
    assert set(without.server.state_dict()["gradient"]) == {"basis"}


# --- Natural gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("svd", [False, True])
def test_natural_gradient_is_autograds(peers: Any, center: bool, svd: bool) -> None:
    pair = peers(rank=3, gradient="natural", center=center, svd=svd)
    X = noise(4, 5, 8, dtype=torch.float64).requires_grad_()
    G = noise(4, 5, 8, seed=3, dtype=torch.float64)
    rebuilt, up = pair.send(Kind.ACTIVATION, X)
    returned, down = pair.send(Kind.GRADIENT, G)

    V = up["powersgd.q"]
    mean = X.mean(dim=(0, 1)) if center else 0.0
    composed = (X - mean) @ V @ V.T + mean
    torch.testing.assert_close(rebuilt, composed.detach(), rtol=0, atol=1e-9)
    (expected,) = torch.autograd.grad(composed, X, G)
    torch.testing.assert_close(returned, expected, rtol=0, atol=1e-9)
    assert down["powersgd.p"].shape == (4, 5, 3)
    assert set(down) == {"powersgd.p"} | ({"powersgd.mean"} if center else set())


def test_natural_gradient_needs_the_activations_of_its_step(peers: Any) -> None:
    pair = peers(rank=1, gradient="natural")
    G = noise(4, 5, 8)
    message = Message(Kind.GRADIENT, 3)
    message.put("gradient", G, Role.PAYLOAD)
    pair.server.before_send(message)
    assert [*message] == ["gradient"]  # nothing was sent as factors, so nothing is projected

    pair.send(Kind.ACTIVATION, G, step=2)
    pair.server.before_send(message)  # of another step
    assert [*message] == ["gradient"]

    pair.send(Kind.ACTIVATION, G, step=3)
    pair.server.before_send(message)
    assert [*message] == ["powersgd.p"]
    stranger = peers(rank=1, gradient="natural").client
    with pytest.raises(ProtocolError, match="step 4: plugin 'powersgd': a gradient came"):
        stranger.after_receive(message)


# --- Bytes, ratio, rank ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gradient", ["factor", "natural"])
@pytest.mark.parametrize("center", [False, True])
def test_bytes(peers: Any, dtype: torch.dtype, gradient: str, center: bool) -> None:
    B, N, D, R = 4, 5, 8, 2
    pair = peers(rank=R, gradient=gradient, center=center)
    X = noise(B, N, D, dtype=dtype)
    rebuilt, up = pair.send(Kind.ACTIVATION, X)
    returned, down = pair.send(Kind.GRADIENT, X)
    size, means = X.element_size(), D if center else 0
    assert nbytes(up) == size * (R * (B * N + D) + means)
    assert nbytes(down) == size * (R * (B * N + (0 if gradient == "natural" else D)) + means)
    assert rebuilt.dtype == returned.dtype == dtype
    assert rebuilt.isfinite().all()
    assert pair.client.nominal_ratio() == pytest.approx(
        (nbytes(up) / X.nbytes, nbytes(down) / X.nbytes)
    )


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("gradient", ["factor", "natural"])
@pytest.mark.parametrize("center", [False, True])
def test_ratio_is_met(peers: Any, ratio: float, gradient: str, center: bool) -> None:
    pair = peers(16, 5, 12, ratio=ratio, gradient=gradient, center=center)
    X = noise(16, 5, 12)
    _, up = pair.send(Kind.ACTIVATION, X)
    _, down = pair.send(Kind.GRADIENT, X)
    mean = (nbytes(up) + nbytes(down)) / (2 * X.nbytes)
    assert mean <= ratio
    capped = up["powersgd.q"].shape[1] == worth(80, 12)
    assert mean > ratio - 0.1 or capped


@pytest.mark.parametrize(
    ("ratio", "natural", "R"),
    [(0.01, True, 1), (0.05, True, 9), (0.1, True, 19), (0.1, False, 19), (0.2, True, 38)],
)
def test_ranks_of_a_deit(ratio: float, natural: bool, R: int) -> None:
    assert rank_for(ratio, 128 * 197, 192, natural=natural) == R


def test_default_is_near_a_tenth(tiny: Any) -> None:
    plugin = PowerSGD()
    plugin.setup(tiny.peer(batch_size=128, tokens=197, width=192))
    assert plugin.nominal_ratio() == pytest.approx((0.0997, 0.0997), abs=1e-4)


def test_a_small_batch_never_sends_more_than_the_tensor(peers: Any) -> None:
    pair = peers(8, 5, 8, rank=6)
    for B in range(1, 9):
        X = noise(B, 5, 8)
        _, wire = pair.send(Kind.ACTIVATION, X, B)
        assert nbytes(wire) <= X.nbytes
    one = noise(1, 1, 8)
    rebuilt, _ = pair.send(Kind.ACTIVATION, one)
    torch.testing.assert_close(rebuilt, one)


# --- Input at the edges ---------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["factor", "natural"])
@pytest.mark.parametrize("svd", [False, True])
@pytest.mark.parametrize(
    "X",
    [
        torch.zeros(4, 5, 8),
        torch.ones(4, 5, 8),
        torch.zeros(4, 5, 8).index_fill(0, torch.tensor(1), 1e30),
        torch.full((4, 5, 8), 1e-30),
    ],
    ids=["zeros", "ones", "outlier", "tiny"],
)
def test_finite(peers: Any, gradient: str, svd: bool, X: torch.Tensor) -> None:
    feedback = {"error_feedback": gradient == "factor"}
    pair = peers(rank=2, gradient=gradient, svd=svd, **feedback)
    for step in range(3):
        rebuilt, _ = pair.send(Kind.ACTIVATION, X, step)
        returned, _ = pair.send(Kind.GRADIENT, X, step)
        most = float(X.abs().max())
        torch.testing.assert_close(rebuilt, X, rtol=0, atol=1e-4 * most)
        torch.testing.assert_close(returned, X, rtol=0, atol=1e-4 * most)
    noisy = noise(4, 5, 8)
    assert (pair.send(Kind.ACTIVATION, noisy, 3)[0] - noisy).norm() < noisy.norm()


@pytest.mark.parametrize("place", [nullcontext, pretending])
@pytest.mark.parametrize("svd", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_leaves_no_trace(peers: Any, svd: bool, bad: float, place: Any) -> None:
    pair = peers(rank=2, svd=svd, error_feedback=True)
    X = noise(4, 5, 8)
    pair.send(Kind.GRADIENT, X)
    before = pair.server.state_dict()["gradient"]
    broken = X.clone()
    broken[1, 2, 3] = bad
    with place():
        rebuilt, _ = pair.send(Kind.GRADIENT, broken, 1)
    assert not rebuilt.isfinite().all()
    after = pair.server.state_dict()["gradient"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_where_nothing_is_at_hand_a_first_step_of_nothing_is_followed_by_one_that_works(
    peers: Any,
) -> None:
    X = noise(4, 5, 8)
    with pretending():
        pair = peers(rank=2, error_feedback=True)
        pair.send(Kind.GRADIENT, torch.zeros(4, 5, 8))
        for step in (1, 2):
            rebuilt, _ = pair.send(Kind.GRADIENT, X, step)
    assert (rebuilt - X).norm() < X.norm()


def test_half_precision_is_computed_in_float32(peers: Any) -> None:
    X = noise(4, 5, 8)
    exact, _ = peers(rank=4).send(Kind.ACTIVATION, X)
    for dtype in (torch.float16, torch.bfloat16):
        half, wire = peers(rank=4).send(Kind.ACTIVATION, X.to(dtype))
        assert wire["powersgd.p"].dtype == half.dtype == dtype
        torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.08)
    large = torch.full((4, 5, 8), 6e4, dtype=torch.float16)  # its square is no float16
    rebuilt, _ = peers(rank=1, svd=True, gradient="natural").send(Kind.ACTIVATION, large / 64)
    torch.testing.assert_close(rebuilt, large / 64, rtol=1e-2, atol=0)


# --- Evaluation, state, determinism ---------------------------------------------------------------


def test_evaluation(peers: Any) -> None:
    X = noise(4, 5, 8)
    pair = peers(rank=1)
    rebuilt, wire = pair.send(Kind.ACTIVATION, X, training=False)
    assert torch.equal(rebuilt, X)
    assert [*wire] == ["activations"]
    assert not pair.client.traits().evaluation

    acting = peers(rank=1, evaluation=True, gradient="natural")
    assert acting.client.traits().evaluation
    acting.send(Kind.ACTIVATION, X)
    before = acting.client.state_dict()["activations"]["basis"]
    _, wire = acting.send(Kind.ACTIVATION, noise(4, 5, 8, seed=8), 5, training=False)
    assert set(wire) == {"powersgd.p", "powersgd.q"}
    assert torch.equal(acting.client.state_dict()["activations"]["basis"], before)

    ids = Message(Kind.PREDICTION, training=False)
    ids.put("predictions", torch.tensor([1, 2], dtype=torch.uint8), Role.PAYLOAD)
    acting.server.before_send(ids)
    acting.client.after_receive(ids)
    assert ids["predictions"].tolist() == [1, 2]


def test_columns_that_a_small_batch_did_not_need_are_kept(peers: Any) -> None:
    pair = peers(rank=4)
    pair.send(Kind.ACTIVATION, noise(4, 5, 8))
    before = pair.client.state_dict()["activations"]["basis"]
    pair.send(Kind.ACTIVATION, noise(1, 5, 8), 1)  # 5 by 8: rank 3
    after = pair.client.state_dict()["activations"]["basis"]
    assert after.shape == before.shape == (8, 4)
    assert torch.equal(after[:, 3:], before[:, 3:])
    assert not torch.equal(after[:, :3], before[:, :3])


def test_state_goes_on_bit_for_bit(peers: Any) -> None:
    tensors = [noise(4, 5, 8, seed=s) for s in range(4)]
    whole, first, second = (peers(rank=2, error_feedback=True) for _ in range(3))
    expected = [
        (whole.send(Kind.ACTIVATION, t, s)[0], whole.send(Kind.GRADIENT, t, s)[0])
        for s, t in enumerate(tensors)
    ]
    for step in (0, 1):
        first.send(Kind.ACTIVATION, tensors[step], step)
        first.send(Kind.GRADIENT, tensors[step], step)
    second.client.load_state_dict(first.client.state_dict())
    second.server.load_state_dict(first.server.state_dict())
    first.send(Kind.ACTIVATION, tensors[0], 7)  # its state is its own
    for step in (2, 3):
        assert torch.equal(second.send(Kind.ACTIVATION, tensors[step], step)[0], expected[step][0])
        assert torch.equal(second.send(Kind.GRADIENT, tensors[step], step)[0], expected[step][1])
    second.client.load_state_dict({})
    assert second.client.state_dict() == {}


def test_draws_depend_on_nothing_but_seed_and_step(peers: Any) -> None:
    X = noise(4, 5, 8)
    _, one = peers(rank=2).send(Kind.ACTIVATION, X)
    state = torch.get_rng_state()
    torch.rand(7)
    _, two = peers(rank=2).send(Kind.ACTIVATION, X)
    torch.set_rng_state(state)
    _, other_step = peers(rank=2).send(Kind.ACTIVATION, X, 1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["powersgd.p"], other_step["powersgd.p"])


# --- Whole steps, stacks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"rank": 2, "error_feedback": True},
        {"gradient": "natural"},
        {"svd": True, "center": True, "gradient": "natural"},
    ],
)
def test_trains_through_frames_and_resumes(tiny: Any, parameters: dict[str, Any]) -> None:
    stack = [
        tiny.bound(PowerSGD, **({"ratio": 0.3} if "rank" not in parameters else {}) | parameters)
    ]
    client, server = tiny.pair(stack)
    losses = tiny.train(client, server, [0, 1])
    again = tiny.pair(stack)
    for worker, other in zip(again, (client, server), strict=True):
        tensors, values = other.state()
        worker.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values)
    assert tiny.train(*again, [2, 3]) == tiny.train(client, server, [2, 3])
    assert all(math.isfinite(loss) for loss in losses)


def test_behind_adc_and_in_front_of_half_precision(tiny: Any) -> None:
    stack = [
        tiny.bound(ADC, ratio=0.5),
        tiny.bound(PowerSGD, rank=2, gradient="natural"),
        bind("plugins", f"{ROOT}/examples/half_precision.py:HalfPrecision"),
    ]
    client, server = tiny.pair(stack)

    def ask(message: Message) -> Message:
        assert message["powersgd.p"].dtype == message["powersgd.q"].dtype == torch.float16
        assert "activations" not in message
        answer = server.handle(tiny.travel(message))
        assert [*answer] == ["powersgd.p"]
        return tiny.travel(answer)

    assert math.isfinite(hold(client.train(tiny.batch(0), 0), ask).loss)


def test_nothing_that_needs_the_tensor_may_stand_behind(tiny: Any) -> None:
    twice = [tiny.bound(PowerSGD, rank=1), tiny.bound(PowerSGD, rank=1)]
    with pytest.raises(ConfigError, match="needs layout"):
        Stack(twice)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": 0.1, "rank": 2}, "rank=2 is refused; allowed: one of ratio, rank"),
        ({"rank": 0}, "rank=0 is refused; allowed: 1 or more"),
        ({"iterations": 0}, "iterations=0"),
        ({"error_feedback": True, "gradient": "natural"}, "give gradient=factor with it"),
        ({"gradient": "straight"}, "factor, natural"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PowerSGD(**parameters)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"rank": 12}, "rank=12 would send more than the 30 by 16 matrix .* allowed here: 1 to 10"),
        ({"ratio": 0.01}, r"ratio=0.01 is less .* allowed here: 0.0959 to 1"),
        ({"ratio": 0.07, "gradient": "natural"}, r"allowed here: 0.0792 to 1"),
        ({"ratio": 0.1, "center": True}, r"allowed here: 0.1292 to 1"),
    ],
)
def test_refused_in_setup(tiny: Any, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PowerSGD(**parameters).setup(tiny.peer())


def test_the_smallest_ratio_that_a_refusal_names_is_allowed(tiny: Any) -> None:
    for parameters in ({"ratio": 0.0959}, {"ratio": 0.0792, "gradient": "natural"}):
        plugin = PowerSGD(**parameters)  # type: ignore[arg-type]
        plugin.setup(tiny.peer())
        assert sum(plugin.nominal_ratio()) / 2 <= parameters["ratio"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("P", "Q", "says"),
    [
        (torch.zeros(4, 5, 2), torch.zeros(8, 3), "are no factors"),
        (torch.zeros(4, 5, 2), None, "no tensor 'powersgd.q'"),
        (torch.zeros(4, 2), torch.zeros(8, 2), "are no factors"),
        (torch.zeros(4, 5, 2, dtype=torch.uint8), torch.zeros(8, 2), "are no factors"),
        (torch.zeros(400, 5, 2), torch.zeros(8, 2), "2000 by 8 numbers, a batch has 160"),
    ],
)
@pytest.mark.parametrize("center", [False, True])
def test_server_refuses(
    peers: Any, P: torch.Tensor, Q: torch.Tensor | None, says: str, center: bool
) -> None:
    message = Message(Kind.ACTIVATION)
    message.push("powersgd", 1)
    message.put("powersgd.p", P, Role.PAYLOAD)
    if Q is not None:
        message.put("powersgd.q", Q, Role.PAYLOAD)
    with pytest.raises(ProtocolError, match=says):
        peers(rank=1, center=center).server.after_receive(message)


def test_server_refuses_a_mean_that_does_not_fit(peers: Any) -> None:
    message = Message(Kind.ACTIVATION)
    message.push("powersgd", 1)
    for name, shape in (("p", (4, 5, 2)), ("q", (8, 2)), ("mean", (7,))):
        message.put(f"powersgd.{name}", torch.zeros(shape), Role.PAYLOAD)
    with pytest.raises(ProtocolError, match="a mean of shape"):
        peers(rank=1, center=True).server.after_receive(message)
    strange = Message(Kind.PREDICTION)
    strange.push("powersgd", 1)
    with pytest.raises(ProtocolError, match="a PREDICTION has no factors"):
        peers(rank=1).client.after_receive(strange)


# --- Tools ----------------------------------------------------------------------------------------


def test_orthonormal_columns_of_dependent_ones() -> None:
    for columns in (torch.zeros(6, 3), torch.ones(6, 3), noise(2, 3)):
        basis = orthonormal(columns)
        assert basis.shape == (columns.shape[0], min(columns.shape))
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]))


@pytest.mark.parametrize("shape", [(2, 9, 4), (2, 4, 9)])
def test_principal_against_the_decomposition(shape: tuple[int, int, int]) -> None:
    matrix = noise(*shape)
    V = principal(matrix, 3)
    reference = torch.linalg.svd(matrix).Vh[:, :3].mT
    torch.testing.assert_close(V @ V.mT, reference @ reference.mT, rtol=0, atol=1e-5)


def test_spectrum_of_what_is_not_finite() -> None:
    values, vectors = spectrum(torch.full((2, 3, 3), math.nan))
    assert torch.equal(values, torch.zeros(2, 3))
    assert torch.equal(vectors @ vectors.mT, torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize(
    ("text", "gradient", "stateful"),
    [
        ("powersgd", "straight-through", True),
        ("powersgd:rank=4,gradient=natural,svd=true,center=true", "natural", False),
        ("powersgd:ratio=0.05,error_feedback=true,svd=true", "straight-through", True),
    ],
)
def test_built_by_name(text: str, gradient: str, stateful: bool) -> None:
    plugin = bind("plugins", text).build()
    assert isinstance(plugin, PowerSGD)
    traits = plugin.traits()
    assert (traits.gradient, traits.stateful) == (gradient, stateful)
    assert all(0 < share <= 1 for share in plugin.nominal_ratio())


@pytest.mark.gpu
@pytest.mark.parametrize("gradient", ["factor", "natural"])
def test_gpu_agrees_with_the_cpu(tiny: Any, gradient: str) -> None:
    X = noise(8, 197, 64)
    found = {}
    for device in ("cpu", "cuda"):
        plugin = PowerSGD(rank=4, gradient=gradient)  # type: ignore[arg-type]
        facts = {"batch_size": 8, "tokens": 197, "width": 64, "device": torch.device(device)}
        plugin.setup(tiny.peer(**facts))
        message = Message(Kind.ACTIVATION)
        message.put("activations", X.to(device), Role.PAYLOAD)
        plugin.before_send(message)
        plugin.after_receive(message)
        found[device] = message["activations"].cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-3, atol=1e-3)
