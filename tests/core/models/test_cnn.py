"""timm's convolutional networks: split equals whole, batch statistics too."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.measure import Attention, Keys
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.models.build import build_model
from splitlab.core.models.cnn import StagedCNN

CPU = torch.device("cpu")
NAMES = ["resnet18", "mobilenetv3_small_100", "convnext_atto"]


def build(name: str = "resnet18", size: int = 32) -> Any:
    return build_model(name, classes=5, seed=0, image_size=size)


def cuts_of(model: Any) -> list[int]:
    return sorted({0, 1, model.last_cut // 2, model.last_cut})


@pytest.mark.parametrize("name", NAMES)
def test_split_equals_whole(name: str, whole: Any) -> None:
    model = build(name)
    trained = whole(model)
    for cut in cuts_of(model):
        trained.check(cut)


@pytest.mark.parametrize("name", NAMES)
def test_split_equals_whole_for_a_batch_of_one(name: str, whole: Any) -> None:
    model = build(name, 64)
    trained = whole(model, batch_size=1)
    for cut in cuts_of(model):
        trained.check(cut)


@pytest.mark.parametrize("name", NAMES)
def test_two_cuts_equal_the_whole(name: str, whole: Any) -> None:
    model = build(name)
    trained = whole(model)
    trained.check(0, model.last_cut)
    trained.check(1, 2)


def test_batch_statistics_move_where_the_layer_is_and_only_there(whole: Any) -> None:
    model = build()
    start = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    trained = whole(model)
    statistics = [name for name in trained.end if "running" in name or "tracked" in name]
    assert statistics
    for name in statistics:
        assert not torch.equal(trained.end[name], start[name]), name
    trained.check(1)
    assert all(torch.equal(t, start[n]) for n, t in model.module.state_dict().items()), "copies"
    client = model.part(0, (1,), CPU)
    server = model.part(1, (1,), CPU)
    assert "bn1.running_mean" in client.state_dict().keys() - server.state_dict().keys()
    assert "layer2.0.bn1.running_var" in server.state_dict().keys() - client.state_dict().keys()


def test_evaluation_uses_the_statistics_and_leaves_them() -> None:
    model = build()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    client, server = (model.part(index, (1,), CPU) for index in (0, 1))
    client.train(False)
    server.train(False)
    before = {name: tensor.clone() for name, tensor in server.state_dict().items()}
    with torch.no_grad():
        logits = server.forward(client.forward(images))
        one = server.forward(client.forward(images[:1]))
        model.module.eval()
        assert torch.equal(logits, model.module(images))
    torch.testing.assert_close(one, logits[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in server.state_dict().items())


@pytest.mark.parametrize(
    ("name", "stages"), [("resnet18", 4), ("mobilenetv3_small_100", 6), ("convnext_atto", 4)]
)
def test_a_cut_is_behind_the_stem_or_a_stage(name: str, stages: int) -> None:
    model = build(name)
    assert (model.last_cut, model.cut_noun) == (stages, "stages")
    assert 1 <= model.default_cut <= model.last_cut
    for cut in range(stages + 1):
        D, H, W = model.shape(cut)
        layout = model.layout(cut)
        assert (layout.tokens, layout.width, layout.grid) == (H * W, D, (H, W))
        assert (layout.prefix_tokens, layout.class_token, layout.any_tokens) == (0, False, False)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_at_exactly_one_peer(name: str) -> None:
    model = build(name)
    for cut in range(model.last_cut + 1):
        ours = model.part(0, (cut,), CPU).state_dict()
        theirs = model.part(1, (cut,), CPU).state_dict()
        assert not ours.keys() & theirs.keys()
        assert ours.keys() | theirs.keys() == model.module.state_dict().keys()
        assert any(key.startswith(model.heads) for key in theirs)
        assert not any(key.startswith(model.heads) for key in ours)


def test_a_token_is_a_place_of_the_image() -> None:
    model = build()
    client = model.part(0, (0,), CPU)
    client.train(False)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = client.forward(images)
        model.module.eval()
        stem = model.module.maxpool(model.module.act1(model.module.bn1(model.module.conv1(images))))
    assert tokens.is_contiguous()
    assert torch.equal(tokens[1, 8 * 3 + 5], stem[1, :, 3, 5])


def test_batch_norm_that_cannot_train_is_the_users_error() -> None:
    model = build()
    client, server = (model.part(index, (1,), CPU) for index in (0, 1))
    server.train(True)
    tokens = client.forward(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ConfigError, match=r"cannot train on a batch of 1 .*--batch-size"):
        server.forward(tokens)


@pytest.mark.parametrize("cut", [-1, 5])
@pytest.mark.parametrize("index", [0, 1])
def test_a_cut_outside_the_model_is_refused(index: int, cut: int) -> None:
    with pytest.raises(ConfigError, match=rf"--cut {cut} .*allowed: 0 to 4 \(stages\)"):
        build().part(index, (cut,), CPU)


@pytest.mark.parametrize("shape", [(2, 63, 64), (2, 65, 64), (2, 64, 63), (2, 4096)])
def test_other_tokens_than_the_image_has_are_refused(shape: tuple[int, ...]) -> None:
    server = build().part(1, (1,), CPU)
    with pytest.raises(ConfigError, match=r"arrived where this model takes \(rows, 64, 64\)"):
        server.forward(torch.zeros(shape))


def test_rows_may_be_any_number() -> None:
    server = build().part(1, (1,), CPU)
    server.train(False)
    assert server.forward(torch.zeros(7, 64, 64)).shape == (7, 5)


def test_token_sizes_are_refused() -> None:
    server = build().part(1, (1,), CPU)
    with pytest.raises(ConfigError, match="does not weigh tokens by their size"):
        server.forward(torch.zeros(2, 64, 64), torch.ones(2, 64))


@pytest.mark.parametrize("request_", [Attention(), Attention("max", "rollout"), Keys()])
def test_attention_is_refused(request_: Any) -> None:
    client = build().part(0, (1,), CPU)
    assert "does not have; choose a model with one" in str(client.unable(request_))
    with pytest.raises(
        ConfigError, match=r"^the client's part is asked for the attention .*does not have"
    ):
        client.watch(request_)
    assert client.measured() == {}


@pytest.mark.parametrize("size", [32, 33, 47])
def test_any_image_size_fits(size: int) -> None:
    model = build("resnet18", size)
    client, server = (model.part(index, (1,), CPU) for index in (0, 1))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    server.train(False)
    client.train(False)
    with torch.no_grad():
        model.module.eval()
        assert torch.equal(server.forward(client.forward(images)), model.module(images))


# What is no such network.


class Unordered(nn.Module):
    """Has what a staged network has, and adds what its forward does not say in its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        self.fc = nn.Linear(4, 5)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.stages(self.stem(x).relu()))


