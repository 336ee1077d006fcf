"""Processes that decode: the same pixels, errors and warnings as threads, and none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from splitlab.core.contract.errors import WorkerError
from splitlab.core.data.augment import augmenting
from splitlab.core.data.cache import Originals
from splitlab.core.data.decode import Decoder, Job, perform
from splitlab.core.data.fleet import Answer, Fleet, serve
from splitlab.core.data.source import Encoded, Source

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Return two processes that have decoded something."""
    with closing(Fleet(2)) as fleet:
        job = Job("L", 1, 0, "none", 0, [0], [Image.new("L", (1, 1))], keep=False)
        fleet.ask(job, job.room())
        yield fleet


def decoders(files: Any, fleet: Fleet, policy: str, **more: Any) -> list[Decoder]:
    """Return what decodes here, in threads and in processes."""

    def read(rows: list[int]) -> list[Encoded]:
        images = [files.noise(row, size=12) for row in rows]
        return [  # in every form that a source has
            image if row % 2 else {"bytes": files.png(image), "path": None}
            for row, image in zip(rows, images, strict=True)
        ]

    source = Source("here", torch.zeros(40), None, read)
    make = augmenting(policy).of_image
    augment = None if make is None else make(8)
    how = [(0, None), (2, None), (2, fleet)]
    return [Decoder(source, "RGB", 8, 5, augment, n, f, policy, **more) for n, f in how]


@pytest.mark.parametrize("policy", ["none", "paper", "timm:rand-m9-mstd0.5-inc1,scale=0.3"])
def test_processes_decode_what_threads_decode(files: Any, fleet: Fleet, policy: str) -> None:
    parts = [torch.tensor([4, 1, 39]), torch.arange(10, 31), torch.tensor([8])]
    here, threads, processes = (
        [*decoder.pixels(parts, epoch=3)] for decoder in decoders(files, fleet, policy)
    )
    for part, a, b, c in zip(parts, here, threads, processes, strict=True):
        assert a.shape == (len(part), 3, 8, 8)
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_originals_come_back_and_are_sent_again(files: Any, fleet: Fleet) -> None:
    part = torch.arange(20)
    kept = Originals("train", 40, 1e6)
    here = decoders(files, fleet, "paper")[0]
    away = decoders(files, fleet, "paper", originals=kept)[2]
    for epoch in (0, 1):
        [pixels] = away.pixels([part], epoch)
        assert torch.equal(pixels, next(here.pixels([part], epoch)))
    assert all(np.array_equal(kept.get(row), files.noise(row, size=12)) for row in range(20))


def test_a_bad_image_is_named_by_its_place(
    files: Any, load: Any, refusal: Any, tmp_path: Path
) -> None:
    files.write_image_folder(tmp_path, size=12)
    broken = tmp_path / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    here = refusal(lambda: load(tmp_path, workers=1))
    # Decoded before the first step, and as it is needed.
    assert refusal(lambda: load(tmp_path, workers=1, worker_kind="processes")) == here
    data = load(tmp_path, workers=1, worker_kind="processes", cache="none")
    with closing(data):
        message = refusal(lambda: [*data.train.batches(2)])
    assert message == here
    assert message.startswith(f"{broken}: not a readable image (")


def test_what_libraries_warn_of_is_told_here(fleet: Fleet) -> None:
    """Pillow's converter of palettes with transparency warns."""
    image = Image.new("P", (4, 4))
    image.info["transparency"] = b"\0" * 4
    job = Job("RGB", 4, 0, "none", 0, [0], [image], keep=False)
    with pytest.warns(UserWarning, match="Palette images with Transparency"):
        assert fleet.ask(job, job.room()).bad is None


def test_a_process_that_is_killed_is_told_in_one_line(files: Any) -> None:
    fleet = Fleet(1)
    decoder = decoders(files, fleet, "none")[2]
    next(decoder.pixels([torch.arange(3)], 0))
    [worker] = fleet._all
    os.kill(worker._process.pid, signal.SIGKILL)
    for _ in range(2):  # whoever asks
        with pytest.raises(WorkerError) as caught:
            next(decoder.pixels([torch.arange(3)], 0))
        assert str(caught.value) == (
            "a process that decodes images was killed by SIGKILL, out of memory?; take fewer "
            "--workers, or --worker-kind threads"
        )
        assert caught.value.status == 1
    fleet.close()
    fleet.close()


