"""A folder of results holds its page, its tables and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.files import write_all, write_latex
from splitlab.core.report.summary_table import markdown


def test_everything_is_written(tmp_path: Path, make: Any) -> None:
    results = make.results([make.row("a", [0.5, 0.6])])
    written = write_all(results, tmp_path / "s")
    assert [file.relative_to(tmp_path / "s").as_posix() for file in written] == [
        *("report.html", "table.md", "table.csv", "runs.csv", "evaluations.csv"),
        *(f"figures/{n}.{s}" for n in ("bytes", "bytes-log", "frontier") for s in ("pdf", "svg")),
    ]
    assert all(file.stat().st_size for file in written)
    assert (tmp_path / "s" / "table.md").read_text() == markdown(results)


def test_time_over_links_is_written_where_it_was_asked_for(tmp_path: Path, make: Any) -> None:
    found = make.over_links()
    names = {path.name for path in write_all(make.results([make.row("a", [0.5])]), tmp_path, found)}
    assert {"links.csv", "links.pdf", "links.svg"} <= names
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('id="links-title"') :]
    assert '<th scope="col" class="number">rate=1&lt;2</th>' in section
    assert "<strong>3 s</strong>" in section  # the first there, on each link
    assert section.count("<strong>") == 2
    assert "never" in section
    assert "until an accuracy of 0.5000, the highest that every run reached" in section
    assert "0.1 times as fast" in section
    assert 'alt="time to accuracy over links"' in section


def test_a_folder_that_cannot_be_made(tmp_path: Path, make: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_all(make.results([make.row("a", [0.5])]), tmp_path / "file" / "s")


def test_a_document_stands_beside_its_table(tmp_path: Path, make: Any) -> None:
    results = make.results([make.row("a", [0.5])])
    figure = tmp_path / "figures" / "bytes.pdf"
    table, document = write_latex(results, tmp_path / "paper" / "t.tex", [figure])
    assert document == tmp_path / "paper" / "t-document.tex"
    assert "\\begin{document}" not in table.read_text()
    assert table.read_text() in document.read_text()
    assert "\\detokenize{../figures/bytes.pdf}" in document.read_text()
