"""Local data: which form a folder or file has, and where in it the two parts lie."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.arrays import find_npz_parts, read_idx_part, read_npz_part
from splitlab.core.data.entry import DatasetEntry
from splitlab.core.data.folders import has_folders, read_image_folders
from splitlab.core.data.source import Source
from splitlab.core.data.tables import read_parquet, read_saved
from splitlab.core.data.words import ACCEPTED, brief, listing, plain

__all__ = ["find_local", "read_local"]

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "t10k", "validation", "valid", "val")

Parts = Mapping[str, Any]
"""Where each part lies, by its name; under an empty name, data that are in no parts."""


def find_local(data_dir: str | Path) -> Path:
    """Return the folder or file that is meant: as it is written, or else with ~ as one's home."""
    return Path(data_dir if os.path.exists(data_dir) else os.path.expanduser(data_dir))


def read_local(
    place: Path,
    entry: DatasetEntry | None = None,
    *,
    label_column: str | None = None,
    test_split: str | None = None,
    whole: bool = False,
) -> tuple[list[Source], list[str]]:
    """Find out which of the forms in `words.FORMS` a place has, and return its parts.

    The first form that has both parts decides, or else the first that has anything.

    Args:
        place: a folder, or a Parquet or .npz file.
        entry: names the columns of tables.
        label_column: the column of the labels in a table, if the user named it.
        test_split: name of the part to test on; one of `TEST_NAMES` by default.
        whole: return the training part alone, which is everything where there are no parts.

    Returns the training and the test part, and a line on each part that is not used.

    Raises ConfigError if there is no such form, a part is missing, or a file cannot be read.
    """
    names = _names_in(place)
    if test_split and (test_split in (".", "..") or "/" in test_split):
        raise ConfigError(
            f"--test-split {test_split}: a part is called by its name, without a path"
        )
    tests = (test_split,) if test_split else TEST_NAMES
    sought = (*TRAIN_NAMES, *TEST_NAMES, *((test_split,) if test_split else ()))
    found = [(find(place, names, sought), read, form) for form, (find, read) in _FORMS.items()]
    found = [each for each in found if each[0]]
    if not found:
        raise ConfigError(f"data folder {place} holds {listing(names)}; {ACCEPTED}")

    def choose(parts: Parts) -> list[str]:
        train = [name for name in TRAIN_NAMES if name in parts][:1]
        if whole:
            undivided = "" in parts and not any(name in parts for name in TEST_NAMES)
            return train or [""] * undivided
        return train + [name for name in tests if name in parts][:1]

    wanted = 1 if whole else 2
    parts, read, form = next((f for f in found if len(choose(f[0])) == wanted), found[0])
    chosen = choose(parts)
    if len(chosen) < wanted:
        raise _incomplete(place, parts, chosen, test_split)
    used = [parts[name] for name in chosen]
    if len(used) == 2 and used[0] == used[1]:
        raise ConfigError(
            f"--test-split {chosen[1]} is the part to train on; name another, or take "
            "--test-share 0.2 of it"
        )
    told = [
        f"the part {name} is not used; --test-split {name} tests on it"
        for name, part in parts.items()
        if name and part not in used
    ]
    others = (other for *_, other in found if other != form)
    told += [f"{other} are there, too, and are not used; {form} are" for other in others]
    if beside := _beside(place, names, parts):
        told.append(f"left out what is no part: {listing(beside)}")
    titles = ("the whole",) if chosen == [""] else ("training part", "test part")
    sources = [
        read(part, f"{plain(place)} ({title})", entry, label_column)
        for part, title in zip(used, titles, strict=False)
    ]
    return sources, [f"{plain(place)}: {line}" for line in told]


def _beside(place: Path, names: Sequence[str], parts: Parts) -> list[str]:
    """Return the folders of images, or the Parquet files, that lie beside the parts of their kind.

    Data that are in no parts are read whole.
    """
    some = next(iter(parts.values()))
    if "" in parts:
        return []
    if isinstance(some, Path):  # of an image folder
        folders = (name for name in names if name not in parts and not name.startswith("."))
        return [f"{name}/" for name in folders if os.path.isdir(place / name)]
    if isinstance(some, list):
        taken = {file for files in parts.values() for file in files}
        return sorted(file.name for file in some[0].parent.glob("*.parquet") if file not in taken)
    return []


def _incomplete(
    place: Path, parts: Parts, chosen: Sequence[str], test_split: str | None
) -> ConfigError:
    there = sorted(filter(None, parts))
    if not there:
        missing, remedy = "training and no test", "--test-share 0.2 divides what there is"
    elif chosen and chosen[0] in TRAIN_NAMES:
        missing = f"{test_split!r}" if test_split else "test"
        remedy = "--test-split NAME says which it is, --test-share 0.2 takes it off the training's"
    else:
        missing, remedy = "training", f"call it {TRAIN_NAMES[0]!r}"
    found = f", but {listing(there)}" if there else ""
    return ConfigError(f"data folder {place} has no {missing} part{found}; {remedy}; {ACCEPTED}")


