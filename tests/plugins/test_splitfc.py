"""SplitFC: probabilities and widths, then messages that lose their columns on the way.

Shapes: B samples, N tokens, D features; R rows, Q columns, K of them sent.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Diverged, Kind, Message, PluginError, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import catalogue
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins import splitfc
from splitlab.plugins.adc import ADC
from splitlab.plugins.common.bits import level_bytes, packed_bytes, unpack
from splitlab.plugins.splitfc import LEVELS, SplitFC, allocate_levels, keep_probabilities

B, N, D = 32, 9, 8
Q = N * D


def make_plugin(role: Any = "client", seed: int = 0, **params: Any) -> SplitFC:
    plugin = SplitFC(**params)
    plugin.setup(
        Tiny().peer(
            role,
            grid=None,
            seed=seed,
            classes=4,
            tokens=N,
            width=D,
            prefix_tokens=1,
            class_token=True,
            cut=1,
            batch_size=B,
            device=torch.device("cpu"),
        )
    )
    return plugin


def tokens(seed: int = 0, *shape: int) -> torch.Tensor:
    """Make columns of unequal spread; the first column is constant."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(*(shape or (B, N, D)), generator=draw)
    values *= torch.rand(values.shape[1:], generator=draw) ** 2
    values += torch.randn(values.shape[2], generator=draw)
    values[:, 0, 0] = 2.5
    return values


def sent(
    plugin: SplitFC,
    values: torch.Tensor,
    kind: Kind = Kind.ACTIVATION,
    *,
    step: int = 3,
    training: bool = True,
) -> Message:
    name = "gradient" if kind is Kind.GRADIENT else "activations"
    message = Message(kind, step, training=training)
    message.put(name, values, Role.PAYLOAD)
    plugin.before_send(message)
    return message


def arrived(tiny: Any, message: Message, receiver: SplitFC) -> torch.Tensor:
    """Let the message travel, and return what the receiver makes of it."""
    message = tiny.travel(message)
    receiver.after_receive(message)
    assert message.names(Role.SIDE) == ()
    assert message.notes == {}
    (name,) = message.names(Role.PAYLOAD)
    return message[name]


def read_mask(message: Message, columns: int = Q) -> torch.Tensor:
    return unpack(message["splitfc.mask"], 1, columns).bool()


def read_levels(message: Message, K: int) -> torch.Tensor:
    """Return the levels of the means and of each column; 1 where the mean is sent."""
    return torch.tensor(LEVELS)[unpack(message["splitfc.levels"], 6, K + 1).long()]


def size(message: Message) -> int:
    return sum(message[name].nbytes for name in message)


# --- Probabilities and widths ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spread", "count", "expected"),
    [
        ([4, 2, 1, 1], 2, [1, 1 / 2, 1 / 4, 1 / 4]),
        ([10, 1, 1, 1], 2, [1, 1 / 3, 1 / 3, 1 / 3]),
        ([1, 1, 10, 1], 2, [1 / 3, 1 / 3, 1, 1 / 3]),
        ([0, 0, 0, 0], 2, [1 / 2] * 4),
        ([1, 0, 0, 0], 2, [1, 1 / 3, 1 / 3, 1 / 3]),
        ([1, 1, 0, 0], 1, [0.499, 0.499, 0.001, 0.001]),
        ([3, 2, 1, 1], 4, [1, 1, 1, 1]),
        ([3, 2, 1, 1], 0.001, [0.00025] * 4),
    ],
)
def test_keep_probabilities(spread: list[float], count: float, expected: list[float]) -> None:
    found = keep_probabilities(torch.tensor(spread, dtype=torch.float32), count)
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(Q=st.integers(1, 60), share=st.floats(1e-4, 1), power=st.integers(0, 9), seed=st.integers(0))
def test_probabilities_sum_up(Q: int, share: float, power: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed % 2**32)
    spread = torch.rand(Q, generator=draw) ** power * (torch.rand(Q, generator=draw) < 0.8)
    p = keep_probabilities(spread, share * Q)
    assert float(p.sum()) == pytest.approx(share * Q, rel=1e-6)
    assert float(p.min()) >= min(1e-3, share) * 0.999999
    assert float(p.max()) <= 1
    inner = (p > 1.001e-3) & (p < 0.999)
    if (
        share > 1e-3 and inner.any() and spread.any()
    ):  # proportional to the spread between the two ends
        rates = p[inner] / (spread.double()[inner] / spread.max()).clamp_min(1e-6)
        assert float(rates.max() / rates.min()) < 1.0001


