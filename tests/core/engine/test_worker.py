"""Both peers, joined by encoded frames: one training, one state, one source of randomness."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitlab.core import ConfigError, Message, PluginError, ProtocolError, hookimpl
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import Diverged
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.transfer import pretending
from splitlab.core.engine.client import Client
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.optimization import Optimization
from splitlab.core.engine.rate import Rate
from splitlab.core.engine.server import Server
from splitlab.core.engine.stack import Stack
from splitlab.core.models.build import build_model
from splitlab.core.models.vit import whole
from splitlab.core.runs.checkpoint import Checkpoints

STEPS = range(4)


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


# Invariant 3: an empty stack changes nothing.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cut", range(4))
def test_split_training_equals_unsplit_training(
    tiny: Any, peers: Any, cut: int, optimizer: str
) -> None:
    client, server = tiny.pair(cut=cut, optimizer=optimizer, weight_decay=0.1)
    losses = tiny.train(client, server, STEPS)

    vit = tiny.vit()
    whole = OPTIMIZERS[optimizer](vit.parameters(), lr=1e-2, weight_decay=0.1)
    expected = []
    for step in STEPS:
        batch = tiny.batch(step)
        loss = F.cross_entropy(vit(batch.images), batch.targets)
        loss.backward()
        whole.step()
        whole.zero_grad()
        expected.append(loss.item())
    assert losses == expected
    moved = vit.head.weight - tiny.vit().head.weight
    assert moved.abs().max() > 1e-3, "the rate is 1e-2"
    trained = client._part.state_dict() | server._part.state_dict()
    peers.assert_same(trained, vit.state_dict())


@pytest.mark.parametrize("cut", range(4))
def test_evaluation_equals_that_of_the_whole_model(tiny: Any, peers: Any, cut: int) -> None:
    client, server = tiny.pair(cut=cut, proj_drop_rate=0.5)
    vit = tiny.vit(proj_drop_rate=0.5).eval()
    seen = set()
    for number in range(3):
        batch = tiny.batch(number)
        answer = hold(client.query(batch, number, stacked=True), peers.ask(server))
        ids = answer.ids
        with torch.no_grad():
            logits = vit(batch.images)
        assert torch.equal(ids, logits.argmax(-1))
        assert ids.dtype is torch.int64
        assert answer.loss_sum == F.cross_entropy(logits, batch.targets, reduction="sum").item()
        seen |= set(ids.tolist())
    assert len(seen) > 1  # otherwise samples that change places would not show
    peers.assert_same(
        peers.both(client, server), peers.both(*tiny.pair(cut=cut, proj_drop_rate=0.5))
    )


BF16 = torch.bfloat16


@pytest.mark.parametrize("cut", range(4))
def test_under_autocast_nothing_but_the_cut_is_rounded_more_than_in_the_whole_model(
    tiny: Any, peers: Any, cut: int
) -> None:
    client, server = tiny.pair(cut=cut, autocast=BF16)
    losses = tiny.train(client, server, STEPS)

    model = whole(tiny.vit())
    near, far = (model.part(index, (cut,), torch.device("cpu")) for index in (0, 1))
    trained = [p for part in (near, far) for _, p in part.named_parameters()]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    expected = []
    for step in STEPS:
        batch = tiny.batch(step)
        with torch.autocast("cpu", BF16):
            logits = far.forward(near.forward(batch.images).to(BF16).float())
        loss = F.cross_entropy(logits.float(), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == expected
    state = near.state_dict() | far.state_dict()
    peers.assert_same(client._part.state_dict() | server._part.state_dict(), state)
    kept = peers.both(client, server)
    assert {t.dtype for t in kept.values() if t.is_floating_point()} == {torch.float32}


def test_under_autocast_activations_and_gradients_cross_in_its_dtype(tiny: Any, peers: Any) -> None:
    sent: list[Message] = []

    def ask(message: Message) -> Message:
        sent.append(message)
        answer = peers.ask(server)(message)
        sent.append(answer)
        return answer

    client, server = tiny.pair(autocast=BF16)
    hold(client.train(tiny.batch(), 0), ask)
    hold(client.query(tiny.batch(), 0, stacked=False), ask)
    up, down, asked, answer = sent
    assert up["activations"].dtype is asked["activations"].dtype is BF16
    assert down["gradient"].dtype is BF16
    assert answer["predictions"].dtype is torch.uint8
    # Class probabilities stay as they are.
    soft = Batch(tiny.batch().images, torch.full((6, 4), 0.25), torch.arange(6))
    hold(client.train(soft, 1), ask)
    assert sent[4]["targets"].dtype is torch.float32
    plain = tiny.client()
    with pytest.raises(ProtocolError, match=r"arrived as torch\.float32 .* torch\.bfloat16 \["):
        server.handle(tiny.travel(next(plain.train(tiny.batch(), 2))))


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_convolutional_network_split_over_two_peers_equals_the_unsplit_one(
    tiny: Any, peers: Any, cut: int
) -> None:
    model = build_model("resnet18", classes=4, seed=0, image_size=32)
    draws = torch.Generator().manual_seed(0)
    batches = []
    for _ in STEPS:
        images = torch.randn(6, 3, 32, 32, generator=draws)
        batches.append(Batch(images, torch.randint(4, (6,), generator=draws), torch.arange(6)))
    client, server = (
        kind(
            model.part(index, (cut,), torch.device("cpu")),
            Stack(()),
            tiny.peer(role, layout=model.layout(cut), cut=cut),
            Optimization("adam", Rate.parse(1e-2), 0.1),
        )
        for index, (role, kind) in enumerate((("client", Client), ("server", Server)))
    )
    ask = peers.ask(server)
    losses = [hold(client.train(batch, n), ask).loss for n, batch in enumerate(batches)]
    answers = [hold(client.query(b, n, stacked=True), ask) for n, b in enumerate(batches)]

    module = deepcopy(model.module).train()
    whole = torch.optim.Adam(module.parameters(), lr=1e-2, weight_decay=0.1)
    expected = []
    for batch in batches:
        loss = F.cross_entropy(module(batch.images), batch.targets)
        loss.backward()
        whole.step()
        whole.zero_grad()
        expected.append(loss.item())
    assert losses == expected
    peers.assert_same(client._part.state_dict() | server._part.state_dict(), module.state_dict())
    module.eval()
    for batch, answer in zip(batches, answers, strict=True):
        with torch.no_grad():
            logits = module(batch.images)
        assert torch.equal(answer.ids, logits.argmax(-1))
        assert answer.loss_sum == F.cross_entropy(logits, batch.targets, reduction="sum").item()


# What a stack may leave behind.


class Sabotage:
    """Applies a function to what one hook is given, on one peer."""

    def __init__(self, *, hook: str, act: Any) -> None:
        self.hook = hook
        self.act = act

    def _at(self, hook: str, subject: Any) -> None:
        if hook == self.hook:
            self.act(subject)

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        self._at("after_client_forward", cut)

    @hookimpl
    def before_send(self, message: Any) -> None:
        self._at(f"before_send {message.kind.name}", message)

    @hookimpl
    def after_receive(self, message: Any) -> None:
        self._at(f"after_receive {message.kind.name}", message)

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        self._at("before_server_forward", cut)

    @hookimpl
    def gradient_return(self, cut: Any) -> None:
        self._at("gradient_return", cut)


def put(name: str, change: Any) -> Any:
    return lambda message: message.put(name, change(message[name]), message.role(name))


def assign(name: str, change: Any) -> Any:
    return lambda cut: setattr(cut, name, change(getattr(cut, name)))


@pytest.mark.parametrize(
    ("hook", "act", "words"),
    [
        # Hooks that leave no tensor, or one of another kind.
        (
            "after_client_forward",
            assign("activations", lambda x: None),
            "cut.activations as NoneType",
        ),
        ("after_client_forward", assign("targets", lambda x: [1]), "cut.targets is list"),
        ("after_client_forward", assign("side", lambda x: {"a": 1}), r"cut.side\['a'\] is int"),
        (
            "after_client_forward",
            assign("side", lambda x: {"targets": torch.zeros(1)}),
            "a tensor 'targets', a name that the engine uses",
        ),
        (
            "before_server_forward",
            assign("activations", lambda x: None),
            "as NoneType, not a tensor",
        ),
        (
            "gradient_return",
            assign("gradient", lambda x: None),
            "leaves cut.gradient as NoneType",
        ),
        ("before_send ACTIVATION", lambda m: m.take("activations"), "has no tensor 'activations'"),
        ("before_send ACTIVATION", lambda m: m.take("targets"), "has no tensor 'targets'"),
        (
            "before_send GRADIENT",
            lambda m: m.take("gradient"),
            "has no tensor 'gradient'; it has: n",
        ),
        # Shapes and dtypes that do not fit.
        (
            "before_server_forward",
            assign("activations", lambda x: x[:4]),
            "activations .4, 5, 16. and",
        ),
        ("before_server_forward", assign("activations", lambda x: x[..., :8]), r"\[6, 5, 8\]"),
        ("before_server_forward", assign("activations", lambda x: x.flatten(1)), r"\[6, 80\] and"),
        (
            "before_server_forward",
            assign("targets", lambda x: x[:, None]),
            r"int64 targets \[6, 1\]",
        ),
        (
            "before_server_forward",
            assign("targets", lambda x: F.one_hot(x, 5).float()),
            r"float32 targets \[6, 5\].*probabilities \(rows, 4\)",
        ),
        (
            "before_server_forward",
            assign("activations", lambda x: torch.zeros_like(x)),
            "cuts cut.activations off the autograd graph",
        ),
        (
            "before_server_forward",
            assign("weights", lambda x: torch.ones(6, 1)),
            r"cut.weights have shape \[6, 1\], one weight is needed for each of 6 rows",
        ),
        ("before_server_forward", assign("weights", lambda x: 1.0), "cut.weights is float"),
        ("before_send GRADIENT", put("gradient", lambda g: g[:3]), r"after_receive .*\[3, 5, 16\]"),
        ("before_send GRADIENT", put("gradient", lambda g: g.to(torch.int8)), "is torch.int8"),
        (
            "gradient_return",
            assign("gradient", lambda g: g[:, :2]),
            r"gradient_return .*to \[6, 2, 16\]",
        ),
    ],
)
def test_a_broken_contract_is_the_plugins_error_and_names_the_step(
    tiny: Any, hook: str, act: Any, words: str
) -> None:
    client, server = tiny.pair([tiny.bound(Sabotage, hook=hook, act=act)])
    with pytest.raises(PluginError, match=words) as caught:
        tiny.train(client, server, [41])
    assert "step 42" in str(caught.value) or "has no tensor" in words or "engine uses" in words


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ValueError("no derivative")


@pytest.mark.parametrize("hook", ["after_client_forward", "before_server_forward"])
def test_a_backward_pass_that_fails_is_put_down_to_the_stack(tiny: Any, hook: str) -> None:
    act = assign("activations", Breaks.apply)
    client, server = tiny.pair([tiny.bound(Sabotage, hook=hook, act=act)])
    with pytest.raises(
        PluginError, match=r"step 1: the backward pass .* sabotage failed: ValueError: no deriv"
    ):
        tiny.train(client, server, [0])


@pytest.mark.parametrize(("guilty", "segment"), [(0, 0), (1, 2)])
def test_a_segment_that_fails_is_named_with_the_step(
    tiny: Any, peers: Any, guilty: int, segment: int
) -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such rows")

    pair = client, server = tiny.pair()
    pair[guilty]._part._segments[0] = fails
    said = rf"segment {segment} .*: ValueError: no such rows \(test_worker.py:\d+\)"
    with pytest.raises(ConfigError, match=f"^step 42: {said}"):
        tiny.train(client, server, [41])
    with pytest.raises(ConfigError, match=f"^evaluation batch 4: {said}"):
        hold(client.query(tiny.batch(), 3, stacked=True), peers.ask(server))


@pytest.mark.parametrize("guilty", [0, 1])
def test_without_plugins_a_backward_pass_that_fails_is_put_down_to_the_model(
    tiny: Any, guilty: int
) -> None:
    pair = client, server = tiny.pair()
    pair[guilty]._part._segments.append(Breaks.apply)
    said = r"step 1: the backward pass through the model failed: ValueError: .*\(test_worker.py:\d+"
    with pytest.raises(ConfigError, match=said):
        tiny.train(client, server, [0])


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (torch.ones(6, 4), r"cut.token_sizes have shape \[6, 4\]; .* \[6, 5\] tokens"),
        (torch.zeros(6, 5), "a number above 0"),
        ("many", "cut.token_sizes is str, not a tensor"),
    ],
)
def test_token_sizes_that_do_not_fit_are_refused(tiny: Any, sizes: Any, words: str) -> None:
    act = assign("token_sizes", lambda _: sizes)
    client, server = tiny.pair([tiny.bound(Sabotage, hook="before_server_forward", act=act)])
    with pytest.raises(PluginError, match=words):
        tiny.train(client, server, [0])


def test_a_tensor_on_the_graph_cannot_be_put_into_a_message(tiny: Any) -> None:
    act = put("activations", lambda x: x.clone().requires_grad_())
    client = tiny.client([tiny.bound(Sabotage, hook="before_send ACTIVATION", act=act)])
    with pytest.raises(PluginError, match="'activations' of a ACTIVATION message is still on the"):
        next(client.train(tiny.batch(), 0))


def test_samples_must_stay_apart_in_evaluation(tiny: Any, peers: Any) -> None:
    act = put("predictions", lambda ids: ids[:1])
    client, server = tiny.pair([tiny.bound(Sabotage, hook="before_send PREDICTION", act=act)])
    with pytest.raises(PluginError, match=r"\[1\] predictions came back for 6 samples"):
        hold(client.query(tiny.batch(), 0, stacked=True), peers.ask(server))


# State.


class Learns:
    """Keeps state of every kind, and a learned module at each peer."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(16)
        self.history: dict[str, Any] = {"losses": [], "nothing": None, "empty": {}}

    @hookimpl
    def setup(self, peer: Any) -> None:
        self.peer = peer
        with isolated_rng(peer.seed, "learns", device=peer.device):
            self.module = nn.Linear(peer.width, peer.width)
        peer.add_module(self.module)

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        noise = torch.rand(16, generator=self.peer.generator("learns", cut.step))
        cut.activations = self.module(cut.activations) + 0.1 * self.mean + 0.01 * noise
        if cut.training:
            self.mean = 0.9 * self.mean + 0.1 * cut.activations.detach().mean((0, 1))

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        cut.activations = self.module(cut.activations) + 0.01 * self.count

    @hookimpl
    def step_end(self, step: int) -> None:
        self.count += 1
        self.history["losses"].append(step)

    @hookimpl
    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "history": self.history}

    @hookimpl
    def load_state_dict(self, state: Any) -> None:
        self.count, self.mean, self.history = state["count"], state["mean"], state["history"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_from_a_saved_state_bit_for_bit(
    tiny: Any, peers: Any, tmp_path: Any, optimizer: str
) -> None:
    def fresh() -> tuple[Any, Any]:
        # Two of them: each must get its own state back.
        return tiny.pair([tiny.bound(Learns), tiny.bound(Learns)], optimizer=optimizer, lr=0.1)

    whole = fresh()
    losses = tiny.train(*whole, range(4))
    first = fresh()
    assert tiny.train(*first, range(2)) == losses[:2]
    for peer in first:
        Checkpoints(tmp_path, peer.peer.role).save(2, *peer.state())
    second = fresh()
    tiny.train(*second, [7])  # whatever the state was before
    for peer in second:
        peer.load_state(*Checkpoints(tmp_path, peer.peer.role).load(2))
    assert tiny.train(*second, range(2, 4)) == losses[2:]
    peers.assert_same(peers.both(*whole), peers.both(*second))
    for one, two in zip(whole, second, strict=True):
        assert one.state()[1] == two.state()[1]
        kept = [[s["history"] for s in w.stack.state_dict().values()] for w in (one, two)]
        assert kept[0] == kept[1]
        assert kept[0][0] == {"losses": [0, 1, 2, 3], "nothing": None, "empty": {}}


def test_registered_modules_are_trained_at_both_peers(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(Learns)])
    before = {role: [p.clone() for p in w.peer.modules[0].parameters()] for role, w in (
        ("client", client), ("server", server))}  # fmt: skip
    tiny.train(client, server, range(2))
    for role, worker in (("client", client), ("server", server)):
        for old, new in zip(before[role], worker.peer.modules[0].parameters(), strict=True):
            assert not torch.equal(old, new), role
            assert new.grad is None


