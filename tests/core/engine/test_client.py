"""The client: what it sends, what it measures for plugins, and what it takes for an answer."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from splitlab.core import (
    Attention,
    Keys,
    Kind,
    ProtocolError,
    hookimpl,
)


def test_messages_say_what_they_are(tiny: Any) -> None:
    client, server = tiny.pair()
    up = next(client.train(tiny.batch(), 12))
    assert (up.kind, up.step, up.training, up.stacked) == (Kind.ACTIVATION, 12, True, True)
    assert not up["activations"].requires_grad
    down = server.handle(tiny.travel(up))
    assert (down.kind, down.step, down.training, down.stacked) == (Kind.GRADIENT, 12, True, True)
    assert down["gradient"].shape == up["activations"].shape


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


def test_an_unstacked_evaluation_bypasses_the_plugins(tiny: Any, peers: Any) -> None:
    log: list[str] = []
    client, server = tiny.pair(peers.recorders(log))
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


# The gradient that came back.


class DoublesGradient:
    """Changes the gradient that came back."""

    @hookimpl
    def gradient_return(self, cut: Any) -> None:
        cut.gradient = 2 * cut.gradient


def test_gradient_return_changes_the_clients_step_only(tiny: Any, peers: Any) -> None:
    plain, doubled = (
        tiny.pair(optimizer="sgd"),
        tiny.pair([tiny.bound(DoublesGradient)], optimizer="sgd"),
    )
    start = tiny.client()._part.state_dict()
    assert tiny.train(*plain, [0]) == tiny.train(*doubled, [0])
    peers.assert_same(plain[1]._part.state_dict(), doubled[1]._part.state_dict())
    for name, before in start.items():
        once = plain[0]._part.state_dict()[name] - before
        twice = doubled[0]._part.state_dict()[name] - before
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-6)
        assert twice.abs().sum() > 0


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


# What the server gets wrong.


def test_answers_to_nothing_and_of_another_step_are_the_peers_error(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair()
    before = {name: tensor.clone() for name, tensor in client.state()[0].items()}

    def train() -> tuple[Any, Any]:
        conversation = client.train(tiny.batch(), 3)
        return conversation, next(conversation)

    conversation, up = train()
    down = server.handle(tiny.travel(up))
    down.step = 4
    with pytest.raises(ProtocolError, match="GRADIENT for step 5, expected a GRADIENT for step 4"):
        conversation.send(tiny.travel(down))
    down.step = 3
    with pytest.raises(StopIteration):  # the step that failed is over
        conversation.send(tiny.travel(down))
    conversation, _ = train()
    with pytest.raises(ProtocolError, match="got a ACTIVATION for step 4, expected a GRADIENT"):
        conversation.send(tiny.travel(up))
    query = client.query(tiny.batch(), 3, stacked=True)
    answer = server.handle(tiny.travel(next(query)))
    with pytest.raises(ProtocolError, match="a GRADIENT for step 4, expected a PREDICTION for ev"):
        query.send(tiny.travel(down))
    answer.step = 4
    query = client.query(tiny.batch(), 3, stacked=True)
    next(query)
    with pytest.raises(
        ProtocolError, match="PREDICTION for evaluation batch 5, expected a PREDICTION for ev"
    ):
        query.send(tiny.travel(answer))
    peers.assert_same(client.state()[0], before)


@pytest.mark.parametrize("stacked", [True, False])
def test_an_answer_on_the_other_side_of_the_plugins_is_the_peers_error(
    tiny: Any, peers: Any, stacked: bool
) -> None:
    log: list[str] = []
    client, server = tiny.pair(peers.recorders(log))
    query = client.query(tiny.batch(), 0, stacked=stacked)
    answer = tiny.travel(server.handle(tiny.travel(next(query))))
    answer.stacked = not stacked
    log.clear()
    with pytest.raises(ProtocolError, match=r"PREDICTION came (past|through) the plugins, what"):
        query.send(answer)
    training = client.train(tiny.batch(), 1)
    answer = tiny.travel(server.handle(tiny.travel(next(training))))
    answer.stacked = False
    log.clear()
    with pytest.raises(ProtocolError, match=r"GRADIENT came past the plugins, .* went through"):
        training.send(answer)
    assert log == []  # no plugin decodes what none encoded


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


# The gradient without the stack.


class Halves:
    """Sends every second sample alone, so that the gradient is another."""

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        cut.activations = cut.activations * torch.tensor([1.0, 0.0] * 3)[:, None, None]

    @hookimpl
    def setup(self, peer: Any) -> None:
        if peer.role == "client":
            peer.compare(2)


class Keeps:
    """Notes the reference of every step."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Any) -> Any:
        self.found.append(cut.reference)
        return (yield)


