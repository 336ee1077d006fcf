"""Which data: a name or a folder becomes a training and a test split with the same classes.

The other files of this room, from the disk to the batch: `folders`, `tables`, `parquet` and
`arrays` (with `idx`) read files, whose labels `labels` makes class ids; `local` finds them,
`source` is what they return, `images` opens and augments one image, `decode` many of them, with a
`fleet` of processes that are each a `worker`, `cache` keeps them, `upload` brings them to a GPU,
`batchwise` augments whole batches, and `split` puts them in order. `entry` is what registry.toml
says, `augment` what ``--augment`` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.data.augment import augmenting
from splitlab.core.data.cache import CACHES, kept_on, room_for_originals
from splitlab.core.data.entry import DatasetEntry, dataset_entry
from splitlab.core.data.fleet import KINDS, Fleet
from splitlab.core.data.labels import CLASS_LIMIT
from splitlab.core.data.local import find_local, read_local
from splitlab.core.data.source import Source
from splitlab.core.data.split import Handling, Loading, Split, decoded_size
from splitlab.core.data.tables import read_hub, read_parquet
from splitlab.core.data.words import listing

__all__ = ["Data", "load_data"]

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
        fingerprint: 16 hexadecimal digits that change with the classes, the labels, the number of
            images of either part, or the names and sizes of their files; not with the folder.
        notices: what of the data is not read, one line each.
        mean: what images are normalised by, by channel, in [0, 1].
        std: the same.
        fleet: processes that decode.
    """

    name: str
    train: Split
    test: Split
    fingerprint: str
    notices: tuple[str, ...]
    mean: Sequence[float]
    std: Sequence[float]
    fleet: Fleet | None = None

    def close(self) -> None:
        """End the processes that decode, if there are any. Allowed twice."""
        if self.fleet is not None:
            self.fleet.close()


