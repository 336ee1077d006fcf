"""Decoding: only what is asked for, in threads that end, with bad images named."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.seeding import derive_seed
from splitlab.core.data.decode import Decoder
from splitlab.core.data.load import NORMALISATION
from splitlab.core.data.source import Source


def test_images_are_resized_only_where_their_size_differs(
    files: Any, load: Any, tmp_path: Path
) -> None:
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [0], size=16)
    for size in (16, 8, 24):
        image = files.noise(0, size=16)
        if size != 16:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        got = next(load(tmp_path, image_size=size).test.batches(1)).images[0]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALISATION[3])
        want = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_not_decoded(
    files: Any, load: Any, tmp_path: Path, workers: int
) -> None:
    good = files.png(files.noise(0))
    files.write_parquet(
        tmp_path, "train.parquet", [0, 1, 0, 1], images=[b"bad", b"bad", good, good]
    )
    files.write_parquet(tmp_path, "test.parquet", [0, 1])
    split = load(tmp_path, workers=workers, cache="none").train
    assert [batch.sample_ids.tolist() for batch in split.batches(2, skip=1)] == [[2, 3]]
    with pytest.raises(ConfigError, match="row 0: not a readable image"):
        next(split.batches(2))


def test_leaving_an_epoch_early_leaves_no_thread(files: Any, load: Any, tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [0, 1] * 20)
    before = set(threading.enumerate())
    batches = load(tmp_path, workers=2, cache="none").train.batches(2)
    assert len(next(batches).targets) == 2
    assert set(threading.enumerate()) > before
    del batches
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_draws_from_a_generator_of_seed_epoch_and_row(files: Any, workers: int) -> None:
    drawn: list[int] = []

    def augment(image: Image.Image, draws: torch.Generator) -> Image.Image:
        drawn.append(draws.initial_seed())
        return image

    source = Source("here", torch.zeros(9), None, lambda rows: [files.noise(row) for row in rows])
    decoder = Decoder(source, "RGB", 8, 5, augment, workers)
    parts = [torch.tensor([4, 1]), torch.tensor([8])]
    pixels = torch.cat(list(decoder.pixels(parts, epoch=2)))
    assert sorted(drawn) == sorted(derive_seed(5, "augment", 2, row) for row in (4, 1, 8))
    want = [torch.from_numpy(np.array(files.noise(row))).permute(2, 0, 1) for row in (4, 1, 8)]
    assert torch.equal(pixels, torch.stack(want))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_named(
    files: Any, load: Any, refusal: Any, tmp_path: Path, workers: int
) -> None:
    files.write_image_folder(tmp_path / "a")
    broken = tmp_path / "a" / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    message = refusal(lambda: load(tmp_path / "a", workers=workers))
    assert message.startswith(f"{broken}: not a readable image")
    good = files.png(files.noise(0))
    files.write_parquet(tmp_path / "b", "train.parquet", [0, 1, 1], images=[good, None, good])
    files.write_parquet(tmp_path / "b", "test.parquet", [0, 1])
    message = refusal(lambda: load(tmp_path / "b", workers=workers))
    assert "(training part), row 1: not a readable image" in message
