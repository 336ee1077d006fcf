"""A local folder: which layout it has, and where in it the training and the test part lie."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.entry import DatasetEntry
from splitlab.core.data.idx import read_idx
from splitlab.core.data.source import Encoded, Source
from splitlab.core.data.tables import read_image_folders, read_parquet
from splitlab.core.data.words import listing

__all__ = ["read_folder"]

TEST_NAMES = ("test", "validation", "val")
LAYOUTS = (
    "accepted are IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with "
    "t10k-, plain or .gz), Parquet files (train*.parquet and test*.parquet, here or in data/) and "
    "image folders (train/CLASS/x.png and test/CLASS/x.png)"
)


def read_folder(folder: Path, entry: DatasetEntry | None) -> tuple[Source, Source]:
    """Find out which of `LAYOUTS` a folder has, and return its training and its test part.

    The first layout that is there decides, in their order. An entry names the columns of Parquet
    files.

    Raises ConfigError if there is no such layout, a part is missing, or a file cannot be read.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"data folder {folder}: {error.strerror}; {LAYOUTS}") from None
    if not names:
        raise ConfigError(f"data folder {folder} is empty; {LAYOUTS}")

    if any(re.search(r"idx[13]-ubyte(\.gz)?$", name) for name in names):
        return _read_idx_part(folder, "train"), _read_idx_part(folder, "t10k")

    layouts = ((_find_parquet, read_parquet), (_find_image_folder, read_image_folders))
    for find, read in layouts:
        train, test = find(folder, ("train",)), find(folder, TEST_NAMES)
        if train and test:
            return (
                read(train, f"{folder} (training part)", entry),
                read(test, f"{folder} (test part)", entry),
            )
        if train or test:
            missing = "test" if train else "training"
            raise ConfigError(f"data folder {folder} has no {missing} part; {LAYOUTS}")
    raise ConfigError(f"data folder {folder} holds {listing(names)}; {LAYOUTS}")


def _read_idx_part(folder: Path, prefix: str) -> Source:
    """Read the images and the labels of one part, e.g. of prefix ``train``."""
    arrays = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        pattern = rf"{prefix}.*{what}.*idx{dimensions}-ubyte(\.gz)?"
        found = sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name))
        if not found:
            raise ConfigError(
                f"data folder {folder} has no {prefix}-{what}-idx{dimensions}-ubyte; {LAYOUTS}"
            )
        values = read_idx(found[0])
        if values.dim() != dimensions:
            raise ConfigError(
                f"{found[0]}: {values.dim()} dimensions, {what} have {dimensions}; is it misnamed?"
            )
        arrays.append(values)
    images, labels = arrays
    origin = f"{folder} ({prefix}-*)"
    if len(images) != len(labels):
        raise ConfigError(f"{origin}: {len(images):,} images, but {len(labels):,} labels")

    def read(rows: list[int]) -> list[Encoded]:
        return [Image.fromarray(images[row].numpy()) for row in rows]

    contents = hashlib.sha256(images.numpy()).hexdigest()
    return Source(origin, labels.long(), None, read, contents)


def _find_parquet(folder: Path, prefixes: Sequence[str]) -> list[Path]:
    """Return the Parquet files of the first prefix that has any, here before in ``data/``."""
    for place in (folder, folder / "data"):
        for prefix in prefixes:
            if found := sorted(place.glob(f"{prefix}*.parquet")):
                return found
    return []


def _find_image_folder(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the first folder of these names that holds class folders, if there is one."""
    for name in names:
        part = folder / name
        if any(path.is_dir() for path in part.glob("*")):
            return [part]
    return []
