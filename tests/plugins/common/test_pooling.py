"""Choosing and merging tokens: both maps against plain torch, and what goes along with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import Attention, ConfigError, Cut, Keys
from splitlab.core.testing import Tiny
from splitlab.plugins.common.pooling import (
    SIZES,
    Share,
    merge_in_cut,
    merge_tokens,
    select_in_cut,
    select_tokens,
)

ATTENTION = Attention()


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def matrix(slots_BN: torch.Tensor, weights_BN: torch.Tensor, K: int) -> torch.Tensor:
    """The merge as a dense matrix (B, K, N)."""
    places = torch.nn.functional.one_hot(slots_BN, K).mT.to(weights_BN.dtype)
    return places * weights_BN[:, None]


@settings(max_examples=25, deadline=None)
@given(B=st.integers(1, 4), N=st.integers(1, 9), K=st.integers(1, 9), D=st.integers(1, 3))
def test_both_maps_and_their_gradients_are_those_of_plain_torch(
    B: int, N: int, K: int, D: int
) -> None:
    x, weights = noise(B, N, D).requires_grad_(), noise(B, N)
    draw = torch.Generator().manual_seed(B + 10 * N + 100 * K)
    slots = torch.randint(K, (B, N), generator=draw)  # some stay empty
    kept = torch.rand(B, N, generator=draw).argsort(dim=1)[:, : min(K, N)]
    pairs = (
        (merge_tokens(x, slots, weights, K), matrix(slots, weights, K) @ x),
        (select_tokens(x, kept), x.gather(1, kept[..., None].expand(-1, -1, D))),
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        gradient = noise(*ours.shape)
        one, two = (torch.autograd.grad(z, x, gradient)[0] for z in (ours, theirs))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_other_memory_layouts() -> None:
    x = noise(6, 4, 3).transpose(0, 1)
    kept, slots = torch.tensor([[5, 0]]).expand(4, 2), torch.arange(6).expand(4, 6) // 2
    assert torch.equal(select_tokens(x, kept), x[:, [5, 0]])
    torch.testing.assert_close(
        merge_tokens(x, slots, torch.ones(1).expand(4, 6), 3), x.reshape(4, 3, 2, 3).sum(2)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_in_float32(dtype: torch.dtype) -> None:
    # The sum overflows float16 on its way, and bfloat16 would drop most of the terms.
    x = (1000 + noise(2, 300, 3)).to(dtype).requires_grad_()
    slots, weights = torch.zeros(2, 300, dtype=torch.int64), torch.full((2, 300), 1 / 300)
    merged = merge_tokens(x, slots, weights, 1)
    assert merged.dtype == dtype
    assert torch.equal(merged, (x.float() / 300).sum(1, keepdim=True).to(dtype))
    grad = torch.autograd.grad(merged.sum(), x)[0]
    assert torch.equal(grad, torch.full_like(x, 1 / 300))
    assert select_tokens(x, slots[:, :1]).dtype == dtype


def test_what_is_not_read_does_no_harm() -> None:
    x = torch.tensor([[[1.0], [torch.nan], [torch.inf], [2.0]]])
    assert select_tokens(x, torch.tensor([[0, 3]])).flatten().tolist() == [1, 2]
    merged = merge_tokens(x, torch.tensor([[0, 1, 1, 0]]), torch.ones(1, 4), 2)
    assert merged[0, 0] == 3
    assert merged[0, 1].isnan()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_attention_and_sizes_follow_the_tokens(dtype: torch.dtype) -> None:
    def cut() -> Cut:
        attention = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        sizes = torch.tensor([[1, 200, 3, 4]]).to(dtype)
        made = Cut(
            activations=noise(1, 4, 2),
            targets=torch.zeros(1),
            step=0,
            training=True,
            measured={ATTENTION: attention},
            side={SIZES: sizes},
        )
        made.measured[Keys()] = noise(1, 4, 1)
        return made

    chosen, merged = cut(), cut()
    select_in_cut(chosen, torch.tensor([[3, 1]]))
    merge_in_cut(merged, torch.tensor([[0, 1, 0, 1]]), torch.ones(1, 4), 2)
    for one, attention, sizes in (
        (chosen, [[0.4, 0.2]], [[4, 200]]),
        (merged, [[0.4, 0.6]], [[4, 204]]),
    ):
        assert ATTENTION in one.measured
        torch.testing.assert_close(one.measured[ATTENTION], torch.tensor(attention))
        assert one.side[SIZES].tolist() == sizes
        assert one.side[SIZES].dtype == dtype
        assert Keys() not in one.measured
    bare = Cut(activations=noise(1, 4, 2), targets=torch.zeros(1), step=0, training=True)
    select_in_cut(bare, torch.tensor([[2]]))
    assert ATTENTION not in bare.measured
    assert not bare.side


@pytest.mark.parametrize(
    ("share", "N", "P", "patches"),
    [  # P = 0: no class token, so that one patch is needed
        (Share("x", None, 0.29), 100, 1, 28),  # 0.29 * 100 is 28.999999999999996
        (Share("x", None, 0.29, fused=1), 100, 1, 27),
        (Share("x", None, 1.0, fused=1), 100, 1, 99),  # everything: nothing is fused
        (Share("x", None, None), 5, 1, 0),
        (Share("x", None, None), 5, 0, 1),
        (Share("x", 0.7, None), 197, 1, 138),  # ⌈137.2⌉
        (Share("x", 0.07, None), 101, 1, 7),  # 0.07 * 100 is 7.000000000000001
        (Share("x", 1e-9, None), 11, 1, 1),
        (Share("x", 1e-12, None), 11, 1, 1),
    ],
)
def test_how_many_patches_a_share_keeps(share: Share, N: int, P: int, patches: int) -> None:
    # A share of the patches never rounds to none.
    peer = Tiny().peer(tokens=N, prefix_tokens=P, class_token=P == 1, grid=None)
    assert share.patches(N, peer) == patches


@pytest.mark.parametrize("fused", [0, 1])
@pytest.mark.parametrize("facts", [{"class_token": False}, {"class_token": True, "pools": True}])
def test_a_patch_is_left_to_a_head_that_pools_patches(facts: Any, fused: int) -> None:
    peer = Tiny().peer(tokens=17, prefix_tokens=4, grid=None, **facts)
    share = Share("x", None, None, fused)
    assert share.patches(17, peer) + fused == 1
    assert share.nominal(peer) == 5 / 17
    with pytest.raises(ConfigError, match=r"at least 5 are sent; allowed here: ratio=0.2942 to 1"):
        Share("x", None, 0.29, fused).check(peer)


def test_shares_that_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave out ratio or keep"):
        Share("x", 0.5, 0.5)
    for value in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="more than 0, at most 1"):
            Share("x", None, value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_repeats_itself_and_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32, 197, 64, generator=draw).to(dtype)
    kept = torch.rand(32, 197, generator=draw).argsort(dim=1)[:, :20]
    slots, weights = (
        torch.randint(20, (32, 197), generator=draw),
        torch.rand(32, 197, generator=draw),
    )
    gradient = torch.randn(32, 20, 64, generator=draw).to(dtype)

    def run(device: str) -> list[torch.Tensor]:
        leaf = x.to(device).requires_grad_()
        made = (
            select_tokens(leaf, kept.to(device)),
            merge_tokens(leaf, slots.to(device), weights.to(device), 20),
        )
        grads = [torch.autograd.grad(z, leaf, gradient.to(device))[0] for z in made]
        return [z.detach().cpu() for z in (*made, *grads)]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = run("cuda"), run("cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    for one, two, cpu in zip(first, second, run("cpu"), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, cpu)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_says_that_a_token_left_out_is_not_finite(bad: float) -> None:
    x = noise(3, 4, 2)
    kept = torch.tensor([[0, 2]]).expand(3, 2)
    cut = Cut(
        activations=x.clone(), targets=torch.zeros(3, dtype=torch.int64), step=0, training=True
    )
    cut.activations[1, 3, 0] = bad
    select_in_cut(cut, kept)
    assert cut.activations[1].isnan().all()
    assert torch.equal(cut.activations[[0, 2]], x[[0, 2]][:, [0, 2]])


def test_where_tokens_went_is_told() -> None:
    cut = Cut(activations=noise(2, 4, 3), targets=torch.zeros(2), step=0, training=True)
    merge_in_cut(cut, torch.tensor([[0, 1, 1, 2], [0, 1, 2, 2]]), torch.ones(2, 4), 3)
    select_in_cut(cut, torch.tensor([[0, 1], [0, 2]]))
    assert cut.activations.shape == (2, 2, 3)
    assert not cut.provenance.merged
    assert cut.provenance.slots(2, 4).tolist() == [[0, 1, 1, -1], [0, -1, 1, 1]]
