"""Image folders: what torchvision's ImageFolder reads is read, and what is left out is told."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from splitlab.core.data.folders import has_folders, read_image_folders
from splitlab.core.data.source import Source

ODD_NAMES = (
    "__background__",
    ".hidden",
    "été 火",
    "two words",
    "a[b]*?",
    "a::b",
    "$HOME",
    "~",
    "#1",
)


def paths(source: Source, part: Path) -> list[str]:
    encoded = source.read(list(range(len(source.labels))))
    return [os.path.relpath(str(image["path"]), part) for image in encoded]  # type: ignore[index,call-overload]


@pytest.fixture
def save(files: Any, tmp_path: Path) -> Callable[..., None]:
    """Return what writes images of these names below the temporary folder."""

    def save(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            files.noise(0).save(tmp_path / name)

    return save


def test_the_same_as_torchvision(save: Any, tmp_path: Path) -> None:
    part = tmp_path / "part"
    save(*(f"part/{name}/{file}" for name in ODD_NAMES for file in ("0.png", f"{name}.JPG")))
    save("part/a/deep/er/0.bmp", "part/a/1.png", "elsewhere/dogs/0.webp", "elsewhere/0.tif")
    (part / "wolf").symlink_to(tmp_path / "elsewhere" / "dogs")
    (part / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (part / "a" / "one.png").symlink_to(tmp_path / "elsewhere" / "0.tif")
    source = read_image_folders(part, "here")
    theirs = ImageFolder(part)
    assert source.classes == tuple(theirs.classes)
    mine = zip(paths(source, part), source.labels.tolist(), strict=True)
    assert sorted(mine) == sorted((os.path.relpath(p, part), c) for p, c in theirs.samples)
    assert source.notices == ()


def test_the_order_is_that_of_the_names(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(*(f"{c}/{n}.png" for c in ("a", "a-b", "B") for n in (10, 9)), "a/x/0.png")
    first = read_image_folders(tmp_path, "here")
    assert paths(first, tmp_path) == [
        "B/10.png", "B/9.png", "a-b/10.png", "a-b/9.png", "a/10.png", "a/9.png", "a/x/0.png",
    ]  # fmt: skip
    real = os.scandir

    class Mixed:
        def __init__(self, path: Any) -> None:
            self._entries = list(real(path))
            random.Random(7).shuffle(self._entries)

        def __enter__(self) -> Iterator[Any]:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Mixed)
    again = read_image_folders(tmp_path, "here")
    assert paths(again, tmp_path) == paths(first, tmp_path)
    assert again.contents == first.contents


def test_every_format_that_pillow_opens(files: Any, save: Any, tmp_path: Path) -> None:
    save("a/0.png")
    Image.init()
    for end in ("qoi", "avif", "jp2", "tga", "pcx"):
        if f".{end}" in Image.registered_extensions() and f".{end}" in Image.EXTENSION:
            (tmp_path / "a" / f"1.{end}").write_bytes(b"x")
    there = len(list((tmp_path / "a").iterdir()))
    assert there > 3
    source = read_image_folders(tmp_path, "here")
    assert (len(source.labels), source.notices) == (there, ())


def test_what_is_left_out_is_counted_and_named_in_one_line(save: Any, tmp_path: Path) -> None:
    save("cat/0.png", "astray.png")
    for name in ("cat/metadata.csv", "cat/images.zip", "cat/more.zip", "README", "cat/x.pdf"):
        (tmp_path / name).write_text("x")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "bird").mkdir()
    source = read_image_folders(tmp_path, "pets (training part)")
    assert len(source.labels) == 1
    assert source.notices == (
        "pets (training part): left out 5 files that are no images (.csv, .pdf, .zip, no "
        "extension), 1 image outside of class folders (astray.png), 1 link that leads nowhere "
        "(cat/gone.png), 1 folder within itself (cat/again), 1 class without images (bird)",
    )


def test_links_in_a_circle_end(save: Any, tmp_path: Path) -> None:
    save("a/0.png", "b/0.png")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    source = read_image_folders(tmp_path, "here")
    assert paths(source, tmp_path) == ["a/0.png", "a/b/0.png", "b/0.png", "b/a/0.png"]
    assert "2 folders within themselves (a/b/a, b/a/b)" in source.notices[0]


def test_no_file_is_opened(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("a/0.png", "b/1.png")
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("a file was opened"))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    assert len(read_image_folders(tmp_path, "here").labels) == 2


def test_no_images_at_all(refusal: Any, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.txt").write_text("x")
    message = refusal(lambda: read_image_folders(tmp_path, "pets"))
    assert message.startswith("pets holds no images in class folders; left out: 1 file that is no")


def test_a_folder_that_cannot_be_read(
    save: Any, refusal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("a/0.png")

    def deny(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", deny)
    assert refusal(lambda: read_image_folders(tmp_path, "x")).startswith(f"{tmp_path}: cannot be")
    assert not has_folders(tmp_path)


def test_what_has_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    assert has_folders(tmp_path / "b")
    assert not has_folders(tmp_path / "a")
    assert not has_folders(tmp_path / "absent")


def test_the_digest_is_of_names_and_sizes(save: Any, files: Any, tmp_path: Path) -> None:
    save("p/a/0.png", "q/a/0.png", "r/a/1.png", "s/a/0.png")
    files.noise(0, size=9).save(tmp_path / "s" / "a" / "0.png")
    marks = [read_image_folders(tmp_path / name, name).contents for name in "pqrs"]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


def test_names_that_would_break_the_line(
    save: Any, refusal: Any, tmp_path: Path, load: Any
) -> None:
    for part in ("train", "test"):
        save(f"{part}/a/0.png")
        (tmp_path / part / "b\nc").mkdir()
    assert load(tmp_path).notices[0].endswith("1 class without images (b\\nc)")
    (tmp_path / "test" / "b\nc" / "x\ny.png").write_bytes(b"broken")
    assert "lacks: b\\nc;" in refusal(lambda: load(tmp_path))
    (tmp_path / "train" / "b\nc" / "x\ny.png").write_bytes(b"broken")
    assert "x\\ny.png: not a readable image" in refusal(lambda: load(tmp_path))
