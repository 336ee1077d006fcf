"""Images that are kept: decoded once, where there is room, and equal to those that are not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from splitlab.core.contract.errors import ConfigError, Notice
from splitlab.core.data import cache as module
from splitlab.core.data.cache import Kept, Originals, kept_on, room_for_originals
from splitlab.core.data.decode import Decoder
from splitlab.core.data.source import Source

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_decoded_when_it_is_first_asked_for_and_kept(files: Any, workers: int) -> None:
    read: list[int] = []

    def images(rows: list[int]) -> list[Image.Image]:
        read.extend(rows)
        return [files.noise(row) for row in rows]

    source = Source("here", torch.zeros(9), None, images)
    kept = Kept(Decoder(source, "RGB", 8, 0, None, workers), (9, 3, 8, 8))
    assert read == []
    some = [torch.tensor([4, 1]), torch.tensor([8])]
    first = torch.cat(list(kept.pixels(some, epoch=0)))
    assert sorted(read) == [1, 4, 8]
    assert torch.equal(torch.cat(list(kept.pixels(some, epoch=1))), first)
    assert sorted(read) == [1, 4, 8]
    mixed = [torch.tensor([4, 0, 8]), torch.tensor([1]), torch.tensor([2, 3])]
    pixels = torch.cat(list(kept.pixels(mixed, epoch=0)))
    assert sorted(read) == [0, 1, 2, 3, 4, 8]
    want = [torch.from_numpy(np.array(files.noise(r))).permute(2, 0, 1) for r in (4, 0, 8, 1, 2, 3)]
    assert torch.equal(pixels, torch.stack(want))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_images_on_a_gpu_are_those_of_the_cpu(files: Any, load: Any, large_folder: Path) -> None:
    how = {"augment": "device:pad=2,hflip=0.5,erase=0.5", "device": "cuda"}
    plain = load(large_folder, augment=how["augment"])
    for cache in ("gpu", "memory", "none"):
        data = load(large_folder, cache=cache, **how)
        for epoch in (0, 1):
            pairs = (d.train.batches(5, epoch=epoch, shuffle=True) for d in (plain, data))
            for ours, theirs in zip(*pairs, strict=True):
                assert theirs.images.device.type == "cuda"
                assert torch.equal(ours.images, theirs.images.cpu())
                assert torch.equal(ours.sample_ids, theirs.sample_ids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_an_epoch_takes_no_more_of_a_gpu_than_the_one_before(load: Any, large_folder: Path) -> None:
    data, reserved = load(large_folder, cache="none", device="cuda"), []
    for epoch in range(6):
        for batch in data.train.batches(5, epoch=epoch):
            batch.images.sum()
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[1:] == reserved[1:2] * 5


@pytest.mark.parametrize("augment", ["none", "device:scale=0.3,hflip=0.5,erase=0.5", "paper"])
def test_no_cache_changes_a_batch(load: Any, large_folder: Path, augment: str) -> None:
    caches = ["none", "auto", "memory", *(["gpu"] if augment != "paper" else [])]
    parts = {cache: load(large_folder, augment=augment, cache=cache) for cache in caches}
    for epoch in (0, 1):  # the second one comes from the cache
        batches = {
            cache: [*data.train.batches(5, epoch=epoch, shuffle=True)]
            for cache, data in parts.items()
        }
        for cache, found in batches.items():
            for ours, theirs in zip(batches["none"], found, strict=True):
                assert torch.equal(ours.images, theirs.images), cache
                assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.parametrize("workers", [0, 2])
def test_originals_are_read_once(files: Any, workers: int) -> None:
    read: list[int] = []

    def images(rows: list[int]) -> list[Image.Image]:
        read.extend(rows)
        return [files.noise(row, size=6 + row) for row in rows]

    def augment(image: Image.Image, draws: torch.Generator) -> Image.Image:
        sizes.append(image.size[0])
        return image.crop((0, 0, 4, 4))

    sizes: list[int] = []
    source = Source("here", torch.zeros(9), None, images)
    kept = Originals("train", 9, 1e6)
    decoder = Decoder(source, "RGB", 4, 5, augment, workers, originals=kept)
    parts = [torch.tensor([4, 1]), torch.tensor([8])]
    first = torch.cat([*decoder.pixels(parts, epoch=0)])
    again = torch.cat([*decoder.pixels([torch.tensor([1, 3, 8, 4])], epoch=1)])
    assert sorted(read) == [1, 3, 4, 8]
    assert sorted(sizes) == [7, 7, 9, 10, 10, 14, 14]  # as they were stored
    assert torch.equal(again[[3, 0, 2]], first)


def test_originals_without_room_are_told_once_and_not_kept() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    kept = Originals("train", 1000, room=650)
    kept.keep(7, image)
    kept.keep(7, image)  # kept already: takes no room
    kept.keep(8, image)
    with pytest.warns(Notice, match=r"keeps 2 of 1,000 train images, 0\.0 MB: 75% of the memory"):
        kept.keep(9, image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.keep(10, image)
    assert [row for row in range(12) if kept.get(row) is not None] == [7, 8]


def test_originals_have_what_other_parts_leave(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    assert room_for_originals({"test": (10, 3, 4, 4)}) == 750 - 480
    monkeypatch.setattr(module, "free_bytes", lambda device: None)
    assert room_for_originals({}) == float("inf")


def test_auto_keeps_what_is_small_or_a_tenth_of_what_is_free(monkeypatch: Any) -> None:
    big = {"train": (10_000, 3, 224, 224), "test": (1_000, 3, 224, 224)}  # 1.5 GB and 0.15 GB
    monkeypatch.setattr(module, "free_bytes", lambda device: 17 * 10**9)
    assert kept_on("auto", big, GPU) == {"train": CPU, "test": CPU}
    monkeypatch.setattr(module, "free_bytes", lambda device: 16 * 10**9)
    assert kept_on("auto", big, GPU) == {"train": None, "test": CPU}
    monkeypatch.setattr(module, "free_bytes", lambda device: None)
    assert kept_on("auto", big, GPU) == {"train": None, "test": CPU}
    assert kept_on("none", big, GPU) == {"train": None, "test": None}
    assert kept_on("memory", big, GPU) == {"train": CPU, "test": CPU}
    assert kept_on("gpu", big, GPU) == {"train": GPU, "test": GPU}
    assert kept_on("gpu", big, CPU) == {"train": CPU, "test": CPU}
    assert kept_on("gpu", {}, GPU) == {}


def test_what_does_not_fit_is_refused_with_its_numbers(refusal: Any, monkeypatch: Any) -> None:
    big = {"train": (10_000, 3, 224, 224), "test": (1_000, 3, 224, 224)}
    monkeypatch.setattr(module, "free_bytes", lambda device: 2 * 10**9)
    assert refusal(lambda: kept_on("gpu", big, GPU)) == (
        "--cache gpu: 10,000 train and 1,000 test images of 3 × 224 × 224 bytes take 1.7 GB, and "
        "75% of the 2.0 GB that are free on cuda:0 may be taken; take --cache memory or --cache "
        "none, or a smaller --image-size"
    )
    message = refusal(lambda: kept_on("memory", big, GPU))
    assert "free in memory may be taken; take --cache none, or a smaller" in message


def test_free_memory_is_the_least_of_what_machine_and_container_leave(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   64 kB\n")
    assert [*module._of_the_machine(tmp_path / "meminfo")] == [65536]
    assert [*module._of_the_machine(tmp_path / "none")] == []
    assert [*module._of_the_container(tmp_path)] == []
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 20\ninactive_file 30\n")
    assert [*module._of_the_container(tmp_path)] == [150]
    (tmp_path / "memory.max").write_text("max\n")
    assert [*module._of_the_container(tmp_path)] == []
    assert module.free_bytes(torch.device("meta")) is None
    free = module.free_bytes(CPU)
    assert free is None or free > 0


def test_what_torch_keeps_of_an_earlier_run_is_free(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    assert module.free_bytes(GPU) == 65


def test_what_is_augmented_as_it_is_stored_is_no_matter_for_a_gpu(
    load: Any, refusal: Any, large_folder: Path
) -> None:
    message = refusal(lambda: load(large_folder, augment="paper", cache="gpu"))
    assert message == (
        "--cache gpu: --augment paper acts on images as they are stored, on the CPU; take "
        "--cache memory, or --augment device:…, which acts on the device"
    )
    with pytest.raises(ConfigError, match="unknown cache 'disk'; known: auto, gpu, memory, none"):
        load(large_folder, cache="disk")
    with pytest.raises(ConfigError, match="unknown kind of worker 'fork'"):
        load(large_folder, worker_kind="fork")
