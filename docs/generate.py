"""Write hooks.md, plugins.md, rooms.md and rooms.svg; put quoted files into the write-a-… pages.

    python docs/generate.py

A test compares the files with what this program would write, but for the numbers of files and lines
in rooms.svg: those change with nearly every commit, and are only held to be about right.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from splitlab import core
from splitlab.core.catalogue.listing import described, plugin_facts, plugin_rows
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract import hooks
from splitlab.core.contract.traits import ASPECTS, Traits

HERE = Path(__file__).resolve().parent
_NOTE = "<!-- Written by docs/generate.py; edit the docstrings or registry.toml instead. -->"


def hooks_page() -> str:
    """Return docs/hooks.md."""
    parts = [_NOTE, "# Hooks", _markdown(inspect.getdoc(hooks) or "")]
    for name, function in vars(hooks.HookSpecs).items():
        if name.startswith("_"):
            continue
        parts.append(f"## `{_signature(function)}`\n\n{_markdown(inspect.getdoc(function) or '')}")
    parts.append("## What hooks are given")
    parts += [_fields(kind) for kind in (core.Cut, core.Message, core.Peer, core.Layout)]
    parts += [_members(kind) for kind in (core.Kind, core.Role)]
    parts.append("## What `peer.request` takes")
    parts.append("The answer lies in `cut.measured` under the request itself, at the client.")
    parts += [_fields(kind) for kind in (core.Attention, core.Keys)]
    aspects = _table(("aspect", "true until a plugin changes it"), sorted(ASPECTS.items()))
    parts.append(f"## What a plugin declares\n\n{_markdown(inspect.getdoc(Traits) or '')}")
    parts.append(f"The aspects:\n\n{aspects}")
    return "\n\n".join(parts) + "\n"


def _signature(function: Callable[..., Any]) -> str:
    """Return a method's name, what it takes with types, and what it returns unless None."""
    signature = inspect.signature(function)
    taken = list(signature.parameters.values())[1:]
    written = str(signature.replace(parameters=taken)).replace("'", "")  # annotations are text
    return function.__name__ + written.removesuffix(" -> None")


def _fields(kind: type) -> str:
    """Return the public attributes and methods of a class: types and docstrings, as a table."""
    doc = inspect.getdoc(kind) or ""
    described = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", doc, flags=re.MULTILINE)
    types = inspect.signature(kind).parameters
    rows = []
    for name, text in described:
        known = types[name].annotation if name in types else None
        rows.append((f"`{name}: {known}`" if known else f"`{name}`", _markdown(text)))
    for name, value in vars(kind).items():
        own = value.fget if isinstance(value, property) else value
        if name.startswith("_") or not inspect.isfunction(own) or own.__name__ != name:
            continue
        title = f"{name}: {inspect.signature(own).return_annotation}"
        title = title if own is not value else _signature(own)
        rows.append((f"`{title}`", _markdown((inspect.getdoc(own) or "").partition("\n\n")[0])))
    parts = [f"### `{kind.__name__}`", _markdown(doc.partition("\n\n")[0])]
    return "\n\n".join([*parts, _table(("name", "what it is"), rows)] if rows else parts)


def _members(kind: type[enum.Enum]) -> str:
    names = ", ".join(f"`{member.name}`" for member in kind)
    return f"### `{kind.__name__}`\n\n{_markdown(inspect.getdoc(kind) or '')} {names}."


def plugins_page() -> str:
    """Return docs/plugins.md: what ships, not what is installed besides."""
    rows = [row for row in plugin_rows() if row["source"] == "splitlab"]
    plugins = [row for row in rows if row["kind"] == "plugin"]
    stacks = [row for row in rows if row["kind"] == "stack"]
    listed = [(f"[`{r['name']}`](#{r['name']})", r["paper"], r["summary"]) for r in plugins]
    named = [(f"`{r['title']}`", f"`{' + '.join(r['plugins'])}`", r["summary"]) for r in stacks]
    parts = [
        _NOTE,
        "# Plugins",
        "A method whose heading ends in `-recon` was rebuilt from its abstract, because "
        "its full text or code was not available; its name is typed without the suffix.",
        _table(("plugin", "paper", "summary"), listed),
        "Stacks with a name:",
        _table(("stack", "plugins", "summary"), named),
        *(_plugin(plugin_facts(row["name"])) for row in plugins),
    ]
    return "\n\n".join(parts) + "\n"


