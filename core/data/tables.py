"""Tables of images and labels: Parquet, image folders and the hub. The only user of ``datasets``.

Nothing is written beside the user's files. ``datasets`` is imported where it is used: it is slow to
import, and neither IDX files nor Parquet as `parquet` reads it need any of it.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.entry import DatasetEntry
from splitlab.core.data.parquet import read_known
from splitlab.core.data.source import Encoded, Source
from splitlab.core.data.words import brief, listing

__all__ = ["read_hub", "read_image_folders", "read_parquet"]

PARQUET_LIMIT = 2 << 30  # bytes of local Parquet up to which a split is kept in memory

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def read_parquet(files: Sequence[Path], origin: str, entry: DatasetEntry | None) -> Source:
    """Read one split from Parquet files, whose rows follow each other.

    Args:
        files: at least one.
        origin: what error messages call the split.
        entry: names the columns, before `IMAGE_COLUMNS` and `LABEL_COLUMNS` are tried.

    Raises ConfigError if a file cannot be read, no column fits, or a label is missing.
    """
    # datasets copies Parquet to Arrow files: into its own cache only where memory is too small.
    small = sum(file.stat().st_size for file in files) <= PARQUET_LIMIT
    known = read_known(files, origin, entry) if small and entry else None
    if known is not None:
        return known
    patterns = [glob.escape(str(file)) for file in files]
    return _read_table(_load_local("parquet", patterns, origin, in_memory=small), origin, entry)


def read_image_folders(parts: Sequence[Path], origin: str, entry: DatasetEntry | None) -> Source:
    """Read one split from folders that hold a folder of images for each class.

    The arguments and errors are those of `read_parquet`, with folders instead of files.
    """
    patterns = [glob.escape(str(part)) + "/*/*" for part in parts]
    settings = {"drop_labels": False, "drop_metadata": True}
    table = _load_local("imagefolder", patterns, origin, in_memory=True, **settings)
    return _read_table(table, origin, entry)


def read_hub(entry: DatasetEntry, split: str) -> Source:
    """Download a split of a named data set, or take it from the cache of ``datasets``.

    Raises ConfigError if the hub cannot be reached; it tells how to do without.
    """
    import datasets

    try:
        table = datasets.load_dataset(entry.hub, entry.config, split=split)
    # The hub's client passes on the errors of several network libraries.
    except Exception as error:  # noqa: BLE001
        raise ConfigError(
            f"data set {entry.name}: {entry.hub} cannot be loaded from the Hugging Face hub "
            f"({brief(error)}); download its Parquet files where the hub can be reached and give "
            f"their folder: --dataset {entry.name} --data-dir FOLDER"
        ) from None
    return _read_table(table, f"{entry.hub} ({split})", entry)


def _load_local(
    builder: str, patterns: list[str], origin: str, *, in_memory: bool, **settings: Any
) -> Any:
    """Run one of datasets' builders on local files; returns a `datasets.Dataset`."""
    import datasets

    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="splitlab-") as scratch:
            return datasets.load_dataset(
                builder,
                data_files=patterns,
                split="train",  # what datasets calls files that are given without a split
                cache_dir=scratch if in_memory else None,
                keep_in_memory=in_memory,
                **settings,
            )
    # Builders pass on whatever pyarrow, fsspec or the file system raise.
    except Exception as error:  # noqa: BLE001
        cause = error.__cause__ or error  # datasets wraps it in words that do not tell
        raise ConfigError(
            f"{origin} cannot be read ({brief(cause)}); are its files complete?"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep datasets from drawing bars, and from logging errors that we raise in our own words."""
    import datasets

    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _read_table(table: Any, origin: str, entry: DatasetEntry | None) -> Source:
    """Find image and label column of a `datasets.Dataset` and read the labels."""
    import datasets

    def is_image(feature: Any) -> bool:
        return isinstance(feature, datasets.Image) or (
            isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()
        )

    def is_label(feature: Any) -> bool:
        return isinstance(feature, datasets.ClassLabel) or (
            isinstance(feature, datasets.Value)
            and ("int" in feature.dtype or "string" in feature.dtype)
        )

    image_names = ((entry.image,) if entry else ()) + IMAGE_COLUMNS
    label_names = ((entry.label,) if entry else ()) + LABEL_COLUMNS
    image = _pick_column("image", table, is_image, image_names, origin)
    label = _pick_column("label", table, is_label, label_names, origin)
    feature = table.features[label]
    values = table.select_columns([label])[:][label]
    if None in values:
        raise ConfigError(f"{origin}, row {values.index(None)}: column {label} is empty")
    classes = None
    if isinstance(feature, datasets.ClassLabel):
        classes = tuple(feature.names)
    elif "string" in feature.dtype:
        classes = tuple(sorted(set(values)))
        ids = {name: number for number, name in enumerate(classes)}
        values = [ids[value] for value in values]
    images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(rows: list[int]) -> list[Encoded]:
        return images[rows][image]  # type: ignore[no-any-return]

    return Source(origin, torch.tensor(values, dtype=torch.int64), classes, read)


def _pick_column(
    what: str, table: Any, fits: Callable[[Any], bool], names: Sequence[str], origin: str
) -> str:
    """Return the column of a known name whose type fits, or else the only one whose type fits."""
    fitting: list[str] = [name for name, feature in table.features.items() if fits(feature)]
    for name in names:
        if name in fitting:
            return name
    if len(fitting) == 1:
        return fitting[0]
    raise ConfigError(
        f"{origin}: no {what} column among {listing(table.column_names)}; name it {what!r}"
    )
