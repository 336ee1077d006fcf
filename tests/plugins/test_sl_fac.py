"""SL-FAC: transform, sets and widths, and the plugin on messages and through real frames.

Shapes: R rows, F frequencies, D width; S sets, Q numbers of a row.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Kind, Message, Peer, PluginError, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins.adc import ADC, ADCBatchMerge
from splitlab.plugins.common.bits import unpack
from splitlab.plugins.sl_fac import SLFAC, dct_basis, much_energy, widths_of, widths_within

GRID = (3, 4)


def make_peer(**facts: Any) -> Peer:
    defaults: dict[str, Any] = {
        "role": "client",
        "seed": 7,
        "classes": 5,
        "tokens": 13,
        "width": 6,
        "prefix_tokens": 1,
        "class_token": True,
        "cut": 3,
        "batch_size": 64,
        "device": torch.device("cpu"),
        "grid": GRID,
    }
    return Tiny().peer(**(defaults | facts))


def plugin(peer: Peer | None = None, **params: Any) -> SLFAC:
    built = SLFAC(**params)
    built.setup(peer or make_peer())
    return built


def waves(R: int = 8, N: int = 13, D: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make tokens that change slowly over the image, each channel with a size of its own."""
    draw = torch.Generator().manual_seed(0)
    rough = torch.randn(R, N, D, generator=draw, dtype=torch.float64)
    smooth = rough.cumsum(1) + torch.randn(R, 1, D, generator=draw, dtype=torch.float64)
    return (smooth * torch.logspace(-2, 1, D, dtype=torch.float64)).to(dtype)


def sent(
    values: torch.Tensor, sender: SLFAC, kind: Kind = Kind.ACTIVATION, **facts: Any
) -> Message:
    message = Message(kind, 3, **facts)
    message.put("activations", values, Role.PAYLOAD)
    sender.before_send(message)
    return message


def received(message: Message, receiver: SLFAC) -> torch.Tensor:
    receiver.after_receive(message)
    return message["activations"]


def there_and_back(values: torch.Tensor, peer: Peer | None = None, **params: Any) -> torch.Tensor:
    return received(sent(values, plugin(peer, **params)), plugin(peer, **params))


def size(message: Message) -> int:
    return sum(message[name].nbytes for name in message)


def widths(message: Message) -> torch.Tensor:
    packed = message["sl-fac.widths"]
    return unpack(packed, 5, len(message["sl-fac.ranges"])).long()


# --- Transform ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 14])
def test_the_transform_is_orthonormal_and_the_textbook_one(n: int) -> None:
    basis = dct_basis(n)
    unit = torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, unit, rtol=0, atol=1e-12)
    for k in range(n):
        for t in range(n):
            scale = math.sqrt((1 if k == 0 else 2) / n)
            expected = scale * math.cos(math.pi * (t + 0.5) * k / n)
            assert float(basis[k, t]) == pytest.approx(expected, abs=1e-12)


def test_the_transform_runs_over_the_grid_of_every_channel() -> None:
    X = waves()[:, 1:]
    spectrum, energy = plugin()._spectrum(X)
    maps = X.view(8, *GRID, 6).double()
    down, across = (dct_basis(n) for n in GRID)
    expected = torch.einsum("kh,lw,rhwd->rkld", down, across, maps).reshape(8, -1)
    torch.testing.assert_close(spectrum.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(energy, expected.square().mean(0), rtol=1e-4, atol=1e-4)
    # Energy is conserved, and the way back leads back.
    torch.testing.assert_close(energy.sum() * 8, X.double().square().sum(), rtol=1e-5, atol=0)
    back = torch.empty_like(X)
    plugin()._write_patches(spectrum.view(8, 12, 6), back)
    torch.testing.assert_close(back, X, rtol=1e-5, atol=1e-5)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, ours = waves(), plugin()
    whole, energy = ours._spectrum(X[:, 1:])
    monkeypatch.setattr("splitlab.plugins.sl_fac._PIECE", 1)
    pieces, again = ours._spectrum(X[:, 1:])
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(again, energy)


# --- Sets and widths ------------------------------------------------------------------------------


def test_sets_hold_the_least_number_of_frequencies_with_the_share() -> None:
    energy = torch.tensor([[1.0, 0, 5], [90, 0, 5], [9, 0, 5], [0, 0, 5]], dtype=torch.float64)
    much = much_energy(energy, 0.9)
    assert much.T.tolist() == [
        [False, True, False, False],
        [False] * 4,
        [True] * 4,
    ]
    assert much_energy(energy, 0.91)[:, 0].tolist() == [False, True, True, False]
    assert much_energy(energy, 0.5)[:, 2].sum() == 2
    assert much_energy(energy, 1.0).all(), "theta = 1: everything is in the first set"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), theta=st.floats(0.01, 0.999))
