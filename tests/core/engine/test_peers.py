"""The two peers, joined by encoded frames: what must hold for any stack of plugins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitlab.core import (
    Attention,
    Keys,
    Kind,
    Message,
    PluginError,
    ProtocolError,
    Role,
    hookimpl,
)
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.server import Server
from splitlab.core.run.checkpoint import Checkpoints

STEPS = range(4)
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def both(client: Any, server: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of both peers' state."""
    ours, theirs = client.state()[0], server.state()[0]
    return {f"client {k}": v for k, v in ours.items()} | {
        f"server {k}": v for k, v in theirs.items()
    }


def ask(tiny: Any, server: Any) -> Any:
    """Return what takes a message to this server and back, in frames."""
    return lambda message: tiny.travel(server.handle(tiny.travel(message)))


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


# Invariant 3: an empty stack changes nothing.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cut", range(4))
def test_split_training_equals_unsplit_training(tiny: Any, cut: int, optimizer: str) -> None:
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
    assert_same(trained, vit.state_dict())


@pytest.mark.parametrize("cut", range(4))
def test_evaluation_equals_that_of_the_whole_model(tiny: Any, cut: int) -> None:
    client, server = tiny.pair(cut=cut, proj_drop_rate=0.5)
    vit = tiny.vit(proj_drop_rate=0.5).eval()
    seen = set()
    for number in range(3):
        batch = tiny.batch(number)
        answer = hold(client.query(batch, number, stacked=True), ask(tiny, server))
        ids = answer.ids
        with torch.no_grad():
            logits = vit(batch.images)
        assert torch.equal(ids, logits.argmax(-1))
        assert ids.dtype is torch.int64
        assert answer.loss_sum == F.cross_entropy(logits, batch.targets, reduction="sum").item()
        seen |= set(ids.tolist())
    assert len(seen) > 1  # otherwise samples that change places would not show
    assert_same(both(client, server), both(*tiny.pair(cut=cut, proj_drop_rate=0.5)))


# Order.