class Single(nn.Module):
    """One stage, and nothing in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 4, 3))
        self.fc = nn.Linear(4, 5)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.stages(x))


def test_one_stage_is_cut_behind_it() -> None:
    with isolated_rng(0, device=CPU):
        model = StagedCNN("mine", Single(), channels=3, image_size=8)
    assert (model.last_cut, model.default_cut) == (0, 0)
    model.check(5)


class Headless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.Sequential(nn.Conv2d(4, 4, 3))


class Stageless(Unordered):
    def __init__(self) -> None:
        super().__init__()
        del self.stages


class Misfit(Unordered):
    def __init__(self) -> None:
        super().__init__()
        self.stages[1] = nn.Conv2d(7, 4, 3)


class Flat(Unordered):
    def __init__(self) -> None:
        super().__init__()
        self.stages.append(nn.Flatten(2))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Unordered, "it does not run its modules one after another"),
        (Headless, "it has no forward_head"),
        (Stageless, "it has no stages"),
        (Misfit, "segment 2 of the model failed on"),
        (Flat, "segment 4 of the model failed on"),
    ],
)
def test_a_network_that_is_not_staged_is_refused(kind: type[nn.Module], reason: str) -> None:
    with isolated_rng(0, device=CPU):
        module = kind()
    with pytest.raises(ConfigError, match=rf"model 'mine' cannot be cut: ({reason})"):
        StagedCNN("mine", module, channels=3, image_size=16)


def test_the_check_leaves_the_network_as_it_was() -> None:
    with isolated_rng(0, device=CPU):
        module = timm.create_model("resnet18", num_classes=5)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        module.layer1.eval()
        StagedCNN("resnet18", module, channels=3, image_size=32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training
    assert module.layer2.training
