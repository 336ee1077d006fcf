"""The server: what it makes of a message, and what it keeps apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from splitlab.core import (
    Kind,
    Message,
    PluginError,
    ProtocolError,
    Role,
    hookimpl,
)
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.server import Server

STEPS = range(4)


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


def test_side_information_travels_and_is_counted_as_such(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair([tiny.bound(SendsSide)])
    conversation = client.train(tiny.batch(), 0)
    message = next(conversation)
    assert message.names(Role.PAYLOAD) == ("activations",)
    assert message.names(Role.TARGETS) == ("targets",)
    assert message.names(Role.SIDE) == ("test.numbers", "test.ids")
    with pytest.raises(StopIteration):
        conversation.send(peers.ask(server)(message))
    answer = hold(client.query(tiny.batch(), 0, stacked=True), peers.ask(server))
    assert answer.ids.shape == (6,)
    peers.assert_same(
        {k: v for k, v in peers.both(client, server).items() if "plugins" not in k},
        peers.both(*peers.trained(tiny.pair(), [0])),
    )


def test_a_message_is_frozen_once_it_was_encoded(tiny: Any) -> None:
    client, server = tiny.pair()
    up = next(client.train(tiny.batch(), 0))
    arrived = tiny.travel(up)
    with pytest.raises(PluginError, match="was sent already"):
        up.take("activations")
    arrived.put("more", torch.zeros(1), Role.SIDE)  # the receiver's own
    arrived.take("more")
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


def test_a_codec_may_replace_every_tensor_of_a_message(tiny: Any, peers: Any) -> None:
    plain, packed = tiny.pair(), tiny.pair([tiny.bound(Packs)])
    assert tiny.train(*plain, STEPS) == tiny.train(*packed, STEPS)
    peers.assert_same(peers.both(*plain), peers.both(*packed))
    for stacked in (True, False):
        client, server = packed
        query = next(client.query(tiny.batch(9), 0, stacked=stacked))
        assert ("packed.targets" in query) is stacked
        answer = hold(client.query(tiny.batch(9), 0, stacked=stacked), peers.ask(server))
        client, server = plain
        plainly = hold(client.query(tiny.batch(9), 0, stacked=True), peers.ask(server))
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


# Everything that it needs is in the message and in its state.


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


# What is open, and what the client gets wrong.


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


def test_steps_of_two_clients_that_take_two_messages_are_kept_apart(tiny: Any) -> None:
    class Waits(Server):
        """Trains on the first message when the second one has come."""

        def _converse(self, message: Any) -> Any:
            cut = self._arrived(message)
            yield Message(Kind.ACTIVATION, message.step)
            yield self._train(cut)

    clients = tiny.client(), tiny.client(seed=1)
    ups = [next(client.train(tiny.batch(n), 0)) for n, client in enumerate(clients)]
    server, plain = tiny.server(), tiny.server()
    server.__class__ = Waits
    for n, up in enumerate(ups):
        assert server.handle(tiny.travel(up), client=n).kind is Kind.ACTIVATION
    for n in (1, 0):  # not in the order in which they began
        answer = server.handle(Message(Kind.ACTIVATION, 0), client=n)
        expected = plain.handle(tiny.travel(ups[n]))
        assert answer.meta == expected.meta
        assert torch.equal(answer["gradient"], expected["gradient"])
    assert server.handle(tiny.travel(ups[0]), client=1).kind is Kind.ACTIVATION  # nothing is left


def test_a_message_that_continues_nothing_is_the_peers_error(tiny: Any) -> None:
    client, server = tiny.pair()
    down = server.handle(tiny.travel(next(client.train(tiny.batch(), 3))))
    for _ in range(2):  # step 3 is over
        with pytest.raises(
            ProtocolError, match="got a GRADIENT for step 4, which is not open; expected an ACTIV"
        ):
            server.handle(tiny.travel(down))


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("targets", torch.tensor([0, 1, 2, 3, 4, 0]).byte(), "a class id is outside 0 to 3"),
        ("targets", torch.tensor([0, 1, 2, 3, 255, 0]).byte(), "a class id is outside 0 to 3"),
        ("targets", torch.tensor([0, 1, 2, 3, 0, 0]), "allowed: class ids, torch.uint8"),
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
    with pytest.raises(ProtocolError, match=f"step 8: .*{words}"):
        server.handle(tiny.travel(up))
