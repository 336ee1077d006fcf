"""Augmentation of batches: exact where it moves pixels, Pillow's where it resamples, and drawn by
every sample for itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as V

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.batchwise import BatchAugmentation, _box

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
        ],
    ),
]
parse = BatchAugmentation.parse


def noise(count: int, size: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8)
    return torch.from_numpy(values)


@pytest.mark.parametrize("device", DEVICES)
@given(
    pad=st.integers(0, 3),
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    vflip=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_crops_and_flips_are_torchvisions_to_the_bit(
    device: str, pad: int, hflip: float, vflip: float, seed: int
) -> None:
    wanted = BatchAugmentation(pad=pad, hflip=hflip, vflip=vflip)
    pixels, drawn = noise(9, 8), wanted.draw(9, seed, 0)
    got = wanted.cropped(pixels.to(device), drawn, 8).cpu()
    assert got.dtype == torch.uint8
    for image, numbers, result in zip(pixels, drawn.tolist(), got, strict=True):
        top, left = (math.floor(np.float32(u) * np.float32(2 * pad + 1)) for u in numbers[2:4])
        want = V.crop(V.pad(image, [pad]), top, left, 8, 8)
        want = V.vertical_flip(want) if numbers[0] < vflip else want
        want = V.horizontal_flip(want) if numbers[1] < hflip else want
        assert torch.equal(result, want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("stored", "size"), [(16, 8), (12, 11), (9, 14)])
def test_resampled_crops_are_pillows_within_its_rounding(
    device: str, stored: int, size: int
) -> None:
    wanted = BatchAugmentation(scale=0.2, hflip=0.5, stored=stored)
    assert wanted.stored_size(size) == stored
    pixels, drawn = noise(40, stored), wanted.draw(40, 3, 0)
    got = wanted.cropped(pixels.to(device), drawn, size)
    assert got.dtype == torch.float32
    assert got.shape == (40, 3, size, size)
    boxes, found = _box(drawn[:, 7:27], (0.2, 1.0), 0.75, stored, stored)
    for i, (height, width) in enumerate(torch.where(found[:, None], boxes, stored).tolist()):
        room = torch.tensor([stored + 1 - height, stored + 1 - width])
        top, left = (drawn[i, 2:4] * room).long().tolist()
        image = Image.fromarray(pixels[i].permute(1, 2, 0).numpy())
        box = (left, top, left + width, top + height)
        crop = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
        want = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        want = want.flip(-1) if drawn[i, 1] < 0.5 else want
        # Pillow rounds to 8 bits after either axis.
        assert (got[i].cpu() - want).abs().max() <= 1.01


@pytest.mark.parametrize("device", DEVICES)
def test_a_box_is_erased_with_the_mean_colour(device: str) -> None:
    wanted = BatchAugmentation(erase=0.5)
    drawn, S = wanted.draw(400, 1, 0), 32
    images = wanted.erased(torch.ones(400, 1, S, S, device=device), drawn).cpu()
    sides, found = _box(drawn[:, 27:47], (0.02, 0.33), 0.3, S, S - 1)
    chosen = found & (drawn[:, 4] < 0.5)
    assert 100 < chosen.sum() < 300
    for image, (height, width), here in zip(images[:, 0], sides.tolist(), chosen, strict=True):
        hole = (image == 0).nonzero()
        assert len(hole) == (height * width if here else 0)
        if here:
            assert ((hole.amax(0) - hole.amin(0)) + 1).tolist() == [height, width]
            assert 0.01 * S * S < height * width < 0.36 * S * S  # of whole pixels
    ones = torch.ones(2, 1, 4, 4)
    assert BatchAugmentation().erased(ones, drawn[:2]) is ones


def test_areas_ratios_and_places_are_spread_over_their_ranges() -> None:
    drawn = torch.rand(20_000, 20, generator=torch.Generator().manual_seed(0))
    sides, found = _box(drawn, (0.2, 1.0), 0.5, 64, 64)
    assert found.all()  # of ten attempts
    assert sides.min() >= 1
    assert sides.max() <= 64
    areas, ratios = sides.prod(1) / 64**2, sides[:, 1] / sides[:, 0]
    assert areas.min() < 0.21
    assert areas.max() > 0.95
    assert ratios.min() < 0.55
    assert ratios.max() > 1.8
    _, found = _box(torch.full((1, 20), 0.999), (0.9, 1.0), 0.1, 64, 64)
    assert not found.any()  # far too wide, ten times


def test_a_sample_draws_the_same_wherever_it_stands(load: Any, large_folder: Any) -> None:
    def images(epoch: int, size: int, seed: int = 0, **how: Any) -> torch.Tensor:
        augment = "device:pad=3,hflip=0.5,erase=0.5"
        split = load(large_folder, augment=augment, seed=seed, **how).train
        batches = [*split.batches(size, epoch=epoch, shuffle=True)]
        order = torch.cat([batch.sample_ids for batch in batches])
        return torch.cat([batch.images for batch in batches])[order.argsort()]

    first = images(2, 5)
    assert torch.equal(images(2, 16, workers=2), first)
    for other in (images(3, 5), images(2, 5, seed=1)):
        assert (other != first).flatten(1).any(1).sum() >= 8


def test_a_resumed_epoch_goes_on_with_the_same_images(load: Any, large_folder: Any) -> None:
    how = {"augment": "device:scale=0.3,hflip=0.5,erase=0.5", "cache": "memory"}
    whole = [*load(large_folder, **how).train.batches(5, epoch=4, shuffle=True)]
    rest = [*load(large_folder, **how).train.batches(5, epoch=4, skip=2, shuffle=True)]
    for ours, theirs in zip(rest, whole[2:], strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_only_training_is_augmented_and_stored_larger(load: Any, large_folder: Any) -> None:
    plain = load(large_folder)
    data = load(large_folder, augment="device:scale=0.3,stored=12")
    for ours, theirs in zip(plain.test.batches(16), data.test.batches(16), strict=True):
        assert torch.equal(ours.images, theirs.images)
    assert data.train._images._images.shape == (16, 3, 12, 12)
    assert BatchAugmentation(scale=0.5).stored_size(224) == 256
    assert BatchAugmentation(pad=4).stored_size(32) == 32


def test_settings_are_read() -> None:
    assert parse("pad=4,hflip=0.5") == BatchAugmentation(pad=4, hflip=0.5)
    assert parse("scale=0.35,ratio=0.8,vflip=1,erase=0.1,stored=300") == BatchAugmentation(
        scale=0.35, ratio=0.8, vflip=1.0, erase=0.1, stored=300
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "--augment device: has no setting behind it; write device:key=value"),
        ("zoom=2", "unknown setting 'zoom'"),
        ("pad=1.5", r"pad=1\.5 is not allowed; whole numbers from 0 to 256"),
        ("hflip=2", "hflip=2 is not allowed; from 0 to 1"),
        ("hflip=nan", "hflip=nan is not allowed"),
        ("scale=0", r"scale=0 is not allowed; from 0\.001 to 1"),
        ("stored=", "stored= is not allowed"),
        ("pad=2,scale=0.5", "pad and scale are two ways to crop; keep one"),
        ("ratio=0.5", "ratio is of crops that are resampled; give scale, too"),
        ("stored=256", "stored is of crops that are resampled; give scale, too"),
    ],
)
def test_bad_settings_are_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        parse(text)
    assert str(caught.value).startswith(f"--augment device:{text}")
