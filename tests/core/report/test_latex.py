"""LaTeX of a table: every character as it is, what the numbers are, and it compiles."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.latex import escape, latex_document, latex_table
from splitlab.core.report.results import Results, Row

EVERYTHING = r"a_b.py:C#2%~^{x}\$&<1>|'`" + '"ξ×±µ…—é--lr 中ą\n→ ≥ß'


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("top_k:ratio=5%", r"top\_k:ratio=5\%"),
        ("a & b # {c}", r"a \& b \# \{c\}"),
        (r"C:\x", r"C:\textbackslash{}x"),
        ("ξ × Ω ± é", r"$\xi$ $\times$ $\Omega$ $\pm$ é"),
        ("--eval-every", "-{}-{}eval-{}every"),
        ("two\nlines", "two lines"),
        ("中", r"\texttt{U+4E2D}"),
    ],
)
def test_every_character_is_printed_as_it_is(text: str, printed: str) -> None:
    assert escape(text) == printed


def test_a_table_says_what_its_numbers_are(methods: Results) -> None:
    text = latex_table(methods)
    assert r"\label{tab:made-up}" in text
    assert "% The runs are made by: splitlab study made-up" in text
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    for told in ("Methods that nobody has.", "model vit-{}mini", r"95\% interval", "Holm"):
        assert told in caption
    assert "step 41: the loss is nan" in text
    assert r"adc:ratio=0.05 & $0." in text
    assert r"$\mathbf{0." in text
    assert text.count(r" \\") == 1 + len(methods.rows)
    assert text.count(r"\addlinespace") == 11


def test_long_names_are_folded_and_equal_notes_are_told_once(make: Any) -> None:
    name = "adc:ratio=0.1 + quantize:bits=8, cut 1, batch-size 16, "
    rows = [replace(make.row(f"{name}lr {i}", [0.5]), remark="takes no ratio") for i in range(5)]
    text = latex_table(make.results(rows))
    assert r"\begin{tabular}{@{}p{0.36\linewidth}" in text
    assert text.count("takes no ratio") == 1
    assert "and 3 more rows: takes no ratio." in text


def test_a_summary_ends_with_a_full_stop(make: Any) -> None:
    results = make.results([make.row("a", [0.5])])
    for summary, told in (("ratio against cut", "cut. "), ("does it?", "it? "), ("It is.", "is. ")):
        text = latex_table(replace(results, summary=summary))
        assert f"{told}All runs:" in text


def test_nothing_is_bold_inside_the_noise(make: Any) -> None:
    results = make.results([make.row("a", [0.5, 0.6]), make.row("b", [0.51, 0.6])])
    assert "mathbf" not in latex_table(results)
    assert "Bold" not in latex_table(results)


def test_a_long_table_breaks_over_pages(make: Any) -> None:
    rows = [make.row(f"a{i}", [0.5]) for i in range(46)]
    assert r"\begin{longtable}" in latex_table(make.results(rows))
    assert r"\begin{longtable}" not in latex_table(make.results(rows[:45]))


def test_a_path_that_tex_cannot_read_is_refused(methods: Results) -> None:
    with pytest.raises(ConfigError, match=r"LaTeX cannot include 5%/a\.pdf: its path has % in it"):
        latex_document(methods, ["5%/a.pdf"])


@pytest.mark.skipif(
    not (shutil.which("pdflatex") or shutil.which("tectonic")),
    reason="neither pdflatex nor tectonic is installed",
)
@pytest.mark.parametrize("rows", [2, 50])
def test_a_document_compiles(tmp_path: Path, make: Any, rows: int) -> None:
    strange = [
        Row(
            f"{EVERYTHING}{i}", "m", {}, (make.finished(0, 0.5), make.lost(1, "failed", EVERYTHING))
        )
        for i in range(rows)
    ]
    results = make.results(strange, summary=EVERYTHING, name=EVERYTHING, command=EVERYTHING)
    (tmp_path / "a_b.tex").write_text(latex_document(results), encoding="utf-8")
    program = shutil.which("pdflatex")
    command = (
        [program, "-interaction=nonstopmode", "-halt-on-error", "a_b.tex"]
        if program
        else ["tectonic", "--untrusted", "a_b.tex"]
    )
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False
    )
    if not program and "failed to fetch" in ended.stderr + ended.stdout:
        pytest.skip("tectonic has no packages here and cannot fetch any")
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert (tmp_path / "a_b.pdf").read_bytes()[:4] == b"%PDF"
