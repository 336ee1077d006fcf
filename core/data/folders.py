"""Image folders: one folder a class, with image files at any depth in it.

What torchvision's ``ImageFolder`` reads is read, and every other format that Pillow opens.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from PIL import Image

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.source import Encoded, Source
from splitlab.core.data.words import listing

__all__ = ["has_folders", "read_image_folders"]

# Pillow knows these files by their names alone; another program would have to decode them.
NAMES_ONLY = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")


def has_folders(folder: Path) -> bool:
    """Whether a folder holds folders, or links to some."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() for entry in entries)
    except OSError:
        return False


def read_image_folders(part: Path, origin: str) -> Source:
    """Read one split from a folder that holds a folder of images for each class.

    Links are followed. Rows are in the order of their files' names; no file is opened.

    Args:
        part: the folder.
        origin: what error messages call the split.

    Raises ConfigError if a folder cannot be read, or no class has an image.
    """
    try:
        found = _look_through(part)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from None
    names = [name for name, _ in found.files]
    classes = tuple(sorted({name.partition("/")[0] for name in names}))
    left_out = found.left_out(classes)
    if not classes:
        raise ConfigError(f"{origin} holds no images in class folders; left out: {left_out}")
    ids = {name: number for number, name in enumerate(classes)}
    digest = sha256()
    for name, size in found.files:
        digest.update(os.fsencode(f"{name}\0{size}\n"))

    def read(rows: list[int]) -> list[Encoded]:
        return [{"bytes": None, "path": os.path.join(part, names[row])} for row in rows]

    return Source(
        origin,
        torch.tensor([ids[name.partition("/")[0]] for name in names], dtype=torch.int64),
        classes,
        read,
        digest.hexdigest(),
        notices=(f"{origin}: left out {left_out}",) if left_out else (),
    )


@dataclass
class _Found:
    """What lies in a folder of class folders; names are relative to it, with slashes.

    Attributes:
        files: name and size of every image, in the order of the names.
        folders: the class folders.
        others: files that are no images by their names.
        astray: images beside the class folders.
        dangling: links that lead nowhere.
        loops: folders that lie within themselves, by a link.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)

    def left_out(self, classes: tuple[str, ...]) -> str:
        """Return in one line what is not read; an empty text if everything is."""
        kinds = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in self.others)
        empty = sorted({*self.folders} - {*classes})
        told = [
            _told(self.others, "file that is no image", "files that are no images", sorted(kinds)),
            _told(self.astray, "image outside of class folders", "images outside of class folders"),
            _told(self.dangling, "link that leads nowhere", "links that lead nowhere"),
            _told(self.loops, "folder within itself", "folders within themselves"),
            _told(empty, "class without images", "classes without images"),
        ]
        return ", ".join(text for text in told if text)


def _told(found: list[str], one: str, many: str, names: list[str] | None = None) -> str:
    what = one if len(found) == 1 else many
    return f"{len(found):,} {what} ({listing(names or found)})" if found else ""


def _look_through(part: Path) -> _Found:
    """Return what lies in a folder; the same, in the same order, on every file system."""
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    known -= {end for end, kind in Image.registered_extensions().items() if kind in NAMES_ONLY}
    found = _Found()
    # Folders that are still to be looked into: path, relative name, and the folders they lie in.
    todo: list[tuple[str, str, Set[tuple[int, int]]]] = [(os.fspath(part), "", frozenset())]
    while todo:
        folder, prefix, above = todo.pop()
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            found.loops.append(prefix.rstrip("/"))
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir():
                    todo.append((entry.path, name + "/", above | {here}))
                    if not prefix:
                        found.folders.append(name)
                elif not entry.is_file():
                    (found.dangling if entry.is_symlink() else found.others).append(name)
                elif os.path.splitext(name)[1].lower() not in known:
                    found.others.append(name)
                elif not prefix:
                    found.astray.append(name)
                else:
                    found.files.append((name, entry.stat().st_size))
    found.files.sort()
    return found
