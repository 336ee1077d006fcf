"""A split: its order, its batches, and that keeping decoded images changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.decode import Decoder
from splitlab.core.data.load import Data
from splitlab.core.data.split import Split


@given(
    epoch=st.integers(0, 5),
    skip=st.integers(0, 12),
    size=st.integers(7, 900),
    mix=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_skip_equals_slicing_and_every_sample_comes_once(
    mini: Data, epoch: int, skip: int, size: int, mix: bool
) -> None:
    whole = list(mini.test.batches(size, epoch=epoch, shuffle=mix))
    ids = torch.cat([batch.sample_ids for batch in whole])
    assert torch.equal(ids.sort().values, torch.arange(1_000))
    assert all(len(batch.targets) == size for batch in whole[:-1])
    rest = list(mini.test.batches(size, epoch=epoch, skip=skip, shuffle=mix))
    assert len(rest) == len(whole[skip:])
    for ours, theirs in zip(rest, whole[skip:], strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets, theirs.targets)
        assert torch.equal(ours.sample_ids, theirs.sample_ids)


def test_seed_and_epoch_decide_the_order_and_nothing_else(
    files: Any, load: Any, tmp_path: Path
) -> None:
    files.write_idx_folder(tmp_path)

    def order(seed: int, epoch: int, part: str = "train") -> list[int]:
        split: Split = getattr(load(tmp_path, seed=seed), part)
        return next(split.batches(20, epoch=epoch, shuffle=True)).sample_ids.tolist()

    first = order(0, 0)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert order(0, 0, "test") != [row for row in first if row < 10]
    assert first != list(range(20))


def test_sample_ids_name_the_same_images_in_every_epoch(mini: Data) -> None:
    plain = next(mini.test.batches(1_000))
    mixed = next(mini.test.batches(1_000, epoch=3, shuffle=True))
    assert torch.equal(plain.images[mixed.sample_ids], mixed.images)
    assert torch.equal(plain.targets[mixed.sample_ids], mixed.targets)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    count=st.integers(1, 70),
    less=st.integers(1, 70),
)
def test_a_balanced_part_has_every_class_alike_as_far_as_it_goes(
    labels: list[int], count: int, less: int
) -> None:
    split = Split.__new__(Split)  # of the labels, and of nothing else
    split.classes, split._targets = tuple("abcde"), torch.tensor(labels)
    rows = split.balanced(count).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == min(count, len(labels))
    sizes = {label: labels.count(label) for label in set(labels)}
    taken = {label: sum(labels[row] == label for row in rows) for label in sizes}
    # A class that has fewer than another has no more, or comes later in the last round.
    for label, number in taken.items():
        assert number == sizes[label] or number >= max(taken.values()) - 1
    assert set(split.balanced(min(less, count)).tolist()) <= set(rows)


def test_a_balanced_part_does_not_depend_on_the_seed_and_is_drawn(
    files: Any, load: Any, tmp_path: Path
) -> None:
    files.write_parquet(tmp_path, "train.parquet", [*range(5)])
    files.write_parquet(tmp_path, "test.parquet", [*range(5)] * 9)
    first = load(tmp_path, seed=0).test.balanced(10)
    assert torch.equal(load(tmp_path, seed=1).test.balanced(10), first)
    assert first.tolist() != [*range(10)]  # not the first of each class: a file may be sorted


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "auto"])
def test_of_some_rows_no_others_are_decoded(
    files: Any,
    load: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    cache: str,
) -> None:
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [*range(5)] * 9)
    monkeypatch.setattr("splitlab.core.data.split.DECODED_AHEAD", 0)
    test = load(tmp_path, workers=workers, cache=cache).test
    decode, decoded = Decoder._decode, []

    def noting(self: Decoder, row: int, *rest: Any) -> torch.Tensor:
        decoded.append(row)
        return decode(self, row, *rest)

    monkeypatch.setattr(Decoder, "_decode", noting)
    rows = torch.tensor([40, 3, 17])
    some = list(test.batches(2, rows=rows))
    assert sorted(decoded) == [3, 17, 40]
    assert [batch.sample_ids.tolist() for batch in some] == [[40, 3], [17]]
    whole = next(test.batches(45))
    assert torch.equal(torch.cat([b.images for b in some]), whole.images[rows])
    assert torch.equal(torch.cat([b.targets for b in some]), whole.targets[rows])
    [skipped] = test.batches(2, rows=rows, skip=1)
    assert skipped.sample_ids.tolist() == [17]


@pytest.mark.parametrize(("size", "skip"), [(0, 0), (-1, 0), (5, -1)])
def test_impossible_sizes_are_refused_at_once(mini: Data, size: int, skip: int) -> None:
    with pytest.raises(ConfigError, match="at least"):
        mini.test.batches(size, skip=skip)


@pytest.mark.parametrize("workers", [0, 3])
def test_decoding_when_needed_gives_the_same_batches(
    files: Any, load: Any, tmp_path: Path, workers: int
) -> None:
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [*range(5)] * 9)
    kept = load(tmp_path, workers=workers)
    lazy = load(tmp_path, workers=workers, cache="none")
    pairs = zip(
        kept.train.batches(4, epoch=2, skip=1, shuffle=True),
        lazy.train.batches(4, epoch=2, skip=1, shuffle=True),
        strict=True,
    )
    for ours, theirs in pairs:
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.sample_ids, theirs.sample_ids)


def test_image_folders_are_read_again_when_a_batch_needs_them(
    files: Any, load: Any, tmp_path: Path
) -> None:
    files.write_image_folder(tmp_path)
    kept = load(tmp_path)
    lazy = load(tmp_path, workers=2, cache="none")
    for ours, theirs in zip(kept.test.batches(3), lazy.test.batches(3), strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_only_training_is_augmented(load: Any, large_folder: Path) -> None:
    plain, augmented = load(large_folder), load(large_folder, augment="paper")
    pairs = zip(plain.test.batches(16), augmented.test.batches(16), strict=True)
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in pairs)
    ours, theirs = next(plain.train.batches(16)), next(augmented.train.batches(16))
    # An image stays the same only where all its 192 bytes do; one such coincidence is forgiven.
    assert (ours.images != theirs.images).flatten(1).any(1).sum() >= 15


def test_a_resumed_run_sees_the_same_images(load: Any, large_folder: Path) -> None:
    split = load(large_folder, augment="paper").train
    whole = list(split.batches(5, epoch=4, shuffle=True))
    for skip in range(5):
        rest = list(split.batches(5, epoch=4, skip=skip, shuffle=True))
        for ours, theirs in zip(rest, whole[skip:], strict=True):
            assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_images_are_decoded_as_they_are_needed(
    files: Any, load: Any, refusal: Any, tmp_path: Path, monkeypatch: Any, workers: int
) -> None:
    files.write_image_folder(tmp_path)
    first = load(tmp_path)
    monkeypatch.setattr("splitlab.core.data.split.DECODED_AHEAD", 4)
    broken = tmp_path / "train" / "dog" / "2.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"broken")
    told: list[str] = []
    data = load(tmp_path, workers=workers, loading=lambda *news: told.append(news[0]))
    assert set(told) == {"test"}  # which has but 4
    message = refusal(lambda: list(data.train.batches(2)))
    assert message.startswith(f"{broken}: not a readable image")
    broken.write_bytes(whole)
    for epoch in (0, 1):
        pairs = (split.train.batches(4, epoch=epoch, shuffle=True) for split in (first, data))
        for ours, theirs in zip(*pairs, strict=True):
            assert torch.equal(ours.images, theirs.images)
