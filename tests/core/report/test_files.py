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
