"""Tables of images and labels: Parquet, Arrow and the hub. The only user of ``datasets``.

Nothing is written beside the user's files. ``datasets`` is imported where it is used: it is slow to
import, and image folders, arrays and Parquet as `parquet` reads it need none of it.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.hub import hub_or_cache
from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.entry import DatasetEntry
from splitlab.core.data.labels import class_ids
from splitlab.core.data.parquet import contents, read_known
from splitlab.core.data.source import Encoded, Source
from splitlab.core.data.words import brief, listing

__all__ = ["read_hub", "read_parquet", "read_saved"]

PARQUET_LIMIT = 2 << 30  # bytes of local Parquet up to which a split is kept in memory

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def read_parquet(
    files: Sequence[Path], origin: str, entry: DatasetEntry | None, label_column: str | None = None
) -> Source:
    """Read one split from Parquet files, whose rows follow each other.

    Args:
        files: at least one.
        origin: what error messages call the split.
        entry: names the columns, before `IMAGE_COLUMNS` and `LABEL_COLUMNS` are tried.
        label_column: the column of the labels, if the user named it.

    Raises ConfigError if a file cannot be read, no column fits, or a label is missing.
    """
    try:
        small = sum(file.stat().st_size for file in files) <= PARQUET_LIMIT
    except OSError as error:  # a link that leads nowhere
        raise ConfigError(f"{origin} cannot be read ({error}); are its files complete?") from None
    if small and entry and label_column in (None, entry.label):
        known = read_known(files, origin, entry)
        if known is not None:
            return known
    table = _read_local(lambda: (_in_memory if small else _in_cache)(files), origin)
    return _read_table(table, origin, entry, label_column)


def read_saved(
    folder: Path, origin: str, entry: DatasetEntry | None, label_column: str | None = None
) -> Source:
    """Read one split from a folder that ``save_to_disk`` of a `datasets.Dataset` wrote.

    The other arguments and the errors are those of `read_parquet`. Its files stay where they are,
    and are read as rows are asked for.
    """
    import datasets

    def read() -> Any:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise ValueError("its rows are in another order than its files; save it anew")
        # load_from_disk takes what it is given for an address, in which :: and ~ mean something.
        files = [str(folder / file["filename"]) for file in state["_data_files"]]
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])

    return _read_table(_read_local(read, origin), origin, entry, label_column)


def read_hub(entry: DatasetEntry, split: str, label_column: str | None = None) -> Source:
    """Download a split of a named data set, or take it from the cache of ``datasets``.

    Raises ConfigError if the hub cannot be reached; it tells how to do without.
    """
    import datasets

    with hub_or_cache() as absent:
        try:
            table = datasets.load_dataset(entry.hub, entry.config, split=split)
        # The hub's client passes on the errors of several network libraries.
        except Exception as error:  # noqa: BLE001
            raise ConfigError(
                f"data set {entry.name}: {entry.hub} cannot be loaded from the Hugging Face hub "
                f"({absent or brief(error)}); download its Parquet files where the hub can be "
                f"reached and give their folder: --dataset {entry.name} --data-dir FOLDER"
            ) from None
    return _read_table(table, f"{entry.hub} ({split})", entry, label_column)


def _read_local(read: Callable[[], Any], origin: str) -> Any:
    """Return the `datasets.Dataset` that a function makes of local files."""
    try:
        with _quiet():
            return read()
    # Both pass on whatever pyarrow, fsspec or the file system raise.
    except Exception as error:  # noqa: BLE001
        cause = error.__cause__ or error  # datasets wraps it in words that do not tell
        raise ConfigError(
            f"{origin} cannot be read ({brief(cause)}); are its files complete?"
        ) from None


def _in_memory(files: Sequence[Path]) -> Any:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in files:
        # Of a path, pyarrow would take folders such as label=3 for a column.
        with file.open("rb") as stream:
            tables.append(pq.ParquetFile(stream).read())
    table = pa.concat_tables(tables, promote_options="permissive")
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas' categories, which datasets cannot read
            plain = table.column(i).cast(field.type.value_type)
            table = table.set_column(i, field.with_type(field.type.value_type), plain)
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def _in_cache(files: Sequence[Path]) -> Any:
    """Let datasets copy the files to Arrow files in its cache, which are read as rows are asked."""
    import datasets

    patterns = [glob.escape(str(file)) for file in files]
    # What datasets calls files that are given without a split is "train".
    return datasets.load_dataset("parquet", data_files=patterns, split="train")


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


def _read_table(
    table: Any, origin: str, entry: DatasetEntry | None, label_column: str | None
) -> Source:
    """Find image and label column of a `datasets.Dataset` and read the labels."""
    import datasets

    image = _image_column(table, origin, entry)
    label = _label_column(table, origin, entry, label_column)
    feature = table.features[label]
    values = table.select_columns([label])[:][label]
    ids, classes = class_ids(values, origin, label)
    if isinstance(feature, datasets.ClassLabel):
        classes = tuple(feature.names)
    images = table.select_columns([image])
    raw = _is_bytes(table.features[image])
    if not raw:
        images = images.cast_column(image, datasets.Image(decode=False))

    def read(rows: list[int]) -> list[Encoded]:
        found = images[rows][image]
        return [{"bytes": data, "path": None} for data in found] if raw else found

    return Source(origin, ids, classes, read, contents(images.data[image]))


def _is_bytes(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _image_column(table: Any, origin: str, entry: DatasetEntry | None) -> str:
    """Return the column of a known name that holds images, or else the only one of their type."""
    import datasets

    def is_image(feature: Any) -> bool:
        return isinstance(feature, datasets.Image) or (
            isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()
        )

    fitting = [name for name, f in table.features.items() if is_image(f) or _is_bytes(f)]
    for name in ((entry.image,) if entry else ()) + IMAGE_COLUMNS:
        if name in fitting:
            return name
    if len(fitting) == 1:
        return str(fitting[0])
    raise ConfigError(
        f"{origin}: no image column among {_columns(table)}; name it 'image', and let it hold the "
        "bytes of image files, or structs of bytes and path"
    )


def _label_column(table: Any, origin: str, entry: DatasetEntry | None, wanted: str | None) -> str:
    """Return the column that the user, the data set's entry or its usual name says is the label.

    Never another one, such as the only one that is left: file names and row numbers would do.
    """
    import datasets

    names: list[str] = table.column_names
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"{origin}: no column {wanted!r} among {_columns(table)}; name one of them with "
            "--label-column"
        )
    usual = ((entry.label,) if entry else ()) + LABEL_COLUMNS
    found = wanted or next((name for name in usual if name in names), None)
    if found is None:
        raise ConfigError(
            f"{origin}: no label column among {_columns(table)}; name it with --label-column, or "
            f"call it {LABEL_COLUMNS[0]!r}"
        )
    feature = table.features[found]
    is_value = isinstance(feature, datasets.Value)
    if isinstance(feature, datasets.ClassLabel) or (
        is_value and re.match("u?int|float|bool|(large_)?string|null", feature.dtype)
    ):
        return found
    raise ConfigError(
        f"{origin}: the label column {found!r} is of type {_type(table, found)}; classes are whole "
        "numbers, booleans or texts; name another column with --label-column"
    )


def _type(table: Any, column: str) -> str:
    return str(table.data.schema.field(column).type)


def _columns(table: Any) -> str:
    return listing([f"{name} ({brief(_type(table, name))})" for name in table.column_names])
