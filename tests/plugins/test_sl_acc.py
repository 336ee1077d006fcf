"""SL-ACC: its numbers one by one, then messages that it packs and unpacks.

Shapes: B samples, N tokens, C channels, R = B · N rows, G groups.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import catalogue
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins import sl_acc
from splitlab.plugins.adc import ADC
from splitlab.plugins.common.bits import packed_bytes, unpack
from splitlab.plugins.sl_acc import (
    SLACC,
    channel_entropy,
    importance_groups,
    widths_of,
    widths_within,
)

B, N, C = 32, 17, 24


def make_plugin(role: Any = "client", **params: Any) -> SLACC:
    plugin = SLACC(**params)
    plugin.setup(
        Tiny().peer(
            role,
            grid=None,
            seed=0,
            classes=4,
            tokens=N,
            width=C,
            prefix_tokens=1,
            class_token=True,
            cut=1,
            batch_size=B,
            device=torch.device("cpu"),
        )
    )
    return plugin


def tokens(seed: int = 0, *shape: int) -> torch.Tensor:
    """Make channels of unequal size, place and shape; channel 0 is constant."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(*(shape or (B, N, C)), generator=draw)
    width = values.shape[-1]
    values = values.sign() * values.abs() ** torch.linspace(1, 4, width)
    values = values * torch.linspace(0.1, 3, width) + torch.arange(width)
    values[..., 0] = 0.7
    return values


def sent(
    plugin: SLACC,
    values: torch.Tensor,
    kind: Kind = Kind.ACTIVATION,
    *,
    training: bool = True,
) -> Message:
    name = "gradient" if kind is Kind.GRADIENT else "activations"
    message = Message(kind, 3, training=training)
    message.put(name, values, Role.PAYLOAD)
    plugin.before_send(message)
    return message


def arrived(tiny: Any, message: Message, **params: Any) -> torch.Tensor:
    """Let the message travel, and return what a receiver makes of it."""
    message = tiny.travel(message)
    make_plugin("server", **params).after_receive(message)
    assert message.names(Role.SIDE) == ()
    assert message.notes == {}
    (name,) = message.names(Role.PAYLOAD)
    return message[name]


