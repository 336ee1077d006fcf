"""Every draw has a generator of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitlab.core.contract.seeding import derive_seed, generator, isolated_rng

CPU = torch.device("cpu")
PURPOSE = st.lists(st.integers(0, 2**40) | st.text("abc-", min_size=1, max_size=5), max_size=3)


def draw(seed: int, *purpose: str | int) -> list[float]:
    return torch.rand(4, generator=generator(seed, *purpose)).tolist()


def test_equal_purposes_draw_equal_numbers_and_others_others() -> None:
    assert draw(0, "kmeans", 3) == draw(0, "kmeans", 3)
    others = [(1, "kmeans", 3), (0, "kmeans", 4), (0, "kmean", 3), (0, "kmeans"), (0,)]
    assert len({tuple(draw(*other)) for other in [*others, (0, "kmeans", 3)]}) == 6


def test_derived_seeds_are_fixed_for_all_time() -> None:
    # A change would make every published run irreproducible.
    assert derive_seed(0) == 2033344993903900207
    assert derive_seed(7, "client", 41) == 6311723189577262413


@given(st.integers(0, 2**63 - 1), PURPOSE)
def test_seeds_fit_63_bits(seed: int, purpose: list[str | int]) -> None:
    assert 0 <= derive_seed(seed, *purpose) < 2**63
    generator(seed, *purpose)


@given(st.integers(0, 2**63 - 1), PURPOSE, PURPOSE)
def test_purposes_do_not_run_together(
    seed: int, one: list[str | int], two: list[str | int]
) -> None:
    same = list(map(str, one)) == list(map(str, two))
    assert (derive_seed(seed, *one) == derive_seed(seed, *two)) is same


def test_generators_neither_read_nor_change_global_state() -> None:
    state = torch.get_rng_state()
    first = draw(0, "x")
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert draw(0, "x") == first
    assert torch.equal(torch.get_rng_state(), state)


def test_isolated_blocks_repeat_and_put_the_state_back() -> None:
    state = torch.get_rng_state()
    drawn = []
    for purpose in (("a", 0), ("a", 0), ("a", 1)):
        with isolated_rng(0, *purpose, device=CPU):
            drawn.append(torch.rand(4).tolist())
        assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == draw(0, "a", 0)


def _fail_inside() -> None:
    with isolated_rng(0, device=CPU):
        torch.rand(1)
        raise KeyError


def test_isolated_blocks_put_the_state_back_after_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(KeyError):
        _fail_inside()
    assert torch.equal(torch.get_rng_state(), state)
