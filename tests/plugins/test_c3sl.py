"""C3-SL: keys and their two maps, and the plugin, driven by its hooks and through real frames.

Shapes: B samples, R to a group, G groups, L numbers of a sample.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Cut, Kind, Message, Peer, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins import c3sl
from splitlab.plugins.adc import ADC
from splitlab.plugins.c3sl import C3SL, ROWS, STATISTICS, Keys, draw_keys


def make_peer(role: str = "client", **facts: Any) -> Peer:
    defaults: dict[str, Any] = {
        "seed": 7,
        "classes": 5,
        "tokens": 5,
        "width": 4,
        "prefix_tokens": 1,
        "class_token": True,
        "cut": 3,
        "batch_size": 64,
        "device": torch.device("cpu"),
    }
    return Tiny().peer(role, **({"grid": None} | defaults | facts))  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def plugin(role: str = "client", seed: int = 7, **params: Any) -> C3SL:
    built = C3SL(**params)
    built.setup(make_peer(role, seed=seed))
    return built


def client_cut(
    activations: torch.Tensor, sender: C3SL, *, training: bool = True, step: int = 0
) -> Cut:
    targets = torch.zeros(activations.shape[0], dtype=torch.int64)
    cut = Cut(activations=activations, targets=targets, step=step, training=training)
    sender.after_client_forward(cut)
    return cut


def server_cut(cut: Cut, receiver: C3SL, **side: torch.Tensor) -> tuple[torch.Tensor, Cut]:
    """Return the leaf that arrived, and the cut as the receiver left it."""
    leaf = cut.activations.detach().clone().requires_grad_()
    there = Cut(
        activations=leaf,
        targets=cut.targets,
        step=cut.step,
        training=cut.training,
        side={**cut.side, **side},
    )
    receiver.before_server_forward(there)
    return leaf, there


def there_and_back(X: torch.Tensor, **params: Any) -> torch.Tensor:
    """Return what the server finds."""
    cut = client_cut(X, plugin(**params))
    return server_cut(cut, plugin("server", **params))[1].activations.detach()


def convolution(keys: torch.Tensor) -> torch.Tensor:
    """Return the matrix of each key: (R, L, L), row n column m is K[n - m]."""
    L = keys.shape[1]
    at = (torch.arange(L)[:, None] - torch.arange(L)) % L
    return keys[:, at]


def superposed(rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The definition, sample by sample."""
    matrix, R = convolution(keys), len(keys)
    return torch.stack(
        [
            torch.stack([matrix[r] @ z for r, z in enumerate(rows[g : g + R])]).sum(0)
            for g in range(0, len(rows), R)
        ]
    )


def retrieved(groups: torch.Tensor, keys: torch.Tensor, B: int) -> torch.Tensor:
    matrix, R = convolution(keys), len(keys)
    return torch.stack([matrix[b % R].T @ groups[b // R] for b in range(B)])


# --- The published vectors ------------------------------------------------------------------------

K0 = [0.5, 0.5, 0.5, -0.5]
K1 = [1.0, 0, 0, 0]


def test_one_key_of_unit_spectrum_loses_nothing() -> None:
    keys = Keys(torch.tensor([K0]))
    sums = keys.superpose(torch.tensor([[1.0, 2, 3, 4]]))
    torch.testing.assert_close(sums, torch.tensor([[3.0, 2, 1, 4]]))
    torch.testing.assert_close(keys.retrieve(sums, 1), torch.tensor([[1.0, 2, 3, 4]]))


def test_two_keys_and_their_gradients() -> None:
    keys = Keys(torch.tensor([K0, K1]))
    Z = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]], requires_grad=True)
    V = keys.superpose(Z)
    torch.testing.assert_close(V, torch.tensor([[8.0, 8, 8, 12]]))
    leaf = V.detach().requires_grad_()
    found = keys.retrieve(leaf, 2)
    torch.testing.assert_close(found, torch.tensor([[6.0, 10, 10, 10], [8, 8, 8, 12]]))

    down = torch.autograd.grad(found, leaf, torch.eye(4)[:2])[0]
    torch.testing.assert_close(down, torch.tensor([[0.5, 1.5, 0.5, -0.5]]))
    back = torch.autograd.grad(V, Z, down)[0]
    torch.testing.assert_close(back, torch.tensor([[1.5, 0.5, -0.5, 0.5], [0.5, 1.5, 0.5, -0.5]]))


