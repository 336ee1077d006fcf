"""The plugin that changes nothing: it runs every hook of a data path and leaves no trace."""

from __future__ import annotations

from typing import Any

import torch

from splitlab.core import Cut, Kind, Message, Role, Traits
from splitlab.core.catalogue.binding import bind
from splitlab.plugins.none import Nothing


def test_a_run_is_the_same_bit_for_bit(tiny: Any) -> None:
    plain, with_none = tiny.pair(), tiny.pair([tiny.bound(Nothing)])
    losses = [tiny.train(*pair, range(3)) for pair in (plain, with_none)]
    assert losses[0] == losses[1]
    for one, two in zip(plain, with_none, strict=True):
        tensors, others = one.state()[0], two.state()[0]
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_frames_are_the_same_byte_for_byte(tiny: Any) -> None:
    ups = []
    for plugins in ([], [tiny.bound(Nothing)]):
        client, server = tiny.pair(plugins)
        up = next(client.train(tiny.batch(), 0))
        answer = server.handle(tiny.travel(up))
        ups.append([(name, m[name], m.role(name)) for m in (up, answer) for name in m])
        assert up.notes == {}
    for (name, tensor, role), (name_2, tensor_2, role_2) in zip(*ups, strict=True):
        assert (name, role) == (name_2, role_2)
        assert torch.equal(tensor, tensor_2)


def test_every_hook_leaves_values_and_graph_alone() -> None:
    plugin = Nothing()
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cut = Cut(
        activations=x, targets=torch.zeros(2), step=0, training=True, gradient=torch.ones(2, 3, 4)
    )
    for hook in (
        plugin.after_client_forward,
        plugin.before_server_forward,
        plugin.gradient_return,
    ):
        hook(cut)
    assert torch.equal(cut.activations, x)
    assert torch.equal(torch.autograd.grad(cut.activations.sum(), x)[0], torch.ones(2, 3, 4))
    message = Message(Kind.PREDICTION, training=False)
    message.put("predictions", ids := torch.arange(3), Role.PAYLOAD)
    plugin.before_send(message)
    plugin.after_receive(message)
    assert message["predictions"] is ids


def test_what_it_says_of_itself() -> None:
    plugin = bind("plugins", "none").build()
    assert isinstance(plugin, Nothing)
    assert plugin.nominal_ratio() == (1, 1)
    assert plugin.traits() == Traits()
