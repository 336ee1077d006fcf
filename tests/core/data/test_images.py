"""One image: upright, not clipped, and augmented by its own draws alone."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from splitlab.core.data.images import open_image
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


def test_deep_grey_is_scaled(files: Any, load: Any, tmp_path: Path) -> None:
    values = [0, 256, 257, 40_000, 65_535]
    for name in ("train.parquet", "test.parquet"):
        images = [files.png(Image.new("I;16", (8, 8), value)) for value in values]
        files.write_parquet(tmp_path, name, [0] * 5, images=images)
    got = next(load(tmp_path, channels=1).train.batches(5)).images[:, 0, 0, 0]
    want = torch.tensor([0, 1, 1, 156, 255])  # a share of 65,535, rounded
    torch.testing.assert_close(got, want / 255 / 0.5 - 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(files: Any, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.arange(3 * 5, dtype=np.uint8).reshape(3, 5))
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        want = ImageOps.exif_transpose(opened)
    got = open_image({"bytes": None, "path": str(tmp_path / "x.png")}, "L")
    assert np.array_equal(np.asarray(got), np.asarray(want))


def exif(entries: list[tuple[int, int, int, bytes]], more: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return head + body + b"\0\0\0\0" + more


@pytest.mark.parametrize(
    ("raw", "turned"),
    [
        # Orientation 6, and a resolution of 1 / 0 pixels.
        (
            exif(
                [
                    (0x112, 3, 1, struct.pack("<HH", 6, 0)),
                    (0x11A, 5, 1, struct.pack("<I", 8 + 2 + 24 + 4)),
                ],
                struct.pack("<II", 1, 0),
            ),
            True,
        ),
        (b"Exif\0\0Exif\0\0II*\0\x08\0\0\0\0\0", False),
        (b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0", False),
        (b"Exif\0\0garbage", False),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_stop_a_run(files: Any, raw: bytes, turned: bool) -> None:
    stream = io.BytesIO()
    files.noise(0).crop((0, 0, 8, 4)).save(stream, "jpeg", exif=raw)
    image = open_image({"bytes": stream.getvalue(), "path": None}, "RGB")
    assert image.size == ((4, 8) if turned else (8, 4))


def test_depth_without_a_known_white_is_refused_instead_of_clipped(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    Image.new("F", (8, 8), 300.0).save(stream, "tiff")
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [0], images=[stream.getvalue()])
    assert "mode F, not 8 or 16 bits of grey" in refusal(lambda: load(tmp_path))
