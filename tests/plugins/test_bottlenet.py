"""BottleNet++: widths, both variants, what each peer holds, and that gradients are exact."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from splitlab.core import Attention, ConfigError, Cut, Message, Peer, ProtocolError
from splitlab.core.catalogue.binding import bind
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.engine.conversation import hold
from splitlab.core.testing.tiny import Tiny
from splitlab.plugins.bottlenet import BottleNet

ATTENTION = Attention()

CPU = torch.device("cpu")


def make_peer(role: str, **facts: Any) -> Peer:
    defaults: dict[str, Any] = {"seed": 7, "classes": 5, "tokens": 9, "width": 16, "cut": 1}
    defaults |= {"prefix_tokens": 1, "class_token": True, "batch_size": 6}
    return Tiny().peer(role, **({"grid": None} | defaults | {"device": CPU} | facts))  # type: ignore[arg-type]


def pair(facts: dict[str, Any] | None = None, **settings: Any) -> tuple[BottleNet, BottleNet]:
    """Build both peers' plugins and set them up."""
    made = []
    for role in ("client", "server"):
        plugin = BottleNet(**settings)
        with isolated_rng(0, "setup", device=CPU):
            plugin.setup(make_peer(role, **(facts or {})))
        made.append(plugin)
    return made[0], made[1]


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()


def travel(
    plugins: tuple[BottleNet, BottleNet], x: torch.Tensor, *, training: bool = True
) -> tuple[Cut, torch.Tensor, torch.Tensor]:
    """Encode and decode; returns the client's cut, the server's leaf and what it decoded."""
    client, server = plugins
    sent = Cut(
        activations=x,
        targets=torch.zeros(len(x)),
        step=0,
        training=training,
        measured={ATTENTION: torch.ones(x.shape[:2])},
    )
    client.after_client_forward(sent)
    leaf = sent.activations.detach().requires_grad_()
    got = Cut(
        activations=leaf, targets=sent.targets, step=0, training=training, side=dict(sent.side)
    )
    server.before_server_forward(got)
    return sent, leaf, got.activations


# Ratio: width of a DeiT-T, of a DeiT-S.
WIDTHS = {
    0.01: (2, 4),
    0.05: (10, 19),
    0.1: (19, 38),
    0.2: (38, 77),
    0.3: (58, 115),
    0.5: (96, 192),
}


@pytest.mark.parametrize("ratio", WIDTHS)
@pytest.mark.parametrize("variant", ["fair", "adcrepo"])
def test_widths_and_bytes(ratio: float, variant: Any) -> None:
    for D, width in zip((192, 384), WIDTHS[ratio], strict=True):
        plugins = pair({"width": D}, ratio=ratio, variant=variant)
        sent, leaf, decoded = travel(plugins, tokens(2, 5, D))
        assert sent.activations.shape == (2, 5, width)
        assert sent.activations.nbytes == leaf.nbytes == 4 * 2 * 5 * width
        assert not sent.side
        assert decoded.shape == (2, 5, D)
        assert plugins[0].nominal_ratio() == (ratio, ratio)


@pytest.mark.parametrize(
    ("n_layers", "widths"), [(1, [16, 5]), (2, [16, 10, 5]), (3, [16, 12, 8, 5])]
)
def test_layers(n_layers: int, widths: list[int]) -> None:
    client, server = (
        [(layer.in_features, layer.out_features) for layer in plugin._peer.modules[0].layers]  # type: ignore[union-attr]
        for plugin in pair(width=5, n_layers=n_layers)
    )
    steps = list(itertools.pairwise(widths))
    assert client == steps
    assert server == [(b, a) for a, b in reversed(steps)]