# --- The two maps ---------------------------------------------------------------------------------

LENGTHS = [1, 2, 4, 61, 67, 134, 201]  # 67 has to be filled up, 61 not


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize(("B", "R"), [(1, 1), (1, 3), (5, 2), (6, 3), (7, 3)])
def test_both_maps_are_the_definition(L: int, B: int, R: int) -> None:
    drawn = draw_keys(R, L, "gaussian", torch.Generator().manual_seed(3))
    rows, sums = noise(B, L, dtype=torch.float64), noise(-(-B // R), L, dtype=torch.float64)
    keys = Keys(drawn)
    close = {"rtol": 0.0, "atol": 1e-12}
    torch.testing.assert_close(keys.superpose(rows), superposed(rows, drawn), **close)
    torch.testing.assert_close(keys.retrieve(sums, B), retrieved(sums, drawn, B), **close)


def test_lengths_with_a_large_prime_factor_are_filled_up() -> None:
    length = c3sl._transform_length
    assert [length(L) for L in (1, 4, 61, 3200, 40 * 192)] == [1, 4, 61, 3200, 40 * 192]
    assert length(37_824) == 76_800
    for L in (67, 134, 197 * 384, 257 * 1024):
        assert length(L) >= 2 * L - 1
        assert c3sl._rough_part(length(L), 5) == 1


@settings(max_examples=25, deadline=None)
@given(B=st.integers(1, 9), R=st.integers(1, 5), L=st.sampled_from(LENGTHS), seed=st.integers(0, 9))
def test_the_maps_are_linear_and_adjoint(B: int, R: int, L: int, seed: int) -> None:
    keys = Keys(draw_keys(R, L, "gaussian", torch.Generator().manual_seed(seed)))
    z, y = (noise(B, L, seed=seed + i, dtype=torch.float64) for i in (1, 2))
    v = noise(-(-B // R), L, seed=seed, dtype=torch.float64)
    torch.testing.assert_close(
        keys.superpose(2 * z - y), 2 * keys.superpose(z) - keys.superpose(y), rtol=0, atol=1e-10
    )
    torch.testing.assert_close((keys.superpose(z) * v).sum(), (z * keys.retrieve(v, B)).sum())


@pytest.mark.parametrize("L", [6, 67])
def test_gradients_are_those_of_the_definition(L: int) -> None:
    keys = Keys(draw_keys(2, L, "gaussian", torch.Generator().manual_seed(0)))
    z = noise(3, L, dtype=torch.float64).requires_grad_()
    v = noise(2, L, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(keys.superpose, (z,), fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: keys.retrieve(v, 3), (v,), fast_mode=True)


@pytest.mark.parametrize("L", [64, 67])
def test_pieces_change_nothing(L: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(draw_keys(3, L, "gaussian", torch.Generator().manual_seed(0)))
    rows = noise(11, L, dtype=torch.float64)
    whole = keys.superpose(rows)
    found = keys.retrieve(whole, 11)
    monkeypatch.setattr(c3sl, "_PIECE", 1)
    assert len(keys._pieces(11, 3, 4)) == 4
    torch.testing.assert_close(keys.superpose(rows), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(keys.retrieve(whole, 11), found, rtol=0, atol=1e-13)


@pytest.mark.parametrize("R", [1, 2, 4])
def test_the_error_has_r_times_the_power_of_the_samples(R: int) -> None:
    X = noise(R, 30_000)
    found = there_and_back(X, group=R)
    power = float((found - X).square().sum() / X.square().sum())
    assert 0.9 * R < power < 1.1 * R
    found = there_and_back(X, group=R, keys="unitary")
    power = float((found - X).square().sum() / X.square().sum())
    assert power < 1e-10 if R == 1 else 0.9 * (R - 1) < power < 1.1 * (R - 1)


def test_decoding_is_right_on_average() -> None:
    X = noise(2, 50)
    mean = torch.stack([there_and_back_with(X, seed) for seed in range(600)]).mean(0)
    one = there_and_back_with(X, 0)
    assert (mean - X).norm() < 0.1 * (one - X).norm()


def there_and_back_with(X: torch.Tensor, seed: int) -> torch.Tensor:
    keys = Keys(
        draw_keys(len(X), X.shape[1], "gaussian", torch.Generator().manual_seed(seed)).float()
    )
    return keys.retrieve(keys.superpose(X), len(X))


@pytest.mark.parametrize("kind", ["gaussian", "unitary"])
@pytest.mark.parametrize("L", [1, 8, 67])
def test_keys_have_norm_one(kind: Any, L: int) -> None:
    keys = draw_keys(3, L, kind, torch.Generator().manual_seed(0))
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(3, dtype=torch.float64))
    magnitudes = torch.fft.rfft(keys).abs()
    flat = torch.allclose(magnitudes, torch.ones_like(magnitudes))
    assert flat == (kind == "unitary" or L == 1)


# --- The plugin -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5, 4), (5, 5, 4), (1, 5, 4), (7, 9), (7, 67)])
@pytest.mark.parametrize("standardize", [False, True])
def test_gradient_is_autograd_through_the_composed_map(
    shape: tuple[int, ...], standardize: bool
) -> None:
    X = noise(*shape, dtype=torch.float64).requires_grad_()
    params: dict[str, Any] = {"group": 3, "standardize": standardize}
    cut = client_cut(X, plugin(**params))
    leaf, there = server_cut(cut, plugin("server", **params))
    assert there.activations.shape == X.shape
    assert not there.side
    gradient = noise(*shape, seed=1, dtype=torch.float64)
    down = torch.autograd.grad(there.activations, leaf, gradient)[0]
    assert down.shape == cut.activations.shape == (-(-shape[0] // 3), *shape[1:])
    ours = torch.autograd.grad(cut.activations, X, down)[0]

    L = X[0].numel()
    drawn = draw_keys(3, L, "gaussian", make_peer().generator("c3sl keys"))
    Y = X.detach().clone().requires_grad_()
    rows = Y.flatten(1)
    mean, deviation = torch.zeros(len(Y), 1), torch.ones(len(Y), 1)
    if standardize:
        flat = rows.detach()
        mean, deviation = (
            flat.mean(1, True).float(),
            flat.std(1, correction=0, keepdim=True).float(),
        )
    sums = superposed((rows - mean) / deviation, drawn)
    found = retrieved(sums, drawn, len(Y)) * deviation + mean
    torch.testing.assert_close(there.activations.flatten(1), found, rtol=0, atol=1e-9)
    theirs = torch.autograd.grad(found, Y, gradient.flatten(1))[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("standardize", [False, True])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, standardize: bool) -> None:
    X = noise(7, 5, 4).to(dtype).requires_grad_()
    sender = plugin(group=3, standardize=standardize)
    cut = client_cut(X, sender)
    exact = client_cut(X.detach().float(), sender).activations
    assert cut.activations.dtype == dtype
    assert torch.equal(cut.activations, exact.to(dtype))
    leaf, there = server_cut(cut, plugin("server", group=3, standardize=standardize))
    assert there.activations.dtype == dtype
    down = torch.autograd.grad(there.activations.sum(), leaf)[0]
    assert torch.autograd.grad(cut.activations, X, down)[0].dtype == dtype


@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "duplicates"])
@pytest.mark.parametrize("standardize", [False, True])
def test_values_out_of_the_ordinary(what: str, standardize: bool) -> None:
    X = noise(5, 5, 4)
    if what == "zeros":
        X.zero_()
    elif what == "constant":
        X.fill_(3.5)
    elif what == "outlier":
        X[3, 4, 1] = 1e37
    else:
        X[1:] = X[:1].clone()
    found = there_and_back(X, group=2, standardize=standardize)
    assert found.isfinite().all()
    if what in ("zeros", "constant") and standardize:
        torch.testing.assert_close(found, X)


def test_a_number_that_is_not_finite_spoils_its_group_alone() -> None:
    X = noise(5, 5, 4)
    X[2, 0, 0] = torch.nan
    found = there_and_back(X, group=2)
    assert found.isnan().flatten(1).all(1).tolist() == [False, False, True, True, False]
    assert found[[0, 1, 4]].isfinite().all()


def test_standardizing_protects_the_weak_from_the_strong() -> None:
    X = noise(2, 600)
    X[0] *= 100
    plain, ours = (there_and_back(X, group=2, standardize=on)[1] - X[1] for on in (False, True))
    assert ours.norm() < 0.1 * plain.norm()
    cut = client_cut(X, plugin(group=2, standardize=True))
    expected = torch.stack((X.mean(1), X.std(1, correction=0)), dim=1)
    torch.testing.assert_close(cut.side[STATISTICS], expected)


def test_keys_follow_from_the_seed_and_from_nothing_else() -> None:
    X = noise(4, 5, 4)

    def sums(seed: int = 7, step: int = 0, role: str = "client") -> torch.Tensor:
        return client_cut(X, plugin(role, seed, group=2), step=step).activations

    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = sums()
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    assert torch.equal(sums(step=9), first)
    assert torch.equal(sums(role="server"), first)
    assert not torch.equal(sums(seed=8), first)


def test_keys_do_not_depend_on_what_came_before_and_are_kept() -> None:
    sender, fresh = plugin(group=2), plugin(group=2)
    for L in range(1, 12):
        client_cut(noise(4, L), sender)
    assert len(sender._keys) == 8
    X = noise(4, 20)
    assert torch.equal(client_cut(X, sender).activations, client_cut(X, fresh).activations)
    kept = sender._keys[20, torch.float32]
    client_cut(X, sender)
    assert sender._keys[20, torch.float32] is kept


def test_evaluation() -> None:
    X = noise(5, 5, 4)
    assert plugin(group=2).traits().evaluation
    assert client_cut(X, plugin(group=2), training=False).activations.shape == (3, 5, 4)
    apart = plugin(group=2, evaluation=False)
    assert not apart.traits().evaluation
    cut = client_cut(X, apart, training=False)
    assert cut.activations is X
    assert not cut.side
    leaf, there = server_cut(cut, plugin("server", group=2, evaluation=False))
    assert there.activations is leaf


@pytest.mark.parametrize(
    ("params", "R"),
    [
        ({}, 10),
        ({"group": 1}, 1),
        ({"group": 8}, 8),
        ({"ratio": 1.0}, 1),
        ({"ratio": 0.7}, 1),
        ({"ratio": 0.4}, 3),
        ({"ratio": 0.3}, 3),
        ({"ratio": 0.05}, 20),
    ],
)
def test_group_and_ratio(params: dict[str, Any], R: int) -> None:
    assert C3SL(**params).nominal_ratio() == (1 / R, 1 / R)
    assert client_cut(noise(40, 2), plugin(**params)).activations.shape[0] == -(-40 // R)


# --- What arrives is not trusted ------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([4], dtype=torch.int32),
        torch.tensor([7], dtype=torch.int32),
        torch.tensor([-1], dtype=torch.int32),
        torch.tensor([5], dtype=torch.int64),
        torch.tensor([5, 5], dtype=torch.int32),
        torch.tensor([5.0]),
    ],
)
def test_a_count_that_does_not_fit_is_refused(rows: torch.Tensor) -> None:
    cut = client_cut(noise(5, 5, 4), plugin(group=2))
    with pytest.raises(ProtocolError, match=r"3 groups of 2 hold 5 to 6 samples"):
        server_cut(cut, plugin("server", group=2), **{ROWS: rows})


@pytest.mark.parametrize("statistics", [None, torch.zeros(4, 2), torch.zeros(5)])
def test_statistics_that_do_not_fit_are_refused(statistics: torch.Tensor | None) -> None:
    cut = client_cut(noise(5, 5, 4), plugin(group=2, standardize=True))
    cut.side.pop(STATISTICS)
    more = {} if statistics is None else {STATISTICS: statistics}
    with pytest.raises(ProtocolError, match=r"must be \[5, 2\]"):
        server_cut(cut, plugin("server", group=2, standardize=True), **more)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"group": 0}, "group=0 is refused; allowed: 1 or more"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"ratio": 0.1, "group": 8}, "ratio=0.1 is refused; allowed: one of group, ratio"),
        ({"keys": "sparse"}, "keys=sparse is refused; allowed: gaussian, unitary"),
    ],
)
def test_bad_parameters(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        C3SL(**params)


def test_groups_larger_than_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"group=1 to 8, or ratio from 0\.12"):
        C3SL().setup(make_peer(batch_size=8))