def _plugin(facts: dict[str, Any]) -> str:
    module = importlib.import_module(entries("plugins")[facts["name"]].target.partition(":")[0])
    traits = facts["traits"] or {}
    lines = [
        ("sends", facts["sends"]),
        ("needs", ", ".join(traits.get("needs", ()))),
        ("changes", ", ".join(traits.get("changes", ()))),
        ("gradient", traits.get("gradient", "")),
        ("evaluation", "compressed, too" if traits.get("evaluation") else "not compressed"),
        ("state", "kept over steps" if traits.get("stateful") else "none"),
        ("place", "last in a stack" if traits.get("last") else ""),
        ("waits in a step", traits.get("waits", "")),
        ("hooks", ", ".join(f"`{hook}`" for hook in facts["hooks"] if hook in hooks.DATA_HOOKS)),
    ]
    parameters = [
        (f"`{p['name']}`", p["type"], f"`{p['default_text']}`", _markdown(p["meaning"]))
        for p in facts["parameters"]
    ]
    parts = [
        f'<a id="{facts["name"]}"></a>\n\n## {facts["title"]}',
        f"{facts['summary'][0].upper()}{facts['summary'][1:]}. {facts['paper']}".strip(),
        f"    {facts['example']}",
        _table(("", ""), [(name, text) for name, text in lines if text]),
    ]
    if parameters:
        parts.append(_table(("parameter", "type", "default", "meaning"), parameters))
    text = _markdown(inspect.getdoc(module) or "")
    source = Path(module.__file__ or "").name
    parts.append(
        f"<details><summary>How it works (plugins/{source})</summary>\n\n{text}\n\n</details>"
    )
    return "\n\n".join(parts)


def _markdown(text: str) -> str:
    """Turn a docstring into Markdown: code marks, literal blocks, argument lists."""
    text = re.sub(r"``([^`]*)``", r"`\1`", text)
    text = re.sub(r"::\n\n(?=    )", ":\n\n", text)
    text = re.sub(r"^(Args|Attributes|Returns|Raises):\n", r"\1:\n\n", text, flags=re.MULTILINE)
    return re.sub(r"^    (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE).strip()


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def quoting_page(name: str) -> str:
    """Return a page of docs/ with the files that it quotes whole, and the arguments of classes."""
    text = (HERE / name).read_text(encoding="utf-8")

    def quoted(match: re.Match[str]) -> str:
        if "." not in match[1]:
            told = described(getattr(core, match[1]))["parameters"]
            defaults = ["needed" if p["required"] else f"`{p['default']!r}`" for p in told]
            rows = [
                (f"`{p['name']}`", default, p["meaning"])
                for p, default in zip(told, defaults, strict=True)
            ]
            table = _table(("argument", "default", "meaning"), rows)
            return f"<!-- begin {match[1]} -->\n{table}\n<!-- end {match[1]} -->"
        source = (HERE.parent / match[1]).read_text(encoding="utf-8").strip()
        return f"<!-- begin {match[1]} -->\n```python\n{source}\n```\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- begin (\S+) -->.*?<!-- end \S+ -->", quoted, text, flags=re.DOTALL)


# The rooms, as their imports show them.


class Room(NamedTuple):
    """A folder of modules.

    Attributes:
        summary: the first sentence of its ``__init__.py``.
        files: how many modules it has.
        lines: of all of them.
        imports: the rooms that they import.
    """

    summary: str
    files: int
    lines: int
    imports: frozenset[str]


@cache
def rooms() -> dict[str, Room]:
    """Read all rooms: those of core by their names, and what stands beside core."""
    root = HERE.parent
    folders = {path.parent.name: path.parent for path in root.glob("core/*/__init__.py")}
    folders |= {name: root / name for name in ("plugins", "transports")}
    folders |= {path.parent.name: path.parent for path in root.glob("plugins/*/__init__.py")}
    home = {folder: name for name, folder in folders.items()}
    found = {}
    for name, folder in sorted(folders.items()):
        paths = sorted(folder.glob("*.py"))
        sources = [path.read_text(encoding="utf-8") for path in paths]
        trees = [ast.parse(source) for source in sources]
        summary = ast.get_docstring(trees[paths.index(folder / "__init__.py")]) or ""
        imports = {home[at] for tree in trees for at in _imported(tree, root) if at in home}
        lines = sum(source.count("\n") for source in sources)
        sentence = re.split(r"(?<=\.)\s", _markdown(summary))[0]
        found[name] = Room(sentence, len(paths), lines, frozenset(imports - {name}))
    return found


