"""The catalogue: names, files and entry points become classes with checked parameters."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from splitlab.core import ConfigError, PluginError
from splitlab.core.catalogue import registry as registry_module
from splitlab.core.catalogue.registry import ROOT, bind_plugin, bind_stack, broken, catalogue, entries, load
from splitlab.core.contract.settings import Parameter, parameters


class Method:
    """Takes a parameter of every type."""

    def __init__(
        self,
        *,
        ratio: float = 0.1,
        count: int = 3,
        name: str = "a",
        on: bool = False,
        alloc: Literal["sqrt", "fifth"] = "sqrt",
        bits: Literal[2, 4, 8] = 8,
        tau: float | None = None,
        label: str | None = None,
        size: int | Literal["all"] = "all",
        untyped=None,
        listed: tuple[int, ...] = (),
    ) -> None:
        self.given = {key: value for key, value in locals().items() if key != "self"}


class Needs:
    """Cannot be built without two of its parameters."""

    def __init__(self, rank: int, *, mode: Literal["a", "b"], depth: int = 1, **rest: Any) -> None:
        self.rank = rank


class Breaks:
    """Refuses whatever it is given."""

    def __init__(self, *, how: Literal["config", "value"] = "value") -> None:
        if how == "config":
            raise ConfigError("how=config is refused")
        raise ValueError("a bug")


class Bare:
    """Has no constructor."""


MINE = {"method": Method, "needs": Needs, "breaks": Breaks, "bare": Bare}


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what ships by the classes of this file."""
    tables = {
        name: {"target": f"{__name__}:{kind.__name__}", "summary": f"a {name}"}
        for name, kind in MINE.items()
    }
    monkeypatch.setattr(registry_module, "catalogue", lambda: {"plugins": tables})


@pytest.fixture(autouse=True)
def these_classes_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)


def bound(text: str) -> dict[str, Any]:
    return dict(bind_plugin(text).given)


