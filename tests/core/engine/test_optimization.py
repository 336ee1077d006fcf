from __future__ import annotations

import dataclasses
from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F

from splitlab.core import ConfigError, Diverged
from splitlab.core.contract.batch import Batch
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.optimization import Optimization, Trainer
from splitlab.core.engine.rate import Rate
from splitlab.core.models.vit import whole

LR = 1e-2


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trainer(module: nn.Module, optimizer: str = "sgd", **how: Any) -> Trainer:
    rate = how.pop("rate", Rate.parse(LR))
    optimization = Optimization(optimizer, rate, 0.0, **how)
    return Trainer(optimization, [*module.parameters()], module.state_dict)


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 6, generator=draws), torch.randint(3, (4,), generator=draws))
        for _ in range(count)
    ]


def backward(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    F.cross_entropy(module(batch[0]), batch[1]).backward()


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e6])
def test_gradients_are_clipped_as_torch_does_it(norm: float) -> None:
    ours, theirs = network(), network()
    train = trainer(ours, clip_norm=norm)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=LR)
    for step, batch in enumerate(batches(3)):
        backward(ours, batch)
        train.step(step, None)
        backward(theirs, batch)
        nn.utils.clip_grad_norm_(theirs.parameters(), norm)
        optimizer.step()
        optimizer.zero_grad()
    assert same(ours, theirs)


def test_batches_are_accumulated_as_by_hand() -> None:
    ours, theirs = network(), network()
    train = trainer(ours, "adam", accumulate=3, clip_norm=0.5)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=LR)
    for step, batch in enumerate(batches(6)):
        backward(ours, batch)
        train.step(step, None)
        backward(theirs, batch)
        if step % 3 == 2:
            for parameter in theirs.parameters():
                assert parameter.grad is not None
                parameter.grad /= 3
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    assert same(ours, theirs)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_moving_average_is_timms(accumulate: int) -> None:
    module = network()
    train = trainer(module, ema=0.7, accumulate=accumulate)
    timms = ModelEmaV3(module, decay=0.7)
    for step, batch in enumerate(batches(6)):
        backward(module, batch)
        train.step(step, None)
        if (step + 1) % accumulate == 0:
            timms.update(module)
        live = deepcopy(module)
        for _ in range(2):
            train.weigh(averaged=True)
            assert same(module, timms.module)  # counters of batch norm among them
        for _ in range(2):
            train.weigh(averaged=False)
            assert same(module, live)


def test_a_part_without_a_number_is_trained_too() -> None:
    module = nn.AvgPool2d(2)
    train = trainer(module, ema=0.7, clip_norm=1.0, accumulate=2)
    assert [train.step(step, None) for step in range(2)] == [None, None]
    train.load_state(train.state())
    train.weigh(averaged=True)
    assert not module.state_dict()


def test_what_got_no_gradient_has_no_norm() -> None:
    module = network()
    live = deepcopy(module)
    # The norm of nothing would be on the CPU, wherever the weights are.
    assert trainer(module, clip_norm=1.0).step(0, None) is None
    assert same(module, live)


def test_the_weights_are_back_before_they_are_saved() -> None:
    module = network()
    train = trainer(module, ema=0.7)
    backward(module, batches(1)[0])
    train.step(0, None)
    live, saved = deepcopy(module), train.state()
    average = {name: tensor.clone() for name, tensor in saved["average"].items()}
    train.weigh(averaged=True)
    again = train.state()
    assert same(module, live)
    assert all(torch.equal(again["average"][name], tensor) for name, tensor in average.items())


def test_each_step_has_the_rate_of_its_number() -> None:
    ours, theirs = network(), network()
    rate = Rate.parse(LR, "cosine", 2)
    train = trainer(ours, rate=rate)
    for step, batch in enumerate(batches(5)):
        backward(ours, batch)
        train.step(step, 5)
        optimizer = torch.optim.SGD(theirs.parameters(), lr=rate.at(step, 5))
        backward(theirs, batch)
        optimizer.step()
        optimizer.zero_grad()
    assert same(ours, theirs)
    with pytest.raises(ConfigError, match="how many steps the run is to last"):
        train.step(5, None)


HOW = {"accumulate": 3, "ema": 0.6, "clip_norm": 0.5, "rate": Rate.parse(LR, "cosine", 0.2)}


def test_state_goes_on_at_any_step_of_an_accumulation() -> None:
    module = network()
    train = trainer(module, "adam", **HOW)
    saved = []
    for step, batch in enumerate(batches(8)):
        saved.append((deepcopy(module.state_dict()), deepcopy(train.state())))
        backward(module, batch)
        train.step(step, 8)
    assert [sorted(state) for _, state in saved[:2]] == [
        ["average", "optimizer"],
        ["average", "gradients", "optimizer"],
    ]
    for begin, (weights, state) in enumerate(saved):
        again = network()
        other = trainer(again, "adam", **HOW)
        again.load_state_dict(weights)
        other.load_state(state)
        for step, batch in [*enumerate(batches(8))][begin:]:
            backward(again, batch)
            other.step(step, 8)
        assert same(module, again)
        for each in (train, other):
            each.weigh(averaged=True)
        assert same(module, again)
        train.weigh(averaged=False)


