"""The page of a report: one HTML file with figures and a table, which works offline.

The table, its legend and what all runs have in common are in the HTML. The scripts ``page_*.js``
draw the figures from numbers that stand in it as JSON, and let the table sort, filter and open.
Texts of users reach the page escaped, or as text nodes.
"""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from splitlab import __version__
from splitlab.core.contract.jsonable import json_text
from splitlab.core.report.draw import draw_svg, over_links_svg
from splitlab.core.report.figures import is_still, wanted
from splitlab.core.report.over_links import OverLinks
from splitlab.core.report.page_data import page_data
from splitlab.core.report.results import Results
from splitlab.core.report.summary_table import LEGEND, Cells, SummaryRow, cells, summarise
from splitlab.core.runs.disk import write_whole, writing

__all__ = ["page", "write_page"]

_HERE = Path(__file__).parent
_SCRIPTS = ("page_parts.js", "page_figures.js", "page_table.js")  # each uses those before it
_MARKER = re.compile(r"<!--([A-Z]+)-->")


def write_page(results: Results, path: Path, links: OverLinks | None = None) -> None:
    """Write the page of these results, and make the folder that it is to be in.

    Args:
        results: what it is of.
        path: of the file.
        links: what the same runs would take over these; None leaves it out.

    Raises:
        DiskError: it cannot be written.
        ConfigError: the reference, or what a figure needs, is not in the results.
    """
    text = page(results, links)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def page(results: Results, links: OverLinks | None = None) -> str:
    """Return the page of these results, and of what their runs would take over links.

    Raises:
        ConfigError: the reference, or what a figure needs, is not in the results.
    """
    rows = summarise(results)
    parts = {
        "STYLE": _file("page.css"),
        "SCRIPT": "\n".join(map(_file, _SCRIPTS)),
        "TITLE": html.escape(results.name),
        "SUMMARY": _paragraph(results.summary),
        "PAPER": _paragraph(f"Reproduces: {results.paper}" if results.paper else ""),
        "STATES": _states(rows),
        "FACTS": _facts(results),
        "COMMAND": _command(results.command),
        "STILL": _still(results),
        "LINKS": _over_links(links) if links else "",
        "TABLE": _table(cells(rows), rows),
        "LEGEND": _legend(),
        "VERSION": html.escape(__version__),
        "DATA": _script_json(page_data(results, rows)),
    }
    text = _MARKER.sub(lambda found: parts[found[1]], _file("page.html"))
    return text.encode("utf-8", "replace").decode()  # a folder's name may be no text


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _states(rows: Sequence[SummaryRow]) -> str:
    """Return how many runs are in which state, of all rows."""
    counts = sum((Counter(row.states) for row in rows), Counter[str]())
    told = ", ".join(
        f'<span class="state {state}">{n} {state}</span>' for state, n in counts.most_common()
    )
    runs = counts.total()
    return (
        f'<p id="states">{len(rows)} row{"s" * (len(rows) != 1)}, '
        f"{runs} run{'s' * (runs != 1)}{f': {told}' if told else ''}</p>"
    )


def _facts(results: Results) -> str:
    seeds = ", ".join(map(str, results.seeds))
    facts = [*results.common, *([("seeds", seeds)] if seeds else [])]
    items = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{"".join(items)}</dl>' if facts else ""


def _command(command: str) -> str:
    if not command:
        return ""
    return (
        '<div class="command"><p>Made by</p>'
        f'<code id="command">{html.escape(command)}</code>'
        '<button type="button" id="copy" hidden>Copy</button></div>'
    )


def _still(results: Results) -> str:
    """Return the figures that no script draws, as pictures: nothing of the page reaches them."""
    found = [
        f"<figure><figcaption>{html.escape(kind)}</figcaption>"
        f"{_picture(draw_svg(results, kind), kind)}</figure>"
        for kind in filter(is_still, wanted(results))
    ]
    if not found:
        return ""
    head = '<h2 id="pictures-title">Final accuracy against settings</h2>'
    return f'<section aria-labelledby="pictures-title">{head}{"".join(found)}</section>'


