"""The documentation is what the code says: generated pages are current, quoted code is real."""

from __future__ import annotations

import ast
import functools
import importlib.util
import random
import re
import shlex
import textwrap
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from splitlab.core import Cut, Kind, Message, Peer, SplitlabError, Traits, hookimpl
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.links import load_transport
from splitlab.core.catalogue.loggers import load_loggers
from splitlab.core.catalogue.tables import entries, notices
from splitlab.core.command.main import parser
from splitlab.core.command.options import given
from splitlab.core.models.build import describe
from splitlab.core.runs.config import Config
from splitlab.core.runs.loggers import Loggers
from splitlab.core.runs.plan import Decided
from splitlab.core.runs.records import StepRecord

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIAL = (DOCS / "write-a-plugin.md").read_text()


@functools.cache
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = (
    "hooks.md",
    "plugins.md",
    "rooms.md",
    "rooms.svg",
    "write-a-link.md",
    "write-a-model.md",
    "write-a-plugin.md",
    "write-a-probe.md",
)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_current(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no registry of the user's own
    made = generate()
    assert made.PAGES.keys() == set(GENERATED)
    page, stands = made.PAGES[name](), (DOCS / name).read_text()
    if name == "rooms.svg":  # of which lines change with nearly every commit: see the next test
        page, stands = made.without_counts(page), made.without_counts(stands)
    assert stands == page, "run: python docs/generate.py"


def test_the_page_of_hooks_gives_types_and_public_fields() -> None:
    page = (DOCS / "hooks.md").read_text()
    assert (
        "## `plugin_ran(label: str, hook: str, subject: Cut | Message, nanoseconds: int)`" in page
    )
    for kind in (Cut, Message, Peer):
        own = page.partition(f"### `{kind.__name__}`")[2].partition("### ")[0]
        told = set(re.findall(r"^\| `(\w+)", own, flags=re.MULTILINE))
        assert told >= {name for name in dir(kind) if not name.startswith("_")}
        assert not [name for name in told if name.startswith("_")]


def test_the_rooms_are_about_as_large_as_the_picture_says() -> None:
    counts = re.findall(
        r'class="count">\d+ files?, ([\d,]+) lines<', (DOCS / "rooms.svg").read_text()
    )
    rooms = generate().rooms()
    assert len(counts) == len(rooms) >= 16
    for count, (name, room) in zip(counts, sorted(rooms.items()), strict=True):
        said = int(count.replace(",", ""))
        assert abs(said - room.lines) <= max(50, room.lines // 3), f"{name}: docs/generate.py"


def test_the_picture_has_every_room_and_every_import_or_a_way_to_it() -> None:
    made = generate()
    rooms = made.rooms()
    svg = ElementTree.parse(DOCS / "rooms.svg").getroot()
    paths = [path for path in svg.findall(".//{*}path") if path.get("marker-end")]
    drawn = list(made._drawn())
    assert len(paths) == len(drawn)
    for name, room in rooms.items():
        reached, found = {name}, set()
        while reached:
            reached = {other for user, other in drawn if user in reached}
            found |= reached
        assert room.imports <= found
    bold = [text.text for text in svg.findall(".//{*}text") if text.get("font-weight")]
    assert sorted(str(text).rpartition("/")[2] for text in bold) == sorted(rooms)


def test_one_training_step_can_be_read_in_an_evening() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    order = text[text.index("## Read the code in this order") :]
    named = re.findall(r"`([\w/]+\.py)`", order[: order.index("\nThen ")])
    assert {"core/contract/hooks.py", "core/engine/client.py", "plugins/none.py"} <= set(named)
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in named}
    assert sum(lines.values()) < 1500, lines


def test_what_it_is_called_holds_for_every_model() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    title = re.search(r'^title: "splitlab: (.*)"$', (ROOT / "CITATION.cff").read_text(), re.M)
    assert title is not None
    assert title[1] == "a laboratory for split-learning compression"
    assert project["description"].lower().startswith(f"{title[1]}: ")


def test_the_tutorials_code_is_the_examples() -> None:
    example = (ROOT / "examples" / "feature_energy.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    whole = example[example.index("class FeatureEnergy") :]
    quoted = [block for block in blocks if block.strip() in whole]
    assert "\n".join(block.rstrip("\n") + "\n" for block in quoted) == whole


def test_the_tutorial_quotes_the_template_whole() -> None:
    template = (ROOT / "plugins" / "none.py").read_text()
    assert f"```python\n{template.strip()}\n```" in TUTORIAL


def test_the_glossary_is_in_order_and_has_the_words_of_the_help() -> None:
    page = (DOCS / "glossary.md").read_text()
    words = re.findall(r"^\| \*\*(.*?)\*\* \|", page, flags=re.MULTILINE)
    assert [word.lower() for word in words] == sorted(word.lower() for word in words)
    said = " ".join(words)
    assert all(word in said for word in ("ξ", "cut", "stack", "link", "nominal", "measured"))
    assert "docs/glossary.md" in parser().format_help()
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_piece_of_the_tutorials_code_is_python() -> None:
    for block in re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL):
        assert ast.parse(textwrap.dedent(block)).body


# The shorter pages: how to write a probe, a model, a link.

SHORT = {name: (DOCS / f"write-a-{name}.md").read_text() for name in ("probe", "model", "link")}


@pytest.mark.parametrize("name", SHORT)
def test_every_piece_of_code_of_a_short_page_is_from_a_tested_file(name: str) -> None:
    files = [*(ROOT / "examples").glob("*.py"), ROOT / "tests" / "test_examples.py"]
    files += (ROOT / "plugins" / "probes").glob("*.py")
    sources = [textwrap.dedent(file.read_text()).strip() for file in files]
    tested = "\n".join(line.strip() for source in sources for line in source.splitlines())
    blocks = re.findall(r"```python\n(.*?)```", SHORT[name], re.DOTALL)
    assert blocks
    for block in blocks:
        assert ast.parse(textwrap.dedent(block)).body
        for piece in re.split(r"\n\s*\n", block.strip()):
            assert "\n".join(line.strip() for line in piece.splitlines()) in tested
    assert len(re.findall(r"<!-- begin \S+\.py -->", SHORT[name])) == 1, "it quotes one file whole"


@pytest.mark.parametrize("name", SHORT)
def test_the_commands_of_a_short_page_are_accepted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^    (splitlab .*)$", SHORT[name], re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        arguments = parser().parse_args(shlex.split(command)[1:])
        if hasattr(arguments, "config"):
            config = Decided.of(Config.from_mapping(given(arguments))).config
            load_transport(config.transport)


@pytest.mark.parametrize("name", SHORT)
def test_the_names_that_a_short_page_registers_can_be_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [registry] = re.findall(r"```toml\n(.*?)```", SHORT[name], re.DOTALL)
    (tmp_path / "registry.toml").write_text(registry)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert notices() == []
    for kind, tables in tomllib.loads(registry).items():
        for own in tables:
            assert entries(kind)[own].problem is None
            assert callable(bind(kind, own).factory)
            if kind == "models":
                assert describe(own).cut == tables[own].get("cut", describe(own).cut)


@pytest.mark.parametrize("name", SHORT)
def test_a_short_page_is_short(name: str) -> None:
    own = re.sub(r"<!-- begin .*?<!-- end \S+ -->", "", SHORT[name], flags=re.DOTALL)
    assert len(own.splitlines()) < 100


def test_the_layout_that_the_page_of_models_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seen = describe("examples/small_cnn.py:small_cnn").layout
    table = SHORT["model"].partition("| what it decides |")[2]
    cells = dict(re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", table, re.MULTILINE))
    assert cells == {
        "`tokens`, `width`": f"{seen.tokens}, {seen.width}",
        "`grid`": str(seen.grid),
        "`class_token`, `prefix_tokens`": f"{seen.class_token}, {seen.prefix_tokens}",
        "`any_tokens`": str(seen.any_tokens),
    }


def test_the_page_of_loggers_names_all_and_its_own_one_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "loggers.md").read_text()
    shipped = [name for name in entries("loggers") if name != "none"]
    assert re.findall(r"^\| `(\w+)` \| `pip install 'splitlab\[\1\]'`", page, re.M) == shipped
    for command in re.findall(r"^    (splitlab .*)$", page, re.MULTILINE):
        parser().parse_args(shlex.split(command)[1:])
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("lines.py").write_text(code)
    loggers = Loggers(load_loggers(["lines.py:Lines:file=told.txt"]))
    loggers.begin(Config(name="mine"), "0" * 16, tmp_path, 0)
    loggers.log(StepRecord(1, 0.5))
    loggers.end("finished")
    assert Path("told.txt").read_text() == "mine 1 {'train/loss': 0.5}\n"


# The table of mistakes: each is made here, and must be answered as the tutorial says.


def misspells(self: Any, message: Message) -> None: ...


def unmarked(self: Any, message: Message) -> None: ...


def has_a_default(self: Any, cut: Any = None) -> None: ...


def returns(self: Any, cut: Cut) -> torch.Tensor:
    return cut.activations


def detaches(self: Any, cut: Cut) -> None:
    cut.activations = cut.activations.detach()


def halves(self: Any, message: Message) -> None:
    name = "gradient" if message.kind is Kind.GRADIENT else "activations"
    message.put(name, message[name][:, :2], message.role(name))


def reshapes(self: Any, cut: Cut) -> None:
    assert cut.gradient is not None
    cut.gradient = cut.gradient[:1]


def draws(self: Any, message: Message) -> None:
    random.random()


def needs_ids(self: Any) -> Traits:
    return Traits(needs={"sample ids"})


MISTAKES = {
    "a misspelt hook": {"before_sned": hookimpl(misspells)},
    "a hook without `@hookimpl`": {"before_send": unmarked},
    "a hook argument with a default": {"after_client_forward": hookimpl(has_a_default)},
    "returning instead of changing": {"after_client_forward": hookimpl(returns)},
    "detaching in `after_client_forward`": {"after_client_forward": hookimpl(detaches)},
    "encoding without decoding": {"before_send": hookimpl(halves)},
    "a gradient of another shape": {"gradient_return": hookimpl(reshapes)},
    "drawing from global random state": {"before_send": hookimpl(draws)},
    "a stack that cannot work": {"traits": hookimpl(needs_ids)},
}
ROWS = dict(re.findall(r"^\| ([^|]+) \| `(.+)` \|$", TUTORIAL, re.MULTILINE))


def test_every_mistake_of_the_table_is_made_here() -> None:
    assert ROWS.keys() == MISTAKES.keys()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_as_the_tutorial_says(tiny: Any, mistake: str) -> None:
    plugin = tiny.bound(type("Mine", (), MISTAKES[mistake]))
    stack = [bind("plugins", "adc:ratio=0.5"), plugin] if "stack" in mistake else [plugin]
    said = ".*".join(map(re.escape, ROWS[mistake].split("…")))
    with pytest.raises(SplitlabError, match=said):
        tiny.train(*tiny.pair(stack), [0])