def test_state_that_no_checkpoint_can_hold_names_the_plugin_and_the_key(tiny: Any) -> None:
    class Hoards:
        @hookimpl
        def state_dict(self) -> dict[str, Any]:
            return {"deep": {"list": [torch.zeros(1)]}}

    with pytest.raises(PluginError, match="plugin hoards: the state deep / list cannot be saved"):
        tiny.client([tiny.bound(Hoards)]).state()


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"seen": {1: "x"}}, "the state seen / 1 cannot be saved: its key 1 is no text"),
        (
            {"pairs": [(1, 2)]},
            r"pairs cannot be saved: \[\(1, 2\)\] would come back as \[\[1, 2\]\]",
        ),
        ({"pair": (1, 2)}, r"pair cannot be saved: \(1, 2\) would come back as \[1, 2\]"),
        ({"deep": [{2: 1}]}, r"deep cannot be saved"),
        ({"number": np.float64(0.5)}, r"number cannot be saved"),
    ],
)
def test_state_that_would_come_back_changed_is_refused(
    tiny: Any, state: dict[str, Any], told: str
) -> None:
    class Hoards:
        @hookimpl
        def state_dict(self) -> dict[str, Any]:
            return state

    with pytest.raises(PluginError, match=f"plugin hoards: .*{told}"):
        tiny.client([tiny.bound(Hoards)]).state()


