"""Models of one's own: rows of segments, split as whole, whatever crosses the cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.measure import Attention
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.models.segments import Segments

CPU = torch.device("cpu")
IMAGES = {"channels": 3, "image_size": 12}


class Tokens(nn.Module):
    """An image (B, D, H, W) as tokens (B, H·W, D)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """The mean of all tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


class Stacked(nn.Module):
    """Five dimensions, which cannot cross a link."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, None]


def every_kind(**options: Any) -> Segments:
    """An image, an image in channels-last memory, tokens, and vectors leave its segments."""
    with isolated_rng(0, "segments", device=CPU):
        last = nn.Conv2d(6, 6, 3, padding=1).to(memory_format=torch.channels_last)
        return Segments(
            [
                nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)),
                nn.Sequential(nn.ReLU(inplace=True), last),
                nn.Sequential(nn.GELU(), Tokens(), nn.LayerNorm(6)),
                nn.Sequential(nn.Linear(6, 8), nn.GELU(), Mean()),
                nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)),
                nn.Linear(8, 5),
            ],
            channels=3,
            image_size=12,
            **options,
        )


def test_split_equals_whole_at_every_cut(whole: Any) -> None:
    trained = whole(every_kind())
    for cut in range(5):
        trained.check(cut)


def test_two_cuts_equal_the_whole(whole: Any) -> None:
    trained = whole(every_kind())
    for first in range(4):
        for second in range(first + 1, 5):
            trained.check(first, second)


def test_behind_a_cut_of_tokens_a_segment_may_work_in_place(whole: Any) -> None:
    with isolated_rng(0, device=CPU):
        embed = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), Tokens())
        blocks = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)) for _ in range(2)]
        model = Segments([embed, *blocks, nn.Sequential(Mean(), nn.Linear(6, 5))], **IMAGES)
    trained = whole(model)
    trained.check(0)
    trained.check(0, 1)
    arrived = torch.full((2, 25, 6), -1.0, requires_grad=True)
    model.part(1, (0,), CPU).forward(arrived)
    assert torch.equal(arrived, torch.full((2, 25, 6), -1.0))


def test_what_plugins_see_at_every_cut() -> None:
    model = every_kind()
    seen = [model.layout(cut) for cut in range(5)]
    assert [(s.tokens, s.width, s.grid) for s in seen] == [
        (36, 6, (6, 6)),
        (36, 6, (6, 6)),
        (36, 6, None),
        (1, 8, None),
        (1, 8, None),
    ]
    assert not any(s.any_tokens or s.class_token or s.prefix_tokens for s in seen)
    assert [model.shape(cut) for cut in range(5)] == [(6, 6, 6), (6, 6, 6), (36, 6), (8,), (8,)]
    assert (model.last_cut, model.default_cut, model.cut_noun) == (4, 0, "segments")


def test_tokens_of_ones_own_are_as_they_are_said_to_be() -> None:
    model = every_kind(any_tokens=True, class_token=True, default_cut=2, cut_noun="steps")
    layout = model.layout(2)
    assert (layout.any_tokens, layout.class_token, layout.prefix_tokens) == (True, True, 1)
    assert not model.layout(0).any_tokens
    assert not model.layout(0).class_token
    assert (model.default_cut, model.cut_noun) == (2, "steps")
    assert every_kind(prefix_tokens=3, class_token=True).layout(2).prefix_tokens == 3
    server = model.part(1, (2,), CPU)
    assert server.forward(torch.zeros(2, 7, 6)).shape == (2, 5)


def test_trying_the_model_leaves_it_as_it_was() -> None:
    model = every_kind()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    model.module.get_submodule("1").eval()
    modes = [part.training for part in model.module.modules()]
    model.shape(0)
    assert [part.training for part in model.module.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.module.state_dict().items())
    assert all(p.grad is None for p in model.module.parameters())


def test_parts_are_copies_and_the_other_part_takes_no_memory() -> None:
    model = every_kind()
    client, server = (model.part(index, (1,), CPU) for index in (0, 1))
    own = {name for name, _ in client.named_parameters()}
    assert own == {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.1.weight", "1.1.bias"}
    for name, parameter in client.module.named_parameters():
        assert parameter.is_meta is (name not in own)
        assert parameter is not model.module.get_parameter(name)
    assert "0.1.running_mean" in client.state_dict()
    assert not client.state_dict().keys() & server.state_dict().keys()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_segments_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"a model of {count} segments cannot be cut"):
        Segments([nn.Identity()] * count, channels=3, image_size=8)


