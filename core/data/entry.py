"""What registry.toml says of a data set. Imports neither torch nor datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitlab.core.catalogue.registry import catalogue
from splitlab.core.contract.errors import unknown_name

__all__ = ["DatasetEntry", "class_count", "dataset_entry"]


@dataclass(frozen=True)
class DatasetEntry:
    """One table ``[datasets.NAME]``; either ``hub`` or ``files`` says where the images are.

    Attributes:
        name: what ``--dataset`` takes.
        summary: one line for listings.
        image: name of the image column.
        label: name of the label column.
        mean: mean of the pixels in [0, 1], one number per channel of the data set.
        std: standard deviation of the same.
        classes: how many classes there are.
        licence: of the images, as far as it is known.
        hub: repository on the Hugging Face hub.
        train: split of that repository to train on.
        test: split of that repository to evaluate on.
        config: configuration of that repository, where it has several.
        files: the ``train`` and the ``test`` Parquet file, relative to registry.toml.
    """

    name: str
    summary: str
    image: str
    label: str
    mean: Sequence[float]
    std: Sequence[float]
    classes: int
    licence: str
    hub: str = ""
    train: str = "train"
    test: str = "test"
    config: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def dataset_entry(name: str) -> DatasetEntry:
    """Look up a data set by name. Raises ConfigError, with the known names, for any other."""
    known = catalogue()["datasets"]
    if name not in known:
        raise unknown_name("data set", name, known, "; for a folder of images use --data-dir")
    return DatasetEntry(name=name, **known[name])


def class_count(dataset: str) -> int:
    """Return how many classes a named data set has. Raises ConfigError for an unknown name."""
    return dataset_entry(dataset).classes
