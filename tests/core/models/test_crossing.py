"""Images and vectors as tokens, and back: places, memory, and gradients."""

from __future__ import annotations

import pytest
import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.models.crossing import Leaving, channels_last, from_tokens, seen, to_tokens


def image(last: bool = False) -> torch.Tensor:
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    kept = torch.channels_last if last else torch.contiguous_format
    return x.contiguous(memory_format=kept).requires_grad_()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("gradient_last", [False, True])
def test_an_image_goes_and_comes_back_as_it_lay(last: bool, gradient_last: bool) -> None:
    leaving = Leaving((3, 4, 5), last, gradient_last)
    x = image(last)
    back: list[torch.Tensor] = []
    through = x * 1
    through.register_hook(back.append)
    tokens = to_tokens(through, leaving)
    assert tokens.shape == (2, 20, 3)
    assert tokens.is_contiguous()
    assert torch.equal(tokens[1, 5 * 2 + 3], x[1, :, 2, 3])
    arrived = tokens.detach().requires_grad_()
    again = from_tokens(arrived, leaving)
    assert torch.equal(again, x)
    assert channels_last(again) is last
    (again * x.detach()).sum().backward()
    assert arrived.grad is not None
    assert torch.equal(arrived.grad, arrived.detach())
    tokens.backward(arrived.grad)
    assert torch.equal(back[0], x)
    assert channels_last(back[0]) is gradient_last


def test_a_vector_is_one_token() -> None:
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    tokens = to_tokens(x, Leaving((7,)))
    assert torch.equal(tokens, x[:, None])
    assert torch.equal(from_tokens(tokens, Leaving((7,))), x)


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,)])
def test_what_arrives_may_be_changed(shape: tuple[int, ...]) -> None:
    tokens = torch.ones((2, 20, 3) if len(shape) == 3 else (2, 1, 7), requires_grad=True)
    from_tokens(tokens, Leaving(shape)).zero_()
    assert tokens.min() == 1


@pytest.mark.parametrize("shape", [(2, 19, 3), (2, 20, 4), (2, 60), (2, 3, 4, 5)])
def test_other_tokens_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"arrived where this model takes \(rows, 20, 3\)"):
        from_tokens(torch.zeros(shape), Leaving((3, 4, 5)))


def test_memory_is_channels_last_where_it_is_not_both() -> None:
    assert channels_last(image(True))
    assert not channels_last(image(False))
    assert not channels_last(torch.zeros(2, 3, 1, 1)), "one place lies in either way"
    assert not channels_last(torch.zeros(2, 3))


def test_what_plugins_see_of_a_shape() -> None:
    layouts = [seen(shape) for shape in ((3, 4, 5), (7,), (6, 2))]
    assert [(s.tokens, s.width, s.grid) for s in layouts] == [
        (20, 3, (4, 5)),
        (1, 7, None),
        (6, 2, None),
    ]
    assert not any(s.any_tokens or s.class_token or s.prefix_tokens for s in layouts)
    for shape in ((), (1, 2, 3, 4)):
        with pytest.raises(ConfigError, match="leaves it for one sample; tokens"):
            seen(shape)
