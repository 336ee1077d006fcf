"""What a plugin may ask of its peer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from splitlab.core import Attention, ConfigError, Keys, Peer
from splitlab.core.contract.part import Layout
from splitlab.core.contract.peer import Schedule
from splitlab.core.models.vit import ViT


def peer_of(tiny: Any, cut: int = 1, **arguments: Any) -> Peer:
    """Return a peer that asks a real model what it can measure."""
    vit = ViT(tiny.vit(**arguments), channels=3, image_size=16)
    part = vit.part(0, (cut,), torch.device("cpu"))
    peer: Peer = tiny.peer(cut=cut, layout=vit.layout(cut), unable=part.unable)
    return peer


def without_class_token(tiny: Any, cut: int = 1) -> Peer:
    return peer_of(tiny, cut, class_token=False, global_pool="avg")


def test_requests_are_kept_once_each_and_given_back(tiny: Any) -> None:
    peer = peer_of(tiny)
    assert peer.requests == []
    assert peer.request("a", Attention()) == Attention("mean", "last")
    assert peer.requests == [Attention("mean", "last")]
    peer.request("b", Attention(heads="mean", layer="last"))
    assert peer.requests == [Attention("mean", "last")]
    peer.request("c", Attention(heads="max"))
    peer.request("c", Attention(layer="rollout"))
    assert peer.requests == [
        Attention("mean", "last"),
        Attention("max", "last"),
        Attention("mean", "rollout"),
    ]


def test_attention_needs_a_class_token_and_a_client_block(tiny: Any) -> None:
    peer = without_class_token(tiny)
    with pytest.raises(ConfigError, match=r"^'a' needs the attention of a class token"):
        peer.request("a", Attention())
    assert peer.requests == []
    with pytest.raises(
        ConfigError,
        match="--cut 0 leaves the client none; allowed here: --cut 1 to 3",
    ):
        peer_of(tiny, 0).request("a", Attention())


def test_keys_are_there_once_a_plugin_asks_and_need_a_client_block(tiny: Any) -> None:
    peer = without_class_token(tiny)
    assert peer.requests == []
    assert peer.request("a", Keys()) == Keys()
    assert peer.requests == [Keys()]
    with pytest.raises(ConfigError, match=r"^'a' needs the attention keys .* --cut 1 to 3"):
        peer_of(tiny, 0).request("a", Keys())


def test_facts_of_the_layout_are_at_hand(tiny: Any) -> None:
    peer = tiny.peer(tokens=7, width=3, prefix_tokens=2, class_token=False, grid=None)
    layout = peer.layout
    assert (layout.tokens, layout.width, layout.prefix_tokens) == (7, 3, 2)
    for name in ("tokens", "width", "prefix_tokens", "class_token", "grid"):
        assert getattr(peer, name) == getattr(layout, name)
    assert not hasattr(peer, "depth")


def test_modules_move_to_the_device_of_the_peer(tiny: Any) -> None:
    peer = tiny.peer(device=torch.device("meta"))
    peer.add_module(nn.LayerNorm(2))
    assert peer.modules[0].weight.is_meta
    assert tiny.peer().modules == []  # not shared between peers


def test_generators_depend_on_seed_and_purpose_alone(tiny: Any) -> None:
    def draw(peer: Any, *purpose: Any) -> int:
        return int(torch.randint(2**60, (), generator=peer.generator(*purpose)))

    client, server = tiny.peer("client", seed=3), tiny.peer("server", seed=3)
    assert draw(client, "a", 1) == draw(server, "a", 1)
    assert draw(client, "a", 1) != draw(client, "a", 2)
    assert draw(client, "a", 1) != draw(tiny.peer(seed=4), "a", 1)


def test_it_tells_how_long_the_run_is_to_last() -> None:
    layout = Layout(5, 8)
    facts: dict[str, Any] = {"seed": 0, "classes": 4, "layout": layout, "cut": 1}
    facts["device"] = torch.device("cpu")
    peer = Peer(role="server", batch_size=8, schedule=Schedule(20, "epochs", 2.5), **facts)
    assert (peer.training_samples, peer.steps_per_epoch) == (20, 3)
    assert peer.budget == ("epochs", 2.5)
    with pytest.raises(ConfigError, match="needs the run's length in steps"):
        peer.piece(0, 2)
    peer.schedule = Schedule(20, "epochs", 2.5, 7)
    assert [peer.piece(step, 3) for step in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert not any(peer.changes(step) for step in range(9))
    peer.pieces |= {2, 3}
    assert [step for step in range(9) if peer.changes(step)] == [3, 4, 5]
    peer.schedule = None
    for name in ("training_samples", "steps_per_epoch", "budget"):
        with pytest.raises(ConfigError, match=f"peer.{name} is the client's .* hook of a step"):
            getattr(peer, name)