def test_sets_have_their_share_and_not_one_more(seed: int, theta: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    energy = torch.rand(9, 5, generator=draw, dtype=torch.float64) ** 6
    much = much_energy(energy, theta)
    for channel in range(5):
        inside, outside = energy[much[:, channel], channel], energy[~much[:, channel], channel]
        total = float(energy[:, channel].sum())
        assert float(inside.sum()) >= theta * total * (1 - 1e-9)
        assert float(inside.sum() - inside.min()) <= theta * total * (1 + 1e-9)
        assert len(outside) == 0 or float(outside.max()) <= float(inside.min())


def test_widths_follow_the_logarithm_of_the_energy() -> None:
    energy = torch.tensor([2.0**-10, 2.0**10, 1, 0, 2.0**5], dtype=torch.float64)
    assert widths_of(energy, 2, 8).tolist() == [2, 8, 5, 0, 7]
    assert widths_of(energy, 4, 4).tolist() == [4, 4, 4, 0, 4]
    assert widths_of(torch.tensor([3.0, 3.0]), 2, 8).tolist() == [5, 5]
    assert widths_of(torch.zeros(2), 2, 8).tolist() == [0, 0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), budget=st.integers(-10, 3000), R=st.integers(1, 9))
def test_widths_within_a_budget(seed: int, budget: int, R: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    energy = torch.exp2(40 * torch.rand(7, generator=draw, dtype=torch.float64) - 20)
    energy[3] = 0
    count = torch.randint(1, 30, (7,), generator=draw)
    bits = widths_within(energy, count, R, budget)
    spent = sum(-(-R * int(count[bits == w].sum()) * w // 8) for w in set(bits.tolist()))
    assert spent <= max(budget, 0)
    assert bits[3] == 0
    assert not ((bits > 0) & (bits < 4)).any()
    assert int(bits.max()) <= 16
    order = energy.argsort()
    assert bits[order].diff().min() >= 0, "more energy, no fewer bits"
    if budget > 2 * R * int(count.sum()) + 13:
        assert bits[energy > 0].tolist() == [16] * 6
    elif (bits < 16)[energy > 0].any():
        step = max(int(R * n * (4 if b == 0 else 1)) for n, b in zip(count, bits, strict=True))
        assert 8 * (budget - 13) - 8 * spent < step + 8 * 13, "another step would not fit"


# --- The plugin on a message ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.GRADIENT])
@pytest.mark.parametrize(("bits", "most"), [(2, 1.0), (4, 0.2), (8, 0.012), (16, 1e-4)])
def test_the_error_is_at_most_half_a_step(kind: Kind, bits: int, most: float) -> None:
    X = waves()
    message = sent(X, plugin(min_bits=bits, max_bits=bits), kind)
    low, high = message["sl-fac.ranges"].unbind(1)
    much = unpack(message["sl-fac.sets"], 1, 72).view(12, 6).bool()
    back = received(message, plugin(min_bits=bits, max_bits=bits))
    ours, theirs = (plugin()._spectrum(values[:, 1:])[0].view(8, 12, 6) for values in (X, back))
    step = ((high - low) / (2**bits - 1)).view(2, 6)
    allowed = torch.where(much, step[0], step[1]) / 2
    assert ((ours - theirs).abs() <= allowed + 1e-5 * ours.abs().amax()).all()
    error = float((back - X)[:, 1:].norm() / X[:, 1:].norm())
    assert error < most
    torch.testing.assert_close(back[:, :1], X[:, :1], rtol=1e-3, atol=1e-3 * float(X.abs().max()))


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("params", [{}, {"min_bits": 0, "max_bits": 5}, {"theta": 1.0}])
@pytest.mark.parametrize("R", [1, 8])
def test_bytes(prefix: int, params: dict[str, Any], R: int) -> None:
    peer = make_peer(prefix_tokens=prefix, tokens=12 + prefix, batch_size=R)
    if "max_bits" not in params:
        params = params | {"ratio": 0.5}
    message = sent(waves(R, 12 + prefix), plugin(peer, **params))
    of_set = widths(message)
    much = unpack(message["sl-fac.sets"], 1, 72).view(12, 6).bool()
    bits = torch.where(much, of_set[:6], of_set[6:])
    codes = sum(-(-R * int((bits == w).sum()) * w // 8) for w in range(1, 17))
    special = R * prefix * (2 * 6 + 4)
    sets, ten_bits, ranges = -(-12 * 6 // 8), -(-10 * 6 // 8), 16 * 6
    assert message["activations"].nbytes == codes
    assert size(message) == codes + special + sets + ten_bits + ranges
    assert message["activations"].dtype == torch.uint8
    assert there_and_back(waves(R, 12 + prefix), peer, **params).shape == (R, 12 + prefix, 6)


@pytest.mark.parametrize("ratio", [0.06, 0.1, 0.2, 0.3, 0.45, 0.5])
def test_a_ratio_is_met(ratio: float) -> None:
    X = waves(64)
    message = sent(X, plugin(ratio=ratio))
    assert 0.85 * ratio < size(message) / X.nbytes <= ratio
    half = sent(X.half(), plugin(ratio=ratio))
    assert size(half) / X.nbytes <= ratio, "of 32 bits a number, whatever arrives"


def test_more_bytes_less_error() -> None:
    X = waves(64)
    errors = [float((there_and_back(X, ratio=r) - X).norm()) for r in (0.06, 0.1, 0.2, 0.3, 0.5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * float(X.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shape_and_dtype_come_back(dtype: torch.dtype) -> None:
    X = waves(dtype=dtype)
    back = there_and_back(X, ratio=0.5)
    assert back.dtype == dtype
    assert back.shape == X.shape
    exact = there_and_back(X.float(), ratio=0.5)
    torch.testing.assert_close(back, exact.to(dtype), rtol=2e-2, atol=2e-2)


def test_small_gradients_survive_half_precision() -> None:
    X = waves() * 1e-9
    back = there_and_back(X, ratio=0.5)
    assert float((back - X)[:, 0].norm() / X[:, 0].norm()) < 1e-3
    assert float((back - X).norm() / X.norm()) < 0.02


@pytest.mark.parametrize("what", ["zeros", "constant", "outlier", "one row", "dead channel"])
@pytest.mark.parametrize("params", [{"ratio": 0.3}, {"min_bits": 2}])
def test_values_out_of_the_ordinary(what: str, params: dict[str, Any]) -> None:
    X = waves()
    if what == "zeros":
        X.zero_()
    elif what == "constant":
        X.fill_(3.5)
    elif what == "outlier":
        X[3, 4, 1] = 1e37
    elif what == "one row":
        X = X[:1]
    else:
        X[:, :, 2] = 0
    back = there_and_back(X, **params)
    assert back.isfinite().all()
    if what in ("zeros", "constant"):
        # Rounding leaves crumbs of other frequencies, which are coded like any numbers.
        torch.testing.assert_close(back, X, rtol=1e-3, atol=1e-4)
    if what == "dead channel":
        assert not back[:, :, 2].any()
    if what == "outlier":
        others = [0, 2, 3, 4, 5]
        plain = there_and_back(waves(), min_bits=16, max_bits=16)
        back = there_and_back(X, min_bits=16, max_bits=16)
        torch.testing.assert_close(back[:, :, others], plain[:, :, others])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_spoils_its_channel_or_token(value: float) -> None:
    X = waves()
    X[2, 5, 1] = value
    X[3, 0, 4] = value
    back = there_and_back(X, ratio=0.3)
    assert back[:, 1:, 1].isnan().all()
    assert back[:, 1:, [0, 2, 3, 4, 5]].isfinite().all()
    assert not back[3, 0, 4].isfinite()
    assert back[[0, 1, 2, 4, 5, 6, 7], 0].isfinite().all()


def test_repeats_itself_and_draws_nothing() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = sent(waves(), plugin())
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    two = sent(waves(), plugin())
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_evaluation() -> None:
    X = waves()
    assert not SLFAC().traits().evaluation
    assert sent(X, plugin(), training=False)["activations"] is X
    assert SLFAC(evaluation=True).traits().evaluation
    coded = sent(X, plugin(evaluation=True), training=False)
    assert coded["activations"].dtype == torch.uint8
    ids = Message(Kind.PREDICTION, 3, training=False)
    ids.put("predictions", torch.zeros(4, dtype=torch.uint8), Role.PAYLOAD)
    plugin(evaluation=True).before_send(ids)
    assert list(ids) == ["predictions"]


def test_nominal_ratios() -> None:
    assert SLFAC().nominal_ratio(None) == (0.1, 0.1)
    assert SLFAC(ratio=0.2).nominal_ratio(None) == (0.2, 0.2)
    assert SLFAC(min_bits=2, max_bits=8).nominal_ratio(None) == (5 / 32, 5 / 32)
    assert SLFAC(max_bits=6).nominal_ratio(None) == (4 / 32, 4 / 32)
    assert SLFAC(min_bits=10).nominal_ratio(None) == (10 / 32, 10 / 32)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"ratio": 0.0}, "ratio=0.0 is refused"),
        ({"theta": 0.0}, "theta=0.0 is refused"),
        ({"theta": 1.1}, "theta=1.1"),
        ({"min_bits": -1}, "min_bits=-1 is refused; allowed: 0 to 16"),
        ({"min_bits": 17}, "min_bits=17"),
        ({"min_bits": 4, "max_bits": 3}, "max_bits=3 is refused; allowed: 4 to 16"),
        ({"min_bits": 0, "max_bits": 0}, "max_bits=0 is refused; allowed: 1 to 16"),
        ({"ratio": 0.1, "min_bits": 2}, "allowed: one of ratio, min_bits"),
        ({"ratio": 0.1, "max_bits": 8}, "allowed: one of ratio, max_bits"),
    ],
)
def test_bad_parameters(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SLFAC(**params)


def test_refused_in_setup() -> None:
    with pytest.raises(ConfigError, match="needs the patches' grid"):
        plugin(make_peer(grid=None))
    with pytest.raises(ConfigError, match=r"ratio=0\.01 cannot be met .* 0\.057 to 0\.5"):
        plugin(ratio=0.01)
    with pytest.raises(ConfigError, match=r"ratio=0\.6 cannot be met"):
        plugin(ratio=0.6)


def test_the_smallest_ratio_that_is_named_is_allowed() -> None:
    X = waves(64)
    message = sent(X, plugin(ratio=0.057))
    assert size(message) / X.nbytes <= 0.057
    assert not widths(message).any()
    back = received(message, plugin(ratio=0.057))
    assert not back[:, 1:].any(), "what has no bits is zero"
    assert back[:, 0].any()
    assert list(message) == ["activations"], "all that travelled beside it is used up"


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(PluginError, match="12 tokens are not 1 special tokens and a grid of 3 x 4"):
        sent(waves(N=12), plugin())


def tampered(name: str, tensor: torch.Tensor | None) -> Message:
    message = sent(waves(), plugin())
    role = message.role(name)
    message.take(name)
    if tensor is not None:
        message.put(name, tensor, role)
    return message


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("sl-fac.widths", None, "missing"),
        ("sl-fac.sets", torch.zeros(3, dtype=torch.uint8), "sl-fac.sets arrived as"),
        ("sl-fac.ranges", torch.zeros(12, 2, dtype=torch.float16), "sl-fac.ranges arrived as"),
        ("sl-fac.special", torch.zeros(7, 1, 6, dtype=torch.float16), "sl-fac.special arrived as"),
        ("sl-fac.scale", torch.zeros(8, 2), "sl-fac.scale arrived as"),
        ("sl-fac.widths", torch.full((8,), 255, dtype=torch.uint8), "a width of 31 bits"),
        ("activations", torch.zeros(3, dtype=torch.uint8), "activations arrived as"),
        ("activations", None, "0 payloads arrived"),
    ],
)
def test_what_arrives_is_not_trusted(name: str, tensor: torch.Tensor | None, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        received(tampered(name, tensor), plugin())


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ({"shape": [8, 12, 6], "dtype": "float32"}, "12 tokens arrived, this model has 13"),
        ({"shape": [8, 13, -6], "dtype": "float32"}, "should say shape and dtype"),
        ({"shape": [8, 13, 6], "dtype": "uint8"}, "should say shape and dtype"),
        ("shape", "should say shape and dtype"),
    ],
)
def test_notes_are_not_trusted(note: Any, says: str) -> None:
    message = sent(waves(), plugin())
    message.pop("sl-fac")
    message.push("sl-fac", note)
    with pytest.raises(ProtocolError, match=says):
        received(message, plugin())


# --- Through real frames --------------------------------------------------------------------------


def test_training_repeats_itself_and_resumes(tiny: Any) -> None:
    def pair() -> Any:
        return tiny.pair([tiny.bound(SLFAC, ratio=0.4)])

    client, server = pair()
    up = next(client.train(tiny.batch(), 0))
    assert size(up) - up["targets"].nbytes <= 0.4 * 4 * 6 * 5 * 16
    client, server = pair()
    first = tiny.train(client, server, range(2))
    states = [copy.deepcopy(worker.state()) for worker in (client, server)]
    later = tiny.train(client, server, range(2, 4))
    assert tiny.train(*pair(), range(2)) == first
    client, server = pair()
    for worker, state in zip((client, server), states, strict=True):
        worker.load_state(*state)
    assert tiny.train(client, server, range(2, 4)) == later


def test_sixteen_bits_train_as_none(tiny: Any) -> None:
    plain = tiny.train(*tiny.pair(optimizer="sgd"), range(3))
    pair = tiny.pair([tiny.bound(SLFAC, min_bits=16, max_bits=16)], optimizer="sgd")
    assert tiny.train(*pair, range(3)) == pytest.approx(plain, abs=2e-2)


def test_evaluation_through_frames(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(SLFAC, min_bits=2, evaluation=True)])

    def ask(up: Message) -> Message:
        up = tiny.travel(up)
        assert up["activations"].dtype == torch.uint8
        down = tiny.travel(server.handle(up))
        assert down.kind is Kind.PREDICTION
        return down

    assert hold(client.query(tiny.batch(), 0, stacked=True), ask).ids.shape == (6,)


def test_behind_merged_rows(tiny: Any) -> None:
    stack = [tiny.bound(ADCBatchMerge, ratio=0.5), tiny.bound(SLFAC, min_bits=4)]
    up = next(tiny.client(stack).train(tiny.batch(), 0))
    assert up["sl-fac.special"].shape == (3, 1, 16)
    assert all(loss > 0 for loss in tiny.train(*tiny.pair(stack), range(2)))


def test_behind_chosen_tokens_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="needs grid"):
        tiny.client([tiny.bound(ADC), tiny.bound(SLFAC)])


def test_built_by_name() -> None:
    bound = bind("plugins", "sl-fac:theta=0.8,min_bits=3,max_bits=6,evaluation=true")
    assert isinstance(bound.build(), SLFAC)


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu() -> None:
    X = waves(16)
    here = there_and_back(X, ratio=0.5)
    peer = make_peer(device=torch.device("cuda"))
    there = there_and_back(X.cuda(), peer, ratio=0.5).cpu()
    assert float((there - X).norm()) < 1.05 * float((here - X).norm())
