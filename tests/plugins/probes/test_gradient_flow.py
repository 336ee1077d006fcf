"""Gradients are compared with those without the stack: alike where it changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from splitlab.core import Cut
from splitlab.core.contract.cut import Reference
from splitlab.plugins.probes.gradient_flow import GradientFlow, layer_of


def test_layers_are_called_by_the_beginning_of_their_names() -> None:
    names = ["blocks.0.attn.qkv.weight", "patch_embed.proj.bias", "cls_token", "0.bias", "a.b.2.c"]
    assert [layer_of(name) for name in names] == [
        "blocks.0",
        "patch_embed",
        "cls_token",
        "0",
        "a.b.2",
    ]


def layers(numbers: dict[str, float]) -> set[str]:
    return {name.removesuffix(" cosine") for name in numbers if name.endswith(" cosine")}


def test_an_empty_stack_changes_no_gradient(seen: Any, tmp_path: Any) -> None:
    found = seen(probe="gradient-flow:every=2", steps=3)
    assert [*found] == [1, 3]
    for numbers in found.values():
        own = {"cls_token", "pos_embed", "patch_embed", "blocks.0", "all", "cut"}
        assert layers(numbers) == own
        for layer in own:
            assert numbers[layer] > 0
            assert numbers[layer] == pytest.approx(numbers[f"{layer} uncompressed"], rel=1e-4)
            assert numbers[f"{layer} cosine"] == pytest.approx(1, abs=1e-4)
        assert numbers["returned"] == pytest.approx(numbers["cut"], rel=1e-5)
        parts = sum(numbers[layer] ** 2 for layer in own - {"all", "cut"})
        assert numbers["all"] == pytest.approx(math.sqrt(parts), rel=1e-4)
    folder = tmp_path / "run" / "probes" / "gradient-flow"
    assert {each.name for each in folder.iterdir()} == {"gradient-flow.png", "said.txt"}
    assert (folder / "said.txt").read_text().startswith("cosine at the cut 1.000, mean of 2 looks")


def test_it_listens_in_the_steps_that_it_looks_at_alone_and_a_gradient_of_0_has_no_direction(
    tiny: Any,
) -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    peer = tiny.peer(parameters={"a.weight": weight})
    probe = GradientFlow(every=2)
    probe.setup(peer=peer)
    assert peer.compared == [2]

    def step(number: int, reference: Reference | None) -> dict[str, float]:
        made = weight * torch.ones(1, 1, 2)
        cut = Cut(activations=made, targets=torch.zeros(1), step=number, training=True)
        cut.reference, cut.gradient = reference, torch.tensor([[[0.0, 2.0]]])
        for hook in (probe.after_client_forward, probe.gradient_return):
            for _ in hook(cut):
                pass
        assert bool(weight._backward_hooks) is (reference is not None)
        made.backward(cut.gradient)
        return dict(probe.metrics(number))

    known = {"a.weight": torch.tensor([1.0, 1.0])}
    found = step(0, Reference(1.0, torch.zeros(1, 1, 2), known))
    assert not weight._backward_hooks
    assert (found["returned"], found["cut"], found["cut uncompressed"]) == (2, 2, 0)
    assert "cut cosine" not in found
    assert found["a cosine"] == pytest.approx(1 / math.sqrt(2))
    assert step(1, None) == {}


def test_a_stack_turns_the_gradient(seen: Any) -> None:
    found = seen("adc:ratio=0.2", probe="gradient-flow:every=1", steps=2)
    for numbers in found.values():
        assert -1 <= numbers["cut cosine"] < 0.999
        assert -1 <= numbers["all cosine"] <= 1


def test_a_look_sends_a_batch_which_is_counted_as_evaluation(probed: Any) -> None:
    plain = probed("adc", probe="time", steps=2, output=None).ledger
    watched = probed("adc", probe="gradient-flow:every=5", steps=2).ledger
    assert watched.counts["training"] == plain.counts["training"]
    batch = 4 * 8 * 17 * 16
    for direction, kind in (("up", "activation"), ("down", "gradient")):
        ours = watched.counts["evaluation"][direction].get(kind, 0)
        assert ours - plain.counts["evaluation"][direction].get(kind, 0) == batch


def test_a_client_that_trains_nothing_is_told(probed: Any, tmp_path: Any) -> None:
    probed("quantize", probe="gradient-flow", steps=1, train=("head",))
    folder = tmp_path / "run" / "probes" / "gradient-flow"
    said = "the client trains nothing, so there is no gradient behind the cut\n"
    assert (folder / "said.txt").read_text() == said