def cost(levels: torch.Tensor, of_means: int, R: int) -> int:
    """Return the bytes of codes, ends and numbers of levels, written out."""
    K, M = len(levels), int((levels > 1).sum())
    codes = sum(level_bytes(R * int((levels == q).sum()), q) for q in set(levels.tolist()) - {1})
    return codes + (level_bytes(K - M, of_means) if K > M else 0) + 2 * M + -(-6 * (K + 1) // 8)


def allocated(
    range_K: torch.Tensor, R: int, bits: int, spread: float = 1 / 12
) -> tuple[torch.Tensor, int]:
    """Allocate for columns without means; their variances are so many squared ranges."""
    range_K = range_K.double()
    steps, of_means = allocate_levels(
        range_K, spread * range_K**2, torch.zeros_like(range_K), R, bits
    )
    return torch.tensor(LEVELS)[steps], LEVELS[of_means]


def test_levels_solve_the_cubic_equation() -> None:
    """(Q - 1)³ = u Q, u in proportion to the squared range; no level is rounded away here."""
    wanted = torch.tensor([3.0, 6.0, 12.0, 24.0, 48.0, 96.0], dtype=torch.float64)
    ranges = ((wanted - 1) ** 3 / wanted).sqrt()
    found = [allocated(ranges, 256, bits, 100)[0].tolist() for bits in range(6000, 7500, 10)]
    assert wanted.tolist() in found
    assert all(a <= b for a, b in zip(map(sum, found), map(sum, found[1:]), strict=False))


@pytest.mark.parametrize(("spread", "sends"), [(0.01, "mean"), (16.0, "levels")])
def test_two_levels_may_be_worse_than_the_mean(spread: float, sends: str) -> None:
    """Of a range of 8, two levels leave an error of 64/12 if numbers are anywhere between."""
    one = torch.tensor([1.0], dtype=torch.float64)
    steps, _ = allocate_levels(8 * one, spread * one, one, 64, 12 + 16 + 64 + 40)
    assert (int(steps) > 0) == (sends == "levels")


@settings(max_examples=25, deadline=None)
@given(
    K=st.integers(1, 40), each=st.floats(0, 16), R=st.sampled_from([1, 8, 100]), seed=st.integers(0)
)
def test_allocation_keeps_the_budget(K: int, each: float, R: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed % 2**32)
    ranges = torch.randn(K, generator=draw).mul(3).exp() * (torch.rand(K, generator=draw) < 0.9)
    bits = int(each * K * R) + 32 * K + 64
    levels, of_means = allocated(ranges, R, bits)
    assert 8 * cost(levels, of_means, R) <= bits + 16
    assert (levels[ranges == 0] == 1).all()
    assert (levels[ranges.argsort(descending=True)].diff() <= 0).all()


def test_allocation_without_any_room() -> None:
    levels, of_means = allocated(torch.tensor([3.0, 1.0]), 32, 0)
    assert (levels.tolist(), of_means) == ([1, 1], 256)


# --- One way and back -----------------------------------------------------------------------------


def closeness(
    wanted: torch.Tensor, found: torch.Tensor, levels: torch.Tensor, of_means: int
) -> None:
    """Check every number against the step of its column, or of the means."""
    low, high = wanted.amin(0), wanted.amax(0)
    rounded = ((low.max() - low.min()) + (high.max() - high.min())) / 255  # of both ends, outwards
    step = (high - low + rounded) / (levels - 1).clamp_min(1)
    slack = 1e-5 * wanted.abs().max()
    coded = levels > 1
    assert ((found - wanted).abs() <= step / 2 + slack)[:, coded].all()
    means = wanted.mean(0)[~coded]
    if len(means):
        step = (means.max() - means.min()) / (of_means - 1)
        assert ((found[:, ~coded] - means).abs() <= step / 2 + slack).all()


@pytest.mark.parametrize("bits", [6, 0.7])
@pytest.mark.parametrize("cols", ["token_feature", "channel"])
def test_up_and_down(tiny: Any, cols: Any, bits: float) -> None:
    params: dict[str, Any] = {"keep": 0.6, "bits": bits, "cols": cols}
    client, server = make_plugin(**params), make_plugin("server", **params)
    values = tokens()
    columns, rows = (Q, B) if cols == "token_feature" else (D, B * N)
    matrix = values.reshape(rows, columns)
    message = sent(client, values)
    mask = read_mask(message, columns)
    K = int(mask.sum())
    assert 0 < K < columns
    of_means, *levels = read_levels(message, K)
    levels = torch.stack(levels)
    assert bits > 1 or (levels == 1).sum() > 1
    back = arrived(tiny, message, server).reshape(rows, columns)
    assert not back[:, ~mask].any()

    range_D = values.amax((0, 1)) - values.amin((0, 1))
    spread = matrix.std(0, correction=0) / range_D.repeat(columns // D)
    p = keep_probabilities(spread, 0.6 * columns).float()[mask]
    closeness(matrix[:, mask] / p, back[:, mask], levels, int(of_means))

    gradient = tokens(1) * 1e-7
    down = sent(server, gradient, Kind.GRADIENT)
    assert "splitfc.mask" not in down
    of_means, *levels = read_levels(down, K)
    got = arrived(tiny, down, client).reshape(rows, columns)
    assert not got[:, ~mask].any()
    wanted = gradient.reshape(rows, columns)[:, mask]
    closeness(wanted, got[:, mask] * p, torch.stack(levels), int(of_means))  # δ/p · g


def plain(values: torch.Tensor, budget: int) -> torch.Tensor:
    """A uniform quantizer between float16 ends, of whole bits that follow the ranges."""
    R, Q = values.shape
    low, high = values.amin(0).half().float(), values.amax(0).half().float()
    bits = torch.zeros(Q)
    for _ in range((8 * budget - 36 * Q) // R):
        bits[((high - low) * 2.0**-bits).argmax()] += 1
    step = torch.where(bits > 0, (high - low) / (2**bits - 1), torch.inf)
    coded = (((values - low) / step).round() * step + low).nan_to_num()
    return torch.where(bits > 0, coded, values.mean(0))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("what", ["unequal", "equal", "outliers"])
def test_it_is_better_than_a_plain_quantizer_at_equal_bytes(
    tiny: Any, what: str, bits: int
) -> None:
    values = tokens(5, B, 17, 32)
    if what == "equal":
        values = torch.randn(B, 17, 32, generator=torch.Generator().manual_seed(1))
    elif what == "outliers":
        values[..., 3] = 10 * values[..., 3] + 20  # as residual streams have them
    ratio = (bits + 36 / B) / 32
    client, server = (make_plugin(role, ratio=ratio, keep=1) for role in ("client", "server"))
    message = sent(client, values)
    budget = int(ratio * values.nbytes)
    assert size(message) <= budget
    ours = (arrived(tiny, message, server) - values).norm()
    theirs = (plain(values.flatten(1), budget) - values.flatten(1)).norm()
    assert ours < 0.9 * theirs


def test_gradient_is_what_autograd_gives_for_the_mask(tiny: Any) -> None:
    """With 15 bits everywhere only the mask is left of the method."""
    params: dict[str, Any] = {"keep": 0.5, "bits": 15}
    client, server = make_plugin(**params), make_plugin("server", **params)
    values = tokens().requires_grad_()
    weight = tokens(1)
    message = sent(client, values.detach())
    mask = read_mask(message).view(N, D)
    seen = arrived(tiny, message, server)
    p = (values.detach() / seen).nan_to_num(0, 0, 0).median(0).values
    (values * torch.where(mask, 1 / p, 0.0) * weight).sum().backward()
    got = arrived(tiny, sent(server, weight, Kind.GRADIENT), client)
    assert values.grad is not None
    torch.testing.assert_close(got, values.grad, atol=1e-2, rtol=3e-3)


def test_unbiased_over_masks() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(B, 3, D, generator=draw) * (0.5 + torch.rand(3, D, generator=draw))
    total = torch.zeros_like(values)
    params: dict[str, Any] = {"keep": 0.5, "bits": 15}
    client, server = make_plugin(**params), make_plugin("server", **params)
    first = last = 0.0
    for step in range(100):
        message = sent(client, values, step=step)
        server.after_receive(message)
        total += message["activations"]
        last = float((total / (step + 1) - values).norm() / values.norm())
        first = first or last
    assert first > 0.3, "a single draw is far off"
    assert last < 1.5 * first / 100**0.5, "the error of a mean falls with 1/sqrt(n)"


@pytest.mark.parametrize("params", [{"keep": 0.4, "bits": 3}, {"ratio": 0.08}, {"ratio": 0.3}])
@pytest.mark.parametrize("cols", ["token_feature", "channel"])
def test_bytes(params: dict[str, Any], cols: Any) -> None:
    client, server = make_plugin(cols=cols, **params), make_plugin("server", cols=cols, **params)
    columns, rows = (Q, B) if cols == "token_feature" else (D, B * N)
    up = sent(client, tokens())
    whole = "splitfc.mask" not in up
    server.after_receive(sent(client, tokens()))  # the same draw at the same step
    down = sent(server, tokens(1), Kind.GRADIENT)
    for message, mask_bytes in ((up, 0 if whole else packed_bytes(columns, 1)), (down, 0)):
        K = columns if whole else int(read_mask(up, columns).sum())
        of_means, *levels = read_levels(message, K)
        assert size(message) == mask_bytes + cost(torch.stack(levels), int(of_means), rows) + 24
        if "bits" in params:  # ends and numbers of levels come on top
            assert 8 * (size(message) - mask_bytes) <= (rows * params["bits"] + 22) * K + 200


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("more", [{}, {"cols": "channel"}, {"keep": 0.9}, {"bits": 6.5}])
def test_the_ratio_is_met_whatever_is_drawn(ratio: float, more: dict[str, Any]) -> None:
    try:
        client = make_plugin(ratio=ratio, **more)
    except ConfigError as error:
        assert "allowed for columns of 32 numbers" in str(error)  # noqa: PT017
        assert more in ({"bits": 6.5}, {"keep": 0.9})
        return
    assert client.nominal_ratio() == (ratio, ratio)
    server = make_plugin("server", ratio=ratio, **more)
    for step in range(4):
        up = sent(client, tokens(step), step=step)
        base = 4 * B * Q
        # A step of the constant moves a column by a part of a bit for each of its numbers.
        slack = 2 * Q + B * (N if "cols" in more else 1) + 64
        assert ratio * base - slack <= size(up) <= ratio * base
        server.after_receive(up)
        down = sent(server, tokens(step + 9), Kind.GRADIENT, step=step)
        assert ratio * base - slack <= size(down) <= ratio * base


def test_the_mask_is_part_of_the_ratio() -> None:
    values = tokens(0, B, 17, 4 * D)
    message = sent(make_plugin(ratio=0.06), values)
    assert message["splitfc.mask"].nbytes == 17 * 4 * D // 8
    assert size(message) <= 0.06 * values.nbytes


def test_what_ratio_keep_and_bits_make_of_each_other() -> None:
    def mean_width(**params: Any) -> tuple[float, float]:
        kept, bits = 0, 0.0
        for step in range(8):
            message = sent(make_plugin(**params), tokens(step, B, 17, 32), step=step)
            whole = "splitfc.mask" not in message
            K = 544 if whole else int(read_mask(message, 544).sum())
            kept += K
            bits += float(read_levels(message, K)[1:].log2().sum())
        return kept / 8 / 544, bits / kept

    share, width = mean_width()
    assert share == pytest.approx((32 * 0.1 * B - 1) / (B * 4 + 22), abs=0.03), "ξ = 0.1, 4 bits"
    assert width == pytest.approx(4, abs=0.4)
    share, width = mean_width(ratio=0.08, bits=2)
    assert share == pytest.approx((32 * 0.08 * B - 1) / (B * 2 + 22), abs=0.03)
    assert width == pytest.approx(2, abs=0.4)
    share, width = mean_width(keep=0.5)
    assert share == pytest.approx(0.5, abs=0.03)
    assert width == pytest.approx(((32 * 0.1 * B - 1) / 0.5 - 22) / B, abs=0.4)
    share, width = mean_width(ratio=0.3)
    assert share == 1
    assert width == pytest.approx(0.3 * 32 - 22 / B, abs=0.3)


# --- Memory, draws, evaluation --------------------------------------------------------------------


def test_masks_depend_on_seed_and_step_alone() -> None:
    def mask(seed: int = 0, step: int = 0) -> torch.Tensor:
        torch.rand(1)
        return read_mask(sent(make_plugin(seed=seed), tokens(), step=step))

    with torch.random.fork_rng([]):
        assert torch.equal(mask(), mask())
        assert not torch.equal(mask(), mask(step=1))
        assert not torch.equal(mask(), mask(seed=1))


def test_a_gradient_whose_activations_came_whole_passes() -> None:
    server = make_plugin("server")
    message = sent(server, tokens(), Kind.GRADIENT)
    assert torch.equal(message["gradient"], tokens())
    assert message.notes == {}


def test_a_gradient_is_decoded_once_for_its_own_step(tiny: Any) -> None:
    client, server = make_plugin(), make_plugin("server")
    server.after_receive(sent(client, tokens()))
    down = sent(server, tokens(), Kind.GRADIENT)
    with pytest.raises(ProtocolError, match="arrived for step 4, whose activations"):
        make_plugin().after_receive(tiny.travel(down))
    later = make_plugin()
    sent(later, tokens(), step=4)
    with pytest.raises(ProtocolError, match="arrived for step 4, whose activations"):
        later.after_receive(tiny.travel(down))
    client.after_receive(tiny.travel(down))
    with pytest.raises(ProtocolError, match="arrived for step 4, whose activations"):
        client.after_receive(tiny.travel(down))


def test_a_gradient_of_another_shape(tiny: Any) -> None:
    client, server = make_plugin(), make_plugin("server")
    server.after_receive(sent(client, tokens()))
    with pytest.raises(PluginError, match="only one of them"):
        sent(server, tokens(0, B, N - 1, D), Kind.GRADIENT)


def test_evaluation(tiny: Any) -> None:
    values = tokens()
    plain = sent(make_plugin(), values, training=False)
    assert torch.equal(plain["activations"], values)
    assert not make_plugin().traits().evaluation

    params: dict[str, Any] = {"evaluation": "quantize", "keep": 0.3, "bits": 5}
    client, server = make_plugin(**params), make_plugin("server", **params)
    assert client.traits().evaluation
    message = sent(client, values, training=False)
    assert "splitfc.mask" not in message
    assert 0.95 < 8 * size(message) / ((5 * B + 22) * Q) < 1.02
    back = arrived(tiny, message, server)
    assert (back - values).norm() < 0.1 * values.norm()
    assert torch.equal(sent(server, values, Kind.GRADIENT)["gradient"], values), "nothing kept"


# --- Edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(2, 3, D),
        torch.full((1, 1, D), -3.5),
        torch.zeros(5, 3, D).index_fill_(2, torch.tensor([4]), 1e30),
        torch.zeros(5, 3, D).index_put_((torch.tensor(2), torch.tensor(1)), torch.tensor(1e30)),
        tokens(0, 1, 1, D),
        tokens(0, 1, N, D),
        tokens(0, 3, 2, D) * 1e-30,
        tokens(0, 3, 2, D) * 1e-42,
        tokens(0, N, B, D).transpose(0, 1),
    ],
)
@pytest.mark.parametrize("cols", ["token_feature", "channel"])
@pytest.mark.parametrize("params", [{}, {"keep": 1, "bits": 2}, {"keep": 0.001, "bits": 4}])
def test_edge_inputs(tiny: Any, values: torch.Tensor, cols: Any, params: dict[str, Any]) -> None:
    client, server = make_plugin(cols=cols, **params), make_plugin("server", cols=cols, **params)
    back = arrived(tiny, sent(client, values), server)
    assert back.shape == values.shape
    assert back.isfinite().all()
    if params.get("keep") == 1:
        assert (back - values).abs().max() <= 1.01 * values.abs().max()
    got = arrived(tiny, sent(server, values, Kind.GRADIENT), client)
    assert got.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tiny: Any, dtype: torch.dtype) -> None:
    params: dict[str, Any] = {"keep": 1, "bits": 7}
    client, server = make_plugin(**params), make_plugin("server", **params)
    values = tokens().to(dtype)
    back = arrived(tiny, sent(client, values), server)
    got = arrived(tiny, sent(server, values, Kind.GRADIENT), client)
    assert back.dtype == got.dtype == dtype
    for found in (back, got):
        assert (found - values).double().norm() < 0.02 * values.double().norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("keep", [0.1, 1])
