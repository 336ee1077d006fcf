r"""The table of a report as LaTeX: a part for a paper, and a whole document of it.

The part is a ``tabular`` of booktabs in a ``table``, for ``\input``; the document compiles with
pdflatex and tectonic alike, and holds the figures, too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from splitlab.core.contract.errors import ConfigError
from splitlab.core.report.results import Results
from splitlab.core.report.summary_table import Cells, cells, gathered, summarise

__all__ = ["escape", "latex_document", "latex_table"]

_LETTERS_OF_A_NAME = 48
"""Longer names of rows are folded, or the table is wider than its page."""

_LEFT_OUT = ("client s", "server s", "link s", "epochs", "steps", "note")
"""Columns for which a page has no room; notes stand below the table, the rest is in table.csv."""

_ROWS_OF_A_PAGE = 45

_GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi"),
    *("omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"),
)
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "-": "-{}",  # two of them would be a dash, and flags have two
    "—": "---",
    "–": "--",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "µ": r"$\mu$",
    **{
        letter: f"$\\{name}$"
        for letter, name in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", _GREEK, strict=True)
    },
}
_LATIN = "ßæøœłÆØŒŁ"


def escape(text: str) -> str:
    r"""Return LaTeX that prints a text as it is, on one line.

    A character that not every LaTeX has is printed as its number, rather than lost.

    >>> print(escape("top_k:ratio=5% ξ"))
    top\_k:ratio=5\% $\xi$
    """
    return "".join(_escaped(character) for character in " ".join(text.split()))


def _escaped(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    accented = ord(character) < 0x100 and unicodedata.normalize("NFD", character)[0].isascii()
    if character in _LATIN or accented:
        return character
    return f"\\texttt{{U+{ord(character):04X}}}"


def latex_table(results: Results, label: str = "") -> str:
    r"""Return the table for ``\input``; the preamble needs booktabs, and longtable if it is long.

    Args:
        results: what the table is of.
        label: for ``\ref``; ``tab:`` and the name of the results by default.
    """
    table = cells(summarise(results))
    kept = [i for i, name in enumerate(table.header) if name not in _LEFT_OUT]
    caption = f"\\caption{{{_caption(results, table)}}}"
    mark = f"\\label{{{label or 'tab:' + _word(results.name)}}}"
    names = "p{0.36\\linewidth}" if _is_wide(table) else "l"
    columns = "".join(names if i in table.words else "r" for i in kept)
    head = [
        "\\toprule",
        " & ".join(_head(table.header[i]) for i in kept) + " \\\\",
        "\\midrule",
    ]
    body = [*_body(results, table, kept)]
    notes = [*_notes(table)]
    if len(table.rows) > _ROWS_OF_A_PAGE:
        lines = [
            *(
                "{\\footnotesize\\setlength{\\tabcolsep}{4pt}",
                f"\\begin{{longtable}}{{@{{}}{columns}@{{}}}}",
            ),
            *(f"{caption}{mark}\\\\", *head, "\\endhead", *body, "\\bottomrule"),
            *("\\end{longtable}", *notes, "}"),
        ]
    else:
        lines = [
            *("\\begin{table}", "\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}"),
            *(caption, mark, "\\smallskip", f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}"),
            *(*head, *body, "\\bottomrule", "\\end{tabular}", *notes, "\\end{table}"),
        ]
    return "\n".join([*_comment(results), *lines, ""])


def latex_document(results: Results, figures: Sequence[str] = ()) -> str:
    """Return a document of the table and the figures.

    Args:
        results: what it is of.
        figures: paths of PDF or PNG files, as seen from the document.

    Raises:
        ConfigError: a path has characters that TeX cannot read in one.
    """
    for path in figures:
        if bad := set(path) & set("%#{}\\~$&^"):
            raise ConfigError(
                f"LaTeX cannot include {path}: its path has {' '.join(sorted(bad))} in it; "
                "name another folder with --figures"
            )
    pictures = [
        line
        for path in figures
        for line in (
            "\\begin{center}",
            f"\\includegraphics[width=\\linewidth,height=0.9\\textheight,keepaspectratio]"
            f"{{\\detokenize{{{path}}}}}",
            "\\end{center}",
        )
    ]
    return "\n".join(
        [
            "\\documentclass{article}",
            "\\usepackage[a4paper,margin=18mm]{geometry}",
            "\\usepackage{booktabs,graphicx,longtable}",
            "\\begin{document}",
            latex_table(results),
            *pictures,
            "\\end{document}",
            "",
        ]
    )


def _comment(results: Results) -> list[str]:
    command = " ".join(results.command.split())
    return [
        "% Made by splitlab report; the preamble needs \\usepackage{booktabs,longtable}.",
        *([f"% The runs are made by: {command}"] if command else []),
        "% Seconds, epochs and steps are in table.csv: splitlab report --csv.",
    ]


def _caption(results: Results, table: Cells) -> str:
    first = results.summary or results.name
    told = [first if first.endswith((".", "?", "!")) else f"{first}."]
    if results.paper:
        told.append(f"Reproduces {results.paper}.")
    if results.common:
        told.append("All runs: " + ", ".join(f"{n} {value}" for n, value in results.common) + ".")
    told.append(
        "Accuracy: mean over the seeds ± half the 95% interval of the mean (Student's t); "
        "n: finished runs (of those wanted)."
    )
    p = next((name for name in table.header if name.split()[0] == "p"), "")
    if p:
        kind = {"p paired": "paired by seed", "p Welch": "Welch's"}.get(p, "as named")
        told.append(f"p: t-test against the reference, {kind}, after Holm's correction.")
    if table.bold:
        told.append("Bold: the best, and those that cannot be told from it (p ≥ 0.05).")
    told.append(
        "Up, down: training bytes that crossed the link. Nominal: the ratio that papers would "
        "charge; measured: those bytes over the uncompressed ones."
    )
    return escape(" ".join(told))


def _head(name: str) -> str:
    first, _, more = name.partition(" ")
    first = "$p$" if first == "p" else "" if name == "row" else escape(first)
    return f"{first} ({escape(more)})" if more else first


def _is_wide(table: Cells) -> bool:
    return max((len(texts[0]) for texts in table.rows), default=0) > _LETTERS_OF_A_NAME


def _body(results: Results, table: Cells, kept: Sequence[int]) -> Iterator[str]:
    methods = [row.method for row in results.rows]
    grouped = len(set(methods)) < len(methods)
    ragged = "\\raggedright " if _is_wide(table) else ""
    for i, texts in enumerate(table.rows):
        if grouped and i and methods[i] != methods[i - 1]:
            yield "\\addlinespace"
        shown = [
            _cell(texts[j], table.header[j], table.header[j] == "accuracy" and i in table.bold)
            for j in kept
        ]
        yield ragged + " & ".join(shown) + " \\\\"


def _cell(text: str, column: str, bold: bool) -> str:
    number = text[:1].isdigit() and column != "row"
    if number and " ± " in text and "—" not in text:
        inner = text.replace("±", "\\pm")
        return f"$\\mathbf{{{inner}}}$" if bold else f"${inner}$"
    return f"\\textbf{{{escape(text)}}}" if bold else escape(text)


def _notes(table: Cells) -> Iterator[str]:
    if "note" not in table.header:
        return
    at = table.header.index("note")
    for names, note in gathered((texts[0], texts[at]) for texts in table.rows):
        yield f"\\par\\raggedright {escape(names)}: {escape(note)}."


def _word(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)
