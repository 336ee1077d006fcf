"""Where samples and tokens went is put together from what plugins told, in any order of moves."""

from __future__ import annotations

import torch

from splitlab.core.contract.provenance import Provenance


def test_nothing_told_is_nothing_moved() -> None:
    nothing = Provenance()
    assert not nothing.merged
    assert not nothing.moved
    assert nothing.rows(3).tolist() == [0, 1, 2]
    assert nothing.slots(2, 3).tolist() == [[0, 1, 2]] * 2


def test_merges_follow_each_other() -> None:
    told = Provenance()
    told.merge(torch.tensor([1, 0, 1, 2], dtype=torch.uint8))
    told.merge(torch.tensor([0, 1, 0]))
    assert told.merged
    assert told.rows(4).tolist() == [1, 0, 1, 0]


def test_what_is_left_out_stays_out_and_what_is_kept_moves_up() -> None:
    told = Provenance()
    told.select(torch.tensor([[0, 2, 3], [1, 2, 4]]))
    told.select(torch.tensor([[2, 0], [1, 2]]))
    assert told.moved
    assert told.slots(2, 5).tolist() == [[1, -1, -1, 0, -1], [-1, -1, 0, -1, 1]]


def test_fused_tokens_share_a_slot() -> None:
    told = Provenance()
    told.fuse(torch.tensor([0, 1, 1, 2]).expand(2, 4), 3)
    told.select(torch.tensor([[1, 2], [0, 1]]))
    assert told.slots(2, 4).tolist() == [[-1, 0, 0, 1], [0, 1, 1, -1]]


def test_tokens_of_a_merged_row_are_those_of_all_its_samples() -> None:
    told = Provenance()
    told.select(torch.tensor([[0, 1], [0, 2], [1, 2]]))  # of every sample
    told.merge(torch.tensor([0, 1, 0]))
    told.select(torch.tensor([[0], [1]]))  # of every row
    assert told.rows(3).tolist() == [0, 1, 0]
    assert told.slots(3, 3).tolist() == [[0, -1, -1], [-1, -1, 0], [-1, 0, -1]]