# Two peers.


@pytest.mark.parametrize("count", [2, 3])
def test_batches_of_two_peers_accumulate_to_one_large_batch(
    tiny: Any, peers: Any, count: int
) -> None:
    parts = [tiny.batch(n) for n in range(2 * count)]
    client, server = tiny.pair(optimizer="sgd", accumulate=count)
    for step, batch in enumerate(parts):
        hold(client.train(batch, step), peers.ask(server))
    large = [joined(parts[:count]), joined(parts[count:])]
    once, other = tiny.pair(optimizer="sgd")
    other.peer.batch_size = count * tiny.samples
    other._arriving = dataclasses.replace(other._arriving, rows=count * tiny.samples)
    for step, batch in enumerate(large):
        hold(once.train(batch, step), peers.ask(other))
    for name, tensor in peers.both(client, server).items():
        torch.testing.assert_close(tensor, peers.both(once, other)[name], rtol=1e-4, atol=1e-6)


def joined(batches: list[Batch]) -> Batch:
    tensors = ([getattr(b, name) for b in batches] for name in ("images", "targets", "sample_ids"))
    return Batch(*map(torch.cat, tensors))


@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_smoothed_as_torch_does_it_but_not_in_evaluation(
    tiny: Any, peers: Any, soft: bool
) -> None:
    batch = tiny.batch(0)
    if soft:
        targets = F.one_hot(batch.targets, tiny.classes).float()
        batch = Batch(batch.images, 0.3 * targets + 0.7 * targets.flip(0), batch.sample_ids)
    module = whole(tiny.vit(0)).module.train()
    logits = module(batch.images)
    wanted = F.cross_entropy(logits, batch.targets, label_smoothing=0.2)
    client, server = tiny.pair(label_smoothing=0.2)
    trained = hold(client.train(batch, 0), peers.ask(server))
    assert trained.loss == pytest.approx(wanted.item(), rel=1e-5)
    client, server = tiny.pair(label_smoothing=0.2)
    plain = tiny.batch(0)
    answer = hold(client.query(plain, 0, stacked=True), peers.ask(server))
    wanted = F.cross_entropy(logits, plain.targets, reduction="sum")
    assert answer.loss_sum == pytest.approx(wanted.item(), rel=1e-5)


def test_two_peers_evaluate_their_averages(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair(ema=0.5)
    module = whole(tiny.vit(0)).module
    average = ModelEmaV3(module, decay=0.5)
    for step in range(3):
        hold(client.train(tiny.batch(step), step), peers.ask(server))
        now = peers.both(client, server)
        parts = {name.split('"')[-2]: t for name, t in now.items() if '["model",' in name}
        module.load_state_dict(parts)
        average.update(module)
    batch = tiny.batch(9)
    with torch.no_grad():
        logits = average.module(batch.images)
    for number in range(2):
        answer = hold(client.query(batch, number, stacked=True), peers.ask(server))
    wanted = F.cross_entropy(logits, batch.targets, reduction="sum")
    assert answer.loss_sum == pytest.approx(wanted.item(), rel=1e-5)
    peers.assert_same(peers.both(client, server), now)  # and train the others on


def test_a_gradient_that_is_not_finite_is_named_though_it_is_clipped(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair(clip_norm=1.0)
    head = dict(server._part.named_parameters())["head.weight"]
    head.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match=r"the gradient of head\.weight is not finite"):
        hold(client.train(tiny.batch(0), 0), peers.ask(server))


def test_a_norm_that_overflows_is_no_clipping(tiny: Any, peers: Any) -> None:
    client, server = tiny.pair(clip_norm=1.0)
    head = dict(server._part.named_parameters())["head.weight"]
    head.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    with pytest.raises(Diverged, match="the norm of the gradients is inf"):
        hold(client.train(tiny.batch(0), 0), peers.ask(server))


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_gpu_trains_as_the_cpu_does_and_takes_over_its_state(optimizer: str) -> None:
    start = network()
    # The gradient of a bias in front of it is rounding noise, which Adam scales up.
    start[1] = nn.Identity()

    def trained(devices: list[str]) -> nn.Module:
        module, state = deepcopy(start), None
        for step, (device, batch) in enumerate(zip(devices, batches(len(devices)), strict=True)):
            module.to(device)
            train = trainer(module, optimizer)
            if state is not None:
                train.load_state(state)
            backward(module, (batch[0].to(device), batch[1].to(device)))
            train.step(step, None)
            state = train.state()
        return module.cpu()

    wanted = trained(["cpu"] * 4).state_dict()
    for devices in (["cuda"] * 4, ["cuda", "cpu"] * 2):
        found = trained(devices).state_dict()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
