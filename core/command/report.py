"""``splitlab report``: tables, figures and pages of runs that there are. Runs nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from splitlab.core.command.estimate import (
    add_accuracy,
    add_links,
    over_links_asked,
    show_means,
    wants_accuracy,
)
from splitlab.core.command.options import Parser, declare
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.report.claims import Verdict
    from splitlab.core.report.over_links import OverLinks
    from splitlab.core.report.results import Results

__all__ = ["add", "show_results"]

_MORE = """\
Takes the folder of a study or a comparison, run folders, or folders of them;
runs that differ in their seed alone are a row. Without an option that names a
file, the table is printed. Figures: bytes, steps, seconds, joules (accuracy
against what was spent; each also as bytes:log and so on), frontier, heatmap,
heatmap:x=NAME,y=NAME, frontier:NAME (what a probe found).
With --link, --client-speed or --accuracy, table, page, --csv and --figures also
tell the time to an accuracy over links, as `splitlab estimate` does; a client
speed of 0.1 assumes a device ten times slower.
docs/reports.md explains what is shown.
"""

_EXAMPLES = """\
  splitlab report studies/mine                               the table
  splitlab report studies/mine --html mine.html              one page with everything in it
  splitlab report runs/* --csv results   every run and evaluation, for pandas
  splitlab report studies/mine --figures figures --latex table.tex   for a paper
  splitlab report studies/mine --figures figures --figure bytes:log
  splitlab report studies/mine --link lte --link 3g --client-speed 0.1
  splitlab report studies/adc/ratios --claims docs/results/claims.toml
"""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "report",
        _report,
        "make tables, figures and a page of runs",
        takes="STUDY|RUN… [options]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "places",
        nargs="+",
        type=expanduser,
        metavar="STUDY|RUN",
        help="a study's folder, run folders, or folders of them",
    )
    parser.add_argument(
        "--html", type=expanduser, metavar="FILE", help="write one page that works offline"
    )
    parser.add_argument(
        "--latex",
        type=expanduser,
        metavar="FILE",
        help="write the table for a paper (booktabs), and beside it a document that compiles, with "
        "the figures of --figures",
    )
    parser.add_argument(
        "--csv",
        type=expanduser,
        metavar="DIR",
        help="write table.csv, runs.csv and evaluations.csv: one row an evaluation",
    )
    parser.add_argument(
        "--figures", type=expanduser, metavar="DIR", help="write figures as PDF, SVG and PNG"
    )
    parser.add_argument(
        "--figure",
        action="append",
        default=[],
        metavar="KIND",
        help="draw this figure; repeat it for more (default: those that the study names, or that "
        "suit)",
    )
    parser.add_argument(
        "--reference",
        metavar="ROW",
        help="test every row against this one, or a method's rows (default: that of the study, or "
        "none)",
    )
    parser.add_argument(
        "--claims",
        type=expanduser,
        metavar="FILE.toml",
        help="print whether the runs bear out what this file claims of a study's rows, such as "
        "docs/results/claims.toml of ADC's paper",
    )
    group = parser.add_argument_group("time to accuracy over links")
    add_links(group, "all profiles")
    add_accuracy(group)
    return parser


def _report(arguments: argparse.Namespace) -> int:
    from splitlab.core.report.figures import drawable, wanted
    from splitlab.core.report.reference import references

    if arguments.figure and not (arguments.figures or arguments.html):
        raise ConfigError("--figure without --figures DIR or --html FILE: nothing is drawn; add it")
    results = _results([Path(place) for place in arguments.places])
    if arguments.figure:
        results = replace(results, draw=tuple(arguments.figure))
    if arguments.reference is not None:
        results = replace(results, reference=arguments.reference)
    references(results)
    verdicts = _verdicts(results, Path(arguments.claims)) if arguments.claims else ()
    if not any(row.finished for row in results.rows):
        runs = sum(len(row.runs) for row in results.rows)
        raise ConfigError(
            f"none of the {runs} runs in {' '.join(arguments.places)} is finished, so there is "
            "nothing to report"
        )
    if arguments.figures or arguments.html:
        results = results if arguments.figure else drawable(results)
        wanted(results)  # what cannot be drawn is told before anything is written
    links = None
    if arguments.links or wants_accuracy(arguments):
        links = over_links_asked(results.rows, arguments, arguments.links)
    written = _write(results, links, arguments)
    if written:
        from splitlab.core.command.show import print_written

        print_written(written)
    else:
        show_results(results, links)
    for verdict in verdicts:
        _show(verdict)
    return 0


def _verdicts(results: Results, path: Path) -> Sequence[Verdict]:
    """Return what came of the claims of a file, which must know the study."""
    from splitlab.core.report.claims import judge, read_claims, samples_of

    claims = read_claims(path, results.name).claims
    if not claims:
        raise ConfigError(
            f"{path} claims nothing of {results.name!r}; a table of its claims is written as "
            f'[["{results.name}"]]'
        )
    return judge(samples_of(results), claims)


def _show(verdict: Verdict) -> None:
    """Print a claim, what came of it, and its comparisons where there are several."""
    from splitlab.core.command.show import print_line
    from splitlab.core.report.claims import numbers, told

    say(f"\n{verdict.claim.text} ({verdict.claim.where})")
    print_line(("  " + verdict.told, "bold"))
    for one in verdict.comparisons if len(verdict.comparisons) > 1 else ():
        say(f"    {one.first} against {one.second}: {told(one)} ({numbers(one)})")


def _results(places: list[Path]) -> Results:
    """Return what came of a study, or of whatever runs are in these places."""
    from splitlab.core.report.collect import results_of
    from splitlab.core.studies.study import RECORD, Study

    if len(places) == 1 and (places[0] / RECORD).is_file():
        study = Study.read(places[0].absolute())
        if study is not None:
            return study.results()
    results = results_of(places)
    if any("none" in (row.title, row.method) for row in results.rows):
        return replace(results, reference="none")
    return results


def _write(results: Results, links: OverLinks | None, arguments: argparse.Namespace) -> list[Path]:
    written: list[Path] = []
    if arguments.csv:
        from splitlab.core.report.long import write_csv

        written += write_csv(results, Path(arguments.csv))
        if links:
            from splitlab.core.report.over_links import write_links_csv

            written.append(write_links_csv(links, Path(arguments.csv)))
    if arguments.figures:
        from splitlab.core.report.draw import draw, draw_over_links

        written += draw(results, Path(arguments.figures))
        if links:
            written += draw_over_links(links, Path(arguments.figures))
    if arguments.latex:
        from splitlab.core.report.files import write_latex

        pictures = [path for path in written if path.suffix == ".pdf"]
        written += write_latex(results, Path(arguments.latex), pictures)
    if arguments.html:
        from splitlab.core.report.page import write_page

        write_page(results, Path(arguments.html), links)
        written.append(Path(arguments.html))
    return [path.absolute() for path in written]


def show_results(results: Results, links: OverLinks | None = None) -> None:
    """Print the table of some results, and what its numbers are; then what is over links."""
    from splitlab.core.command.show import Cell, print_line, print_table, width
    from splitlab.core.report.summary_table import cells, gathered, summarise

    summary = summarise(results)
    table = cells(summary)
    print()
    if results.common:
        say(", ".join(f"{name} {value}" for name, value in results.common))
    # Numbers are never folded: where they do not all fit beside each other, two tables do.
    numbers = [i for i in range(len(table.header)) if i not in table.words]
    wide = 24 + sum(2 + max(len(row[i]) for row in (table.header, *table.rows)) for i in numbers)
    half = len(numbers) // 2
    accuracy = table.header.index("accuracy")
    for part in [numbers] if wide <= width() else [numbers[:half], numbers[half:]]:
        rows: list[list[Cell]] = [
            [
                texts[0],
                *((texts[i], "bold" if n in table.bold and i == accuracy else "") for i in part),
            ]
            for n, texts in enumerate(table.rows)
        ]
        print()
        print_table(
            ("row", *(table.header[i] for i in part)),
            rows,
            numbers=range(1, len(part) + 1),
            whole=(),
        )
    print()
    for names, note in gathered((row.row.title, row.note) for row in summary):
        print_line(f"{names}: {note}")
    told = "accuracy: mean ± half the 95 % interval over n runs"
    if any(row.is_reference for row in summary):
        told += "; p: of the difference to the reference, after Holm's correction"
    if table.bold:
        told += "; bold: the best, and those that cannot be told from it"
    print_line(told)
    if links:
        print()
        show_means(links)
