"""Writes the pages of docs/results: of a finished study, and anew from what is committed.

    python docs/results.py studies/adc/ratios                        docs/results/adc-ratios
    python docs/results.py studies/adc/ratios --accuracy 0.7         and how soon over which link
    python docs/results.py studies/food --page adc-ratios-food101    under another name
    python docs/results.py                                           every page from its own files

A page's folder holds what its numbers are read from: ``facts.json`` (command, options, hardware),
``table.csv``, ``runs.csv``, ``links.csv`` and figures. Its README.md has blocks that this program
writes, between ``<!-- begin … -->`` and ``<!-- end … -->``; what stands around them is written by
hand, and stays.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitlab.core.contract.errors import ConfigError, SplitlabError
from splitlab.core.report.claims import (
    Claims,
    Comparison,
    Verdict,
    apart,
    judge,
    read_claims,
    samples_of_csv,
    told,
)
from splitlab.core.report.draw import draw, file_name
from splitlab.core.report.figures import drawable, wanted
from splitlab.core.report.long import runs_csv
from splitlab.core.report.over_links import human_seconds, over_links, write_links_csv
from splitlab.core.report.results import Row
from splitlab.core.report.statistics import Difference, Mean
from splitlab.core.report.summary_table import SummaryRow, table_csv, table_markdown
from splitlab.core.studies.definition import Definition
from splitlab.core.studies.find import definition_of
from splitlab.core.studies.study import Study

HERE = Path(__file__).parent / "results"
CLAIMS = HERE / "claims.toml"
FACTS = "facts.json"

_BLOCK = r"(<!-- begin {0}\b.*?-->\n).*?(<!-- end {0} -->)"
_NEW = """\
# {title}

<!-- begin results: written by docs/results.py -->
<!-- end results -->

<!-- begin claims: written by docs/results.py -->
<!-- end claims -->
"""
_PATHS = ("data-dir", "weights")
"""Options whose values are paths: of these the last part is told."""


# What came of a study, as the files of a page.


def take(folder: Path, page: Path, accuracy: float | None = None) -> None:
    """Write the files of a page from a study's folder.

    Args:
        folder: of the study.
        page: folder of the page, which is made.
        accuracy: for which ``links.csv`` tells how soon rows have it; without it there is none.

    Raises:
        ConfigError: the folder holds no study, or none of its runs is finished.
    """
    study = Study.read(folder.absolute())
    results = drawable(study.results()) if study else None
    if study is None or results is None or not any(row.finished for row in results.rows):
        raise ConfigError(f"{folder} holds no study with a finished run; name a study's folder")
    kinds = wanted(results)
    runs = [run for row in results.rows for run in row.runs]
    summaries = [run.summary for run in runs if run.summary is not None]
    places = [run.folder for run in runs if run.summary is not None]
    facts = {
        "study": results.name,
        "summary": results.summary,
        "paper": results.paper,
        "command": command(study.definition),
        "common": {n: Path(value).name if n in _PATHS else value for n, value in results.common},
        "axes": [axis.name for axis in results.axes],
        "seeds": list(results.seeds),
        "runs": [len(summaries), len(runs)],
        "hours": math.fsum(summary.seconds for summary in summaries) / 3600,
        **_surroundings(places),
        "figures": list(kinds),
    }
    page.mkdir(parents=True, exist_ok=True)
    _write(page / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    _write(page / "table.csv", table_csv(results))
    _write(page / "runs.csv", _placeless(runs_csv(results)))
    for old in (*page.glob("*.svg"), *page.glob("*.pdf"), page / "links.csv"):
        old.unlink(missing_ok=True)
    draw(results, page, kinds, formats=("svg", "pdf"))
    if accuracy is not None:
        write_links_csv(over_links(results.rows, accuracy=accuracy), page)


def command(definition: Definition) -> str:
    """Return what makes the study: by its name, with what was said besides."""
    try:
        known = definition_of(definition.name)
    except SplitlabError:  # a file of the user's
        return definition.command(Path(definition.name).stem)
    usual = {"threads": 1, "eval_points": 20, **known.base}
    base = {
        key: Path(value).name if key in ("data_dir", "weights") else value
        for key, value in definition.base.items()
        if value != usual.get(key)
    }
    axes = tuple(axis for axis in definition.axes if axis not in known.axes)
    words = shlex.split(replace(definition, base=base, axes=axes).command("-"))[2:-2]
    said = []
    for option, value in _pairs(words):
        same = option == "--plugin" and definition.stacks == known.stacks
        same |= option in ("--seeds", "--seed") and definition.seeds == known.seeds
        said += [] if same else [option, *value]
    return shlex.join(["splitlab", "study", definition.name, *said])


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield every option with its value, or with none."""
    for i, word in enumerate(words):
        if word.startswith("--"):
            yield word, [each for each in words[i + 1 : i + 2] if not each.startswith("--")]


