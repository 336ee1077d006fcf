"""What there is, as facts: for the command line and the documentation."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core import ConfigError, PluginError
from splitlab.core.catalogue import tables
from splitlab.core.catalogue.binding import bind_stack
from splitlab.core.catalogue.links import working_transports
from splitlab.core.catalogue.listing import (
    link_facts,
    link_rows,
    plugin_facts,
    plugin_rows,
    probe_facts,
    probe_rows,
    stack_facts,
    transport_rows,
)
from splitlab.core.catalogue.tables import ROOT, catalogue


@pytest.mark.parametrize("name", catalogue()["plugins"])
def test_the_example_of_every_plugin_can_be_built(name: str) -> None:
    command = shlex.split(plugin_facts(name)["example"])
    assert command[:3] == ["splitlab", "run", "--plugin"]
    [bound] = bind_stack(command[3:])
    assert bound.label == name
    assert bound.build() is not None


@pytest.mark.parametrize("name", catalogue()["plugins"])
def test_every_plugin_says_what_it_sends_and_what_its_parameters_mean(name: str) -> None:
    facts = plugin_facts(name)
    assert len(facts["sends"]) > 20
    assert facts["traits"] is not None
    assert [p["name"] for p in facts["parameters"] if not p["meaning"]] == []
    data = catalogue()["plugins"][name]["hooks"]
    assert [hook for hook in facts["hooks"] if hook in data] == data


def test_a_reconstruction_says_so_in_rows_and_facts() -> None:
    titles = {row["name"]: row["title"] for row in plugin_rows()}
    for name, table in (catalogue()["plugins"] | catalogue()["stacks"]).items():
        marked = bool(table.get("reconstruction"))
        assert titles[name] == (f"{name}-recon" if marked else name)
    assert stack_facts("tsflora")["title"] == "tsflora-recon"
    assert plugin_facts("nsc-sl")["title"] == "nsc-sl-recon"


def test_a_stack_is_explained_by_its_plugins(own: Path) -> None:
    facts = stack_facts("adc-q8")
    assert facts["plugins"] == ["adc:ratio=0.4", "quantize:bits=8"]
    assert facts["example"] == "splitlab run --plugin adc-q8"
    own.write_text("[stacks.empty]\nplugins = []")
    with pytest.raises(ConfigError, match="must be a list of plugins"):
        stack_facts("empty")


def test_a_plugin_of_a_file_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        '"""Up: nothing at all."""\n'
        "from splitlab.core import hookimpl\n"
        "class Mine:\n"
        '    """A method.\n\n    Args:\n        ratio: how much\n            of it.\n    """\n'
        "    run_end = hookimpl(lambda self: None)\n"
        "    def __init__(self, *, ratio: float = 0.5) -> None: ...\n"
        "class Needs:\n"
        "    def __init__(self, *, rank: int) -> None: ...\n"
        "    run_end = hookimpl(lambda self: None)\n"
    )
    facts = plugin_facts(f"{file}:Mine")
    assert facts["summary"] == "A method."
    assert facts["sends"] == "Up: nothing at all."
    assert facts["parameters"][0]["meaning"] == "how much of it."
    assert facts["example"].endswith(":Mine:ratio=0.5")
    assert facts["traits"] is None
    assert facts["hooks"] == ["run_end"]
    assert plugin_facts(f"{file}:Needs")["example"].endswith(":Needs:rank=…")
    with pytest.raises(ConfigError, match="has settings; explain the plugin without them"):
        plugin_facts(f"{file}:Mine:ratio=0.1")
    with pytest.raises(ConfigError, match="has settings; explain the plugin without them"):
        plugin_facts("adc:ratio=0.1")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    def __init__(self) -> None: raise ValueError('no')", "cannot be built: ValueError"),
        ("    def traits(self): return 3", "'traits' is called like a hook and not marked as one"),
        ("    @hookimpl\n    def traits(self): return 3", "must return Traits, and returns 3"),
        (
            "    @hookimpl\n    def traits(self): return 1 / 0",
            "failed in traits: ZeroDivisionError",
        ),
    ],
)
def test_a_plugin_that_breaks_says_why_in_one_line(tmp_path: Path, body: str, words: str) -> None:
    file = tmp_path / "mine.py"
    traits = "" if "def traits" in body else "    @hookimpl\n    def traits(self): ...\n"
    file.write_text(f"from splitlab.core import hookimpl\nclass Mine:\n{body}\n{traits}")
    with pytest.raises(PluginError, match=words) as caught:
        plugin_facts(f"{file}:Mine")
    assert len(str(caught.value).splitlines()) == 1


def test_traits_are_those_that_the_plugin_declares(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from splitlab.core import Traits, hookimpl\n"
        "class Mine:\n"
        "    @hookimpl\n"
        "    def traits(self): return Traits(needs={'grid', 'batch'}, stateful=True)\n"
        "class Silent:\n"
        "    @hookimpl\n"
        "    def traits(self): ...\n"
    )
    declared = plugin_facts(f"{file}:Mine")["traits"]
    assert declared == {
        "needs": ["batch", "grid"],
        "changes": [],
        "gradient": "natural",
        "evaluation": False,
        "stateful": True,
        "last": False,
        "waits": "",
    }
    assert plugin_facts(f"{file}:Silent")["traits"]["needs"] == []


PROBE = '''
"""Probes."""
from splitlab.core import hookimpl

class Watch:
    """Watch the step.

    Args:
        every: how many steps lie between two looks.
    """

    def __init__(self, *, every: int = 10) -> None: ...

    @hookimpl
    def metrics(self, step: int): return {}

    @hookimpl(wrapper=True)
    def before_send(self, message):
        yield

class Slow:
    """Wait.

    Args:
        delay: in seconds.
    """

    def __init__(self, *, delay: float = 0.5) -> None: ...
    def setup(self) -> None: ...
'''


def test_probes_and_links_of_ones_own_are_listed_and_explained(own: Path) -> None:
    (own.parent / "watch.py").write_text(PROBE)
    own.write_text(
        "[probes.watch]\ntarget = 'watch.py:Watch'\nsummary = 'looks on'\n"
        "[probes.gone]\ntarget = 'absent.py:Watch'\n[probes.none]\n"
        "[links.slow]\ntarget = 'watch.py:Slow'\n"
    )
    rows = {row["name"]: row for row in probe_rows()}
    assert rows["watch"] == {
        "name": "watch",
        "summary": "looks on",
        "source": str(own),
        "problem": None,
    }
    assert rows["time"]["source"] == "splitlab"
    assert rows["time"]["problem"] is None
    assert "absent.py' does not exist" in rows["gone"]["problem"]
    assert "needs the key 'target'" in rows["none"]["problem"]
    [link] = [row for row in link_rows() if row["source"] != "splitlab"]
    assert (link["name"], link["summary"], link["problem"]) == ("slow", "Wait.", None)

    facts = probe_facts("watch")
    assert facts["summary"] == "looks on"
    assert facts["hooks"] == ["before_send", "metrics"]
    assert facts["parameters"][0]["meaning"] == "how many steps lie between two looks."
    assert facts["example"] == "splitlab run --probe watch:every=10"
    with pytest.raises(ConfigError, match="has settings; explain the probe without them"):
        probe_facts("watch:every=3")
    # What is a hook's name to a probe is a word like any other to a link.
    with pytest.raises(
        PluginError, match=r"probe .*Slow': its method 'setup' is called like a hoo"
    ):
        probe_facts(f"{own.parent}/watch.py:Slow")
    assert link_facts("slow")["example"] == "splitlab run --link slow:delay=0.5"
    assert link_facts("slow")["parameters"][0]["meaning"] == "in seconds."


class Explodes:
    """A transport that raises when it is made."""

    def __init__(self) -> None:
        raise RuntimeError("no driver")


def test_a_transport_that_explodes_is_listed_with_the_reason_and_the_others_work(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)
    install("splitlab.transports", odd=f"{__name__}:Explodes")
    rows = {row["name"]: row for row in transport_rows()}
    told = "transport 'odd' cannot be built: RuntimeError: no driver (test_listing.py:"
    assert rows["odd"]["missing"].startswith(told)
    assert not rows["odd"]["works_here"]
    assert rows["inprocess"]["works_here"]
    assert rows["inprocess"]["missing"] is None
    assert "inprocess" in working_transports()
    assert "odd" not in working_transports()


def test_broken_packages_are_listed_as_broken(
    install: Callable[..., None],
) -> None:
    install("splitlab.plugins", gone="a_package_not_there:X")
    rows = {row["name"]: row for row in plugin_rows()}
    assert "ModuleNotFoundError" in rows["gone"]["problem"]
    assert {row["problem"] for name, row in rows.items() if name != "gone"} == {None}
    assert {"adc-batch-merge", "adc-q8"} <= rows.keys()
    assert {row["kind"] for row in rows.values()} == {"plugin", "stack"}


def test_a_plugin_of_a_package_is_summed_up_by_its_first_line(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)
    install("splitlab.plugins", odd=f"{__name__}:Explodes")
    rows = {row["name"]: row for row in plugin_rows()}
    assert rows["odd"]["summary"] == "A transport that raises when it is made."


def test_a_broken_table_of_ones_own_is_listed_as_broken(own: Path) -> None:
    own.write_text("[plugins.x]\nsummary = 'no target'\n[transports.y]\ntarget = 3\n")
    rows = {row["name"]: row for row in plugin_rows()}
    assert "needs the key 'target'" in rows["x"]["problem"]
    missing = {row["name"]: row["missing"] for row in transport_rows()}["y"]
    assert "target of [transports.y] must be a text" in missing


def test_what_ships_is_listed_without_waiting_for_torch(own: Path) -> None:
    program = (
        "import sys\n"
        "from splitlab.core.catalogue import listing, tables\n"
        "listing.plugin_rows(), listing.probe_rows(), listing.link_rows(), tables.notices()\n"
        "sys.exit(' '.join({'torch', 'numpy'} & sys.modules.keys()) or 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_this_room_imports_the_contract_and_itself_alone() -> None:
    for path in (ROOT / "core/catalogue").glob("*.py"):
        source = path.read_text().partition("_CODE = ")[0]  # what follows is what it writes
        for line in source.splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].startswith("splitlab"):
                room = ".".join(words[1].split(".")[:3])
                assert room in ("splitlab.core.contract", "splitlab.core.catalogue"), line


@pytest.mark.parametrize("name", [*catalogue()["plugins"]])
def test_what_a_plugin_does_with_no_setting_is_said(name: str) -> None:
    """A parameter that is None by default says what that means, or another of them does."""
    facts = plugin_facts(name)
    unset = {p["name"]: p["meaning"] for p in facts["parameters"] if p["default_text"] == "none"}
    if "ratio" in unset and "as in" not in unset["ratio"]:
        told = " ".join(unset.values())
        words = r"(if|unless) (no|neither|not|both|`|.*not|.*no) |[Gg]iven|[Ww]ithout|by default"
        assert re.search(words, told), f"with nothing set? {told}"


@pytest.mark.parametrize("method", ["before_sent", "before_send", "encode"])
def test_a_plugin_whose_methods_nobody_would_call_is_refused(tmp_path: Path, method: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"class Mine:\n    def {method}(self, message): ...\n")
    with pytest.raises(PluginError, match=r"mine\.py:Mine': it"):
        plugin_facts(f"{file}:Mine")


def test_a_long_registry_is_gone_through_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own.parent / "mine.py").write_text("class Mine:\n    pass\n")
    count = 200
    own.write_text("".join(f"[plugins.p{i}]\ntarget = 'mine.py:Mine'\n" for i in range(count)))
    read: list[object] = []
    inner = tables._own
    monkeypatch.setattr(tables, "_own", lambda: (read.append(1), inner())[1])
    assert len(plugin_rows()) > count
    assert len(read) < count / 4