# Parameters.


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ratio=0.25", 0.25),
        ("ratio=1e-3", 1e-3),
        ("ratio=1", 1.0),
        (" ratio = 0.5 ", 0.5),
        ("count=-2", -2),
        ("name=sqrt=x", "sqrt=x"),
        ("name=", ""),
        ("on=true", True),
        ("on=No", False),
        ("on=1", True),
        ("on=off", False),
        ("alloc=fifth", "fifth"),
        ("bits=4", 4),
        ("tau=none", None),
        ("tau=None", None),
        ("tau=0.5", 0.5),
        ("label=none", None),
        ("label=x", "x"),
        ("size=12", 12),
        ("size=all", "all"),
        ("untyped=text", "text"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_settings_take_the_type_of_their_annotation(setting: str, value: Any) -> None:
    key = setting.partition("=")[0].strip()
    given = bound(f"method:{setting}")
    assert given == {key: value}
    assert type(given[key]) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ratio=half", "ratio=half is not allowed; ratio takes float (default 0.1)"),
        ("ratio=", "ratio= is not allowed; ratio takes float"),
        ("count=1.5", "count takes int (default 3)"),
        ("on=maybe", "on takes bool (default false)"),
        ("alloc=cube", "alloc takes sqrt | fifth (default sqrt)"),
        ("bits=3", "bits takes 2 | 4 | 8 (default 8)"),
        ("tau=x", "tau takes float | none (default none)"),
        ("size=some", "size takes int | all (default all)"),
        ("listed=1", "listed takes tuple"),
        ("rato=1", "unknown parameter 'rato' (did you mean 'ratio'?); known: alloc, bits"),
        ("ratio", "'ratio' is not a setting; write method:key=value,key=value"),
        ("ratio=1,,count", "'count' is not a setting"),
        ("ratio=1,count=2,ratio=1", "ratio is given twice"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_settings_that_cannot_be_used_name_plugin_value_and_way_out(
    setting: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_plugin(f"method:{setting}")
    assert words in str(caught.value)
    assert str(caught.value).startswith("plugin 'method': ")


@pytest.mark.usefixtures("mine")
def test_parameters_are_described_as_users_read_them() -> None:
    kinds = {p.name: p.kind for p in parameters(Method).values()}
    assert kinds["ratio"] == "float"
    assert kinds["tau"] == "float | none"
    assert kinds["alloc"] == "sqrt | fifth"
    assert kinds["size"] == "int | all"
    assert [p.name for p in parameters(Needs).values() if p.required] == ["rank", "mode"]
    assert parameters(Bare) == {}
    assert Parameter("x", int, 3).required is False


@pytest.mark.usefixtures("mine")
def test_needed_parameters_are_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"plugin 'needs' needs rank, mode; write needs:rank=…"):
        bind_plugin("needs")
    with pytest.raises(ConfigError, match="plugin 'needs' needs mode"):
        bind_plugin("needs:rank=2")
    assert bind_plugin("needs:rank=2,mode=b").build().rank == 2


@pytest.mark.usefixtures("mine")
def test_a_bound_plugin_holds_every_parameter_and_builds_anew() -> None:
    plugin = bind_plugin("method:count=5,ratio=0.2")
    assert list(plugin.params) == list(parameters(Method))
    assert plugin.params["count"] == 5
    assert plugin.params["alloc"] == "sqrt"
    assert plugin.given == {"count": 5, "ratio": 0.2}
    assert str(plugin) == "method:count=5,ratio=0.2"
    assert plugin.build().given == plugin.params
    assert plugin.build() is not plugin.build()
    bare = bind_plugin("bare")
    assert (str(bare), bare.agreement(), bare.label) == ("bare", "bare", "bare")


@pytest.mark.usefixtures("mine")
def test_what_peers_agree_on_holds_defaults_and_not_how_they_were_written() -> None:
    texts = ("method:ratio=0.10", "method", "method:tau=none")
    [agreed] = {bind_plugin(text).agreement() for text in texts}
    assert "ratio=0.1," in agreed
    assert bind_plugin("method:on=yes").agreement() != bind_plugin("method").agreement()


@pytest.mark.usefixtures("mine")
def test_constructors_that_refuse_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^plugin 'breaks': how=config is refused$"):
        bind_plugin("breaks:how=config").build()
    with pytest.raises(PluginError, match="plugin 'breaks' cannot be built: ValueError: a bug"):
        bind_plugin("breaks").build()


def test_annotations_that_name_nothing_are_the_plugins_error() -> None:
    def init(self: Any, x: Any = None) -> None: ...

    init.__annotations__["x"] = "Missing"
    with pytest.raises(
        PluginError, match=r"types of the parameters of Odd .* NameError: .*Missing"
    ):
        parameters(type("Odd", (), {"__init__": init}))


# Names.


@pytest.mark.usefixtures("mine")
def test_unknown_plugins_name_the_nearest_all_known_and_the_way_to_a_file() -> None:
    with pytest.raises(ConfigError) as caught:
        bind_plugin("methd:ratio=1")
    assert str(caught.value) == (
        "unknown plugin 'methd' (did you mean 'method'?); known: bare, breaks, method, needs"
        "; or name a file: path/to/file.py:Class"
    )


def test_unknown_transports_name_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown transport 'tpc' .did you mean 'tcp'"):
        load("transports", "tpc")


@pytest.mark.parametrize("text", ["", ":ratio=1", "=", "méthode", "a\nb"])
@pytest.mark.usefixtures("mine")
def test_odd_names_are_refused_in_the_same_way(text: str) -> None:
    with pytest.raises(ConfigError, match="unknown plugin"):
        bind_plugin(text)


# Files.

SOURCE = '''
from __future__ import annotations
import dataclasses
from typing import Literal

@dataclasses.dataclass
class Mine:
    """Mine."""
    ratio: float = 0.5
    mode: Literal["a", "b"] = "a"

class Other: ...
number = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Write a plugin file; forget the modules that were made of it."""
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    before = set(sys.modules)
    yield path
    for name in set(sys.modules) - before:
        if name.startswith("splitlab_file_"):
            del sys.modules[name]


def test_a_class_of_a_file_is_a_plugin_like_any_other(file: Path) -> None:
    plugin = bind_plugin(f"{file}:Mine:ratio=0.25,mode=b")
    assert plugin.label == "Mine"
    assert str(plugin) == "Mine:ratio=0.25,mode=b"
    built = plugin.build()
    assert (built.ratio, built.mode) == (0.25, "b")
    assert type(built) is type(bind_plugin(f"{file}:Mine").build())
    assert bind_plugin(f"{file}:Other").build() is not None


def test_peers_compare_the_content_of_files_and_not_their_place(file: Path) -> None:
    one = bind_plugin(f"{file}:Mine").agreement()
    moved = file.with_name("moved.py")
    moved.write_text(SOURCE)
    assert bind_plugin(f"{moved}:Mine").agreement() == one
    assert str(file.parent) not in one
    file.write_text(SOURCE.replace("0.5", "0.6"))
    edited = bind_plugin(f"{file}:Mine")
    assert edited.agreement().replace("0.6", "0.5") != one
    assert edited.build().ratio == 0.6


def test_files_that_cannot_be_used_say_why(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plugin file .*absent\.py' does not exist"):
        bind_plugin(f"{tmp_path}/absent.py:Mine")
    with pytest.raises(ConfigError, match=r"name the class too, as in .*mine\.py:MyMethod"):
        bind_plugin(str(file))
    for name in ("Min", "number", ""):
        with pytest.raises(ConfigError, match=r"unknown class in mine\.py.* known: Mine, Other"):
            bind_plugin(f"{file}:{name}")
    for text, reason in (
        ("raise OSError('x')", "OSError: x"),
        ("def", "SyntaxError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
    ):
        file.write_text(text)
        with pytest.raises(PluginError, match=rf"mine\.py' cannot be imported: {reason}"):
            bind_plugin(f"{file}:Mine")
        with pytest.raises(PluginError):  # and again: no half-made module is left
            bind_plugin(f"{file}:Mine")


# Entry points of other packages.


def install(monkeypatch: pytest.MonkeyPatch, group: str, **targets: str) -> None:
    """Pretend that packages of others bring these entry points."""
    points = [importlib.metadata.EntryPoint(n, t, group) for n, t in targets.items()]
    monkeypatch.setattr(
        registry_module,
        "entry_points",
        lambda group: [point for point in points if point.group == group],
    )


@pytest.mark.parametrize("group", ["plugins", "transports"])
def test_entry_points_are_listed_without_being_imported(
    monkeypatch: pytest.MonkeyPatch, group: Any
) -> None:
    install(monkeypatch, f"splitlab.{group}", alien="a_package_that_is_not_there:Alien")
    listed = entries(group)
    assert listed["alien"].target == "a_package_that_is_not_there:Alien"
    assert listed["alien"].source != "splitlab"
    assert listed["alien"].summary == ""
    assert set(catalogue()[group]) < set(listed)
    with pytest.raises(
        PluginError,
        match=rf"{group[:-1]} 'alien' \(a_package_that_is_not_there:Alien, from .*\) cannot be "
        "imported: ModuleNotFoundError",
    ):
        load(group, "alien")


def test_an_entry_point_is_loaded_like_what_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "splitlab.plugins", alien=f"{__name__}:Method", gone=f"{__name__}:Gone")
    assert bind_plugin("alien:ratio=0.3").build().given["ratio"] == 0.3
    with pytest.raises(PluginError, match="cannot be imported: AttributeError"):
        load("plugins", "gone")


def test_a_broken_entry_point_disturbs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from splitlab.core.catalogue.links import load_transport, working_transports

    install(monkeypatch, "splitlab.transports", alien="a_package_that_is_not_there:Alien")
    assert "inprocess" in working_transports()
    assert "alien" not in working_transports()
    assert load_transport("inprocess").unavailable() is None


def test_a_name_that_two_take_is_refused_and_the_rest_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "splitlab.plugins", adc="thief:ADC", alien=f"{__name__}:Method")
    assert entries("plugins")["adc"].problem is not None
    with pytest.raises(ConfigError, match=r"two plugins are called 'adc': .*\(from splitlab\) and"):
        bind_plugin("adc")
    assert "thief:ADC" in (broken("plugins", entries("plugins")["adc"]) or "")
    assert bind_plugin("alien").build() is not None
    assert bind_plugin("adc-batch-merge").build() is not None


def test_what_is_broken_is_found_by_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        "splitlab.plugins",
        absent="a_package_that_is_not_there:Alien",
        function=f"{__name__}:install",
        well=f"{__name__}:Method",
    )
    found = {name: broken("plugins", entry) for name, entry in entries("plugins").items()}
    assert "ModuleNotFoundError" in (found.pop("absent") or "")
    assert "is a function; it must be a class" in (found.pop("function") or "")
    assert set(found.values()) == {None}


def test_a_module_that_ends_the_interpreter_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "leaves_at_once.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "splitlab.plugins", alien="leaves_at_once:X")
    assert "SystemExit: 3" in (broken("plugins", entries("plugins")["alien"]) or "")


def test_an_error_of_ours_during_import_keeps_its_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_gpu_xyz.py").write_text(
        "from splitlab.core import ConfigError\nraise ConfigError('no GPU')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "splitlab.plugins", alien="needs_gpu_xyz:X")
    with pytest.raises(ConfigError, match=r"^no GPU$"):
        load("plugins", "alien")


# The user's own registry.


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> Path:
    """Start in a folder with a registry of the user's own, which names the plugin file."""
    path = tmp_path / "registry.toml"
    path.write_text(
        """
        [plugins.mine]
        target = "mine.py:Mine"
        summary = "a method of my own"
        [stacks.mine-twice]
        plugins = ["mine:ratio=0.25", "mine"]
        """
    )
    monkeypatch.chdir(tmp_path)
    return path


def test_a_registry_in_the_folder_adds_names(own: Path, tmp_path: Path) -> None:
    plugin = bind_plugin("mine:mode=b")
    assert (plugin.label, plugin.build().mode) == ("mine", "b")
    assert plugin.identity.startswith("mine=Mine@")
    assert entries("plugins")["mine"].source == str(own)
    assert entries("plugins")["mine"].summary == "a method of my own"
    assert [b.build().ratio for b in bind_stack(["mine-twice"])] == [0.25, 0.5]
    assert set(catalogue()["plugins"]) < set(entries("plugins"))


def test_a_registry_is_found_by_its_variable_from_anywhere(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "mine" not in entries("plugins")
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    assert bind_plugin("mine").build().ratio == 0.5
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match=r"\$SPLITLAB_REGISTRY: cannot read .*absent.toml"):
        entries("plugins")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[plugin.x]\ntarget = 'a:B'", r"unknown table 'plugin' \(did you mean 'plugins'\?\)"),
        ("[plugins.x]\nsummary = 'no target'", r"\[plugins.x\] needs the key 'target'"),
        ("[stacks.x]\ntarget = 'a:B'", r"\[stacks.x\] needs the key 'plugins'"),
        ("plugins = 3", r"\[plugins.NAME\] needs"),
        ("[plugins.x]\ntarget = 5", r"target of \[plugins.x\] must be a text"),
        ("[plugins.x]\ntarget = ['a:B']", r"target of \[plugins.x\] must be a text"),
        ("[stacks.x]\nplugins = 'adc'", r"plugins of \[stacks.x\] must be a list of plugins"),
        ("[stacks.x]\nplugins = []", r"plugins of \[stacks.x\] must be a list of plugins"),
        ("[stacks.x]\nplugins = ['adc', 1]", r"plugins of \[stacks.x\] must be a list"),
        ("[plugins", "is not TOML"),
    ],
)
def test_a_registry_that_is_none_says_why(own: Path, text: str, reason: str) -> None:
    own.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        entries("plugins")


def test_a_name_of_ones_own_may_not_be_one_that_ships(own: Path) -> None:
    own.write_text(
        "[plugins.adc]\ntarget = 'mine.py:Mine'\n[stacks.adc-token-select]\nplugins = ['adc']"
    )
    with pytest.raises(ConfigError, match="two plugins are called 'adc'"):
        bind_plugin("adc")
    with pytest.raises(ConfigError, match="two stacks are called 'adc-token-select'"):
        bind_stack(["adc-token-select"])


# Stacks by name.


def test_a_stack_stands_for_its_plugins_and_passes_settings_on(own: Path) -> None:
    own.write_text(
        "[plugins.mine]\ntarget = 'mine.py:Mine'\n"
        "[stacks.both]\nplugins = ['mine:ratio=0.4', 'adc:ratio=0.3']"
    )
    assert [str(b) for b in bind_stack(["both"])] == ["mine:ratio=0.4", "adc:ratio=0.3"]
    changed = bind_stack(["both:ratio=0.2,alloc=fifth", "mine"])
    assert [str(b) for b in changed] == ["mine:ratio=0.2", "adc:ratio=0.3,alloc=fifth", "mine"]
    with pytest.raises(ConfigError, match=r"stack 'both' \(.* \+ .*\): unknown parameter 'bits'"):
        bind_stack(["both:bits=3"])
    with pytest.raises(ConfigError, match=r"unknown plugin 'bot' .did you mean 'both'"):
        bind_stack(["bot"])


def test_files_of_a_stack_are_where_the_registry_says(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("[stacks.both]\nplugins = ['mine.py:Mine:ratio=0.4', 'adc']")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    assert [str(b) for b in bind_stack(["both"])] == ["Mine:ratio=0.4", "adc"]


def test_a_stack_is_made_of_plugins(own: Path) -> None:
    own.write_text("[stacks.both]\nplugins = ['adc-q8', 'zstd']\n[stacks.odd]\nplugins = ['ad']")
    with pytest.raises(ConfigError, match=r"stack .adc-q8.; .* write adc:ratio=0.4, quan"):
        bind_stack(["both"])
    found = {name: broken("stacks", entry) for name, entry in entries("stacks").items()}
    assert "unknown plugin 'ad'" in (found["odd"] or "")
    assert "names the stack" in (found["both"] or "")
    assert found["adc-q8"] is None


@pytest.mark.parametrize("name", catalogue().get("stacks", {}))
def test_every_stack_that_ships_can_work(name: str) -> None:
    from splitlab.core.engine.stack import Stack

    assert len(Stack(bind_stack([name])).traits()) > 1


# Reconstructions.


def test_a_reconstruction_says_so_in_its_title(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"plugins": {"m": {"target": f"{__name__}:Method", "reconstruction": True}}}
    monkeypatch.setattr(registry_module, "catalogue", lambda: tables)
    assert bind_plugin("m").title == "m-recon"
    tables["plugins"]["m"]["reconstruction"] = False
    assert bind_plugin("m").title == "m"


# What ships.


def test_facts_of_an_entry_are_the_rest_of_its_table() -> None:
    entry = entries("plugins")["adc"]
    table = catalogue()["plugins"]["adc"]
    assert entry.name == "adc"
    assert entry.summary == table["summary"]
    assert dict(entry.facts) == {k: v for k, v in table.items() if k not in ("target", "summary")}


def test_every_summary_is_one_short_line() -> None:
    for group, tables in catalogue().items():
        for name, table in tables.items():
            assert "\n" not in table["summary"], (group, name)
            assert 10 < len(table["summary"]) < 120, (group, name)
            assert not table["summary"].endswith("."), (group, name)


def test_root_is_where_the_catalogue_lies() -> None:
    assert (ROOT / "registry.toml").is_file()
    assert {"plugins", "transports", "datasets", "models"} <= catalogue().keys()
