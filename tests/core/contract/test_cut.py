"""Losses of a plugin's own: what is one, and what is refused."""

from __future__ import annotations

import pytest
import torch

from splitlab.core import Cut, PluginError


def cut(*, training: bool = True, owner: str = "mine") -> Cut:
    X = torch.ones(2, 3, 4, requires_grad=True)
    targets = torch.zeros(2, dtype=torch.int64)
    return Cut(activations=X, targets=targets, step=0, training=training, owner=owner)


def test_losses_are_kept_by_plugin_and_name() -> None:
    one = cut()
    one.add_loss("a", one.activations.sum())
    one.owner = "other"
    one.add_loss("a", one.activations.mean())
    assert {key: loss.item() for key, loss in one.losses.items()} == {
        ("mine", "a"): 24,
        ("other", "a"): 1,
    }


def test_an_evaluation_ignores_them() -> None:
    one = cut(training=False)
    one.add_loss("a", torch.zeros(()))
    assert one.losses == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "the loss 'a' is a float, not a tensor"),
        (torch.ones(2, requires_grad=True), "the loss 'a' is torch.float32 .2.; it must be a"),
        (torch.ones(1, requires_grad=True), "must be a floating-point scalar"),
        (torch.tensor(1), "the loss 'a' is torch.int64 ..; it must be a floating-point scalar"),
        (torch.tensor(1.0), "the loss 'a' is detached"),
        (torch.ones((), device="meta", requires_grad=True), "the loss 'a' is on meta, the activ"),
    ],
)
def test_what_is_no_scalar_on_the_graph_is_refused(value: object, text: str) -> None:
    with pytest.raises(PluginError, match=text):
        cut().add_loss("a", value)  # type: ignore[arg-type]


def test_a_probe_adds_none_and_a_name_is_taken_once() -> None:
    one = cut()
    one.add_loss("a", one.activations.sum())
    with pytest.raises(PluginError, match="'a' is there already"):
        one.add_loss("a", one.activations.sum())
    with pytest.raises(PluginError, match="added by no plugin"):
        cut(owner="").add_loss("a", one.activations.sum())
