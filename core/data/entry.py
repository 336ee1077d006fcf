"""What a registry says of a data set. Imports neither torch nor datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.loading import check_kind
from splitlab.core.catalogue.tables import Entry, entries
from splitlab.core.contract.errors import ConfigError, unknown_name

__all__ = ["DatasetEntry", "class_count", "dataset_entry", "dataset_rows"]


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One table ``[datasets.NAME]``; either ``hub`` or ``files`` says where the images are.

    Attributes:
        name: what ``--dataset`` takes.
        image: name of the image column.
        label: name of the label column.
        mean: mean of the pixels in [0, 1], one number per channel of the data set.
        std: standard deviation of the same.
        classes: how many classes there are.
        summary: one line for listings.
        licence: of the images, as far as it is known.
        hub: repository on the Hugging Face hub.
        train: split of that repository to train on.
        test: split of that repository to evaluate on.
        config: configuration of that repository, where it has several.
        files: the ``train`` and the ``test`` Parquet file; in the table relative to the registry
            that it stands in, here where they are.
    """

    name: str
    image: str
    label: str
    mean: Sequence[float]
    std: Sequence[float]
    classes: int
    summary: str = ""
    licence: str = "not stated"
    hub: str = ""
    train: str = "train"
    test: str = "test"
    config: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)


_KEYS = {entry.name: entry for entry in fields(DatasetEntry) if entry.name != "name"}
_NEEDED = [key for key, f in _KEYS.items() if f.default is f.default_factory is MISSING]


def dataset_entry(name: str) -> DatasetEntry:
    """Look up a data set by name.

    Raises:
        ConfigError: no such name, or its table says something that cannot be used.
    """
    known = entries("datasets")
    if name not in known:
        check_kind("datasets", name)
        raise unknown_name("data set", name, known, "; for a folder of images use --data-dir")
    entry = known[name]
    if entry.problem:
        raise ConfigError(entry.problem)
    wrong = _wrong(entry.facts)
    if wrong:
        raise ConfigError(f"data set {name!r} (from {entry.source}) {wrong}")
    found = DatasetEntry(name=name, summary=entry.summary, **entry.facts)
    places = {part: entry.folder / str(place) for part, place in found.files.items()}
    return replace(found, files=places)


def class_count(dataset: str) -> int:
    """Return how many classes a named data set has; `ConfigError` as `dataset_entry`."""
    return dataset_entry(dataset).classes


def dataset_rows() -> list[dict[str, Any]]:
    """Return the table of every named data set, with its name, summary, source and problem."""
    return [
        {
            **entry.facts,
            "name": entry.name,
            "summary": entry.summary,
            "source": entry.source,
            "problem": _problem(entry),
        }
        for entry in entries("datasets").values()
    ]


def _problem(entry: Entry) -> str | None:
    try:
        dataset_entry(entry.name)
    except ConfigError as error:
        return str(error)
    return None


def _wrong(table: Mapping[str, Any]) -> str | None:
    """Return what makes the table unusable; None if nothing does."""
    for key, value in table.items():
        if key not in _KEYS:
            return f"cannot be used: {unknown_name('key', key, _KEYS)}"
        if key in ("mean", "std"):
            if not _are_numbers(value, positive=key == "std"):
                what = "numbers more than 0" if key == "std" else "numbers"
                return f"has {key} = {value!r}; write one list of {what}, one for each channel"
        elif key == "classes":
            if type(value) is not int or value < 1:
                return f"has classes = {value!r}; write how many there are, 1 or more"
        elif key == "files":
            if not _are_files(value):
                return f"has files = {value!r}; write {{ train = 'FILE', test = 'FILE' }}"
        elif not isinstance(value, str):
            return f"has {key} = {value!r}; write a text"
    missing = [key for key in _NEEDED if key not in table]
    if missing:
        return f"needs the key {missing[0]!r}; write {', '.join(_NEEDED)}, and hub or files"
    if bool(table.get("hub")) is bool(table.get("files")):
        return "needs either the key 'hub' or the key 'files', to say where the images are"
    if len(table["mean"]) != len(table["std"]):
        return "has a mean and a std of different lengths; write one number for each channel"
    return None


def _are_numbers(value: Any, *, positive: bool) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(number) in (int, float) and math.isfinite(number) for number in value)
        and not (positive and min(value) <= 0)
    )


def _are_files(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"train", "test"}
        and all(isinstance(place, str) for place in value.values())
    )
