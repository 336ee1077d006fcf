"""What the tests of data share: files in every layout, loading with small defaults, refusals."""

from __future__ import annotations

import gzip
import io
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.load import Data, load_data


class Files:
    """Writes small data sets; what it writes depends on the arguments alone."""

    @staticmethod
    def noise(seed: int, *, size: int = 8, mode: str = "RGB") -> Image.Image:
        """Return an image of random bytes, of mode RGB or L."""
        channels = {"RGB": 3, "L": 1}[mode]
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 256, (size, size, channels), dtype=np.uint8)
        return Image.fromarray(values.squeeze())

    @staticmethod
    def png(image: Image.Image) -> bytes:
        stream = io.BytesIO()
        image.save(stream, "png")
        return stream.getvalue()

    def write_parquet(
        self,
        folder: Path,
        name: str,
        labels: Sequence[object],
        *,
        columns: tuple[str, str] = ("image", "label"),
        images: Sequence[bytes | None] | None = None,
        class_names: Sequence[str] | None = None,
        size: int = 8,
        mode: str = "RGB",
    ) -> Path:
        """Write as any tool would, or with the metadata of `datasets` if classes are named."""
        folder.mkdir(parents=True, exist_ok=True)
        if images is None:
            rows = range(len(labels))
            images = [self.png(self.noise(row, size=size, mode=mode)) for row in rows]
        table = pa.table(
            {
                columns[0]: pa.array(
                    [{"bytes": image, "path": None} for image in images],
                    pa.struct({"bytes": pa.binary(), "path": pa.string()}),
                ),
                columns[1]: pa.array(labels),
            }
        )
        if class_names is not None:
            features = {
                columns[0]: {"_type": "Image"},
                columns[1]: {"_type": "ClassLabel", "names": class_names},
            }
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        path = folder / name
        pq.write_table(table, path)
        return path

    @staticmethod
    def write_idx(path: Path, values: np.ndarray) -> None:
        header = b"\0\0\x08" + bytes([values.ndim])
        header += b"".join(size.to_bytes(4, "big") for size in values.shape)
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wb") as file:
            file.write(header + values.tobytes())

    def write_idx_folder(
        self, folder: Path, *, suffix: str = "", classes: int = 10
    ) -> dict[str, np.ndarray]:
        """Write 20 training and 10 test images; returns both by the prefix of their files."""
        folder.mkdir(exist_ok=True)
        images = {}
        for seed, (prefix, count) in enumerate((("train", 20), ("t10k", 10))):
            rng = np.random.default_rng(seed)
            images[prefix] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
            labels = (np.arange(count) % classes).astype(np.uint8)
            self.write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images[prefix])
            self.write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
        return images

    def write_image_folder(self, folder: Path, *, test: str = "test", size: int = 8) -> None:
        """Write 3 training and 2 test images of each of two classes."""
        for part, count in (("train", 3), (test, 2)):
            for class_name in ("cat", "dog"):
                place = folder / part / class_name
                place.mkdir(parents=True)
                for number in range(count):
                    self.noise(number, size=size).save(place / f"{number}.png")


@pytest.fixture(scope="session")
def files() -> Files:
    return Files()


@pytest.fixture(scope="session")
def load() -> Callable[..., Data]:
    """Return what loads a folder, a name or both, by default as 8 pixels of colour."""

    def load(folder: Path | None, dataset: str | None = None, **settings: Any) -> Data:
        defaults: dict[str, Any] = {"image_size": 8, "channels": 3, "seed": 0}
        return load_data(dataset, folder, **(defaults | settings))

    return load


@pytest.fixture(scope="session")
def refusal() -> Callable[[Callable[[], object]], str]:
    """Return what runs an action that must fail with a ConfigError of one line: that line."""

    def refusal(action: Callable[[], object]) -> str:
        with pytest.raises(ConfigError) as caught:
            action()
        message = str(caught.value)
        assert "\n" not in message
        return message

    return refusal


@pytest.fixture
def idx_folder(files: Files, tmp_path: Path) -> Path:
    files.write_idx_folder(tmp_path)
    return tmp_path


@pytest.fixture
def large_folder(files: Files, tmp_path: Path) -> Path:
    """Return a folder of 16 training and 16 test images, larger than they are loaded."""
    for name in ("train.parquet", "test.parquet"):
        files.write_parquet(tmp_path, name, [0, 1] * 8, size=12)
    return tmp_path


@pytest.fixture(scope="session")
def mini() -> Data:
    return load_data("fashion-mnist-mini", None, image_size=28, channels=1, seed=0)


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """Fail a test that changes global random state, or leaves a thread that has not ended yet."""
    before = _random_state()
    threads = set(threading.enumerate())
    yield
    assert _random_state() == before
    assert set(threading.enumerate()) <= threads


def _random_state() -> tuple[object, ...]:
    name, keys, *rest = np.random.get_state()
    return bytes(torch.get_rng_state().numpy()), random.getstate(), name, keys.tobytes(), *rest