def _imported(tree: ast.Module, root: Path) -> Iterator[Path]:
    """Yield the folder of every module of splitlab's that is imported."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("splitlab"):
            continue
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            if node.module == "splitlab.core":  # a public name: its home counts
                dotted = f"splitlab.core.{core._HOMES.get(alias.name, 'contract.errors')}"
            path = root.joinpath(*dotted.split(".")[1:])
            while not path.is_dir():
                path = path.parent
            yield path


def _below(name: str) -> set[str]:
    """Return all rooms that a room imports, and those that they import."""
    return set().union(*({other} | _below(other) for other in rooms()[name].imports))


def _drawn() -> Iterator[tuple[str, str]]:
    """Yield the imports that get an arrow: those that do not follow from others."""
    for name, room in rooms().items():
        for other in sorted(room.imports):
            if not any(other in _below(between) for between in room.imports):
                yield name, other


def _layers() -> dict[str, int]:
    """Return every room's layer, 0 at the bottom: as low as can be, but close to its users."""
    layer: dict[str, int] = {}
    for name in sorted(rooms(), key=lambda name: (len(_below(name)), name)):
        layer[name] = 1 + max((layer[other] for other in rooms()[name].imports), default=-1)
    for name in sorted(rooms(), key=lambda name: -layer[name]):
        users = [layer[user] for user, other in _drawn() if other == name]
        layer[name] = min(users) - 1 if users else layer[name]
    return layer


def rooms_page() -> str:
    """Return docs/rooms.md."""
    layer = _layers()
    listed = sorted(rooms(), key=lambda name: (-layer[name], name))
    text = """\
The package is made of rooms: folders whose modules have one subject. A room imports only rooms
below it, and `pyproject.toml` says which (import-linter reads it, in `make lint`).
[design.md](design.md) tells why, [CONTRIBUTING.md](../CONTRIBUTING.md) what belongs where.

![The rooms and their imports](rooms.svg)

An arrow is an import; one that follows from other arrows is left out of the picture and stands in
the table. Dashed boxes are loaded by name: nothing in `core/` imports them, `registry.toml` names
them, and the catalogue finds them there. The picture tells files and lines as they were when it was
written; `python docs/generate.py` writes it anew."""
    rows = [
        (f"`{_place(name)}`", rooms()[name].summary, ", ".join(sorted(rooms()[name].imports)))
        for name in listed
    ]
    table = _table(("room", "what it holds", "imports"), rows)
    return "\n\n".join([_NOTE, "# The rooms", text, table]) + "\n"


def _place(name: str) -> str:
    return next(
        f"{parent}{name}/"
        for parent in ("core/", "", "plugins/")
        if (HERE.parent / parent / name / "__init__.py").is_file()
    )


BOX, TALL, GAP, ROW, MARGIN = 250, 108, 28, 166, 24  # pixels


def rooms_picture() -> str:
    """Return docs/rooms.svg: rooms as boxes in layers, arrows to what they import."""
    layer = _layers()
    rows, chains = _rows(layer)
    x, width = _columns(rows)
    height = 2 * MARGIN + ROW * (len(rows) - 1) + TALL
    top = {cell: MARGIN + ROW * (len(rows) - 1 - row) for row, r in enumerate(rows) for cell in r}
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 Z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    ends = _ends(chains, x)
    for chain in chains:
        shapes.append(_arrow(chain, ends, x, top))
    for name in sorted(rooms()):
        shapes += _box(name, x[name], top[name])
    return "\n".join([*shapes, "</svg>"]) + "\n"


Cell = str | tuple[str, str, int]
"""What stands in a row: a room, or the place where an arrow (from, to, row) passes."""


def _rows(layer: Mapping[str, int]) -> tuple[list[list[Cell]], list[list[Cell]]]:
    """Return the cells of every row, bottom first, and every arrow as a chain of cells."""
    rows: list[list[Cell]] = [[] for _ in range(max(layer.values()) + 1)]
    for name in sorted(layer):
        rows[layer[name]].append(name)
    chains: list[list[Cell]] = []
    for user, other in _drawn():
        passing: list[Cell] = [
            (user, other, row) for row in range(layer[user] - 1, layer[other], -1)
        ]
        for cell in passing:
            rows[cell[2]].append(cell)  # type: ignore[call-overload]
        chains.append([user, *passing, other])
    near: dict[Cell, list[Cell]] = {}
    for chain in chains:
        for one, next_one in itertools.pairwise(chain):
            near.setdefault(one, []).append(next_one)
            near.setdefault(next_one, []).append(one)
    for _ in range(12):  # every cell moves to where its neighbours are on average
        for row in [*reversed(rows), *rows]:
            x, _width = _columns(rows)
            row.sort(key=lambda cell: sum(x[n] for n in near[cell]) / len(near[cell]))
    return rows, chains