@pytest.mark.parametrize("settings", [{}, {"variant": "adcrepo"}, {"cls_bypass": True}])
def test_gradients_are_those_of_the_whole(settings: dict[str, Any]) -> None:
    plugins = pair(width=6, **settings)
    modules = [plugin._peer.modules[0].double() for plugin in plugins]
    parameters = [p for module in modules for p in module.parameters()]
    x = tokens(2, 9, 16, dtype=torch.float64)
    weight = tokens(2, 9, 16, dtype=torch.float64).detach().flip(0)

    sent, leaf, decoded = travel(plugins, x)
    (decoded.sin() * weight).sum().backward()
    assert leaf.grad is not None
    sent.activations.backward(leaf.grad)
    ours = [t.grad for t in (x, *parameters)]

    body = x[:, 1:] if "cls_bypass" in settings else x
    layers = [layer for module in modules for layer in module.layers]  # type: ignore[union-attr]
    code = layers[1](layers[0](body).relu())
    whole = layers[3](layers[2](code).relu())
    whole = whole.relu() if settings.get("variant") == "adcrepo" else whole
    whole = torch.cat((x[:, :1], whole), dim=1) if "cls_bypass" in settings else whole
    torch.testing.assert_close(decoded, whole, rtol=0, atol=1e-12)
    theirs = torch.autograd.grad((whole.sin() * weight).sum(), (x, *parameters))
    for one, two in zip(ours, theirs, strict=True):
        assert one is not None
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_the_variant_of_the_comparison_knows_no_negative_numbers() -> None:
    assert (travel(pair(variant="adcrepo"), tokens(4, 9, 16))[2] >= 0).all()
    assert (travel(pair(variant="fair"), tokens(4, 9, 16))[2] < 0).any()


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_identity_and_projection(n_layers: int) -> None:
    x = tokens(4, 9, 16)
    whole = travel(pair(width=16, n_layers=n_layers, init="identity"), x)[2]
    torch.testing.assert_close(whole, x, rtol=1e-4, atol=1e-4)

    plugins = pair(width=6, n_layers=n_layers, init="identity")
    once = travel(plugins, x)[2]
    twice = travel(plugins, once)[2]
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-4)
    assert torch.linalg.matrix_rank(once.reshape(-1, 16), rtol=1e-3) == 6
    # Projection: what is lost is orthogonal to what is left.
    energy = once.square().sum() + (x - once).square().sum()
    torch.testing.assert_close(energy, x.square().sum(), rtol=1e-4, atol=1e-4)


def test_special_tokens_may_pass_as_they_are() -> None:
    x = tokens(3, 9, 16)
    plugins = pair({"prefix_tokens": 2}, width=5, cls_bypass=True)
    sent, _, decoded = travel(plugins, x)
    assert sent.activations.shape == (3, 2 * 4 + 7, 5)  # ⌈16 / 5⌉ pieces of each
    assert torch.equal(decoded[:, :2], x[:, :2])
    assert not torch.allclose(decoded[:, 2:], x[:, 2:], atol=0.1)
    assert ATTENTION not in sent.measured
    assert plugins[0].nominal_ratio()[0] == pytest.approx(15 * 5 / (9 * 16))
    assert plugins[0].traits().changes == {"features", "tokens", "layout"}
    assert BottleNet().traits().changes == {"features"}

    # By ratio: the largest width whose numbers are not more.
    wide = travel(pair(ratio=0.5, cls_bypass=True), x)[0].activations
    assert wide.shape == (3, 3 + 8, 6)
    assert wide[0].numel() <= 0.5 * 9 * 16 < 2 * 8 + 8 * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bypass", [False, True])
def test_dtypes(dtype: torch.dtype, bypass: bool) -> None:
    plugins = pair(width=6, cls_bypass=bypass)
    x, exact = tokens(4, 9, 16, dtype=dtype), tokens(4, 9, 16)
    sent, leaf, decoded = travel(plugins, x)
    assert sent.activations.dtype == decoded.dtype == dtype
    torch.testing.assert_close(decoded.float(), travel(plugins, exact)[2], rtol=0.05, atol=0.05)
    decoded.sum().backward()
    assert leaf.grad is not None
    sent.activations.backward(leaf.grad)
    assert x.grad is not None
    assert x.grad.dtype == dtype
    for plugin in plugins:
        for parameter in plugin._peer.modules[0].parameters():
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None


@pytest.mark.parametrize("value", [0.0, 3.5, 1e30])
def test_extreme_values_and_one_sample(value: float) -> None:
    x = torch.full((1, 9, 16), value)
    assert travel(pair(), x)[2].isfinite().all()


def test_acts_in_evaluation_and_learns() -> None:
    traits = BottleNet().traits()
    assert traits.evaluation
    assert traits.stateful
    assert traits.gradient == "natural"
    with torch.no_grad():
        sent, _, decoded = travel(pair(width=3), tokens(2, 9, 16), training=False)
    assert sent.activations.shape == (2, 9, 3)
    assert decoded.shape == (2, 9, 16)