def _names_in(place: Path) -> list[str]:
    if os.path.isfile(place) and place.suffix in (".npz", ".parquet"):
        return [place.name]
    try:
        names = sorted(path.name for path in place.iterdir())
    except OSError as error:
        raise ConfigError(f"data folder {place}: {error.strerror}; {ACCEPTED}") from None
    if not names:
        raise ConfigError(f"data folder {place} is empty; {ACCEPTED}")
    return names


# A form: how its parts are found, and how one is read. What finds takes the place, the names in it
# and the names of parts to look for.


def _find_idx(folder: Path, names: Sequence[str], sought: Sequence[str]) -> Parts:
    def files(part: str, what: str) -> list[str]:
        dimensions = {"images": 3, "labels": 1}[what]
        pattern = rf"{re.escape(part)}.*{what}.*idx{dimensions}-ubyte(\.gz)?"
        return [name for name in names if re.fullmatch(pattern, name)]

    parts = {}
    for part in sought:
        images, labels = files(part, "images"), files(part, "labels")
        if images or labels:
            parts[part] = (folder, part, images, labels)
    return parts


def _read_idx(
    found: tuple[Path, str, list[str], list[str]], origin: str, *columns: object
) -> Source:
    folder, part, images, labels = found
    _refuse_column(columns, "IDX files")
    for what, files, dimensions in (("images", images, 3), ("labels", labels, 1)):
        if not files:
            raise ConfigError(
                f"data folder {folder} has no {part}-{what}-idx{dimensions}-ubyte; {ACCEPTED}"
            )
    return read_idx_part(folder / images[0], folder / labels[0], f"{folder} ({part}-*)")


def _find_saved(folder: Path, names: Sequence[str], sought: Sequence[str]) -> Parts:
    if "state.json" in names and "dataset_info.json" in names:
        return {"": folder}
    if "dataset_dict.json" not in names:
        return {}
    try:
        text = (folder / "dataset_dict.json").read_text(encoding="utf-8")
        return {str(split): folder / str(split) for split in json.loads(text)["splits"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / 'dataset_dict.json'}: cannot be read ({brief(error)}); copy it again"
        ) from None


def _find_parquet(place: Path, names: Sequence[str], sought: Sequence[str]) -> Parts:
    """Look in the folder, in ``data/``, and in its only folder, as the hub converts."""
    if place.is_file():
        return {"": [place]} if place.suffix == ".parquet" else {}
    folders = [place / name for name in names if os.path.isdir(place / name)]
    for folder in (place, place / "data", *(folders if len(folders) == 1 else ())):
        parts = {}
        for part in sought:
            # Not train of training.parquet.
            named = re.compile(rf"{re.escape(part)}([^A-Za-z].*)?\.parquet")
            files = sorted(path for path in folder.glob("*.parquet") if named.fullmatch(path.name))
            if not files and not has_folders(folder / part):
                files = sorted((folder / part).glob("*.parquet"))
            if files:
                parts[part] = files
        if parts:
            return parts
        if files := sorted(folder.glob("*.parquet")):
            return {"": files}
    return {}


def _find_npz(place: Path, names: Sequence[str], sought: Sequence[str]) -> Parts:
    archives = [name for name in names if name.endswith(".npz")]
    if len(archives) != 1:
        return {}
    return find_npz_parts(place if place.is_file() else place / archives[0])


def _read_npz(found: tuple[Path, str, str], origin: str, *columns: object) -> Source:
    _refuse_column(columns, ".npz files")
    return read_npz_part(*found, origin)


def _find_image_folders(place: Path, names: Sequence[str], sought: Sequence[str]) -> Parts:
    if place.is_file():
        return {}
    parts = {name: place / name for name in sought if has_folders(place / name)}
    return parts or ({"": place} if has_folders(place) else {})


def _read_image_folders(part: Path, origin: str, *columns: object) -> Source:
    _refuse_column(columns, "image folders")
    return read_image_folders(part, origin)


def _refuse_column(columns: tuple[object, ...], what: str) -> None:
    if columns[-1] is not None:
        raise ConfigError(f"--label-column {columns[-1]}: {what} have no columns; leave it out")


_FORMS: Mapping[str, tuple[Callable[..., Parts], Callable[..., Source]]] = {
    "IDX files": (_find_idx, _read_idx),
    "save_to_disk folders": (_find_saved, read_saved),
    "Parquet files": (_find_parquet, read_parquet),
    "NumPy archives": (_find_npz, _read_npz),
    "image folders": (_find_image_folders, _read_image_folders),
}
"""By their names in `words.FORMS`."""