def load_data(
    dataset: str | None,
    data_dir: str | Path | None,
    *,
    image_size: int,
    channels: int,
    seed: int,
    augment: str = "none",
    workers: int = 0,
    worker_kind: str = "threads",
    cache: str = "auto",
    device: str | torch.device = "cpu",
    loading: Loading | None = None,
    label_column: str | None = None,
    test_split: str | None = None,
    test_share: float | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Data:
    """Load a data set by name, from a folder, or a named one from a folder.

    Args:
        dataset: a name of registry.toml: it says where the images are, which columns hold them, and
            their normalisation and number of classes.
        data_dir: a folder or file of one of `words.FORMS`, read instead of the hub. Without a
            name, images are normalised as `normalisation` says, or else as ImageNet's (3 channels)
            or to [-1, 1] (1).
        image_size: images are resized to this many pixels square, with antialiasing, unless they
            are that large already.
        channels: 1 or 3; images and normalisation are converted.
        seed: decides order and augmentation.
        augment: of the training split: ``"none"``, or ``"paper"`` for RandAugment(2, 9) on the
            image at its own size, ColorJitter(0.4, 0.4, 0.4), resize, horizontal flip, or
            ``"timm:…"`` (see `policies`), or ``"device:…"`` (see `batchwise`).
        workers: threads that decode; 0 decodes in the caller's thread.
        worker_kind: ``"threads"``, or ``"processes"``, which `Data.close` ends.
        cache: where decoded images are kept, see `cache`; no number depends on it.
        device: where batches are to be.
        loading: told how far the decoding at load time has come.
        label_column: of a table; what the entry says or a usual name by default.
        test_split: name of the part to test on, instead of the one that the entry or a usual name
            says.
        test_share: this share of the training part, 0 to 1, becomes the test part, the same for
            every seed; no ``test_split`` then.
        normalisation: mean and standard deviation that a model's weights expect, by channel.

    Raises ConfigError for a name, folder, file or label that cannot be used; says which and why.
    """
    policy = augmenting(augment)
    for what, value, allowed in (("cache", cache, CACHES), ("kind of worker", worker_kind, KINDS)):
        if value not in allowed:
            raise unknown_name(what, value, allowed)
    if cache == "gpu" and policy.of_image is not None:
        raise ConfigError(
            f"--cache gpu: --augment {augment} acts on images as they are stored, on the CPU; take "
            "--cache memory, or --augment device:…, which acts on the device"
        )
    device = torch.device(device)
    if channels not in NORMALISATION:
        raise ConfigError(f"images of {channels} channels are not supported; use a model of 1 or 3")
    entry = None if dataset is None else dataset_entry(dataset)
    whole = test_share is not None
    notices: list[str] = []
    if data_dir is not None:
        place = find_local(data_dir)
        name = dataset or place.resolve().name
        sources, notices = read_local(
            place, entry, label_column=label_column, test_split=test_split, whole=whole
        )
    elif entry is None:
        raise ConfigError("no data: name a data set with --dataset or a folder with --data-dir")
    else:
        name = entry.name
        parts = [entry.train] if whole else [entry.train, test_split or entry.test]
        if test_split == entry.train:
            raise ConfigError(f"--test-split {test_split} is the part to train on; name another")
        sources = [_read_entry(entry, part, label_column) for part in parts]
    train, test = sources if test_share is None else sources[0].divide(test_share)
    # Of another column than the entry's, the entry does not know the classes.
    known = entry if label_column is None or (entry and label_column == entry.label) else None
    classes, test = _agree_on_classes(train, test, known)
    pixels = (entry.mean, entry.std) if entry else normalisation or NORMALISATION[channels]
    mean, std = (_to_channels(values, channels) for values in pixels)

    fleet = Fleet(workers) if worker_kind == "processes" and workers else None
    both = {"train": (train, policy), "test": (test, augmenting("none"))}
    alike = {  # in every epoch
        name: (len(source.labels), channels, *[decoded_size(policy, image_size)] * 2)
        for name, (source, policy) in both.items()
        if policy.of_image is None
    }
    places = kept_on(cache, alike, device)
    originals = room_for_originals(alike) if cache == "memory" else None
    shared = Handling(workers, fleet, originals, device, loading)

    def split(name: str) -> Split:
        source, policy = both[name]
        return Split(
            source,
            name=name,
            classes=classes,
            image_size=image_size,
            mean=mean,
            std=std,
            seed=seed,
            policy=policy,
            place=places.get(name),
            handling=shared,
        )

    with ExitStack() as unless_done:
        if fleet is not None:
            unless_done.callback(fleet.close)
        data = Data(
            name,
            split("train"),
            split("test"),
            _fingerprint(classes, train, test),
            (*notices, *train.notices, *test.notices),
            mean,
            std,
            fleet,
        )
        unless_done.pop_all()
    return data


def _read_entry(entry: DatasetEntry, part: str, label_column: str | None) -> Source:
    """Read a part of a data set that registry.toml describes."""
    if not entry.files:
        return read_hub(entry, part, label_column)
    if part not in entry.files:
        raise ConfigError(
            f"--test-split {part}: data set {entry.name} has a file for train and one for test"
        )
    return read_parquet([entry.files[part]], f"{entry.name} {part}", entry, label_column)


def _fingerprint(classes: Sequence[str], *parts: Source) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part in parts:
        digest.update(json.dumps([len(part.labels), part.contents]).encode())
        for numbers in (part.labels, part.numbers):
            digest.update(b"" if numbers is None else numbers.numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _to_channels(values: Sequence[float], channels: int) -> Sequence[float]:
    """Repeat one number for all channels, or average those of colour for grey."""
    return values if len(values) == channels else [sum(values) / len(values)] * channels


def _agree_on_classes(
    train: Source, test: Source, entry: DatasetEntry | None
) -> tuple[tuple[str, ...], Source]:
    """Return the classes, which are the training part's, and the test part with their ids.

    Where the labels are bare numbers, the entry counts the classes, or else the training labels do.
    """
    for source in (train, test):
        if not len(source.labels):
            raise ConfigError(f"{source.origin} holds no images; both parts need some")
        if source.classes is not None:
            _refuse_outside(source, source.classes)
    if (train.classes is None) is not (test.classes is None):
        named, other = (train, test) if train.classes else (test, train)
        raise ConfigError(
            f"{named.origin} names its classes, {other.origin} numbers them; write both alike"
        )
    if train.classes is None or test.classes is None:
        count = entry.classes if entry else min(int(train.labels.max()) + 1, CLASS_LIMIT)
        classes = tuple(map(str, range(count)))
        _refuse_outside(train, classes)
        _refuse_outside(test, classes)
    else:
        classes = train.classes
        test = _renumber(test, test.classes, train)
    if entry and len(classes) != entry.classes:
        raise ConfigError(
            f"{train.origin} has {len(classes)} classes, {entry.name} has {entry.classes}; "
            "give the folder alone to use it as it is"
        )
    return classes, test


def _renumber(test: Source, names: Sequence[str], train: Source) -> Source:
    """Return the test part with the training part's ids; a class need not be in both."""
    ids = {name: number for number, name in enumerate(train.classes or ())}
    unknown = [names[label] for label in sorted({*test.labels.tolist()}) if names[label] not in ids]
    if unknown:
        raise ConfigError(
            f"{test.origin} has classes that {train.origin} lacks: {listing(unknown)}; rename them "
            "or take them out"
        )
    to = torch.tensor([ids.get(name, -1) for name in names])
    return replace(test, labels=to[test.labels], classes=train.classes)


def _refuse_outside(source: Source, classes: Sequence[str]) -> None:
    outside = ((source.labels < 0) | (source.labels >= len(classes))).nonzero()
    if len(outside):
        row = int(outside[0])
        raise ConfigError(
            f"{source.place(row)}: label {int(source.labels[row])} is outside the "
            f"{len(classes)} classes, 0 to {len(classes) - 1}"
        )