def test_each_peer_holds_its_own_half_and_no_more() -> None:
    client, server = (plugin._peer.modules for plugin in pair(width=3))
    assert [sum(p.numel() for p in module.parameters()) for module in client] == [
        16 * 9 + 9 + 9 * 3 + 3
    ]
    assert [sum(p.numel() for p in module.parameters()) for module in server] == [
        3 * 9 + 9 + 9 * 16 + 16
    ]


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="variant=paper is refused"):
        BottleNet(variant="paper")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="init=pca is refused"):
        BottleNet(init="pca")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width=0 is refused"):
        BottleNet(width=0)
    with pytest.raises(ConfigError, match="n_layers=0 is refused"):
        BottleNet(n_layers=0)
    with pytest.raises(ConfigError, match="leave out ratio or width"):
        BottleNet(width=3, ratio=0.5)
    with pytest.raises(ConfigError, match="more than 0, at most 1"):
        BottleNet(ratio=0)
    with pytest.raises(ConfigError, match="width=17 exceeds the model's 16 features"):
        pair(width=17)
    with pytest.raises(ConfigError, match=r"no feature of 16 to send; allowed here: ratio=0.0313"):
        pair(ratio=0.03)
    pair(ratio=0.0313)
    with pytest.raises(ConfigError, match=r"allowed here: ratio=0.1667 to 1"):
        pair(ratio=0.1, cls_bypass=True)
    pair(ratio=0.1667, cls_bypass=True)
    with pytest.raises(ConfigError, match="cls_bypass=true needs special tokens"):
        pair({"prefix_tokens": 0}, cls_bypass=True)


@pytest.mark.parametrize("shape", [(2, 9, 4), (2, 3), (2, 5, 3)])
def test_server_refuses_codes_of_another_shape(shape: tuple[int, ...]) -> None:
    _, server = pair(width=3, cls_bypass=True)
    with pytest.raises(ProtocolError, match=r"'bottlenet' decodes \(rows, 6 or more tokens, 3\)"):
        server.before_server_forward(
            Cut(activations=torch.zeros(shape), targets=torch.zeros(2), step=0, training=True)
        )


STACKS = [
    ["bottlenet"],
    ["bottlenet:variant=adcrepo,ratio=0.5,init=identity"],
    ["bottlenet:width=4,cls_bypass=true"],
    ["adc", "bottlenet:width=4"],
    ["evit:keep=0.5,evaluation=true", "bottlenet:width=4,cls_bypass=true"],
]


@pytest.mark.parametrize("stack", STACKS)
def test_trains_and_resumes_through_real_frames(tiny: Any, stack: list[str]) -> None:
    plugins = [bind("plugins", text) for text in stack]
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        client, server = tiny.pair(plugins)
    start = [p.clone() for w in (client, server) for p in w.peer.modules[0].parameters()]
    losses = tiny.train(client, server, range(2))
    saved = [worker.state() for worker in (client, server)]
    saved = [({k: t.clone() for k, t in tensors.items()}, values) for tensors, values in saved]
    losses += tiny.train(client, server, range(2, 4))
    end = [p for w in (client, server) for p in w.peer.modules[0].parameters()]
    moved = [not torch.equal(one, two) for one, two in zip(start, end, strict=True)]
    assert all(moved), "every parameter is trained"

    again = tiny.pair(plugins)
    for worker, state in zip(again, saved, strict=True):
        worker.load_state(*state)
    assert tiny.train(*again, range(2, 4)) == losses[2:]
    for one, two in zip((client, server), again, strict=True):
        for key, tensor in one.state()[0].items():
            assert torch.equal(tensor, two.state()[0][key]), key

    def ask(asked: Message) -> Message:
        assert asked["activations"].shape[2] < 16
        return tiny.travel(server.handle(tiny.travel(asked)))

    hold(client.query(tiny.batch(0), 0, stacked=True), ask)


def test_learns_to_reconstruct() -> None:
    x = tokens(8, 9, 16).detach() @ torch.randn(16, 16, generator=torch.Generator()).tril(-12)
    plugins = pair(width=4)
    parameters = [p for plugin in plugins for p in plugin._peer.modules[0].parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    errors = []
    for _ in range(60):
        decoded = travel_whole(plugins, x)
        loss = F.mse_loss(decoded, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.3 * errors[0]


def travel_whole(plugins: tuple[BottleNet, BottleNet], x: torch.Tensor) -> torch.Tensor:
    """Encode and decode on one graph."""
    cut = Cut(activations=x, targets=torch.zeros(len(x)), step=0, training=True)
    plugins[0].after_client_forward(cut)
    plugins[1].before_server_forward(cut)
    return cut.activations