class Recorder:
    """Notes which hook ran where."""

    def __init__(self, *, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log
        self.role = "?"

    def note(self, hook: str) -> None:
        self.log.append(f"{self.role} {hook} {self.name}")

    @hookimpl
    def setup(self, peer: Any) -> None:
        self.role = peer.role
        self.note("setup")

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        self.note("after_client_forward")

    @hookimpl
    def before_send(self, message: Any) -> None:
        self.note(f"before_send:{message.kind.name}")

    @hookimpl
    def after_receive(self, message: Any) -> None:
        self.note(f"after_receive:{message.kind.name}")

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        self.note("before_server_forward")

    @hookimpl
    def gradient_return(self, cut: Any) -> None:
        self.note("gradient_return")

    @hookimpl
    def step_end(self, step: int) -> None:
        self.note("step_end")

    @hookimpl
    def run_end(self) -> None:
        self.note("run_end")


class Observer:
    """Notes when the data hooks of a stack begin and end."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Any) -> Any:
        self.log.append("[")
        yield
        self.log.append("]")

    @hookimpl(wrapper=True)
    def before_send(self, message: Any) -> Any:
        self.log.append("[")
        yield
        self.log.append("]")

    @hookimpl(wrapper=True)
    def after_receive(self, message: Any) -> Any:
        self.log.append("[")
        yield
        self.log.append("]")


class Nesting(Recorder):
    """A plugin that is a wrapper itself."""

    @hookimpl(wrapper=True)
    def before_send(self, message: Any) -> Any:
        self.log.append(f"({self.name}")
        yield
        self.log.append(f"{self.name})")

    @hookimpl(wrapper=True)
    def after_receive(self, message: Any) -> Any:
        self.log.append(f"({self.name}")
        yield
        self.log.append(f"{self.name})")


def recorders(tiny: Any, log: list[str], names: str = "abc") -> list[Any]:
    return [tiny.bound(Recorder, name=name, log=log) for name in names]


def expand(*stages: str) -> list[str]:
    """Turn ``"client hook abc"`` into an entry for each of a, b, c."""
    return [f"{at} {hook} {name}" for at, hook, names in map(str.split, stages) for name in names]


def test_encoding_hooks_run_in_stack_order_and_decoding_hooks_in_reverse(tiny: Any) -> None:
    log: list[str] = []
    client, server = tiny.pair(recorders(tiny, log))
    assert log == expand("client setup abc", "server setup abc")
    log.clear()
    tiny.train(client, server, [0])
    assert log == expand(
        "client after_client_forward abc",
        "client before_send:ACTIVATION abc",
        "server after_receive:ACTIVATION cba",
        "server before_server_forward cba",
        "server step_end abc",
        "server before_send:GRADIENT abc",
        "client after_receive:GRADIENT cba",
        "client gradient_return cba",
        "client step_end abc",
    )


def test_an_evaluation_passes_the_data_hooks_only(tiny: Any) -> None:
    log: list[str] = []
    client, server = tiny.pair(recorders(tiny, log))
    log.clear()
    hold(client.query(tiny.batch(), 0, stacked=True), ask(tiny, server))
    assert log == expand(
        "client after_client_forward abc",
        "client before_send:ACTIVATION abc",
        "server after_receive:ACTIVATION cba",
        "server before_server_forward cba",
        "server before_send:PREDICTION abc",
        "client after_receive:PREDICTION cba",
    )


def test_an_unstacked_evaluation_bypasses_the_plugins(tiny: Any) -> None:
    log: list[str] = []
    client, server = tiny.pair(recorders(tiny, log))
    log.clear()
    conversation = client.query(tiny.batch(), 0, stacked=False)
    query = tiny.travel(next(conversation))
    assert not query.stacked
    assert not query.training
    answer = tiny.travel(server.handle(query))
    assert not answer.stacked
    with pytest.raises(StopIteration):
        conversation.send(answer)
    assert log == []


@pytest.mark.parametrize("plugin", [Recorder, Nesting])
def test_observers_are_outermost(tiny: Any, plugin: type) -> None:
    log: list[str] = []
    stack = [tiny.bound(plugin, name=name, log=log) for name in "ab"]
    client = tiny.client(stack, observers=[Observer(log)])
    server = tiny.server(stack)
    log.clear()
    arrived = tiny.travel(next(client.train(tiny.batch(), 0)))
    assert log[0] == log[4] == "["
    assert log[3] == log[-1] == "]"
    answer = tiny.travel(server.handle(arrived))
    log.clear()
    client.stack.after_receive(answer)
    assert (log[0], log[-1]) == ("[", "]")
    assert len(log) > 2


# What travels.


class SendsSide:
    """Sends side information of every kind, and reads it at the other end."""

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        rows = len(cut.targets)
        cut.side["test.numbers"] = cut.activations[:, 0, 0] * 2  # still on the graph
        cut.side["test.ids"] = torch.arange(rows, dtype=torch.uint8)

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        assert torch.equal(cut.side["test.numbers"], cut.activations[:, 0, 0].detach() * 2)
        assert torch.equal(cut.side["test.ids"], torch.arange(len(cut.targets)))
        assert cut.measured == {}
        assert cut.sample_ids is None


def test_side_information_travels_and_is_counted_as_such(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(SendsSide)])
    conversation = client.train(tiny.batch(), 0)
    message = next(conversation)
    assert message.names(Role.PAYLOAD) == ("activations",)
    assert message.names(Role.TARGETS) == ("targets",)
    assert message.names(Role.SIDE) == ("test.numbers", "test.ids")
    with pytest.raises(StopIteration):
        conversation.send(ask(tiny, server)(message))
    answer = hold(client.query(tiny.batch(), 0, stacked=True), ask(tiny, server))
    assert answer.ids.shape == (6,)
    assert_same(
        {k: v for k, v in both(client, server).items() if "plugins" not in k},
        both(*trained(tiny, tiny.pair(), [0])),
    )


def trained(tiny: Any, pair: tuple[Any, Any], steps: Any) -> tuple[Any, Any]:
    tiny.train(*pair, steps)
    return pair


@pytest.mark.parametrize(("classes", "dtype"), [(4, "uint8"), (256, "uint8"), (257, "int32")])
def test_class_ids_take_one_byte_where_they_fit(tiny: Any, classes: int, dtype: str) -> None:
    client, server = tiny.pair(classes=classes)
    batch = tiny.batch(classes=classes)
    batch.targets[0] = classes - 1
    conversation = client.train(batch, 0)
    up = tiny.travel(next(conversation))
    assert up["targets"].dtype is getattr(torch, dtype)
    assert torch.equal(up["targets"].long(), batch.targets)
    with pytest.raises(StopIteration):
        conversation.send(tiny.travel(server.handle(up)))
    down = server.handle(tiny.travel(next(client.query(batch, 0, stacked=True))))
    assert down["predictions"].dtype is getattr(torch, dtype)


def test_a_message_is_frozen_once_it_was_encoded(tiny: Any) -> None:
    client, server = tiny.pair()
    up = next(client.train(tiny.batch(), 0))
    arrived = tiny.travel(up)
    with pytest.raises(PluginError, match="was sent already"):
        up.take("activations")
    arrived.put("more", torch.zeros(1), Role.SIDE)  # the receiver's own
    with pytest.raises(PluginError, match="ACTIVATION message was sent already"):
        up.put("more", torch.zeros(1), Role.SIDE)
    assert isinstance(server.handle(arrived).meta["loss"], float)


class Packs:
    """Replaces every tensor of a message, targets too, by another of the same information."""

    @hookimpl
    def before_send(self, message: Any) -> None:
        note = {}
        for name in message:
            role, tensor = message.role(name), message.take(name)
            note[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            message.put(f"packed.{name}", tensor.contiguous().view(-1).view(torch.uint8) ^ 1, role)
        message.push("packs", note)

    @hookimpl
    def after_receive(self, message: Any) -> None:
        note = message.pop("packs")
        for packed in message:
            name = packed.removeprefix("packed.")
            role, tensor = message.role(packed), message.take(packed)
            dtype, shape = note.pop(name)
            message.put(name, (tensor ^ 1).view(getattr(torch, dtype)).view(shape), role)
        assert not note
        assert not message.notes


def test_a_codec_may_replace_every_tensor_of_a_message(tiny: Any) -> None:
    plain, packed = tiny.pair(), tiny.pair([tiny.bound(Packs)])
    assert tiny.train(*plain, STEPS) == tiny.train(*packed, STEPS)
    assert_same(both(*plain), both(*packed))
    for stacked in (True, False):
        client, server = packed
        query = next(client.query(tiny.batch(9), 0, stacked=stacked))
        assert ("packed.targets" in query) is stacked
        answer = hold(client.query(tiny.batch(9), 0, stacked=stacked), ask(tiny, server))
        client, server = plain
        plainly = hold(client.query(tiny.batch(9), 0, stacked=True), ask(tiny, server))
        assert torch.equal(answer.ids, plainly.ids)
        assert answer.loss_sum == plainly.loss_sum


# Targets, weights and gradients that a plugin makes.


class Merges:
    """Averages pairs of samples; the server weighs the rows if it is told to."""

    def __init__(self, *, weights: Any = None) -> None:
        self.weights = weights

    @hookimpl
    def setup(self, peer: Any) -> None:
        self.classes = peer.classes

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        if cut.training:
            shape = cut.activations.shape
            cut.activations = cut.activations.view(-1, 2, *shape[1:]).mean(1)
            cut.targets = (
                F.one_hot(cut.targets, self.classes).float().view(-1, 2, self.classes).mean(1)
            )

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        if cut.training and self.weights is not None:
            cut.weights = torch.tensor(self.weights)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0], [1.0, 1.0, 1.0]])
def test_merged_rows_with_soft_targets_and_weights_train_as_one_graph(
    tiny: Any, weights: list[float] | None
) -> None:
    client, server = tiny.pair([tiny.bound(Merges, weights=weights)], optimizer="sgd")
    [loss] = tiny.train(client, server, [0])

    vit, batch = tiny.vit(), tiny.batch(0)
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(batch.images)))
    x = vit.blocks[0](x)
    x = x.view(3, 2, *x.shape[1:]).mean(1)
    logits = vit.forward_head(vit.norm(vit.blocks[1:](x)))
    soft = F.one_hot(batch.targets, 4).float().view(3, 2, 4).mean(1)
    w = torch.tensor(weights or [1.0, 1.0, 1.0])
    expected = -((soft * logits.log_softmax(-1)).sum(-1) * w).sum() / w.sum()
    torch.optim.SGD(vit.parameters(), lr=1e-2).zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    moved = client._part.state_dict() | server._part.state_dict()
    for name, parameter in vit.named_parameters():
        after = parameter.detach() - 1e-2 * parameter.grad
        torch.testing.assert_close(moved[name], after, rtol=1e-5, atol=1e-7)


class DoublesGradient:
    """Changes the gradient that came back."""

    @hookimpl
    def gradient_return(self, cut: Any) -> None:
        cut.gradient = 2 * cut.gradient


def test_gradient_return_changes_the_clients_step_only(tiny: Any) -> None:
    plain, doubled = (
        tiny.pair(optimizer="sgd"),
        tiny.pair([tiny.bound(DoublesGradient)], optimizer="sgd"),
    )
    start = tiny.client()._part.state_dict()
    assert tiny.train(*plain, [0]) == tiny.train(*doubled, [0])
    assert_same(plain[1]._part.state_dict(), doubled[1]._part.state_dict())
    for name, before in start.items():
        once = plain[0]._part.state_dict()[name] - before
        twice = doubled[0]._part.state_dict()[name] - before
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-6)
        assert twice.abs().sum() > 0


# Plugins that break the contract.


class Faulty:
    """Raises in one hook."""

    def __init__(self, *, hook: str) -> None:
        self.hook = hook


def _raising(hook: str, argument: str | None) -> Any:
    def fail(self: Any) -> None:
        if self.hook == hook:
            raise RuntimeError(f"no luck in {hook}")

    parameters = f"self, {argument}" if argument else "self"
    namespace: dict[str, Any] = {"fail": fail}
    exec(f"def {hook}({parameters}):\n    return fail(self)", namespace)
    return hookimpl(namespace[hook])


HOOKS = {
    "setup": "peer",
    "after_client_forward": "cut",
    "before_send": "message",
    "after_receive": "message",
    "before_server_forward": "cut",
    "gradient_return": "cut",
    "step_end": "step",
    "run_end": None,
    "state_dict": None,
    "load_state_dict": "state",
    "nominal_ratio": None,
}
for _hook, _argument in HOOKS.items():
    setattr(Faulty, _hook, _raising(_hook, _argument))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_that_raises_is_named_with_its_hook(tiny: Any, hook: str) -> None:
    log: list[str] = []
    good = tiny.bound(Recorder, name="good", log=log)
    # Two of one class: the second is to blame, and the first must not be.
    stack = [good, tiny.bound(Faulty, hook="none"), tiny.bound(Faulty, hook=hook)]

    def live() -> None:
        client, server = tiny.pair(stack)
        tiny.train(client, server, [0])
        client.stack.nominal_ratio()
        client.stack.state_dict()
        client.stack.load_state_dict({"faulty#2": {"x": 1}})
        client.stack.run_end()

    with pytest.raises(PluginError) as caught:
        live()
    assert str(caught.value) == (
        f"plugin 'faulty#2' failed in {hook}: RuntimeError: no luck in {hook}"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


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
    assert "step 41" in str(caught.value) or "has no tensor" in words or "engine uses" in words


@pytest.mark.parametrize("hook", ["after_client_forward", "before_server_forward"])
def test_a_backward_pass_that_fails_is_put_down_to_the_stack(tiny: Any, hook: str) -> None:
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise ValueError("no derivative")

    act = assign("activations", Breaks.apply)
    client, server = tiny.pair([tiny.bound(Sabotage, hook=hook, act=act)])
    with pytest.raises(
        PluginError, match=r"step 0: the backward pass .* sabotage failed: ValueError: no deriv"
    ):
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


def test_samples_must_stay_apart_in_evaluation(tiny: Any) -> None:
    act = put("predictions", lambda ids: ids[:1])
    client, server = tiny.pair([tiny.bound(Sabotage, hook="before_send PREDICTION", act=act)])
    with pytest.raises(PluginError, match=r"\[1\] predictions came back for 6 samples"):
        hold(client.query(tiny.batch(), 0, stacked=True), ask(tiny, server))


def test_a_misspelt_hook_is_refused(tiny: Any) -> None:
    class Misspelt:
        @hookimpl
        def before_sent(self, message: Any) -> None: ...

    with pytest.raises(PluginError, match=r"'misspelt'.*before_sent.*hooks are in splitlab.core"):
        tiny.client([tiny.bound(Misspelt)])


# What the other peer gets wrong.


def test_answers_to_nothing_and_of_another_step_are_the_peers_error(tiny: Any) -> None:
    client, server = tiny.pair()
    before = {name: tensor.clone() for name, tensor in client.state()[0].items()}

    def train() -> tuple[Any, Any]:
        conversation = client.train(tiny.batch(), 3)
        return conversation, next(conversation)

    conversation, up = train()
    down = server.handle(tiny.travel(up))
    down.step = 4
    with pytest.raises(ProtocolError, match="GRADIENT for step 4, expected a GRADIENT for step 3"):
        conversation.send(tiny.travel(down))
    down.step = 3
    with pytest.raises(StopIteration):  # the step that failed is over
        conversation.send(tiny.travel(down))
    conversation, _ = train()
    with pytest.raises(ProtocolError, match="got a ACTIVATION for step 3, expected a GRADIENT"):
        conversation.send(tiny.travel(up))
    query = client.query(tiny.batch(), 3, stacked=True)
    answer = server.handle(tiny.travel(next(query)))
    with pytest.raises(ProtocolError, match="a GRADIENT for step 3, expected a PREDICTION for st"):
        query.send(tiny.travel(down))
    answer.step = 4
    query = client.query(tiny.batch(), 3, stacked=True)
    next(query)
    with pytest.raises(ProtocolError, match="PREDICTION for step 4, expected a PREDICTION for st"):
        query.send(tiny.travel(answer))
    assert_same(client.state()[0], before)


def test_a_message_that_continues_nothing_is_the_peers_error(tiny: Any) -> None:
    client, server = tiny.pair()
    down = server.handle(tiny.travel(next(client.train(tiny.batch(), 3))))
    for _ in range(2):  # step 3 is over
        with pytest.raises(
            ProtocolError, match="got a GRADIENT for step 3, which is not open; expected an ACTIV"
        ):
            server.handle(tiny.travel(down))


@pytest.mark.parametrize("loss", [None, "1.0", 1, {"loss": 1.0}])
def test_an_answer_without_a_loss_is_the_peers_error(tiny: Any, loss: Any) -> None:
    client, server = tiny.pair()
    for conversation, word, words in (
        (client.train(tiny.batch(), 0), "loss", "holds no loss"),
        (client.query(tiny.batch(), 0, stacked=True), "loss_sum", "no summed loss"),
    ):
        down = server.handle(tiny.travel(next(conversation)))
        down.meta[word] = loss
        with pytest.raises(ProtocolError, match=words):
            conversation.send(tiny.travel(down))


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("targets", torch.tensor([0, 1, 2, 3, 4, 0]), "a class id is outside 0 to 3"),
        ("targets", torch.tensor([0, 1, 2, 3, -1, 0]), "a class id is outside 0 to 3"),
        (
            "activations",
            torch.zeros(6, 5, 16, dtype=torch.int8),
            r"arrived as torch.int8 \[6, 5, 16\]",
        ),
        ("activations", torch.zeros(()), r"arrived as torch.float32 \[\]"),
    ],
)
def test_values_that_no_client_sends_are_the_peers_error(
    tiny: Any, name: str, tensor: torch.Tensor, words: str
) -> None:
    client, server = tiny.pair()
    up = next(client.train(tiny.batch(), 7))
    up.put(name, tensor, up.role(name))
    with pytest.raises(ProtocolError, match=f"step 7: .*{words}"):
        server.handle(tiny.travel(up))


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
    tiny: Any, tmp_path: Any, optimizer: str
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
    assert_same(both(*whole), both(*second))
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

    with pytest.raises(
        PluginError, match="the state plugins / hoards / deep / list cannot be saved"
    ):
        tiny.client([tiny.bound(Hoards)]).state()


def test_a_peer_without_parameters_has_no_optimizer_and_trains_on(tiny: Any) -> None:
    client, server = tiny.pair(cut=0)
    frozen = tiny.vit()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    still = tiny.client(cut=0, model=lambda: frozen)
    start = {k: v.clone() for k, v in still.state()[0].items()}
    tiny.train(still, server, range(2))
    assert_same(still.state()[0], start)
    tiny.train(client, server, range(2))
    assert any("optimizer" in name for name in client.state()[0])
    assert not any("optimizer" in name for name in still.state()[0])


# Invariant 1: the peers share nothing but the link.


def test_every_peer_builds_its_own_plugins(tiny: Any) -> None:
    built: list[object] = []

    class Remembers:
        def __init__(self) -> None:
            built.append(self)

    bound = [tiny.bound(Remembers), tiny.bound(Remembers)]
    tiny.pair(bound)
    assert len({id(plugin) for plugin in built}) == 4


def test_a_fresh_server_with_the_old_ones_state_gives_the_old_ones_answers(tiny: Any) -> None:
    stack = [tiny.bound(Merges, weights=[1.0, 2.0, 3.0]), tiny.bound(SendsSide), tiny.bound(Packs)]
    client, server = tiny.pair(stack)
    tiny.train(client, server, range(2))
    state = server.state()
    copied = ({k: v.clone() for k, v in state[0].items()}, state[1])
    up = next(client.train(tiny.batch(2), 2))
    answer = server.handle(tiny.travel(up))
    fresh = tiny.server(stack, seed=0)
    fresh.load_state(*copied)
    again = fresh.handle(tiny.travel(up))
    assert answer.meta == again.meta
    assert answer.notes == again.notes
    assert torch.equal(answer["packed.gradient"], again["packed.gradient"])


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


def test_dropout_repeats_exactly_and_leaves_global_random_state_alone(tiny: Any) -> None:
    state = torch.get_rng_state()
    one = tiny.pair(**DROPOUT)
    losses = tiny.train(*one, STEPS)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        two = tiny.pair(**DROPOUT)
        assert tiny.train(*two, STEPS) == losses
    assert_same(both(*one), both(*two))
    assert tiny.train(*tiny.pair(**DROPOUT, seed=1), STEPS) != losses


def test_dropout_differs_from_step_to_step_and_resumes_at_any(tiny: Any) -> None:
    client = tiny.client(**DROPOUT)
    batch = tiny.batch()
    at = {step: next(client.train(batch, step))["activations"] for step in (0, 1, 2)}
    assert not torch.equal(at[0], at[1])
    assert not torch.equal(at[1], at[2])
    again = next(tiny.client(**DROPOUT).train(batch, 2))["activations"]
    assert torch.equal(again, at[2])


def test_dropout_is_off_in_evaluation_and_on_again_after_it(tiny: Any) -> None:
    client, server = tiny.pair(**DROPOUT)
    losses = tiny.train(client, server, range(2))
    other, its_server = tiny.pair(**DROPOUT)
    with_evaluation = []
    for step in range(2):
        with_evaluation += tiny.train(other, its_server, [step])
        queries = [next(other.query(tiny.batch(9), n, stacked=True)) for n in (0, 1)]
        assert torch.equal(queries[0]["activations"], queries[1]["activations"])
        hold(other.query(tiny.batch(9), 0, stacked=True), ask(tiny, its_server))
    assert with_evaluation == losses


# Attention reaches the plugins that ask for it, at the client only.


class WantsAttention:
    """Keeps what it is given."""

    seen: Any = None

    @hookimpl
    def setup(self, peer: Any) -> None:
        self.attention = peer.request("wants-attention", Attention())

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        type(self).seen = (cut.measured[self.attention], cut.sample_ids)


def test_attention_and_sample_ids_are_there_for_who_asks(tiny: Any) -> None:
    client, _ = tiny.pair([tiny.bound(WantsAttention)])
    for conversation in (
        client.train(tiny.batch(2), 0),
        client.query(tiny.batch(2), 0, stacked=True),
    ):
        next(conversation)
        attention, ids = WantsAttention.seen
        assert attention.shape == (6, 5)
        torch.testing.assert_close(attention.sum(1), torch.ones(6))
        assert ids.tolist() == list(range(12, 18))


def test_plugins_may_measure_different_things(tiny: Any) -> None:
    requests = [Attention(), Attention(heads="max"), Attention(layer="rollout"), Keys()]
    seen: list[dict[Any, torch.Tensor]] = []

    class Asks:
        def __init__(self, *, what: Any) -> None:
            self.what = what

        @hookimpl
        def setup(self, peer: Any) -> None:
            peer.request("asks", self.what)

        @hookimpl
        def after_client_forward(self, cut: Any) -> None:
            seen.append(dict(cut.measured))

    client = tiny.client([tiny.bound(Asks, what=what) for what in [*requests, Attention()]], cut=2)
    next(client.train(tiny.batch(), 0))
    for measured in seen:
        assert list(measured) == requests
        assert measured[Keys()].shape == (6, 5, 8)
        mean, largest, rollout = (measured[what] for what in requests[:3])
        assert mean.shape == largest.shape == rollout.shape == (6, 5)
        assert not torch.equal(mean, rollout)
        assert (largest >= mean).all()
        assert (largest > mean).any()


def test_messages_say_what_they_are(tiny: Any) -> None:
    client, server = tiny.pair()
    up = next(client.train(tiny.batch(), 12))
    assert (up.kind, up.step, up.training, up.stacked) == (Kind.ACTIVATION, 12, True, True)
    assert not up["activations"].requires_grad
    down = server.handle(tiny.travel(up))
    assert (down.kind, down.step, down.training, down.stacked) == (Kind.GRADIENT, 12, True, True)
    assert down["gradient"].shape == up["activations"].shape


# Conversations.


def test_a_conversation_is_held_to_its_end(tiny: Any) -> None:
    client, server = tiny.pair()
    sent = []

    def travel(message: Any) -> Any:
        sent.append(message.kind)
        return ask(tiny, server)(message)

    trained = hold(client.train(tiny.batch(0, 5), 3), travel)
    assert (trained.step, trained.samples, trained.metrics) == (3, 5, {})
    assert isinstance(trained.loss, float)
    assert sent == [Kind.ACTIVATION]


def test_a_conversation_may_have_more_than_one_round() -> None:
    def count() -> Any:
        heard = []
        for step in range(3):
            answer = yield Message(Kind.CONTROL, step)
            heard.append(answer.step)
        return heard

    assert hold(count(), lambda message: Message(Kind.CONTROL, 10 * message.step)) == [0, 10, 20]


def test_what_stays_open_at_the_server_is_told_apart_by_client_and_step(tiny: Any) -> None:
    class Asks(Server):
        def _converse(self, message: Any) -> Any:
            heard = [message["x"].item()]
            message = yield Message(Kind.ACTIVATION, message.step, training=message.training)
            heard.append(message["x"].item())
            answer = Message(Kind.GRADIENT, message.step, training=message.training)
            answer.put("heard", torch.tensor(heard), Role.SIDE)
            yield answer

    def say(number: int, step: int, *, training: bool = True) -> Any:
        message = Message(Kind.ACTIVATION, step, training=training)
        message.put("x", torch.tensor(number), Role.PAYLOAD)
        return message

    server = tiny.server()
    server.__class__ = Asks
    assert server.handle(say(1, 0), client=0).kind is Kind.ACTIVATION
    assert server.handle(say(2, 0), client=1).kind is Kind.ACTIVATION
    assert server.handle(say(3, 1), client=0).kind is Kind.ACTIVATION
    assert server.handle(say(4, 0, training=False), client=0).kind is Kind.ACTIVATION
    for first, step, client, training in ((3, 1, 0, True), (1, 0, 0, True), (4, 0, 0, False), (
        2, 0, 1, True)):  # fmt: skip
        answer = server.handle(say(9, step, training=training), client=client)
        assert answer["heard"].tolist() == [first, 9]
    assert server.handle(say(5, 0), client=0).kind is Kind.ACTIVATION  # anew
