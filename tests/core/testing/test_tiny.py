"""`Tiny` makes peers of any model, on images as small as it takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from splitlab.core import ConfigError
from splitlab.core.contract.part import Layout
from splitlab.core.testing import Tiny

SMALL_CNN = str(Path(__file__).with_name("small_cnn.py"))


@pytest.mark.parametrize(
    ("model", "images", "cut", "layout"),
    [
        (None, (3, 16, 16), 1, Layout(5, 16, 1, True, (2, 2))),
        ("resnet18", (3, 64, 64), 1, Layout(256, 64, grid=(16, 16), any_tokens=False)),
        ("resnet18:channels=1", (1, 64, 64), 1, Layout(256, 64, grid=(16, 16), any_tokens=False)),
        ("resnet18:image_size=32", (3, 32, 32), 1, Layout(64, 64, grid=(8, 8), any_tokens=False)),
        ("vit-mini", (1, 28, 28), 3, Layout(50, 64, 1, True, (7, 7))),
        ("vit:depth=2", (3, 64, 64), 2, Layout(17, 192, 1, True, (4, 4))),
        (f"{SMALL_CNN}:small_cnn", (1, 16, 16), 0, Layout(16, 32, grid=(4, 4), any_tokens=False)),
        (f"{SMALL_CNN}:vectors", (1, 8, 8), 0, Layout(1, 24, any_tokens=False)),
    ],
)
def test_it_knows_images_and_cut_of_every_model(
    model: str | None, images: tuple[int, ...], cut: int, layout: Layout
) -> None:
    tiny = Tiny(model=model)
    assert tiny.batch(0).images.shape == (6, *images)
    peer = tiny.peer()
    assert (peer.cut, peer.layout) == (cut, layout)


def test_peers_of_another_model_train_and_have_numbers_of_their_own() -> None:
    tiny = Tiny(model=f"{SMALL_CNN}:small_cnn")
    client, server = tiny.pair()
    losses = tiny.train(client, server, range(3))
    again, _ = tiny.pair()
    moved = client.state()[0]['["model", "0.0.weight"]']
    new = again.state()[0]['["model", "0.0.weight"]']
    assert not torch.equal(moved, new)
    assert tiny.train(*tiny.pair(), range(3)) == losses
    assert tiny.peer("server").layout == server.peer.layout


def test_numbers_are_of_the_seed_and_the_precision() -> None:
    tiny = Tiny(model=f"{SMALL_CNN}:small_cnn")

    def weight(**settings: object) -> torch.Tensor:
        return tiny.client(**settings).state()[0]['["model", "0.0.weight"]']  # type: ignore[arg-type]

    assert torch.equal(weight(), weight(seed=0))
    assert not torch.equal(weight(), weight(seed=1))
    double = weight(dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(double, weight().double())


def test_another_process_can_make_the_same() -> None:
    tiny = Tiny(model=f"{SMALL_CNN}:small_cnn", samples=4)
    tiny.client()  # what it keeps of the model does not travel
    again = Tiny(**json.loads(json.dumps(dataclasses.asdict(tiny))))
    assert again == tiny
    assert torch.equal(again.batch(3).images, tiny.batch(3).images)


def test_a_model_that_nobody_knows_is_the_users_fault() -> None:
    with pytest.raises(ConfigError, match="unknown model 'resnet19'"):
        Tiny(model="resnet19").batch()
