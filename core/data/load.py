"""Which data: a name or a folder becomes a training and a test split with the same classes.

The other files of this room, from the disk to the batch: `idx` and `tables` read files, `local`
finds them in a folder, `source` is what they return, `images` opens and augments one image,
`decode` many of them, and `split` puts them in order. `entry` is what registry.toml says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.data.entry import DatasetEntry, dataset_entry
from splitlab.core.data.images import AUGMENTATIONS, Augmentation
from splitlab.core.data.local import read_folder
from splitlab.core.data.source import Source
from splitlab.core.data.split import Loading, Split
from splitlab.core.data.tables import read_hub, read_parquet
from splitlab.core.data.words import listing

__all__ = ["Data", "load_data"]

CLASS_LIMIT = 100_000  # ids beyond it are a broken label column, not classes
NORMALISATION = {  # of folders that no entry of registry.toml describes, by channels
    1: ((0.5,), (0.5,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
}


@dataclass(frozen=True)
class Data:
    """A data set; both splits have the same classes.

    Attributes:
        name: of the data set, or of the folder where only that was given.
        train: what to train on.
        test: what to evaluate on.
        mean: what images are normalised by, by channel, in [0, 1].
        std: the same.
    """

    name: str
    train: Split
    test: Split
    mean: Sequence[float]
    std: Sequence[float]


def load_data(
    dataset: str | None,
    data_dir: str | Path | None,
    *,
    image_size: int,
    channels: int,
    seed: int,
    augment: str = "none",
    workers: int = 0,
    loading: Loading | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Data:
    """Load a data set by name, from a folder, or a named one from a folder.

    Args:
        dataset: a name of registry.toml: it says where the images are, which columns hold them, and
            their normalisation and number of classes.
        data_dir: a folder of IDX files, Parquet files or image folders, read instead of the hub.
            Without a name, images are normalised as `normalisation` says, or else as ImageNet's (3
            channels) or to [-1, 1] (1).
        image_size: images are resized to this many pixels square, with antialiasing, unless they
            are that large already.
        channels: 1 or 3; images and normalisation are converted.
        seed: decides order and augmentation.
        augment: of the training split: ``"none"``, or ``"paper"`` for RandAugment(2, 9) on the
            image at its own size, ColorJitter(0.4, 0.4, 0.4), resize, horizontal flip.
        workers: threads that decode; 0 decodes in the caller's thread.
        loading: told how far the decoding at load time has come.
        normalisation: mean and standard deviation that a model's weights expect, by channel.

    Raises ConfigError for a name, folder, file or label that cannot be used; says which and why.
    """
    if augment not in AUGMENTATIONS:
        raise unknown_name("augmentation", augment, AUGMENTATIONS)
    if channels not in NORMALISATION:
        raise ConfigError(f"images of {channels} channels are not supported; use a model of 1 or 3")
    entry = None if dataset is None else dataset_entry(dataset)
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        name = dataset or folder.resolve().name
        train, test = read_folder(folder, entry)
    elif entry is None:
        raise ConfigError("no data: name a data set with --dataset or a folder with --data-dir")
    elif entry.files:
        name = entry.name
        train, test = (
            read_parquet([entry.files[part]], f"{name} {part}", entry) for part in ("train", "test")
        )
    else:
        name = entry.name
        train, test = read_hub(entry, entry.train), read_hub(entry, entry.test)
    classes = _agree_on_classes(train, test, entry)
    known = (entry.mean, entry.std) if entry else normalisation or NORMALISATION[channels]
    mean, std = (_to_channels(values, channels) for values in known)

    def split(part: str, source: Source, augmentation: Augmentation | None) -> Split:
        return Split(
            source,
            name=part,
            classes=classes,
            image_size=image_size,
            mean=mean,
            std=std,
            seed=seed,
            augment=augmentation,
            workers=workers,
            loading=loading,
        )

    make_augmentation = AUGMENTATIONS[augment]
    for_training = None if make_augmentation is None else make_augmentation(image_size)
    return Data(name, split("train", train, for_training), split("test", test, None), mean, std)


def _to_channels(values: Sequence[float], channels: int) -> Sequence[float]:
    """Repeat one number for all channels, or average those of colour for grey."""
    return values if len(values) == channels else [sum(values) / len(values)] * channels


def _agree_on_classes(train: Source, test: Source, entry: DatasetEntry | None) -> tuple[str, ...]:
    """Return the classes of both parts, once every label is one of them.

    Where the labels are bare numbers, the entry counts the classes, or else the training labels do.
    """
    for source in (train, test):
        if not len(source.labels):
            raise ConfigError(f"{source.origin} holds no images; both parts need some")
    if train.classes != test.classes:
        only = set(train.classes or ()) ^ set(test.classes or ())
        what = f"only one of them has {listing(only)}" if only else "the order is not the same"
        raise ConfigError(f"{train.origin} and {test.origin} have different classes: {what}")
    classes = train.classes
    if classes is None:
        count = entry.classes if entry else min(int(train.labels.max()) + 1, CLASS_LIMIT)
        classes = tuple(map(str, range(count)))
    if entry and len(classes) != entry.classes:
        raise ConfigError(
            f"{train.origin} has {len(classes)} classes, {entry.name} has {entry.classes}; "
            "give the folder alone to use it as it is"
        )
    for source in (train, test):
        outside = ((source.labels < 0) | (source.labels >= len(classes))).nonzero()
        if len(outside):
            row = int(outside[0])
            raise ConfigError(
                f"{source.place(row)}: label {int(source.labels[row])} is outside the "
                f"{len(classes)} classes, 0 to {len(classes) - 1}"
            )
    return classes