def test_the_reference_is_the_gradient_that_an_empty_stack_has(tiny: Any) -> None:
    keeps = Keeps()
    client, server = tiny.pair([tiny.bound(Halves)], observers=[keeps], proj_drop_rate=0.2)
    tiny.train(client, server, range(3))
    first, second, third = keeps.found
    assert second is None
    assert third is not None

    plain, other = tiny.pair(proj_drop_rate=0.2)
    caught: dict[str, torch.Tensor] = {}
    for name, parameter in plain.peer.parameters.items():
        parameter.register_hook(lambda g, name=name: caught.update({name: g.clone()}))
    conversation = plain.train(tiny.batch(0), 0)
    answer = tiny.travel(other.handle(tiny.travel(next(conversation))))
    with pytest.raises(StopIteration):
        conversation.send(answer)
    assert torch.equal(first.gradient, answer["gradient"])
    assert first.loss == answer.meta["loss"]
    assert first.parameters.keys() == caught.keys()
    for name, gradient in caught.items():
        torch.testing.assert_close(first.parameters[name], gradient)


class Asks:
    @hookimpl
    def setup(self, peer: Any) -> None:
        if peer.role == "client":
            peer.compare(1)


@pytest.mark.parametrize("model", [None, "resnet18"])
def test_a_reference_changes_nothing_of_the_training(tiny: Any, model: str | None) -> None:
    """Batch norm keeps statistics of what passes by; dropout draws."""
    own = dataclasses.replace(tiny, model=model)
    more: dict[str, Any] = {"ema": 0.9} | ({} if model else {"proj_drop_rate": 0.2})
    found = []
    for observers in ([], [Asks()]):
        client, server = own.pair(observers=observers, **more)
        losses = own.train(client, server, range(2))
        found.append((losses, client.numbers(), server.numbers()))
    (losses, *ours), (others, *theirs) = found
    assert losses == others
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_reference_is_counted_as_evaluation_and_comes_past_the_stack(
    tiny: Any, peers: Any
) -> None:
    log: list[str] = []
    client, server = tiny.pair(peers.recorders(log), observers=[Asks()])
    log.clear()
    conversation = client.train(tiny.batch(), 3)
    asked = tiny.travel(next(conversation))
    assert (asked.training, asked.stacked, asked.step) == (False, False, 3)
    answer = tiny.travel(server.handle(asked))
    assert (answer.kind, answer.training, answer.stacked) == (Kind.GRADIENT, False, False)
    assert log == []
    step = conversation.send(answer)
    assert (step.training, step.stacked) == (True, True)
    assert "gradient" not in step.meta


def test_mixed_targets_may_be_compared_too(tiny: Any) -> None:
    client, server = tiny.pair(observers=[Asks()])
    batch = tiny.batch()
    mixed = dataclasses.replace(batch, targets=torch.full((6, 4), 0.25))
    conversation = client.train(mixed, 0)
    step = conversation.send(tiny.travel(server.handle(tiny.travel(next(conversation)))))
    assert step.training


def test_a_reference_runs_as_it_is_written_where_parts_are_compiled(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its shapes would be among those that are compiled, and others would not be."""
    rows: list[int] = []

    def compiled(part: Any, inputs: torch.Tensor, sizes: torch.Tensor | None) -> torch.Tensor:
        rows.append(len(inputs))
        return part._through(inputs, sizes)

    client, server = tiny.pair(observers=[Asks()])
    for worker in (client, server):
        part: Any = worker._part
        monkeypatch.setattr(part, "_compiled", functools.partial(compiled, part))
    tiny.train(client, server, [0])
    assert rows == [6, 6]


def test_a_client_that_trains_nothing_has_a_reference_without_parameters(tiny: Any) -> None:
    keeps = Keeps()
    client, server = tiny.pair(observers=[Asks(), keeps])
    for parameter in client.peer.parameters.values():
        parameter.requires_grad_(False)
    tiny.train(client, server, [0])
    assert keeps.found[0].parameters == {}


def test_a_gradient_that_is_asked_for_in_a_step_of_the_stack_is_refused(tiny: Any) -> None:
    client, server = tiny.pair()
    asked = next(client.train(tiny.batch(), 0))
    asked.meta["gradient"] = True
    with pytest.raises(ProtocolError, match="step 1: a gradient is asked for"):
        server.handle(tiny.travel(asked))