def _columns(rows: list[list[Cell]]) -> tuple[dict[Cell, float], int]:
    """Return the middle of every cell, each row being centred, and the width of the picture."""
    wide = [sum(_wide(cell) + GAP for cell in row) - GAP for row in rows]
    middle: dict[Cell, float] = {}
    for row, used in zip(rows, wide, strict=True):
        left = MARGIN + (max(wide) - used) / 2
        for cell in row:
            middle[cell] = left + _wide(cell) / 2
            left += _wide(cell) + GAP
    return middle, max(wide) + 2 * MARGIN


def _wide(cell: Cell) -> int:
    return BOX if isinstance(cell, str) else 12


def _ends(chains: list[list[Cell]], x: Mapping[Cell, float]) -> dict[tuple[Cell, Cell], float]:
    """Return how far from a box's middle its arrows end, so that no two end at one place."""
    ends: dict[tuple[Cell, Cell], float] = {}
    for box in rooms():
        for chosen in (
            [chain[1] for chain in chains if chain[0] == box],
            [chain[-2] for chain in chains if chain[-1] == box],
        ):
            chosen.sort(key=lambda cell: x[cell])
            for i, cell in enumerate(chosen):
                ends[box, cell] = (i - (len(chosen) - 1) / 2) * min(40, BOX / (len(chosen) + 1))
    return ends


def _arrow(
    chain: list[Cell],
    ends: Mapping[tuple[Cell, Cell], float],
    x: Mapping[Cell, float],
    top: Mapping[Cell, int],
) -> str:
    points = [(x[chain[0]] + ends[chain[0], chain[1]], top[chain[0]] + TALL)]
    for cell in chain[1:-1]:
        points += [(x[cell], top[cell]), (x[cell], top[cell] + TALL)]
    points.append((x[chain[-1]] + ends[chain[-1], chain[-2]], top[chain[-1]]))
    path = f"M{points[0][0]:.0f} {points[0][1]}"
    for i, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(points)):
        if i % 2:
            path += f" L{x1:.0f} {y1}"
        else:
            bend = (y1 - y0) // 2
            path += f" C{x0:.0f} {y0 + bend} {x1:.0f} {y1 - bend} {x1:.0f} {y1}"
    return f'<path d="{path}" fill="none" stroke="#555" marker-end="url(#tip)"/>'


def _box(name: str, x: float, y: int) -> Iterator[str]:
    room, left = rooms()[name], x - BOX / 2
    inside = _place(name).startswith("core/")
    style = 'fill="#eef3fa"' if inside else 'fill="#fbf6ea" stroke-dasharray="5 3"'
    yield (
        f'<rect x="{left:.0f}" y="{y}" width="{BOX}" height="{TALL}" rx="6" {style} stroke="#345"/>'
    )
    title = _place(name).removeprefix("core/").removesuffix("/")
    yield f'<text x="{left + 10:.0f}" y="{y + 20}" font-size="15" font-weight="bold">{title}</text>'
    files = "1 file" if room.files == 1 else f"{room.files} files"
    yield (
        f'<text x="{left + BOX - 10:.0f}" y="{y + TALL - 8}" font-size="11" text-anchor="end" '
        f'fill="#555" class="count">{files}, {room.lines:,} lines</text>'
    )
    for i, line in enumerate(textwrap.wrap(room.summary.replace("`", ""), 34)):
        yield (
            f'<text x="{left + 10:.0f}" y="{y + 38 + 15 * i}" font-size="12">{escape(line)}</text>'
        )


def without_counts(picture: str) -> str:
    """Return a picture without its numbers of files and lines."""
    return re.sub(r'(class="count">)[^<]*', r"\1", picture)


QUOTING = ("write-a-plugin.md", "write-a-probe.md", "write-a-model.md", "write-a-link.md")
PAGES = {
    "hooks.md": hooks_page,
    "plugins.md": plugins_page,
    "rooms.md": rooms_page,
    "rooms.svg": rooms_picture,
    **{name: partial(quoting_page, name) for name in QUOTING},
}


def main() -> int:
    """Write all pages."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
