"""The pages of docs/results: each is what its own files say, and a study becomes one."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import study
from splitlab.core.command.main import parser
from splitlab.core.report.summary_table import summarise, table_csv, table_markdown
from splitlab.core.studies.study import Study

DOCS = Path(__file__).parents[1] / "docs"


@functools.cache
def results() -> Any:
    spec = importlib.util.spec_from_file_location("results_docs", DOCS / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_what_its_files_say() -> None:
    pages = dict(results().written())
    assert pages.keys() == {*(DOCS / "results").rglob("README.md")}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text(), "run: python docs/results.py"
    for folder in results().pages():
        page = (folder / "README.md").read_text(encoding="utf-8")
        assert page.rstrip().endswith("<!-- end claims -->"), "a page ends with what is claimed"
        assert not re.search(r"[ (`](/tmp|/home|/root|/work)/", page), "it names a machine's folder"


@pytest.fixture
def made(small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pages with one, and its study beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(small_data)
    options: dict[str, Any] = {
        "data_dir": "pictures",
        "model": "vit:image_size=28,patch=7,channels=1,width=16,depth=2,heads=1",
        **{"weights": "none", "device": "cpu", "batch_size": 8, "budget": "steps=1", "cut": 1},
        **{"eval_points": 1},
    }
    stacks = ["adc", "adc-batch-merge"]
    study(
        "adc/ablation",
        stacks=stacks,
        over={"ratio": [0.5]},
        seeds=2,
        output="studies/it",
        **options,
    )
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "README.md").write_text(
        "By hand.\n"
        + "".join(
            f"<!-- begin {n}: x -->\n<!-- end {n} -->\n"
            for n in ("pages", "claims", "goals", "links")
        )
    )
    monkeypatch.setattr(results(), "HERE", pages)
    assert results().main(["studies/it", "--accuracy", "0.01"]) == 0
    return pages


def test_a_study_becomes_a_page(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = made / "adc-ablation" / "README.md"
    page = readme.read_text(encoding="utf-8")
    facts = json.loads((readme.parent / "facts.json").read_text())
    arguments = parser().parse_args(shlex.split(facts["command"])[1:])
    assert (arguments.study, arguments.seeds) == ("adc/ablation", "0,1")
    assert arguments.data_dir == facts["common"]["data-dir"] == "pictures"  # no folder of a machine
    assert arguments.plugins == ["adc", "adc-batch-merge"]
    assert f"\n    {facts['command']}\n" in page
    found = Study.read(made.parent / "studies" / "it")
    assert found is not None
    assert table_markdown(summarise(found.results())) in page  # of the file, digit for digit
    probed = {"leakage ssim": 0.5, "leakage ssim by chance": 0.125}
    rows = tuple(
        replace(row, runs=tuple(replace(run, found=probed) for run in row.runs))
        for row in found.results().rows
    )
    with_probe = replace(found.results(), rows=rows)
    read = table_markdown(results().rows_of_csv(table_csv(with_probe)))
    assert read == table_markdown(summarise(with_probe))
    assert "0.500 (0.125)" in read
    assert "![Accuracy against training bytes, every method in a panel](bytes.svg)" in page
    assert "| iot | `" in page
    assert "here dataset of a folder (there cifar100 or food101); " in page
    assert "cannot be told from these 2 seeds (Δ = " in page
    assert "are no such rows" in page
    assert {path.suffix for path in readme.parent.iterdir()} == {
        *(".md", ".json", ".csv", ".svg", ".pdf")
    }
    first = (made / "README.md").read_text(encoding="utf-8")
    assert first.startswith("By hand.\n")
    assert first.count("[adc-ablation](adc-ablation/README.md)") >= 4
    # What is written by hand stays, and a number changed by hand does not.
    readme.write_text(page.replace("<!-- begin claims", "Mine.\n\n<!-- begin claims", 1))
    assert results().main([]) == 0
    again = readme.read_text(encoding="utf-8")
    assert again == page.replace("<!-- begin claims", "Mine.\n\n<!-- begin claims", 1)
    readme.write_text(again.replace("| adc-batch-merge:ratio=0.5 | 0.", "| a | 1.", 1))
    assert results().page(readme.parent) == again
    readme.write_text(again.replace("<!-- end claims -->", ""))
    assert results().main([]) == 2
    assert "has 0 blocks of claims" in capsys.readouterr().err