def test_twice_in_a_stack(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="'c3sl' may stand in a stack only once"):
        tiny.pair([tiny.bound(C3SL, group=2)] * 2)


# --- Through real frames --------------------------------------------------------------------------


@pytest.mark.parametrize(("B", "standardize"), [(6, False), (5, True), (1, True)])
def test_bytes(tiny: Any, B: int, standardize: bool) -> None:
    client, server = tiny.pair([tiny.bound(C3SL, group=4, standardize=standardize)])
    up = next(client.train(tiny.batch(size=B), 0))
    G, L = -(-B // 4), 5 * 16
    assert up.names(Role.PAYLOAD) == ("activations",)
    assert up["activations"].nbytes == 4 * G * L
    assert sum(up[name].nbytes for name in up.names(Role.SIDE)) == 4 + standardize * 8 * B
    down = server.handle(tiny.travel(up))
    assert [down[name].nbytes for name in down] == [4 * G * L]


def test_training_repeats_itself_and_resumes(tiny: Any) -> None:
    def pair() -> Any:
        return tiny.pair([tiny.bound(C3SL, group=4, standardize=True)])

    client, server = pair()
    first = tiny.train(client, server, range(2))
    states = [copy.deepcopy(worker.state()) for worker in (client, server)]
    later = tiny.train(client, server, range(2, 4))
    assert tiny.train(*pair(), range(2)) == first
    client, server = pair()
    for worker, state in zip((client, server), states, strict=True):
        worker.load_state(*state)
    assert tiny.train(client, server, range(2, 4)) == later


def test_one_unitary_key_trains_as_without(tiny: Any) -> None:
    plain = tiny.train(*tiny.pair(optimizer="sgd"), range(2))
    pair = tiny.pair([tiny.bound(C3SL, group=1, keys="unitary")], optimizer="sgd")
    assert tiny.train(*pair, range(2)) == pytest.approx(plain, abs=1e-3)


def test_evaluation_through_frames(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(C3SL, group=4)])

    def ask(up: Message) -> Message:
        up = tiny.travel(up)
        assert up["activations"].shape == (2, 5, 16)
        down = tiny.travel(server.handle(up))
        assert down.kind is Kind.PREDICTION
        return down

    answer = hold(client.query(tiny.batch(), 0, stacked=True), ask)
    assert answer.ids.shape == (6,)
    assert answer.loss_sum > 0


