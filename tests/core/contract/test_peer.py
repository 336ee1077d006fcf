"""What a plugin may ask of its peer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from splitlab.core import ConfigError
from splitlab.core.contract.peer import AttentionRequest


def test_attention_is_what_the_plugins_agree_on(tiny: Any) -> None:
    peer = tiny.peer()
    assert peer.attention is None
    peer.require_attention("a")
    assert peer.attention == AttentionRequest("mean", "last")
    peer.require_attention("b", heads="mean", layer="last")
    with pytest.raises(
        ConfigError,
        match=r"plugin 'c' asks for attention max/last, another plugin .* mean/last; give both",
    ):
        peer.require_attention("c", heads="max")
    with pytest.raises(ConfigError, match="plugin 'c' asks for attention mean/rollout"):
        peer.require_attention("c", layer="rollout")
    assert peer.attention == AttentionRequest("mean", "last")


def test_attention_needs_a_class_token_and_a_client_block(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="plugin 'a' needs the attention of a class token"):
        tiny.peer(class_token=False).require_attention("a")
    with pytest.raises(
        ConfigError, match="--cut 0 leaves the client none; allowed here: --cut 1 to 3"
    ):
        tiny.peer(cut=0).require_attention("a")


def test_keys_are_there_once_a_plugin_asks_and_need_a_client_block(tiny: Any) -> None:
    peer = tiny.peer(class_token=False)
    assert peer.keys is False
    peer.require_keys("a")
    assert peer.keys is True
    with pytest.raises(ConfigError, match=r"plugin 'a' needs the attention keys .* --cut 1 to 3"):
        tiny.peer(cut=0).require_keys("a")


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
