"""Write docs/hooks.md and docs/plugins.md, and put the template into docs/write-a-plugin.md.

    python docs/generate.py

A test compares the files with what this program would write.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.listing import plugin_facts, plugin_rows
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
        arguments = ", ".join(list(inspect.signature(function).parameters)[1:])
        parts.append(f"## `{name}({arguments})`\n\n{_markdown(inspect.getdoc(function) or '')}")
    aspects = _table(("aspect", "true until a plugin changes it"), sorted(ASPECTS.items()))
    parts.append(f"## What a plugin declares\n\n{_markdown(inspect.getdoc(Traits) or '')}")
    parts.append(f"The aspects:\n\n{aspects}")
    return "\n\n".join(parts) + "\n"


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
        "A method whose heading ends in `-recon` was rebuilt from what its abstract says, because "
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


def tutorial_page() -> str:
    """Return docs/write-a-plugin.md with the files that it quotes whole."""
    text = (HERE / "write-a-plugin.md").read_text(encoding="utf-8")

    def quoted(match: re.Match[str]) -> str:
        source = (HERE.parent / match[1]).read_text(encoding="utf-8").strip()
        return f"<!-- begin {match[1]} -->\n```python\n{source}\n```\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- begin (\S+) -->.*?<!-- end \S+ -->", quoted, text, flags=re.DOTALL)


PAGES = {"hooks.md": hooks_page, "plugins.md": plugins_page, "write-a-plugin.md": tutorial_page}


def main() -> int:
    """Write all pages."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