@pytest.mark.parametrize("cut", [-1, 5])
def test_a_cut_outside_is_refused(cut: int) -> None:
    model = every_kind(cut_noun="steps")
    with pytest.raises(ConfigError, match=rf"--cut {cut} .*allowed: 0 to 4 \(steps\)"):
        model.check_cut(cut)
    for cuts in ((cut,), (0, cut), (cut, 4)):
        with pytest.raises(ConfigError, match=f"--cut {cut} is outside the model"):
            model.part(0, cuts, CPU)


@pytest.mark.parametrize(
    ("index", "cuts"),
    [(0, ()), (0, (2, 1)), (0, (1, 1)), (0, (0, 1, 2)), (2, (1,)), (3, (1, 2)), (-1, (1,))],
)
def test_parts_that_no_cuts_make_are_refused(index: int, cuts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="one cut, or two in rising order"):
        every_kind().part(index, cuts, CPU)


@pytest.mark.parametrize(
    ("cut", "shape"),
    [(0, (2, 35, 6)), (1, (2, 36, 5)), (3, (2, 2, 8)), (4, (2, 1, 7)), (3, (2, 8))],
)
def test_other_tokens_than_fit_are_refused(cut: int, shape: tuple[int, ...]) -> None:
    server = every_kind().part(1, (cut,), CPU)
    with pytest.raises(ConfigError, match="methods that give the server all tokens back"):
        server.forward(torch.zeros(shape))


def test_token_sizes_and_measurements_are_refused() -> None:
    model = every_kind()
    with pytest.raises(ConfigError, match="does not weigh tokens by their size"):
        model.part(1, (2,), CPU).forward(torch.zeros(2, 36, 6), torch.ones(2, 36))
    with pytest.raises(ConfigError, match="the attention of a class token, which this model does"):
        model.part(0, (2,), CPU).watch(Attention())


def test_segments_that_do_not_follow_each_other_are_refused() -> None:
    with isolated_rng(0, device=CPU):
        model = Segments([nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3)], channels=3, image_size=8)
    with pytest.raises(
        ConfigError, match=r"segment 1 .*failed on torch.float32 \[2, 4, 6, 6\]: RuntimeError: G"
    ):
        model.layout(0)


