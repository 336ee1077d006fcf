"""A picture of somebody's own is in the style of reports, and the same file every time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from splitlab.core import picture


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_picture_is_the_same_file_whatever_the_users_settings(
    suffix: str, tmp_path: Path
) -> None:
    import matplotlib as mpl

    windows = "matplotlib.pyplot" in sys.modules
    files = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for file, size in zip(files, (7, 30), strict=True):
        with mpl.rc_context({"font.size": size}), picture(file, 2, 1) as figure:
            figure.subplots().semilogy([1, 10, 100])
    assert windows == ("matplotlib.pyplot" in sys.modules)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
