"""Figures are the same file every time, whatever the user's settings; every kind can be drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.draw import draw, draw_svg, file_name
from splitlab.core.report.results import Results


@pytest.fixture(scope="module")
def small(make: Any) -> Results:
    found: Results = make.grid(cuts=(1, 2))
    return found


def test_the_same_results_make_the_same_files(tmp_path: Path, small: Results) -> None:
    import matplotlib as mpl

    windows = "matplotlib.pyplot" in sys.modules
    files = draw(small, tmp_path / "made" / "here", ["bytes"])
    assert windows == ("matplotlib.pyplot" in sys.modules)
    assert [file.name for file in files] == ["bytes.pdf", "bytes.svg", "bytes.png"]
    first = [file.read_bytes() for file in files]
    assert [raw[:4] for raw in first] == [b"%PDF", b"<?xm", b"\x89PNG"]
    assert b"CreationDate" not in first[0]
    assert b"/Type3" not in first[0]
    assert b"<dc:date>" not in first[1]
    with mpl.rc_context({"lines.linewidth": 9, "savefig.dpi": 7, "font.size": 30}):
        draw(small, tmp_path / "made" / "here", ["bytes"])
        assert mpl.rcParams["font.size"] == 30  # theirs is as it was
    assert [file.read_bytes() for file in files] == first


def test_figures_that_suit_are_drawn(tmp_path: Path, small: Results) -> None:
    names = [file.name for file in draw(small, tmp_path, formats=("svg",))]
    assert names == ["heatmap.svg", "bytes.svg", "bytes-log.svg", "frontier.svg"]


@pytest.mark.parametrize("kind", ["heatmap:ratio×cut", "seconds", "bytes:log", "frontier"])
def test_a_page_gets_an_element_with_texts(small: Results, kind: str) -> None:
    text = draw_svg(small, kind)
    element = ElementTree.fromstring(text)
    assert element.tag == "{http://www.w3.org/2000/svg}svg"
    words = {each.text for each in element.iter("{http://www.w3.org/2000/svg}text")}
    assert "test accuracy" in words
    assert text == draw_svg(small, kind)


def test_nothing_and_one_row_can_be_drawn(tmp_path: Path, make: Any) -> None:
    lost = make.lost(0, "diverged", "nan")
    for name, rows in {
        "nothing": [],
        "lost": [make.row("a", [], runs=(lost,))],
        "one": [make.row("a--b $x_1$", [0.5])],
    }.items():
        for file in draw(make.results(rows), tmp_path / name, formats=("svg",)):
            assert file.stat().st_size > 0
    assert "a--b $x_1$" in draw_svg(make.results(rows), "bytes")  # no formula


def test_a_folder_that_cannot_be_made(tmp_path: Path, small: Results) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        draw(small, tmp_path / "file" / "figures")


def test_a_figure_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, small: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = draw(small, tmp_path, kinds=["frontier"], formats=("svg",))
    before = file.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("splitlab.core.runs.disk.os.replace", full)
    with pytest.raises(ConfigError, match=r"cannot write .*frontier\.svg: No space left"):
        draw(small, tmp_path, kinds=["frontier"], formats=("svg",))
    assert file.read_bytes() == before
    assert [*tmp_path.iterdir()] == [file]


def test_files_are_named_after_their_figures() -> None:
    kinds = ("bytes:log", "heatmap:ratio×cut", "heatmap:x=adc.ratio,y=cut")
    assert [file_name(kind) for kind in kinds] == [
        "bytes-log",
        "heatmap-ratio-by-cut",
        "heatmap-x-adc.ratio-y-cut",
    ]
