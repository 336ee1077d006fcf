"""``splitlab models``: the models that can be cut, and all that is known of one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from splitlab.core.command.options import Parser, add_json, completes, declare, print_json
from splitlab.core.command.streams import say

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands
    from splitlab.core.command.show import Cell

__all__ = ["add"]

_EXAMPLES = """\
  splitlab models                                 some models, and how they look where they are cut
  splitlab models deit_tiny                       those whose name contains deit_tiny
  splitlab models resnet18                        one explained: every cut, and its settings
  splitlab models my_model.py:small_cnn           one of your own, from its file
"""

_SHOWN = 8
"""At most so many models are looked at; building one takes a while."""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "models",
        _models,
        "list the models that can be cut, or explain one",
        takes="[NAME | PART] [options]",
        examples=_EXAMPLES,
    )
    named = parser.add_argument(
        "name",
        nargs="?",
        default="",
        metavar="NAME",
        help="a model and its settings, FILE.py:function, or a part of names",
    )
    completes(named, "models")
    add_json(parser)
    return parser


def _models(arguments: argparse.Namespace) -> int:
    from splitlab.core.catalogue.tables import entries
    from splitlab.core.models.timm_models import is_timms, timm_names

    text = arguments.name
    if not text:
        return _overview(timm_names(), arguments.json)
    if ":" in text or text.endswith(".py") or text in entries("models") or is_timms(text):
        return _explain(text, arguments.json)
    return _matching(text, timm_names(), arguments.json)


def _overview(families: Mapping[str, list[str]], as_json: bool) -> int:
    """Show the catalogue's models and some of timm's, and how many of timm's there are."""
    from splitlab.core.catalogue.tables import entries
    from splitlab.core.models.timm_models import WELL_KNOWN

    rows = [
        {"name": name, "summary": entry.summary, "source": entry.source, **_looks(name)}
        for name, entry in entries("models").items()
    ]
    rows += [{"name": n, "summary": "", "source": "timm", **_looks(n)} for n in WELL_KNOWN]
    counts = {family: len(names) for family, names in families.items()}
    if as_json:
        return print_json({"models": rows, "timm": counts})
    from splitlab.core.command.show import print_line, print_table

    _print(rows)
    print()
    print_table(("model", "summary"), [(r["name"], r["summary"]) for r in rows if r["summary"]])
    print()
    numbers = ", ".join(f"{count:,} of family {family}" for family, count in counts.items())
    print_line(
        f"timm's names are models, too: {numbers}; `splitlab models PART` lists those with this in "
        "their name, `splitlab models NAME` explains one."
    )
    return 0


def _matching(text: str, families: Mapping[str, list[str]], as_json: bool) -> int:
    """Show the models whose name contains the text; how they look, where they are few."""
    from splitlab.core.catalogue.tables import entries
    from splitlab.core.models.timm_models import check_name

    family_of = dict.fromkeys(entries("models"), "catalogue")
    for family, names in families.items():
        for name in names:
            family_of.setdefault(name, family)
    found = [name for name in family_of if text in name]
    if not found:
        check_name(text, entries("models"))
    few = len(found) <= _SHOWN
    rows: list[dict[str, Any]] = [
        {"name": name, "family": family_of[name], **(_looks(name) if few else {})} for name in found
    ]
    if as_json:
        return print_json(rows)
    from splitlab.core.command.show import print_table

    if few:
        _print(rows)
    else:
        print_table(("model", "family"), [(row["name"], row["family"]) for row in rows])
    return 0


def _explain(text: str, as_json: bool) -> int:
    """Show all that is known of one model: its cuts, what a stack can stand on, its settings."""
    from splitlab.core.catalogue.listing import described
    from splitlab.core.catalogue.tables import entries
    from splitlab.core.contract.settings import shown
    from splitlab.core.models.build import bind_model, describe

    bound, facts = bind_model(text), describe(text)
    told = described(bound.factory)
    entry = entries("models").get(text.partition(":")[0])
    summary = entry.summary if entry else ""
    summary = summary or told["description"].partition("\n")[0] or "it has no docstring"
    cuts = [
        {"cut": cut, "tokens": layout.tokens, "width": layout.width, "grid": layout.grid}
        for cut, layout in enumerate(facts.layouts)
    ]
    settings = [
        p | {"value": shown(bound.params[p["name"]])}
        for p in told["parameters"]
        if p["name"] in bound.params and p["name"] != "name"
    ]
    lacks = dict(facts.ground.lacks)
    if as_json:
        parts = {"client": facts.client_parameters, "server": facts.server_parameters}
        about = {"every_cut": cuts, "parts": parts, "lacks": lacks, "settings": settings}
        return print_json({"name": text, "summary": summary, **_looks(text), **about})
    from splitlab.core.command.show import print_facts, print_line, print_table

    print_line((text, "bold"), f": {summary}")
    layout, size = facts.layout, facts.image_size
    lines: list[tuple[str, Cell]] = [
        ("family", facts.family),
        ("input", f"{facts.channels}×{size}×{size}"),
        ("cut", f"{facts.cut} of 0 to {facts.last_cut} {facts.cut_noun}"),
        ("plugins see", f"{layout.tokens} tokens × {layout.width}"),
        ("client part", f"{facts.client_parameters:,} parameters"),
        ("server part", f"{facts.server_parameters:,} parameters, with a head for 10 classes"),
    ]
    lines += [(f"no {aspect}", reason.partition(";")[0]) for aspect, reason in lacks.items()]
    if facts.ground.fixed_tokens:
        lines.append(("tokens", f"the server's part takes {facts.ground.fixed_tokens}"))
    print_facts(lines)
    print()
    print_table(
        ("cut", "tokens", "width", "grid"),
        [(str(c["cut"]), str(c["tokens"]), str(c["width"]), _grid(c["grid"])) for c in cuts],
        numbers=(0, 1, 2),
    )
    if settings:
        print()
        print_table(
            ("setting", "type", "value", "meaning"),
            [(p["name"], p["type"], p["value"], p["meaning"]) for p in settings],
        )
    say(f"\nexample: splitlab run --model {text}")
    return 0


def _grid(grid: Any) -> str:
    return f"{grid[0]} x {grid[1]}" if grid else "none"


def _looks(name: str) -> dict[str, Any]:
    """Return how a model looks at its default cut, or why that is not known."""
    from splitlab.core.contract.errors import SplitlabError
    from splitlab.core.models.build import describe

    try:
        facts = describe(name)
    except SplitlabError as error:  # the others are shown all the same
        return {"problem": str(error)}
    return {
        "family": facts.family,
        "parameters": facts.client_parameters + facts.server_parameters,
        "channels": facts.channels,
        "image_size": facts.image_size,
        "last_cut": facts.last_cut,
        "cut_noun": facts.cut_noun,
        "cut": facts.cut,
        "tokens": facts.layout.tokens,
        "width": facts.layout.width,
    }


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from splitlab.core.command.show import print_table

    header = ("model", "family", "parameters", "input", "cuts", "at the default cut")
    print_table(header, [_cells(row) for row in rows], numbers=(2,), whole=(0, 1, 3, 4))


def _cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    if "problem" in row:
        return (
            row["name"],
            row.get("family", ""),
            "",
            "",
            "",
            row["problem"],
        )
    size = row["image_size"]
    return (
        row["name"],
        row["family"],
        f"{row['parameters']:,}",
        f"{row['channels']}×{size}×{size}",
        f"0 to {row['last_cut']} {row['cut_noun']}",
        f"cut {row['cut']}: {row['tokens']} tokens × {row['width']}",
    )