def test_what_is_not_finite_is_refused(keep: float, bad: float) -> None:
    client, server = make_plugin(keep=keep, bits=6), make_plugin("server", keep=keep, bits=6)
    server.after_receive(sent(client, tokens()))
    values = tokens()
    values[3, 2, 5] = bad
    with pytest.raises(Diverged, match=r"step 4: plugin 'splitfc': the activations .* not finite"):
        sent(client, values)
    with pytest.raises(Diverged, match=r"step 4: plugin 'splitfc': the gradients .* not finite"):
        sent(server, values, Kind.GRADIENT)


@pytest.mark.parametrize("stack", [[], [ADC]])
def test_training(tiny: Any, stack: list[type]) -> None:
    cols = "channel" if stack else "token_feature"
    bound = [tiny.bound(plugin, ratio=0.5) for plugin in stack]
    bound += [tiny.bound(SplitFC, ratio=0.2, cols=cols)]
    assert next(tiny.client(bound).train(tiny.batch(), 0))["activations"].dtype == torch.uint8
    losses = [tiny.train(*tiny.pair(bound), range(3)) for _ in range(2)]
    assert losses[0] == losses[1]


def test_selected_tokens_have_no_places() -> None:
    assert SplitFC().traits().needs == {"places"}
    assert SplitFC(cols="channel").traits().needs == {"layout"}


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"ratio": 0.1, "keep": 0.5, "bits": 4}, "two of ratio, keep, bits"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"keep": 0}, "keep=0"),
        ({"bits": 0}, "more than 0, at most 15"),
        ({"bits": 16}, "more than 0, at most 15"),
        ({"bits": float("nan")}, "bits=nan"),
        ({"cols": "token"}, "token_feature, channel"),
    ],
)
def test_parameters_that_are_refused(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SplitFC(**params)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"ratio": 0.6}, "0.0012 to 0.4902"),
        ({"ratio": 0.0005}, "0.0012 to 0.4902"),
        ({"ratio": 0.5, "keep": 0.5}, "with keep=0.5; .* numbers: 0.0118 to 0.246"),
        ({"ratio": 0.01, "keep": 0.5}, "0.0118 to"),
        ({"ratio": 0.3, "bits": 4}, "with bits=4; .* to 0.1464"),
        ({"ratio": 0.3, "bits": 4, "cols": "channel"}, "columns of 288 numbers: .* to 0.1273"),
    ],
)
def test_ratios_that_cannot_be_met(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plugin(**params)


def change(message: Message, name: str, tensor: torch.Tensor) -> None:
    message.put(name, tensor, message.role(name))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: change(m, "activations", m["activations"][:-1]), "activations arrived as"),
        (lambda m: change(m, "splitfc.mask", m["splitfc.mask"][:-1]), "mask arrived as"),
        (lambda m: change(m, "splitfc.mask", ~m["splitfc.mask"]), "arrived as"),
        (lambda m: m.take("splitfc.mask"), "arrived as"),
        (lambda m: change(m, "splitfc.ends", m["splitfc.ends"][:, 1:]), "ends arrived as"),
        (lambda m: change(m, "splitfc.bounds", m["splitfc.bounds"].half()), "bounds arrived as"),
        (lambda m: change(m, "splitfc.levels", m["splitfc.levels"] * 0), "there are no"),
        (lambda m: change(m, "splitfc.levels", m["splitfc.levels"] | 63), "there are no"),
        (lambda m: m.take("splitfc.levels"), "'splitfc.levels' is missing"),
        (lambda m: m.notes["splitfc"][0].update(shape=[2**20, N, D]), "the note .* says"),
        (lambda m: m.notes["splitfc"][0].update(dtype="int8"), "shape and dtype"),
        (lambda m: m.put("more", torch.ones(1), Role.PAYLOAD), "2 payloads arrived"),
    ],
)
def test_what_a_receiver_refuses(spoil: Any, says: str) -> None:
    message = sent(make_plugin(), tokens())
    spoil(message)
    with pytest.raises(ProtocolError, match=says):
        make_plugin("server").after_receive(message)


def test_by_name_and_as_a_reconstruction() -> None:
    assert isinstance(bind("plugins", "splitfc:keep=0.5,bits=4.5,cols=channel").build(), SplitFC)
    assert catalogue()["plugins"]["splitfc"]["reconstruction"] is True
    assert "This is a reconstruction" in (splitfc.__doc__ or "")
