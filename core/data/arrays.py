"""Images and labels as arrays in memory: from the two IDX files of a part, or from an .npz file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.idx import read_idx
from splitlab.core.data.images import scale_deep
from splitlab.core.data.labels import class_ids
from splitlab.core.data.source import Encoded, Source
from splitlab.core.data.words import brief

__all__ = ["find_npz_parts", "read_idx_part", "read_npz_part"]

Array = npt.NDArray[Any]

# What the arrays of a part are called, whatever their case; the last of a file without parts.
NPZ_NAMES = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}_x", "{}_y"))
NPZ_WHOLE = (("x", "y"), ("images", "labels"))


def read_idx_part(images: Path, labels: Path, origin: str) -> Source:
    """Read one split from its two IDX files.

    Raises ConfigError if a file is none, or they do not belong together.
    """
    pixels, ids = read_idx(images), read_idx(labels)
    for path, values, what, dimensions in (
        (images, pixels, "images", 3),
        (labels, ids, "labels", 1),
    ):
        if values.dim() != dimensions:
            raise ConfigError(
                f"{path}: {values.dim()} dimensions, {what} have {dimensions}; is it misnamed?"
            )
    return _source(pixels.numpy(), ids.numpy(), origin)


def find_npz_parts(file: Path) -> Mapping[str, tuple[Path, str, str]]:
    """Return for each part that the file has the file, and the names of its two arrays.

    A part is called what stands for {} in `NPZ_NAMES`; the empty name is that of a file that says
    nothing of parts. Raises ConfigError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{file}: cannot be read ({brief(error)}); copy it again") from None
    by_lower = {name.lower(): name for name in members}
    parts: dict[str, tuple[Path, str, str]] = {}
    for images, labels in NPZ_NAMES:
        before, _, after = images.partition("{}")
        for name in by_lower:
            part = name.removeprefix(before).removesuffix(after)
            if name == images.format(part) and (label := labels.format(part)) in by_lower:
                parts.setdefault(part, (file, by_lower[name], by_lower[label]))
    for image, label in NPZ_WHOLE:
        if image in by_lower and label in by_lower:
            parts.setdefault("", (file, by_lower[image], by_lower[label]))
    return parts


def read_npz_part(file: Path, images: str, labels: str, origin: str) -> Source:
    """Read one split from two arrays of an .npz file; an array of Python objects is refused.

    Args:
        file: the archive.
        images: name of an array of uint8 or uint16, (N, H, W), or with 1, 3 or 4 channels behind
            or ahead of H and W.
        labels: name of an array of (N) or (N, 1).
        origin: what error messages call the split.

    Raises ConfigError if an array cannot be read, or is not what its name says.
    """
    with zipfile.ZipFile(file) as archive:
        pixels, ids = (_read_array(archive, file, name) for name in (images, labels))
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4) and pixels.shape[1] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 1, 3)
    fits = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3, 4))
    if pixels.dtype not in (np.uint8, np.uint16) or not fits:
        raise ConfigError(
            f"{file}: {images} is {pixels.dtype} of shape {pixels.shape}; images are uint8, 0 to "
            "255, or uint16, of shape (N, H, W) or (N, H, W, 3)"
        )
    if ids.ndim == 2 and ids.shape[1] == 1:
        ids = ids[:, 0]
    if ids.ndim != 1 or ids.dtype.kind not in "iufbU":
        raise ConfigError(
            f"{file}: {labels} is {ids.dtype} of shape {ids.shape}; labels are numbers or texts, "
            "one an image: shape (N,) or (N, 1)"
        )
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    return _source(pixels, ids, origin, labels)


def _read_array(archive: zipfile.ZipFile, file: Path, name: str) -> Array:
    try:
        with archive.open(f"{name}.npy") as stream:
            found: Array = np.lib.format.read_array(stream)
    # A damaged archive or array is answered with errors of half a dozen types.
    except Exception as error:  # noqa: BLE001
        raise ConfigError(
            f"{file}: {name} cannot be read ({brief(error)}); save it again, as plain numbers"
        ) from None
    return found


def _source(images: Array, labels: Array, origin: str, column: str = "labels") -> Source:
    """Return arrays of images and labels as a source."""
    if len(images) != len(labels):
        raise ConfigError(f"{origin}: {len(images):,} images, but {len(labels):,} labels")
    ids, classes = class_ids(labels.tolist(), origin, column)
    deep = images.dtype == np.uint16

    def read(rows: list[int]) -> list[Encoded]:
        eight = (scale_deep(image) if deep else image for image in (images[row] for row in rows))
        return [Image.fromarray(np.ascontiguousarray(image)) for image in eight]

    contents = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return Source(origin, ids, classes, read, contents)