class Does(nn.Module):
    """Does what it is told, with a parameter of its own."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> Any:
        return self.what(self.scale * x)


def fails(error: Exception) -> Any:
    def what(x: torch.Tensor) -> torch.Tensor:
        raise error

    return what


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise LookupError("no way back")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda x: (x, x), r"segment 1 of the model makes a tuple; it must return one tensor"),
        (
            lambda x: x.long(),
            r"segment 1 of the model makes torch.int64, through which no grad",
        ),
        (lambda x: None, r"segment 1 of the model makes a NoneType; it must return one tensor"),
        (lambda x: x.flatten(0, 1), r"segment 1 .* makes \[6, 8, 8\] of \[2, 3, 8, 8\]; the samp"),
        (lambda x: x.mean(0, keepdim=True), r"makes \[1, 3, 8, 8\] .*must stay in front, here 2:"),
        (lambda x: x[:, :0], r"segment 1 .* makes \[2, 0, 8, 8\], which is nothing; make it wider"),
        (lambda x: x.sum(), r"segment 1 .* makes \[\] of \[2, 3, 8, 8\]; the samples must stay in"),
        (
            fails(KeyError("gone")),
            r"segment 1 .*\[2, 3, 8, 8\]: KeyError: 'gone' \(test_segments.py:\d+\); mend the segm",
        ),
        (
            fails(AssertionError()),
            r"segment 1 .*: AssertionError \(.*\); mend the segment, or say other",
        ),
        (
            fails(NotImplementedError("a\nb")),
            r"segment 1 .*: NotImplementedError: a b \(.*\); mend the seg",
        ),
        (
            NoWayBack.apply,
            r"segment 1 .* cannot go back: LookupError: no way back \(.*\); mend its",
        ),
    ],
)
def test_a_segment_that_is_wrong_is_named_with_the_way_out(what: Any, reason: str) -> None:
    model = Segments([nn.Identity(), Does(what), nn.Flatten()], channels=3, image_size=8)
    with pytest.raises(ConfigError, match=reason):
        model.check(192)
    assert model.module.training


@pytest.mark.parametrize("made", [191, 193])
def test_a_head_of_other_classes_is_refused(made: int) -> None:
    with isolated_rng(0, device=CPU):
        model = Segments([nn.Flatten(), nn.Linear(192, made)], channels=3, image_size=8)
    model.check(made)
    told = rf"segment 1, the last one, makes \[{made}\] of one sample, and must make .* 192 classes"
    with pytest.raises(ConfigError, match=told):
        model.check(192)
    with pytest.raises(ConfigError, match=r"the last one, makes \[3, 8, 8\]"):
        Segments([nn.Identity()] * 2, channels=3, image_size=8).check(192)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"channels": 0}, "channels=0 is not allowed; 1 or more"),
        ({"image_size": -1}, "image_size=-1 is not allowed; 1 or more"),
        ({"default_cut": 2}, r"default_cut=2 is outside the model; allowed: 0 to 1 \(segments\)"),
        ({"default_cut": "1"}, r"default_cut='1' is outside the model; allowed: 0 to 1"),
        ({"default_cut": -1}, r"default_cut=-1 is outside the model; allowed: 0 to 1"),
    ],
)
def test_what_no_model_can_be_is_refused(options: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Segments([nn.Identity()] * 3, **{"channels": 3, "image_size": 8} | options).check(192)


def test_what_cannot_cross_a_link_is_refused() -> None:
    model = Segments([Stacked(), nn.Flatten()], channels=3, image_size=8)
    with pytest.raises(ConfigError, match=r"cannot be cut where \[1, 3, 8, 8\] leaves it"):
        model.layout(0)


def test_a_tensor_on_both_sides_of_the_cut_is_refused() -> None:
    with isolated_rng(0, device=CPU):
        shared = nn.Linear(8, 8)
    model = Segments([shared, nn.ReLU(), shared, nn.Flatten()], channels=3, image_size=8)
    with pytest.raises(ConfigError, match="is used on both sides of a cut"):
        model.part(0, (1,), CPU)
    one_side = model.part(0, (2,), CPU)
    assert model.last_cut == 2
    assert one_side.forward(torch.ones(1, 3, 8, 8)).shape == (1, 64, 3)
    assert [name for name, _ in one_side.named_parameters()] == ["0.weight", "0.bias"]


def test_state_goes_back_and_another_cuts_is_refused() -> None:
    model = every_kind()
    state = model.part(0, (1,), CPU).state_dict()
    fresh = model.part(0, (1,), CPU)
    fresh.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    assert all(torch.equal(fresh.state_dict()[name], t + 1) for name, t in state.items())
    with pytest.raises(ConfigError, match="of another model or cut"):
        model.part(0, (0,), CPU).load_state_dict(state)


class FewOnly(nn.Module):
    """Fails on more samples than the two that are tried."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise self.error
        return x


@pytest.mark.parametrize("index", [0, 1])
def test_a_segment_that_fails_later_is_named(index: int) -> None:
    segments = [FewOnly(ValueError("not so many")), nn.Flatten()]
    model = Segments([*segments, *segments], channels=3, image_size=8)
    model.check(192)
    part = model.part(index, (1,), CPU)
    told = rf"segment {2 * index} of .* on torch.float32 \[3, .*: ValueError: not so many \(test"
    with pytest.raises(ConfigError, match=told):
        part.forward(torch.zeros((3, 1, 192) if index else (3, 3, 8, 8)))


def test_a_segment_that_keeps_two_samples_only_is_named() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:2]

    part = Segments([Two(), nn.Flatten()], channels=3, image_size=8).part(0, (0,), CPU)
    with pytest.raises(ConfigError, match=r"segment 0 .* makes \[2, 3, 8, 8\] of \[8, 3, 8, 8\];"):
        part.forward(torch.zeros(8, 3, 8, 8))


def test_memory_that_runs_out_is_not_the_segments_fault() -> None:
    few = FewOnly(torch.OutOfMemoryError("full"))
    part = Segments([few, nn.Flatten()], channels=3, image_size=8).part(0, (0,), CPU)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        part.forward(torch.zeros(3, 3, 8, 8))


@pytest.mark.parametrize("prefix", [-1, 5])
def test_more_special_tokens_than_there_are_tokens_are_refused(prefix: int) -> None:
    def net(prefix: int) -> Segments:
        made = [Tokens(), nn.Flatten(1), nn.Identity()]
        return Segments(made, channels=3, image_size=2, prefix_tokens=prefix)

    net(4).check(12)
    with pytest.raises(ConfigError, match=rf"prefix_tokens={prefix} is .* segment 0 makes 4 tok"):
        net(prefix).check(12)