def _picture(svg: str, name: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}">'


def _over_links(found: OverLinks) -> str:
    """Return how long each row would take over each link, and the picture of it."""
    firsts = {link: found.first(link) for link in found.links}
    rows: dict[str, list[str]] = {}
    for each in found.means:
        until = html.escape(each.until)
        if each == firsts[each.link]:
            until = f"<strong>{until}</strong>"
        rows.setdefault(each.title, []).append(f'<td class="number">{until}</td>')
    head = "".join(
        f'<th scope="col" class="number">{html.escape(link)}</th>' for link in found.links
    )
    body = "".join(
        f'<tr><th scope="row">{html.escape(title)}</th>{"".join(cells)}</tr>'
        for title, cells in rows.items()
    )
    told = html.escape(found.told)
    return (
        '<section aria-labelledby="links-title"><h2 id="links-title">Time to accuracy over links'
        f'</h2><p class="caption">How long it is {told}. Bold is the first there on each link.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="links-title">'
        f'<table><thead><tr><th scope="col">row</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"<figure>{_picture(over_links_svg(found), 'time to accuracy over links')}</figure>"
        "</section>"
    )


def _table(table: Cells, rows: Sequence[SummaryRow]) -> str:
    """Return the table as the terminal has it, but for the notes, which stand under the titles."""
    same = _same(table)
    shown = [i for i, name in enumerate(table.header) if name != "note" and i not in same]
    head = "".join(
        f'<th scope="col"{_kind(table, i)}>{html.escape(table.header[i])}</th>' for i in shown
    )
    told = ", ".join(f"{table.header[i]} {text}" for i, text in same.items())
    in_all = html.escape(f" In every row: {told}." if told else "")
    body = []
    for number, (texts, row) in enumerate(zip(table.rows, rows, strict=True)):
        line = "".join(_cell(table, i, texts[i], row) for i in shown)
        body.append(f'<tr data-row="{number}">{line}</tr>')
    return (
        '<table id="rows"><caption><span>Accuracy is the mean over the finished runs ± half its '
        "95 % interval; bold is the best, with those that cannot be told from it."
        f"{in_all}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _same(table: Cells) -> dict[int, str]:
    """Return columns that need no room, with their text: how much was trained, if rows agree."""
    found = {}
    for i, name in enumerate(table.header):
        texts = {row[i] for row in table.rows} - {"—"}
        if name in ("epochs", "steps") and len(texts) == 1:
            found[i] = texts.pop()
    return found


def _cell(table: Cells, i: int, text: str, row: SummaryRow) -> str:
    inner = html.escape(text)
    if table.header[i] == "row":
        inner = inner.replace(":", ":<wbr>").replace(",", ",<wbr>")
        lost = len(row.row.finished) < len(row.row.runs)
        look = "note lost" if lost else "note"
        note = f'<span class="{look}">{html.escape(row.note)}</span>' if row.note else ""
        return f'<th scope="row"><span class="title">{inner}</span>{note}</th>'
    if table.header[i] == "accuracy" and row.leads:
        inner = f"<strong>{inner}</strong>"
    return f"<td{_kind(table, i)}>{inner}</td>"


def _kind(table: Cells, i: int) -> str:
    return "" if i in table.words else ' class="number"'


def _legend() -> str:
    """Return the legend of the table, a term and what it means in every item."""
    items = " ".join(LEGEND.split()).removeprefix("- ").split(" - ")
    return "<ul>" + "".join(f"<li>{_term(item)}</li>" for item in items) + "</ul>"


def _term(item: str) -> str:
    term, _, meaning = item.partition(":")
    return f"<b>{html.escape(term)}</b>:{html.escape(meaning)}"


def _script_json(data: Mapping[str, object]) -> str:
    """Return JSON that ends no script element, whatever texts are in it."""
    text = json_text(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