def test_a_process_that_does_not_answer_is_killed(
    files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(1)
    decoder = decoders(files, fleet, "none")[2]
    with closing(fleet):
        next(decoder.pixels([torch.arange(3)], 0))
        [worker] = fleet._all
        monkeypatch.setattr("splitlab.core.data.fleet._PATIENCE_SECONDS", 0.2)
        os.kill(worker._process.pid, signal.SIGSTOP)
        large = Job("L", 1, 0, "none", 0, [0], [np.zeros((3000, 3000), np.uint8)], keep=False)
        for asked in (large, large):  # one that waits while it sends, and one that comes later
            with pytest.raises(WorkerError) as caught:
                fleet.ask(asked, asked.room())
            assert str(caught.value) == (
                "a process that decodes images has not answered for 0.2 s and was killed; take "
                "fewer --workers, or --worker-kind threads"
            )
    assert worker._process.returncode == -signal.SIGKILL


def test_a_process_that_is_stopped_amid_a_job_is_killed(
    files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(1)
    decoder = decoders(files, fleet, "none")[2]
    with closing(fleet):
        next(decoder.pixels([torch.arange(3)], 0))
        [worker] = fleet._all
        monkeypatch.setattr("splitlab.core.data.fleet._PATIENCE_SECONDS", 0.2)
        os.kill(worker._process.pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=r"has not answered for 0\.2 s and was killed"):
            next(decoder.pixels([torch.arange(3)], 0))


def test_a_process_that_fails_tells_its_last_line() -> None:
    broken = Fleet(1)
    job = Job("RGB", 4, 0, "no such policy", 0, [0], [Image.new("L", (1, 1))], keep=False)
    with closing(broken), pytest.raises(WorkerError, match=r"status 1: .*no such policy"):
        broken.ask(job, job.room())


def test_none_that_can_be_started_is_told(monkeypatch: pytest.MonkeyPatch, refusal: Any) -> None:
    def fail(*args: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    job = Job("L", 1, 0, "none", 0, [0], [Image.new("L", (1, 1))], keep=False)
    fleet = Fleet(3)
    assert refusal(lambda: fleet.ask(job, job.room())) == (
        "--worker-kind processes: none can be started (Resource temporarily unavailable); take "
        "fewer --workers, or --worker-kind threads"
    )
    fleet.close()


def test_no_room_for_what_it_prints_is_told(monkeypatch: pytest.MonkeyPatch, refusal: Any) -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    job = Job("L", 1, 0, "none", 0, [0], [Image.new("L", (1, 1))], keep=False)
    fleet = Fleet(1)
    before = len(os.listdir("/proc/self/fd"))
    assert "none can be started (No usable temporary directory found)" in refusal(
        lambda: fleet.ask(job, job.room())
    )
    assert len(os.listdir("/proc/self/fd")) == before
    fleet.close()


def test_jobs_are_done_until_the_pipe_is_closed() -> None:
    """The process's own side, in this one: pixels behind the answer, unless an image is bad."""
    near, far = Pipe()
    good = Job("L", 2, 0, "none", 0, [0, 1], [Image.new("L", (2, 2), 9)] * 2, keep=True)
    bad = Job("L", 2, 0, "none", 0, [0, 1], [Image.new("L", (2, 2)), None], keep=True)
    with near, far:
        for job in (good, bad, None):  # what is no job ends it
            near.send(job)
        with pytest.raises(AttributeError):
            serve(far, perform)
        assert [at for at, _ in near.recv().opened] == [0, 1]
        assert near.recv_bytes() == bytes([9] * 8)
        assert near.recv() == Answer(bad=(1, "the image is missing"), warned=[])
        assert not near.poll()
