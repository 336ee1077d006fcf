"""Images and labels: from the package, the Hugging Face hub or a local folder to batches.

The only module that imports ``datasets`` and ``torchvision``. Every random draw (order of the
samples, augmentation) comes from a generator of its own, derived from the seed, the epoch and the
sample; global random state is neither read nor changed. Nothing is written beside the user's files.

Shapes: N samples of a split, B samples of a batch, C channels, S image size in pixels.
"""

from __future__ import annotations

import glob
import gzip
import io
import math
import re
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch.overrides import TorchFunctionMode

from splitlab.core.catalogue.registry import ROOT
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.contract.seeding import generator
from splitlab.core.data.entry import DatasetEntry, class_count, dataset_entry

__all__ = ["AUGMENTATIONS", "Data", "Split", "class_count", "load_data", "read_idx"]

AUGMENTATIONS = ("none", "paper")

DECODED_LIMIT = 512 << 20  # bytes of decoded images up to which a split is kept decoded
PARQUET_LIMIT = 2 << 30  # bytes of local Parquet up to which a split is kept in memory
CLASS_LIMIT = 100_000  # ids beyond it are a broken label column, not classes
BATCHES_AHEAD = 2

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
TEST_NAMES = ("test", "validation", "val")
LAYOUTS = (
    "accepted are IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with "
    "t10k-, plain or .gz), Parquet files (train*.parquet and test*.parquet, here or in data/) and "
    "image folders (train/CLASS/x.png and test/CLASS/x.png)"
)
NORMALISATION = {  # of folders that no entry of registry.toml describes, by channels
    1: ((0.5,), (0.5,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
}

Progress = Callable[[str, int, int], None]
"""Called with the split's name, the images decoded so far, and all of them."""


class Split:
    """The training or the test part of a data set; `load_data` makes it.

    Decoded images are kept as uint8 where they fit in `DECODED_LIMIT` and are the same in every
    epoch; otherwise each batch is decoded when its turn comes, `workers` threads working ahead.

    Attributes:
        classes: their names, by class id.
    """

    def __init__(
        self,
        source: _Source,
        *,
        name: str,
        classes: tuple[str, ...],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        augment: bool,
        workers: int,
        progress: Progress | None,
    ) -> None:
        self.classes = classes
        self._name = name
        self._source: _Source | None = source
        self._targets = source.labels
        self._size = (image_size, image_size)
        self._mode = "RGB" if len(mean) == 3 else "L"
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)
        self._seed = seed
        self._transform = _paper_augmentation(self._size) if augment else None
        self._workers = workers
        self._decoded: torch.Tensor | None = None
        shape = (len(source.labels), len(mean), *self._size)
        if not augment and math.prod(shape) <= DECODED_LIMIT:
            self._decoded = self._decode_all(shape, progress)
            self._source = None

    def __len__(self) -> int:
        return len(self._targets)

    def batches(
        self, batch_size: int, *, epoch: int = 0, skip: int = 0, shuffle: bool = False
    ) -> Iterator[Batch]:
        """Iterate over one epoch; the last batch may be smaller.

        Args:
            batch_size: samples per batch, at least 1.
            epoch: decides, with the seed, the order and the augmentation; nothing else does.
            skip: how many batches of this epoch are done; their images are not decoded.
            shuffle: mix the samples, instead of taking them as they lie.

        Raises ConfigError, naming file or row, when it comes to an image that cannot be read.
        """
        if batch_size < 1 or skip < 0:
            raise ConfigError(f"batch size {batch_size} with skip {skip}: at least 1 and 0 are due")
        order = torch.arange(len(self))
        if shuffle:
            draws = generator(self._seed, "order", self._name, epoch)
            order = torch.randperm(len(self), generator=draws)
        starts = range(skip * batch_size, len(self), batch_size)
        return self._iterate([order[at : at + batch_size] for at in starts], epoch)

    def _iterate(self, parts: Sequence[torch.Tensor], epoch: int) -> Iterator[Batch]:
        if self._decoded is None:
            pixels = self._decode(parts, epoch)
        else:
            pixels = map(self._decoded.__getitem__, parts)
        for rows, part in zip(parts, pixels, strict=True):
            images = part.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
            yield Batch(images, self._targets[rows], rows)

    def _decode_all(self, shape: tuple[int, ...], progress: Progress | None) -> torch.Tensor:
        decoded = torch.empty(shape, dtype=torch.uint8)
        parts = [torch.arange(at, min(at + 500, shape[0])) for at in range(0, shape[0], 500)]
        for rows, part in zip(parts, self._decode(parts, epoch=0), strict=True):
            decoded[rows] = part
            if progress is not None:
                progress(self._name, int(rows[-1]) + 1, shape[0])
        return decoded

    def _decode(self, parts: Sequence[torch.Tensor], epoch: int) -> Iterator[torch.Tensor]:
        """Yield (B, C, S, S) uint8 for each part; threads end with the iterator."""
        source = self._source
        assert source is not None

        def encoded(part: torch.Tensor) -> Iterator[tuple[int, _Encoded]]:
            rows = part.tolist()
            return zip(rows, source.read(rows), strict=True)

        if not self._workers:
            for part in parts:
                yield torch.stack([self._decode_one(*image, epoch) for image in encoded(part)])
            return
        pool = ThreadPoolExecutor(self._workers)
        ahead: deque[list[Future[torch.Tensor]]] = deque()
        try:
            for part in parts:
                ahead.append(
                    [pool.submit(self._decode_one, *image, epoch) for image in encoded(part)]
                )
                if len(ahead) > BATCHES_AHEAD:
                    yield torch.stack([image.result() for image in ahead.popleft()])
            while ahead:
                yield torch.stack([image.result() for image in ahead.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode_one(self, row: int, encoded: _Encoded, epoch: int) -> torch.Tensor:
        """Return one image as (C, S, S) uint8, resized and augmented."""
        assert self._source is not None
        try:
            image = _open_image(encoded, self._mode)
        # Pillow's decoders answer damaged files with errors of a dozen types.
        except Exception as error:  # noqa: BLE001
            raise ConfigError(
                f"{self._source.place(row, encoded)}: not a readable image ({_brief(error)}); "
                "repair it or take it out"
            ) from None
        if self._transform is not None:
            with _DrawsFrom(generator(self._seed, "augment", epoch, row)):
                image = self._transform(image)
        elif image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(*self._size, -1).permute(2, 0, 1)


@dataclass(frozen=True)
class Data:
    """A data set: what to train on and what to evaluate on. Both splits have the same classes."""

    name: str
    train: Split
    test: Split


def load_data(
    dataset: str | None,
    data_dir: str | Path | None,
    *,
    image_size: int,
    channels: int,
    seed: int,
    augment: str = "none",
    workers: int = 0,
    progress: Progress | None = None,
) -> Data:
    """Load a data set by name, from a folder, or a named one from a folder.

    Args:
        dataset: a name of registry.toml: it says where the images are, which columns hold them, and
            their normalisation and number of classes.
        data_dir: a folder of IDX files, Parquet files or image folders, read instead of the hub.
            Without a name, images are normalised as ImageNet's (3 channels) or to [-1, 1] (1).
        image_size: images are resized to this many pixels square, with antialiasing, unless they
            are that large already.
        channels: 1 or 3; images and normalisation are converted.
        seed: decides order and augmentation.
        augment: of the training split: ``"none"``, or ``"paper"`` for RandAugment(2, 9) on the
            image at its own size, ColorJitter(0.4, 0.4, 0.4), resize, horizontal flip.
        workers: threads that decode; 0 decodes in the caller's thread.
        progress: told how far the decoding at load time has come.

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
        train, test = _read_folder(folder, entry)
    elif entry is None:
        raise ConfigError("no data: name a data set with --dataset or a folder with --data-dir")
    elif entry.files:
        name = entry.name
        train, test = (
            _read_parquet([ROOT / entry.files[part]], f"{name} {part}", entry)
            for part in ("train", "test")
        )
    else:
        name = entry.name
        train, test = _read_hub(entry, entry.train), _read_hub(entry, entry.test)
    classes = _agree_on_classes(train, test, entry)
    mean, std = (entry.mean, entry.std) if entry else NORMALISATION[channels]

    def split(part: str, source: _Source, augmented: bool) -> Split:
        return Split(
            source,
            name=part,
            classes=classes,
            image_size=image_size,
            mean=_to_channels(mean, channels),
            std=_to_channels(std, channels),
            seed=seed,
            augment=augmented,
            workers=workers,
            progress=progress,
        )

    return Data(name, split("train", train, augment == "paper"), split("test", test, False))


def _to_channels(values: Sequence[float], channels: int) -> Sequence[float]:
    return values if len(values) == channels else [sum(values) / len(values)] * channels


# --- Sources: where the samples of one split lie -------------------------------------------------

_Encoded = Image.Image | Mapping[str, Any] | None
"""An image as its source has it; a mapping holds ``bytes`` of a file, or else its ``path``."""


@dataclass(frozen=True)
class _Source:
    """One split before decoding: labels in memory, images by row.

    Attributes:
        origin: what error messages call it.
        labels: (N,) int64.
        classes: their names; None where the labels are bare numbers.
        read: takes rows, returns their images as they are stored.
    """

    origin: str
    labels: torch.Tensor
    classes: tuple[str, ...] | None
    read: Callable[[list[int]], Sequence[_Encoded]]

    def place(self, row: int, encoded: _Encoded = None) -> str:
        """Name a sample: the image's file if it has one, else the row."""
        if isinstance(encoded, Mapping) and encoded["bytes"] is None and encoded["path"]:
            return str(encoded["path"])
        return f"{self.origin}, row {row}"


def _agree_on_classes(train: _Source, test: _Source, entry: DatasetEntry | None) -> tuple[str, ...]:
    for source in (train, test):
        if not len(source.labels):
            raise ConfigError(f"{source.origin} holds no images; both parts need some")
    if train.classes != test.classes:
        only = set(train.classes or ()) ^ set(test.classes or ())
        what = f"only one of them has {_listing(only)}" if only else "the order is not the same"
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


def _read_folder(folder: Path, entry: DatasetEntry | None) -> tuple[_Source, _Source]:
    """Find out which of `LAYOUTS` a folder has, and read both parts."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"data folder {folder}: {error.strerror}; {LAYOUTS}") from None
    if not names:
        raise ConfigError(f"data folder {folder} is empty; {LAYOUTS}")

    if any(re.search(r"idx[13]-ubyte(\.gz)?$", name) for name in names):
        return _read_idx_pair(folder, "train"), _read_idx_pair(folder, "t10k")

    for find, read in ((_find_parquet, _read_parquet), (_find_images, _read_images)):
        train, test = find(folder, ("train",)), find(folder, TEST_NAMES)
        if train and test:
            return (
                read(train, f"{folder} (training part)", entry),
                read(test, f"{folder} (test part)", entry),
            )
        if train or test:
            missing = "test" if train else "training"
            raise ConfigError(f"data folder {folder} has no {missing} part; {LAYOUTS}")
    raise ConfigError(f"data folder {folder} holds {_listing(names)}; {LAYOUTS}")


def _read_idx_pair(folder: Path, prefix: str) -> _Source:
    """Read images and labels of one part, e.g. of prefix ``train``."""
    parts = []
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
        parts.append(values)
    images, labels = parts
    origin = f"{folder} ({prefix}-*)"
    if len(images) != len(labels):
        raise ConfigError(f"{origin}: {len(images):,} images, but {len(labels):,} labels")

    def read(rows: list[int]) -> list[_Encoded]:
        return [Image.fromarray(images[row].numpy()) for row in rows]

    return _Source(origin, labels.long(), None, read)


def read_idx(path: Path) -> torch.Tensor:
    """Read an IDX file of bytes, plain or gzipped.

    Returns a uint8 tensor of the dimensions that the file declares.

    Raises ConfigError if this is no such file, or if its length is not what its header declares; no
    memory is taken on the header's word.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            start = stream.read(4)
            count = start[3] if len(start) == 4 and start[:3] == b"\0\0\x08" else 0
            header = stream.read(4 * count)
            if not count or len(header) < 4 * count:
                raise ConfigError(f"{path}: not an IDX file of bytes (it starts with {start!r})")
            dims = [int.from_bytes(header[i : i + 4]) for i in range(0, len(header), 4)]
            size = math.prod(dims)
            body = bytearray()
            while len(body) <= size and (chunk := stream.read(1 << 20)):
                body += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({_brief(error)}); copy it again") from None
    if not size or len(body) != size:
        found = f"more than {size:,}" if len(body) > size else f"{len(body):,}"
        raise ConfigError(
            f"{path}: the header declares {' x '.join(map(str, dims))} = {size:,} bytes, "
            f"the file holds {found}; copy it again"
        )
    return torch.frombuffer(body, dtype=torch.uint8).view(dims)


def _find_parquet(folder: Path, prefixes: Sequence[str]) -> list[Path]:
    for place in (folder, folder / "data"):
        for prefix in prefixes:
            if found := sorted(place.glob(f"{prefix}*.parquet")):
                return found
    return []


def _read_parquet(files: Sequence[Path], origin: str, entry: DatasetEntry | None) -> _Source:
    # datasets copies Parquet to Arrow files: into its own cache only where memory is too small.
    small = sum(file.stat().st_size for file in files) <= PARQUET_LIMIT
    patterns = [glob.escape(str(file)) for file in files]
    return _read_table(_load_local("parquet", patterns, origin, in_memory=small), origin, entry)


def _find_images(folder: Path, names: Sequence[str]) -> list[Path]:
    for name in names:
        part = folder / name
        if any(path.is_dir() for path in part.glob("*")):
            return [part]
    return []


def _read_images(parts: Sequence[Path], origin: str, entry: DatasetEntry | None) -> _Source:
    patterns = [glob.escape(str(part)) + "/*/*" for part in parts]
    settings = {"drop_labels": False, "drop_metadata": True}
    table = _load_local("imagefolder", patterns, origin, in_memory=True, **settings)
    return _read_table(table, origin, entry)


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
                split="train",
                cache_dir=scratch if in_memory else None,
                keep_in_memory=in_memory,
                **settings,
            )
    # Builders pass on whatever pyarrow, fsspec or the file system raise.
    except Exception as error:  # noqa: BLE001
        cause = error.__cause__ or error  # datasets wraps it in words that do not tell
        raise ConfigError(
            f"{origin} cannot be read ({_brief(cause)}); are its files complete?"
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


def _read_hub(entry: DatasetEntry, split: str) -> _Source:
    import datasets

    try:
        table = datasets.load_dataset(entry.hub, entry.config, split=split)
    # The hub's client passes on the errors of several network libraries.
    except Exception as error:  # noqa: BLE001
        raise ConfigError(
            f"data set {entry.name}: {entry.hub} cannot be loaded from the Hugging Face hub "
            f"({_brief(error)}); download its Parquet files where the hub can be reached and give "
            f"their folder: --dataset {entry.name} --data-dir FOLDER"
        ) from None
    return _read_table(table, f"{entry.hub} ({split})", entry)


def _read_table(table: Any, origin: str, entry: DatasetEntry | None) -> _Source:
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

    def read(rows: list[int]) -> list[_Encoded]:
        return images[rows][image]  # type: ignore[no-any-return]

    return _Source(origin, torch.tensor(values, dtype=torch.int64), classes, read)


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
        f"{origin}: no {what} column among {_listing(table.column_names)}; name it {what!r}"
    )


# --- Images --------------------------------------------------------------------------------------


def _open_image(encoded: _Encoded, mode: str) -> Image.Image:
    if isinstance(encoded, Image.Image):
        return encoded.convert(mode)
    if encoded is None:
        raise ValueError("the image is missing")
    data = encoded["bytes"]
    with Image.open(encoded["path"] if data is None else io.BytesIO(data)) as image:
        if image.mode.startswith(("I", "F")):
            # convert() would clip to white what is above 255.
            raise ValueError(f"mode {image.mode}, not 8 bits per channel")
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert(mode)


class _DrawsFrom(TorchFunctionMode):
    """Inside, torchvision's random draws come from one generator, not from torch's global one.

    It holds for the thread that enters it; seeding the global one would disturb other threads.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.rand, torch.randint, torch.randperm, torch.Tensor.uniform_):
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)


def _paper_augmentation(size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    from torchvision import transforms

    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.RandAugment(num_ops=2, magnitude=9),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
            transforms.Resize(size),
            transforms.RandomHorizontalFlip(),
        ]
    )


# --- Words for error messages --------------------------------------------------------------------


def _brief(error: BaseException) -> str:
    """Return the first line of an error, of bounded length, with its type if it says nothing."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."


def _listing(names: Collection[str]) -> str:
    """Return the first few names, sorted, and how many more there are."""
    shown = ", ".join(sorted(names)[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