def read_widths(message: Message) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the width of every channel and its group, from the wire."""
    G = message.notes["sl-acc"][0]["groups"]
    width_G = unpack(message["sl-acc.widths"], 4, G).long() + 1
    group_C = torch.zeros(C, dtype=torch.long)
    if G > 1:
        group_C = unpack(message["sl-acc.groups"], (G - 1).bit_length(), C).long()
    return width_G[group_C], group_C


# --- The numbers ----------------------------------------------------------------------------------


def test_scores_become_widths() -> None:
    scores = torch.tensor([0, 0.1, 0.5, 1], dtype=torch.float64)
    assert widths_of(scores, 2, 8).tolist() == [2, 3, 5, 8]
    assert widths_of(scores * 3 - 1, 2, 8).tolist() == [2, 3, 5, 8]
    assert widths_of(scores[:1], 2, 8).tolist() == [5]
    assert widths_of(scores, 3, 3).tolist() == [3, 3, 3, 3]


def test_entropy_of_known_histograms() -> None:
    values = torch.tensor(
        [[0.0, 5, 0, -1], [1, 5, 0, -1], [2, 5, 0, -1], [3, 5, 1, -1], [0, 5, 1, -1]]
    )[:4]
    low, high = values.amin(0), values.amax(0)
    entropy = channel_entropy(values, low, high, 4)
    torch.testing.assert_close(
        entropy, torch.tensor([2, 0, 0.811278, 0], dtype=torch.float64), atol=1e-6, rtol=0
    )
    tiny_range = torch.full((3, 1), 1e-45)
    assert channel_entropy(tiny_range, tiny_range[0] * 0, tiny_range[0], 256).tolist() == [0]


def test_importance_of_present_and_past() -> None:
    plugin = make_plugin(rho=0.1, alpha=0.25)
    values = torch.zeros(B, N, C)
    values[..., : C // 2] = torch.linspace(0, 1, B * N).view(B, N, 1)  # h = 1, the others 0
    h = torch.zeros(C, dtype=torch.float64)
    h[: C // 2] = 1
    plugin.load_state_dict({"history": 1 - h})
    widths, _ = read_widths(sent(plugin, values))
    torch.testing.assert_close(plugin.state_dict()["history"], 0.1 * h + 0.9 * (1 - h))
    assert widths[0] < widths[-1], "a quarter of the present, three of the past: I = 1/4, 3/4"

    fresh = make_plugin()
    sent(fresh, values)
    torch.testing.assert_close(fresh.state_dict()["history"], h)


def test_groups_by_importance() -> None:
    numbers = torch.tensor([0.9, 0.1, 0.11, 0.5, 0.91, 0.52], dtype=torch.float64)
    groups, scores = importance_groups(numbers, 3)
    assert groups.tolist() == [2, 0, 0, 1, 2, 1]
    torch.testing.assert_close(scores, torch.tensor([0.105, 0.51, 0.905], dtype=torch.float64))
    groups, scores = importance_groups(torch.full((5,), 0.3, dtype=torch.float64), 4)
    assert groups.tolist() == [0] * 5
    assert len(scores) == 1
    groups, scores = importance_groups(torch.tensor([0.0, 1.0], dtype=torch.float64), 4)
    assert groups.tolist() == [0, 1]


@settings(max_examples=25, deadline=None)
@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True),
    counts=st.lists(st.integers(1, 40), min_size=8, max_size=8),
    share=st.floats(0.02, 0.6),
    least=st.integers(1, 5),
)
def test_widths_within_a_budget(
    scores: list[float], counts: list[int], share: float, least: int
) -> None:
    score_G = torch.tensor(sorted(scores), dtype=torch.float64)
    count_G = torch.tensor(counts[: len(scores)])
    R = 64
    budget = int(share * 4 * R * int(count_G.sum()))
    width_G = widths_within(score_G, count_G, R, budget, least)

    def cost(widths: torch.Tensor) -> int:
        return int((R * count_G * widths).sum()) // 8

    assert (width_G.diff() >= 0).all(), "higher importance, no fewer bits"
    assert 1 <= int(width_G.min()) <= int(width_G.max()) <= 16
    assert cost(width_G) <= budget or (width_G == 1).all()
    assert cost(width_G + 1) > budget or (width_G == 16).any()


def test_what_is_left_over_does_not_let_a_group_overtake() -> None:
    scores, counts = torch.tensor([0.0, 1.0]), torch.tensor([1, 39])
    # 3 bits for all are 960 bytes; one more costs the small group 8 and the large one 312.
    assert widths_within(scores, counts, 64, 970, 4).tolist() == [3, 3]
    assert widths_within(scores, counts.flip(0), 64, 970, 4).tolist() == [3, 4]


# --- Messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{"max_bits": 8}, {"ratio": 0.15}, {"groups": 1, "max_bits": 5}])
@pytest.mark.parametrize("per", ["group", "channel"])
def test_error_and_bytes(tiny: Any, per: Any, params: dict[str, Any]) -> None:
    values = tokens()
    message = sent(make_plugin(per=per, **params), values)
    widths, groups = read_widths(message)
    G = int(groups.max()) + 1
    back = arrived(tiny, message, per=per, **params)

    low, high = values.amin((0, 1)), values.amax((0, 1))
    if per == "group":
        for g in range(G):
            low[groups == g], high[groups == g] = low[groups == g].min(), high[groups == g].max()
    bound = (high - low) / (2 * (2.0**widths - 1))
    assert ((back - values).abs() <= bound * 1.001 + 1e-5).all()

    counts = torch.bincount(widths).tolist()
    codes = sum(packed_bytes(B * N * n, width) for width, n in enumerate(counts) if width)
    ids = packed_bytes(C, (G - 1).bit_length())
    size = codes + 8 * (G if per == "group" else C) + packed_bytes(G, 4) + ids
    assert sum(message[name].nbytes for name in message) == size
    assert message["activations"].nbytes == codes
    assert {message.role(name) for name in message if name != "activations"} == {Role.SIDE}


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.GRADIENT])
def test_the_ratio_is_met(ratio: float, kind: Kind) -> None:
    plugin = make_plugin(ratio=ratio)
    assert plugin.nominal_ratio(None) == (ratio, ratio)
    for seed in range(3):
        message = sent(plugin, tokens(seed) * (1e-7 if kind is Kind.GRADIENT else 1), kind)
        real = sum(message[name].nbytes for name in message) / (4 * B * N * C)
        _, groups = read_widths(message)
        largest = int(torch.bincount(groups).max())
        assert ratio - largest / C / 32 < real <= ratio


def test_rule_without_a_ratio() -> None:
    plugin = make_plugin(max_bits=8)
    widths, groups = read_widths(sent(plugin, tokens()))
    assert (int(widths.min()), int(widths.max())) == (2, 8)
    assert len(set(zip(widths.tolist(), groups.tolist(), strict=True))) == int(groups.max()) + 1
    assert plugin.nominal_ratio(None) == (10 / 64, 10 / 64)


def test_a_constant_channel_costs_least_and_arrives_exactly(tiny: Any) -> None:
    values = tokens()
    message = sent(make_plugin(max_bits=8, per="channel"), values)
    widths, _ = read_widths(message)
    assert widths[0] == widths.min() == 2
    back = arrived(tiny, message, per="channel", max_bits=8)
    assert torch.equal(back[..., 0], values[..., 0])


def test_equal_channels_are_one_group(tiny: Any) -> None:
    values = tokens()[..., 5:6].expand(B, N, C).contiguous()
    message = sent(make_plugin(max_bits=8), values)
    widths, groups = read_widths(message)
    assert widths.tolist() == [5] * C
    assert not groups.any()
    assert "sl-acc.groups" not in message
    step = (values.max() - values.min()) / 31
    assert (arrived(tiny, message, max_bits=8) - values).abs().max() <= step * 0.501


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tiny: Any, dtype: torch.dtype) -> None:
    values = tokens().to(dtype)
    back = arrived(tiny, sent(make_plugin(max_bits=8), values), max_bits=8)
    assert back.dtype == dtype
    assert back.shape == values.shape
    assert (back - values).double().norm() < 0.7 * values.double().norm()


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(2, 3, C),
        torch.full((1, 1, C), -3.5),
        torch.ones(1, 5, C) * torch.arange(C),
        torch.zeros(2, 3, C).index_fill_(2, torch.tensor([4]), 1e30),
        tokens(0, 1, 1, C),
        tokens(0, 3, 2, C) * 1e-30,
        tokens(0, 3, 2, C).transpose(0, 1),
        tokens(0, 1, 7, C).mT.contiguous().mT,  # channel by channel: patches without a class token
    ],
)
@pytest.mark.parametrize("per", ["group", "channel"])
def test_edge_inputs(tiny: Any, values: torch.Tensor, per: Any) -> None:
    back = arrived(tiny, sent(make_plugin(per=per), values), per=per)
    assert back.shape == values.shape
    assert back.isfinite().all()
    spread = (values.amax((0, 1)) - values.amin((0, 1))).max()
    spread = values.max() - values.min() if per == "group" else spread
    assert (back - values).abs().max() <= spread * 1.001


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_channel(tiny: Any, bad: float) -> None:
    values = tokens()
    values[3, 2, 5] = bad
    plugin = make_plugin(per="channel", max_bits=8)
    back = arrived(tiny, sent(plugin, values), per="channel", max_bits=8)
    assert back[..., 5].isnan().all()
    others = torch.arange(C) != 5
    assert back[..., others].isfinite().all()
    assert plugin.state_dict()["history"].isfinite().all()

    message = sent(make_plugin(max_bits=8), values)
    _, groups = read_widths(message)
    back = arrived(tiny, message, max_bits=8)
    assert torch.equal(back.isnan().all(0).all(0), groups == groups[5])
    assert not back[..., groups != groups[5]].isnan().any()


# --- State, evaluation, both directions -----------------------------------------------------------


def test_state_goes_on_where_it_was() -> None:
    one, two = make_plugin(), make_plugin()
    assert one.state_dict() == {}
    sent(one, tokens(0))
    state = one.state_dict()
    two.load_state_dict(state)
    first, second = (sent(plugin, tokens(1)) for plugin in (one, two))
    for name in first:
        assert torch.equal(first[name], second[name])
    assert not torch.equal(state["history"], one.state_dict()["history"]), "a copy, not a view"
    two.load_state_dict({})
    assert two.state_dict() == {}


def test_evaluation() -> None:
    plugin = make_plugin()
    values = tokens()
    untouched = sent(plugin, values, training=False)
    assert torch.equal(untouched["activations"], values)
    assert untouched.notes == {}
    assert not plugin.traits().evaluation

    plugin = make_plugin(evaluation=True)
    sent(plugin, values)
    before = plugin.state_dict()["history"]
    message = sent(plugin, tokens(5), training=False)
    assert message["activations"].dtype == torch.uint8
    assert torch.equal(plugin.state_dict()["history"], before)
    assert plugin.traits().evaluation
    prediction = Message(Kind.PREDICTION, training=False)
    prediction.put("predictions", torch.arange(4, dtype=torch.uint8), Role.PAYLOAD)
    plugin.before_send(prediction)
    plugin.after_receive(prediction)
    assert prediction["predictions"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("stack", [[], [ADC]])
def test_training(tiny: Any, stack: list[type]) -> None:
    bound = [tiny.bound(plugin, ratio=0.5) for plugin in stack] + [tiny.bound(SLACC, ratio=0.2)]

    def losses() -> list[float]:
        torch.rand(1)  # global state is not looked at
        client, server = tiny.pair(bound)
        found = tiny.train(client, server, range(3))
        histories = [worker.stack.state_dict()["slacc"]["history"] for worker in (client, server)]
        assert not torch.equal(*histories), "activations here, gradients there"
        return found

    with torch.random.fork_rng([]):
        assert losses() == losses()


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"ratio": 0.1, "max_bits": 8}, "leave out max_bits or ratio"),
        ({"ratio": 0}, "ratio=0"),
        ({"min_bits": 0}, "1 to 16"),
        ({"min_bits": 9, "max_bits": 8}, r"9 \(min_bits\) to 16"),
        ({"max_bits": 17}, "to 16"),
        ({"groups": 0}, "groups=0"),
        ({"groups": 17}, "1 to 16"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"bins": 1}, "bins=1"),
        ({"per": "token"}, "group, channel"),
    ],
)
def test_parameters_that_are_refused(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SLACC(**params)


@pytest.mark.parametrize("ratio", [0.01, 0.51])
def test_ratios_that_cannot_be_met(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"allowed for this model and batch: 0.032\d? to 0.5"):
        make_plugin(ratio=ratio)


def test_the_smallest_ratio_that_the_error_names_is_met() -> None:
    with pytest.raises(ConfigError) as error:
        make_plugin(ratio=0.01)
    ratio = float(str(error.value).split()[-3])
    message = sent(make_plugin(ratio=ratio), tokens())
    assert sum(message[name].nbytes for name in message) <= ratio * 4 * B * N * C


def change(message: Message, name: str, tensor: torch.Tensor) -> None:
    message.put(name, tensor, message.role(name))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: change(m, "activations", m["activations"][:-1]), "activations arrived as"),
        (lambda m: change(m, "sl-acc.ranges", m["sl-acc.ranges"][:-1]), "ranges arrived as"),
        (lambda m: change(m, "sl-acc.ranges", m["sl-acc.ranges"].double()), "ranges arrived as"),
        (lambda m: change(m, "sl-acc.widths", m["sl-acc.widths"][:0]), "widths arrived as"),
        (lambda m: change(m, "sl-acc.groups", m["sl-acc.groups"] | 255), "none of the 3 groups"),
        (lambda m: m.take("sl-acc.groups"), "'sl-acc.groups' is missing"),
        (lambda m: m.notes["sl-acc"][0].update(groups=0), "0 groups of 24"),
        (lambda m: m.notes["sl-acc"][0].update(shape=[1]), "shape and dtype"),
        (lambda m: m.put("more", torch.ones(1), Role.PAYLOAD), "2 payloads arrived"),
    ],
)
def test_what_a_receiver_refuses(spoil: Any, says: str) -> None:
    message = sent(make_plugin(groups=3), tokens())
    spoil(message)
    with pytest.raises(ProtocolError, match=says):
        make_plugin("server", groups=3).after_receive(message)


def test_by_name_and_as_a_reconstruction() -> None:
    bound = bind("plugins", "sl-acc:ratio=0.2,min_bits=3,per=channel")
    assert isinstance(bound.build(), SLACC)
    assert catalogue()["plugins"]["sl-acc"]["reconstruction"] is True
    assert "This is a reconstruction from the abstract" in (sl_acc.__doc__ or "")