def test_a_peer_without_parameters_has_no_optimizer_and_trains_on(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair(cut=0)
    frozen = tiny.vit()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    still = tiny.client(cut=0, model=lambda: frozen)
    start = {k: v.clone() for k, v in still.state()[0].items()}
    tiny.train(still, server, range(2))
    peers.assert_same(still.state()[0], start)
    tiny.train(client, server, range(2))
    assert any("optimizer" in name for name in client.state()[0])
    assert not any("optimizer" in name for name in still.state()[0])


# Losses of a plugin's own.


class Commits:
    """Doubles on the way; a loss of its own at each peer, with these weights."""

    def __init__(self, *, client: float = 0.0, server: float = 0.0, adds: bool = True) -> None:
        self.client, self.server, self.adds = client, server, adds

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        if self.adds:
            cut.add_loss("size", self.client * cut.activations.square().mean())
        cut.activations = cut.activations * 2

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        cut.activations = cut.activations / 2
        if self.adds:
            cut.add_loss("spread", self.server * cut.activations.std())


def gradients(client: Any, server: Any, tiny: Any) -> tuple[dict[str, torch.Tensor], Any, float]:
    """Return the gradients of both parts in a step, its metrics and its loss."""
    found: dict[str, torch.Tensor] = {}
    for worker in (client, server):
        for name, parameter in worker._part.named_parameters():
            parameter.register_hook(lambda g, name=name: found.update({name: g.clone()}))
    trained = hold(client.train(tiny.batch(), 0), lambda up: server.handle(tiny.travel(up)))
    return found, (trained.metrics, server.metrics), trained.loss


def test_own_losses_join_the_backward_pass_of_their_peer(tiny: Any) -> None:
    bound = tiny.bound(Commits, client=0.3, server=0.7)
    found, metrics, loss = gradients(*tiny.pair([bound]), tiny)
    batch, whole = tiny.batch(), tiny.pair(optimizer="sgd", lr=0.0)
    parts = [worker._part for worker in whole]
    for part in parts:
        part.train(True)
    X = parts[0].forward(batch.images, None)
    task = F.cross_entropy(parts[1].forward(X, None), batch.targets)
    size, spread = 0.3 * X.square().mean(), 0.7 * X.std()
    (task + size + spread).backward()
    for part in parts:
        for name, parameter in part.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(task.item())
    assert metrics[0]["commits"] == {"size": pytest.approx(size.item(), rel=1e-4)}
    assert metrics[1]["commits"] == {"spread": pytest.approx(spread.item(), rel=1e-4)}


def test_who_adds_no_loss_trains_bit_for_bit_as_before(tiny: Any, peers: Any) -> None:
    runs = []
    for adds in (True, False):
        client, server = tiny.pair([tiny.bound(Commits, adds=adds)])
        losses = tiny.train(client, server, range(2))
        runs.append((losses, peers.both(client, server)))
    assert runs[0][0] == runs[1][0]
    peers.assert_same(runs[0][1], runs[1][1])


def test_a_loss_in_gradient_return_counts_and_a_frozen_part_may_have_one(tiny: Any) -> None:
    class Trains:
        @hookimpl
        def setup(self, peer: Any) -> None:
            self.map = nn.Linear(1, 1)
            peer.add_module(self.map)

        @hookimpl
        def gradient_return(self, cut: Any) -> None:
            cut.add_loss("own", self.map.weight.square().sum())

    frozen = tiny.vit()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    bound = [tiny.bound(Trains)]
    client, server = tiny.client(bound, model=lambda: frozen), tiny.server(bound)
    before = client.peer.modules[0].weight.clone()
    tiny.train(client, server, [0])
    assert client.peer.modules[0].weight.square().sum() < before.square().sum()


@pytest.mark.parametrize("peer", ["client", "server"])
def test_a_loss_that_is_not_finite_names_plugin_and_name(tiny: Any, peer: str) -> None:
    name = {"client": "size", "server": "spread"}[peer]
    bound = tiny.bound(Commits, **{peer: float("nan")})
    with pytest.raises(Diverged, match=f"step 1: the loss '{name}' of plugin 'commits' is nan"):
        tiny.train(*tiny.pair([bound]), [0])


def test_a_refused_loss_names_plugin_hook_and_line(tiny: Any) -> None:
    class Detaches:
        @hookimpl
        def after_client_forward(self, cut: Any) -> None:
            cut.add_loss("commit", cut.activations.detach().mean())

    line = Detaches.after_client_forward.__code__.co_firstlineno + 2
    with pytest.raises(
        PluginError,
        match=f"plugin 'detaches' failed in after_client_forward: the loss 'commit' is detached.*"
        rf"\(test_worker.py:{line}\)",
    ):
        tiny.train(*tiny.pair([tiny.bound(Detaches)]), [0])


def test_a_loss_and_a_metric_of_one_name_are_refused(tiny: Any) -> None:
    class Twice(Commits):
        @hookimpl
        def metrics(self) -> dict[str, float]:
            return {"size": 1.0}

    with pytest.raises(PluginError, match="plugin 'twice' has a loss and a metric 'size'"):
        tiny.train(*tiny.pair([tiny.bound(Twice)]), [0])


# Invariant 1: the peers share nothing but the link.


def test_every_peer_builds_its_own_plugins(tiny: Any) -> None:
    built: list[object] = []

    class Remembers:
        def __init__(self) -> None:
            built.append(self)

        @hookimpl
        def run_end(self) -> None: ...

    bound = [tiny.bound(Remembers), tiny.bound(Remembers)]
    tiny.pair(bound)
    assert len({id(plugin) for plugin in built}) == 4


def test_received_tensors_do_not_share_memory_with_the_sender(tiny: Any) -> None:
    client, server = tiny.pair()
    up = next(client.train(tiny.batch(), 0))
    arrived = tiny.travel(up)
    arrived["activations"].zero_()
    assert up["activations"].abs().sum() > 0
    assert isinstance(server, object)


def test_both_peers_draw_alike_from_the_agreed_seed(tiny: Any) -> None:
    client, server = tiny.peer("client", seed=5), tiny.peer("server", seed=5)

    def draw(peer: Any, *purpose: Any) -> list[float]:
        return torch.rand(3, generator=peer.generator(*purpose)).tolist()

    assert draw(client, "mine", 1) == draw(server, "mine", 1) == draw(client, "mine", 1)
    others = (draw(client, "mine", 2), draw(client, "other", 1), draw(tiny.peer(seed=6), "mine", 1))
    assert draw(client, "mine", 1) not in others


# Randomness.


DROPOUT = {
    "drop_path_rate": 0.5,
    "proj_drop_rate": 0.3,
    "attn_drop_rate": 0.3,
    "pos_drop_rate": 0.2,
}


def test_dropout_repeats_exactly_and_leaves_global_random_state_alone(
    tiny: Any, peers: Any
) -> None:
    state = torch.get_rng_state()
    one = tiny.pair(**DROPOUT)
    losses = tiny.train(*one, STEPS)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        two = tiny.pair(**DROPOUT)
        assert tiny.train(*two, STEPS) == losses
    peers.assert_same(peers.both(*one), peers.both(*two))
    assert tiny.train(*tiny.pair(**DROPOUT, seed=1), STEPS) != losses


def test_dropout_differs_from_step_to_step_and_resumes_at_any(tiny: Any) -> None:
    client = tiny.client(**DROPOUT)
    batch = tiny.batch()
    at = {step: next(client.train(batch, step))["activations"] for step in (0, 1, 2)}
    assert not torch.equal(at[0], at[1])
    assert not torch.equal(at[1], at[2])
    again = next(tiny.client(**DROPOUT).train(batch, 2))["activations"]
    assert torch.equal(again, at[2])


def test_dropout_is_off_in_evaluation_and_on_again_after_it(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair(**DROPOUT)
    losses = tiny.train(client, server, range(2))
    other, its_server = tiny.pair(**DROPOUT)
    with_evaluation = []
    for step in range(2):
        with_evaluation += tiny.train(other, its_server, [step])
        queries = [next(other.query(tiny.batch(9), n, stacked=True)) for n in (0, 1)]
        assert torch.equal(queries[0]["activations"], queries[1]["activations"])
        hold(other.query(tiny.batch(9), 0, stacked=True), peers.ask(its_server))
    assert with_evaluation == losses


# The optimizer.


def test_an_optimizer_has_the_settings_that_it_was_given_and_torchs_others() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    for name, kind in OPTIMIZERS.items():
        built = Optimization(name, Rate.parse(0.5), 0.25).build([parameter])
        assert type(built) is kind
        assert built.defaults == kind([parameter], lr=0.5, weight_decay=0.25).defaults
        assert Optimization(name, Rate.parse(0.5), 0.25).build([]) is None


# Where nothing is at hand, as on a GPU.


def late(worker: Any) -> None:
    """Let the gradient of one of its parameters be no number."""
    worker._trained[-1][1].register_hook(lambda gradient: gradient * float("nan"))


def test_where_nothing_is_at_hand_the_same_numbers_come_out(tiny: Any, peers: Any) -> None:
    def trained() -> tuple[Any, Any]:
        client, server = tiny.pair([tiny.bound(Commits)], clip_norm=0.1, accumulate=2)
        losses = tiny.train(client, server, STEPS)
        query = client.query(tiny.batch(9), 0, stacked=True)
        answer = hold(query, lambda m: tiny.travel(server.handle(tiny.travel(m))))
        return (losses, answer.loss_sum, answer.ids.tolist()), peers.both(client, server)

    numbers, states = trained()
    with pretending():
        there = trained()
    assert there[0] == numbers
    peers.assert_same(there[1], states)


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_gradient_that_is_not_finite_is_told_late_and_of_its_own_step(
    tiny: Any, role: str
) -> None:
    with pretending():
        client, server = tiny.pair()
        worker = client if role == "client" else server
        late(worker)
        tiny.train(client, server, [4])
        name, _ = worker._trained[-1]
        with pytest.raises(Diverged, match=f"^step 5: the gradient of {name} is not finite; lower"):
            tiny.train(client, server, [5])


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("then", ["state", "query", "settle"])
def test_nothing_is_made_of_weights_before_their_step_is_settled(
    tiny: Any, role: str, then: str
) -> None:
    with pretending():
        client, server = tiny.pair()
        worker = client if role == "client" else server
        late(worker)
        tiny.train(client, server, [0])
        query = client.query(tiny.batch(), 0, stacked=True)
        asks: dict[str, Any] = {
            "state": worker.state,
            "query": lambda: hold(query, lambda m: server.handle(tiny.travel(m))),
            "settle": worker.settle,
        }
        with pytest.raises(Diverged, match=r"^step 1: the gradient of"):
            asks[then]()


def test_a_loss_that_is_not_finite_ends_its_own_step_wherever_it_is(tiny: Any) -> None:
    with pretending():
        client, server = tiny.pair()
        talk = client.train(tiny.batch(), 1)
        up = tiny.travel(next(talk))
        up["activations"].fill_(float("inf"))
        with pytest.raises(Diverged, match=r"^step 2: the loss is nan; lower --lr"):
            server.handle(up)
        for peer in ("client", "server"):
            bound = tiny.bound(Commits, **{peer: float("nan")})
            with pytest.raises(
                Diverged, match=r"^step 1: the loss '.*' of plugin 'commits' is nan"
            ):
                tiny.train(*tiny.pair([bound]), [0])


def test_what_a_plugin_expects_in_vain_ends_the_step_or_the_next(tiny: Any) -> None:
    class Expects:
        def __init__(self, *, hook: str) -> None:
            self.hook = hook

        def look(self, hook: str, subject: Any) -> None:
            if hook == self.hook:
                ok = torch.zeros((), dtype=torch.bool)
                subject.expect(ok, lambda: PluginError(f"{subject.when}: {hook} found it odd"))

        @hookimpl
        def after_client_forward(self, cut: Any) -> None:
            self.look("after_client_forward", cut)

        @hookimpl
        def before_send(self, message: Any) -> None:
            self.look(f"before_send {message.kind.name}", message)

        @hookimpl
        def after_receive(self, message: Any) -> None:
            self.look(f"after_receive {message.kind.name}", message)

        @hookimpl
        def before_server_forward(self, cut: Any) -> None:
            self.look("before_server_forward", cut)

        @hookimpl
        def gradient_return(self, cut: Any) -> None:
            self.look("gradient_return", cut)

    hooks = {
        "after_client_forward": [0, 1],
        "before_send ACTIVATION": [0, 1],
        "after_receive ACTIVATION": [0],
        "before_server_forward": [0],
        "before_send GRADIENT": [0, 1],
        "after_receive GRADIENT": [0, 1],
        "gradient_return": [0, 1],
    }
    for hook, steps in hooks.items():
        with pytest.raises(PluginError, match=f"step 1: {hook} found it odd"):
            tiny.train(*tiny.pair([tiny.bound(Expects, hook=hook)]), [0])
        with pretending():
            client, server = tiny.pair([tiny.bound(Expects, hook=hook)])
            for step in steps[:-1]:
                tiny.train(client, server, [step])
            with pytest.raises(PluginError, match=f"step 1: {hook} found it odd"):
                tiny.train(client, server, steps[-1:])