def test_behind_adc(tiny: Any) -> None:
    stack = [tiny.bound(ADC, ratio=0.36), tiny.bound(C3SL, group=2)]
    client = tiny.client(stack)
    up = next(client.train(tiny.batch(), 0))
    assert up["activations"].shape == (2, 3, 16), "three merged rows of three tokens, two to a sum"
    assert up[ROWS].tolist() == [3]
    assert all(loss > 0 for loss in tiny.train(*tiny.pair(stack), range(2)))


def test_in_front_of_adc_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="a stack that works: adc"):
        tiny.client([tiny.bound(C3SL), tiny.bound(ADC)])


def test_built_by_name() -> None:
    bound = bind("plugins", "c3sl:ratio=0.125,keys=unitary,standardize=true,evaluation=false")
    assert isinstance(bound.build(), C3SL)


@pytest.mark.gpu
@pytest.mark.parametrize("L", [3200, 37_824])
def test_gpu_agrees_with_the_cpu(L: int) -> None:
    drawn, rows = draw_keys(3, L, "gaussian", torch.Generator().manual_seed(0)).float(), noise(7, L)
    here, there = Keys(drawn), Keys(drawn.cuda())
    sums = here.superpose(rows)
    torch.testing.assert_close(there.superpose(rows.cuda()).cpu(), sums, rtol=1e-4, atol=1e-4)
    found = there.retrieve(sums.cuda(), 7).cpu()
    torch.testing.assert_close(found, here.retrieve(sums, 7), rtol=1e-4, atol=1e-4)
