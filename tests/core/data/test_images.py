"""One image: upright, not clipped, and augmented by its own draws alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from splitlab.core.data.load import load_data


def test_seed_epoch_and_sample_decide_and_nothing_else(load: Any, large_folder: Path) -> None:
    def images(seed: int, epoch: int, **how: object) -> torch.Tensor:
        split = load(large_folder, augment="paper", seed=seed, **how).train
        batches = list(split.batches(4, epoch=epoch, shuffle=True))
        order = torch.cat([batch.sample_ids for batch in batches])
        return torch.cat([batch.images for batch in batches])[order.argsort()]

    first = images(0, 0)
    assert first.shape == (16, 3, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(images(0, 0), first)
    assert torch.equal(images(0, 0, workers=3), first)
    for other in (images(1, 0), images(0, 1)):
        # An image stays the same only where all its 192 bytes do; one such coincidence is forgiven.
        changed = (other != first).flatten(1).any(1)
        assert changed.sum() >= 15


def test_grey_images_too() -> None:
    data = load_data("fashion-mnist-mini", None, image_size=32, channels=1, seed=0, augment="paper")
    assert next(data.train.batches(200, shuffle=True)).images.shape == (200, 1, 32, 32)


def test_photographs_are_turned_upright(files: Any, load: Any, tmp_path: Path) -> None:
    files.write_image_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    files.noise(0).rotate(180).save(tmp_path / "test" / "cat" / "0.png", exif=exif)
    data = load(tmp_path)
    first, second = next(data.train.batches(1)).images, next(data.test.batches(1)).images
    assert torch.equal(first, second)


def test_deep_colour_is_refused_instead_of_clipped(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    deep = files.png(Image.new("I;16", (8, 8), 40_000))
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [0], images=[deep])
    with Image.open(io.BytesIO(deep)) as image:
        mode = image.mode  # Pillow has called it I and I;16
    assert mode.startswith("I")
    assert f"mode {mode}, not 8 bits per channel" in refusal(lambda: load(tmp_path))
