"""Figures are the same file every time, whatever the user's settings, and lines differ."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.figure import Curve, _look, draw_curves

CURVES = [
    Curve("one run", [1e6, 2e6], [0.5, 0.6]),
    Curve("three runs", [1e6, 2e6, 3e6], [0.4, 0.5, 0.7], [0.1, 0.05, 0.0]),
    Curve("a single point, with -- and $ in its name", [2e6], [0.3], [0.02]),
]


def draw(*files: Path, curves: list[Curve] = CURVES, **options: str) -> None:
    draw_curves(curves, files, x_label="bytes", y_label="accuracy", x_unit="B", **options)  # type: ignore[arg-type]


def test_the_same_curves_make_the_same_files(tmp_path: Path) -> None:
    import matplotlib as mpl

    files = [tmp_path / f"figure.{suffix}" for suffix in ("png", "pdf", "svg")]
    windows = "matplotlib.pyplot" in sys.modules
    draw(*files)
    assert windows == ("matplotlib.pyplot" in sys.modules)
    first = [file.read_bytes() for file in files]
    with mpl.rc_context({"lines.linewidth": 9, "savefig.dpi": 7, "font.size": 30}):
        draw(*files)
        assert mpl.rcParams["font.size"] == 30  # theirs is as it was
    assert [file.read_bytes() for file in files] == first
    assert [raw[:4] for raw in first] == [b"\x89PNG", b"%PDF", b"<?xm"]
    assert b"CreationDate" not in first[1]
    assert b"<dc:date>" not in first[2]
    draw(files[0], x_scale="log")
    assert files[0].read_bytes() != first[0]


def test_nothing_to_draw_is_an_empty_figure(tmp_path: Path) -> None:
    draw(tmp_path / "empty.png", curves=[])
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*no/f\.png: No such file"):
        draw(tmp_path / "no" / "f.png", curves=[])


def test_many_curves_all_look_different() -> None:
    looks = [_look(i) for i in range(84)]
    assert len({(colour, marker) for colour, marker, _ in looks}) == 84
    assert len({(colour, dashes) for colour, _, dashes in looks[:28]}) == 28
