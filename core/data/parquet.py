"""Parquet whose columns are known, read without ``datasets``, which takes long to import."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from splitlab.core.data.entry import DatasetEntry
from splitlab.core.data.labels import class_ids
from splitlab.core.data.source import Encoded, Source

__all__ = ["contents", "read_known"]

_BARE = '{"info": {"features": {}}}'  # what `datasets` leaves in a file tells of its columns


def read_known(files: Sequence[Path], origin: str, entry: DatasetEntry) -> Source | None:
    """Read one split into memory if it has the entry's two columns in the form that is usual.

    That is a struct of ``bytes`` and ``path``, and whole numbers, named or not. Of everything else,
    damaged files among it, this says nothing: it returns None, and `datasets` is to judge.

    Args:
        files: at least one; their rows follow each other.
        origin: what error messages call the split.
        entry: names the columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parts = [pq.ParquetFile(file).read([entry.image, entry.label]) for file in files]
        table = pa.concat_tables(parts)  # refuses parts of several kinds
        image, label = table.column(entry.image), table.column(entry.label)
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", _BARE))
        feature = metadata["info"]["features"].get(entry.label, {"_type": "Value"})
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError):
        return None
    if (
        image.type != pa.struct({"bytes": pa.binary(), "path": pa.string()})
        or not pa.types.is_integer(label.type)
        or label.null_count
        or not (feature["_type"] == "Value" or isinstance(names, list))
    ):
        return None

    def read(rows: list[int]) -> list[Encoded]:
        return [image[row].as_py() for row in rows]  # `take` would import pandas

    labels, _ = class_ids(label.to_pylist(), origin, entry.label)
    return Source(origin, labels, tuple(names) if names else None, read, contents(image))


def contents(images: Any) -> str:
    """Return a digest of the sizes and names of images, however a `ChunkedArray` is chunked.

    Args:
        images: a column of bytes, or of structs of ``bytes`` and ``path``.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes: list[int | None] = []
    names: list[str | None] = []
    for chunk in images.chunks:
        structs = pa.types.is_struct(chunk.type)
        sizes += pc.binary_length(chunk.field("bytes") if structs else chunk).to_pylist()
        paths = chunk.field("path").to_pylist() if structs else ()
        names += [path and PurePath(path).name for path in paths]
    return hashlib.sha256(json.dumps([sizes, names]).encode()).hexdigest()