def _surroundings(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Return hardware and versions of runs, each once."""
    hardware: dict[str, None] = {}
    versions: dict[str, None] = {}
    for folder in folders:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        on = found["gpus"][0] if found["device"] != "cpu" and found["gpus"] else "cpu"
        hardware[found["processor"] + ("" if on == "cpu" else f"; {on}")] = None
        packages = {"Python": found["python"], **found["packages"]}
        versions[", ".join(f"{name} {packages[name]}" for name in _TOLD if name in packages)] = None
    return {"hardware": [*hardware], "versions": [*versions]}


_TOLD = ("splitlab", "Python", "torch", "torchvision", "timm", "numpy")


def _placeless(text: str) -> str:
    """Return the text of a CSV file without the folders of runs, which are of one machine."""
    records = [*csv.DictReader(io.StringIO(text))]
    columns = [name for name in records[0] if name != "folder"]
    errors = [{**each, "error": re.sub(r"; go on from.*", "", each["error"])} for each in records]
    return _csv(columns, errors)


def _csv(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    made = io.StringIO()
    writer = csv.DictWriter(made, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return made.getvalue()


# A page, from its own files.


def page(folder: Path) -> str:
    """Return the text of a page: its own, with its blocks written anew from its files.

    Raises:
        ConfigError: a file cannot be used, or the page has not the blocks.
    """
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    title = f"{facts['study']}: {facts['summary']}"
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else _NEW.format(title=title)
    text = _replaced(text, "results", _results(folder, facts), readme)
    return _replaced(text, "claims", _claims(folder, facts), readme)


def _replaced(text: str, name: str, block: str, where: Path) -> str:
    found, count = re.subn(
        _BLOCK.format(name),
        lambda match: f"{match[1]}\n{block}\n\n{match[2]}",
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ConfigError(
            f"{where} has {count} blocks of {name}; it has one, from <!-- begin {name} --> to "
            f"<!-- end {name} -->"
        )
    return found


def _results(folder: Path, facts: Mapping[str, Any]) -> str:
    finished, whole = facts["runs"]
    lines = [
        ("in the paper", facts["paper"]),
        ("setting", ", ".join(f"{name} {value}" for name, value in facts["common"].items())),
        ("seeds", ", ".join(map(str, facts["seeds"]))),
        ("runs", f"{finished}" if finished == whole else f"{finished} of {whole}"),
        ("hours of all runs together", f"{facts['hours']:.1f}" if facts["hours"] else ""),
        ("hardware", "; ".join(facts["hardware"])),
        ("versions", "; ".join(facts["versions"])),
    ]
    parts = [
        f"    {facts['command']}",
        _table(("", ""), [(name, text) for name, text in lines if text]),
        table_markdown(rows_of_csv((folder / "table.csv").read_text(encoding="utf-8"))),
        "Accuracy is the mean over the seeds and half of its 95 % interval; p is of the difference "
        "to the reference, after Holm; bold is what cannot be told from the best row. `nominal` is "
        "what the papers would charge, `measured` all that crossed the link in training, both as "
        "shares of the uncompressed bytes. [Reports](../../reports.md) explains the rest.",
        *(f"![{_alt(kind)}]({file_name(kind)}.svg)" for kind in facts["figures"]),
        _files(folder, facts["figures"]),
    ]
    if (folder / "links.csv").exists():
        parts.append(_over_links(folder))
    return "\n\n".join(parts)


def rows_of_csv(text: str) -> tuple[SummaryRow, ...]:
    """Return the rows of a report's table from the text of ``table.csv``."""
    return tuple(map(_row, csv.DictReader(io.StringIO(text))))


def _row(record: Mapping[str, str]) -> SummaryRow:
    def number(name: str) -> float | None:
        return float(record[name]) if record[name] else None

    def mean(name: str) -> Mean | None:
        value, n = number(f"{name}_mean"), number(f"{name}_n")
        if value is None or n is None:
            return None
        return Mean(value, number(f"{name}_std"), number(f"{name}_half"), int(n))

    difference = number("difference")
    tested = difference is not None
    numbers = ("bytes_up", "bytes_down", "nominal", "measured", "client_seconds")
    numbers += ("server_seconds", "link_seconds", "epochs", "steps")
    columns = [*record]  # what probes found stands between two that every table has
    probed = columns[columns.index("steps") + 1 : columns.index("is_reference")]
    n = int(record["finished"])
    states = ("finished", "running", "interrupted", "failed", "diverged", "missing")
    return SummaryRow(
        row=Row(record["row"], record["method"], {}, ()),
        accuracy=mean("accuracy"),
        uncompressed=mean("uncompressed"),
        best=mean("best"),
        best_samples=frozenset(),
        is_reference=record["is_reference"] == "True",
        difference=Difference(difference or 0.0, number("p"), record["test"]) if tested else None,
        p=number("p_holm"),
        leads=record["bold"] == "True",
        states=Counter({name: int(record[name]) for name in states}),
        note=record["note"],
        found={name: Mean(float(record[name]), None, None, n) for name in probed if record[name]},
        **{name: number(name) for name in numbers},
    )


def _alt(kind: str) -> str:
    what, _, of = kind.partition(":")
    texts = {
        "bytes": "Accuracy against training bytes, every method in a panel",
        "frontier": "Final accuracy against training bytes, with the Pareto frontier",
        "ratio": "Final accuracy against the measured share of bytes",
        "setting": f"Final accuracy against {of}",
        "heatmap": "Accuracy and bytes over two settings",
        "ridge": "Accuracy over two settings, with the best of every equal product",
    }
    return texts.get(what, f"Accuracy against {what}")


def _files(folder: Path, kinds: Iterable[str]) -> str:
    tables = [name for name in ("table.csv", "runs.csv", "links.csv") if (folder / name).exists()]
    named = ", ".join(f"[{name}]({name})" for name in tables)
    pdf = ", ".join(f"[{kind}]({file_name(kind)}.pdf)" for kind in kinds)
    return f"Every digit: {named}. The figures as PDF: {pdf}."


_FIRST = 3


def _over_links(folder: Path) -> str:
    lines = [(link, *rest) for link, _, *rest in _first_over_links(folder)]
    accuracy = _first_over_links(folder)[0][1]
    return (
        f"How soon every run of a row has an accuracy of {accuracy}, as `splitlab estimate` "
        "tells it from the logs ([links](../../links.md)): the three rows that are first, "
        "and `none`.\n\n" + _table(("link", "rows and times", "none"), lines)
    )


def _first_over_links(folder: Path) -> list[tuple[str, str, str, str]]:
    """Return for every link the accuracy that is looked for, who is first, and the time of none."""
    accuracy = f"{float(_records(folder / 'links.csv')[0]['accuracy']):g}"
    lines = []
    for link, first in fastest(folder).items():
        told = [(title, human_seconds(seconds)) for title, seconds in first]
        soonest = "; ".join(f"`{title}` {time}" for title, time in told[:_FIRST])
        plain = next((time for title, time in told if title.partition(",")[0] == "none"), "never")
        lines.append((link, accuracy, soonest or "no row in all its runs", plain))
    return lines


def fastest(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """Return by link the rows whose runs all have the accuracy of ``links.csv``, soonest first."""
    found: dict[str, list[tuple[str, float]]] = {}
    for record in _records(folder / "links.csv"):
        rows = found.setdefault(record["link"], [])
        if record["reached"] == record["runs"]:
            rows.append((record["title"], float(record["reached_seconds"])))
    return {link: sorted(rows, key=lambda row: row[1]) for link, rows in found.items()}


def _records(path: Path) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in lines)


# What is claimed of its rows.


def verdicts(folder: Path, facts: Mapping[str, Any]) -> tuple[Claims, tuple[Verdict, ...]]:
    """Return what is claimed of a page's study, and what its runs say; no verdict without runs."""
    claims = read_claims(CLAIMS, facts["study"])
    runs = folder / "runs.csv"
    if not runs.exists():
        return claims, ()
    samples = samples_of_csv(runs.read_text(encoding="utf-8"), facts["axes"])
    return claims, judge(samples, claims.claims)


_HEAD = "## What the paper claims, and whether it held"


def _claims(folder: Path, facts: Mapping[str, Any]) -> str:
    claims, found = verdicts(folder, facts)
    if not found:
        return (
            f"{_HEAD}\n\nADC's paper claims nothing of these rows. What it claims is tested on the "
            "pages of [its own studies](../README.md)."
        )
    head, regime = _HEAD, "The setting is the paper's."
    other = apart(claims, facts["common"].items(), facts["axes"])
    if not facts["paper"]:
        head = "## What is claimed of it here, and whether it held"
        regime = "No paper claims this: it is what these rows were put together to show."
    elif other:
        regime = (
            f"The paper's setting is another: here {'; '.join(other)}. What holds here repeats no "
            "figure of its, and what does not hold here refutes none."
        )
    listed = []
    for number, each in enumerate(found, start=1):
        note = f" Note: {each.claim.note}." if each.claim.note else ""
        margin = f" Margin: {each.claim.margin:g}." if each.claim.margin else ""
        listed.append(
            f"{number}. {each.claim.text} ({each.claim.where}) **{each.told}.**{margin}{note}"
        )
    rows = [
        (str(number), *_cells(one))
        for number, each in enumerate(found, start=1)
        for one in each.comparisons
    ]
    test = (
        "Every comparison is a two-sided t-test of final accuracies paired by seed, corrected "
        "after Holm for the comparisons of its claim; it tells something where p < 0.05. Δ is the "
        "first row's mean less the second's; a margin is what the first may be below. On average "
        "means a seed's differences averaged over the comparisons, then tested over the seeds, and "
        "corrected for all such averages of this page."
    )
    table = _table(("claim", "row", "against", "Δ", "p", "n", ""), rows)
    return "\n\n".join([head, regime, "\n".join(listed), test, table])


def _cells(one: Comparison) -> tuple[str, ...]:
    difference = "—" if one.difference is None else f"{one.difference:+.4f}"
    p = "—" if one.p is None else "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
    return one.first, one.second, difference, p, str(one.n), told(one)


# The first page.


def first_page(pages: Sequence[Path]) -> str:
    """Return the text of docs/results/README.md, with its blocks written anew from all pages."""
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    known = {folder.name: json.loads((folder / FACTS).read_text("utf-8")) for folder in pages}
    listed = [
        (f"[{name}]({name}/README.md)", facts["summary"], f"`{facts['command']}`")
        for name, facts in known.items()
    ]
    text = _replaced(text, "pages", _table(("page", "question", "made by"), listed), readme)
    for block, header, from_a_paper in (
        ("claims", "the paper says", True),
        ("goals", "what is claimed", False),
    ):
        said = [
            (each.claim.text, each.told, f"[{name}]({name}/README.md)")
            for name, facts in known.items()
            if bool(facts["paper"]) is from_a_paper
            for each in verdicts(HERE / name, facts)[1]
        ]
        table = _table((header, "here", "page"), said) if said else "No page tests it yet."
        text = _replaced(text, block, table, readme)
    soonest = [
        (f"[{name}]({name}/README.md)", *line)
        for name in known
        if (HERE / name / "links.csv").exists()
        for line in _first_over_links(HERE / name)
    ]
    header = ("page", "link", "first at an accuracy", "rows and times", "none")
    block = (
        _table(header, soonest) if soonest else "No page tells yet how long it takes over which."
    )
    return _replaced(text, "links", block, readme)


def pages() -> list[Path]:
    """Return the folders of all pages."""
    return sorted(path.parent for path in HERE.glob(f"*/{FACTS}"))


def written() -> Iterator[tuple[Path, Callable[[], str]]]:
    """Yield every file that has blocks, and what returns its text."""
    for folder in pages():
        yield folder / "README.md", lambda folder=folder: page(folder)  # type: ignore[misc]
    yield HERE / "README.md", lambda: first_page(pages())


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take what came of a study, if one is named, and write all pages."""
    parser = argparse.ArgumentParser(prog="docs/results.py", description=__doc__.split("\n")[0])
    parser.add_argument("study", nargs="?", help="the folder of a study")
    parser.add_argument("--page", help="name of its page; by default the study's, with dashes")
    parser.add_argument("--accuracy", type=float, help="tell how soon rows have it over which link")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    try:
        if given.study is not None:
            study = Study.read(Path(given.study).absolute())
            name = given.page or (study.definition.name.replace("/", "-") if study else "")
            take(Path(given.study), HERE / name, given.accuracy)
        for path, text in written():
            _write(path, text())
    except SplitlabError as error:
        print(f"docs/results.py: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
