"""Texts become classes with checked parameters; stacks and presets stand for others."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from splitlab.core import ConfigError, PluginError
from splitlab.core.catalogue import tables
from splitlab.core.catalogue.binding import bind, bind_stack, brief, broken, split_stack
from splitlab.core.catalogue.tables import LOADABLE, SINGULAR, catalogue, entries
from splitlab.core.contract.settings import parameters
from splitlab.core.contract.traits import Declared, check_order


class Method:
    """Takes parameters of several types."""

    def __init__(
        self, *, ratio: float = 0.1, count: int = 3, on: bool = False, tau: float | None = None
    ) -> None:
        self.given = {key: value for key, value in locals().items() if key != "self"}


class Needs:
    """Cannot be built without two of its parameters."""

    def __init__(self, rank: int, *, mode: Literal["a", "b"], depth: int = 1) -> None:
        self.rank = rank


class Breaks:
    """Refuses whatever it is given."""

    def __init__(self, *, how: Literal["config", "value"] = "value") -> None:
        if how == "config":
            raise ConfigError("how=config is refused")
        raise ValueError("a bug")


class Bare:
    """Has no constructor."""


CLASSES = {"method": Method, "needs": Needs, "breaks": Breaks, "bare": Bare}


@pytest.fixture(params=LOADABLE)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, own: Path) -> Any:
    """Replace what ships by the classes of this file; once for every kind."""
    group = {
        name: {"target": f"{__name__}:{factory.__name__}", "summary": f"a {name}"}
        for name, factory in CLASSES.items()
    }
    monkeypatch.setattr(tables, "catalogue", lambda: {request.param: group})
    return request.param


@pytest.fixture(autouse=True)
def these_classes_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)


# One of any kind.


def test_settings_are_typed_and_the_others_filled_in(kind: Any) -> None:
    bound = bind(kind, "method:count=5, ratio = 0.2,on=yes")
    assert bound.given == {"count": 5, "ratio": 0.2, "on": True}
    assert list(bound.params) == list(parameters(Method))
    assert bound.params["tau"] is None
    assert str(bound) == "method:count=5,ratio=0.2,on=true"
    assert bound.build().given == bound.params
    assert bound.build() is not bound.build()
    assert (bound.label, bound.identity, bound.kind) == ("method", "method", SINGULAR[kind])
    bare = bind(kind, "bare")
    assert (str(bare), bare.agreement(), bare.label) == ("bare", "bare", "bare")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ratio=half", "ratio=half is not allowed; ratio takes float (default 0.1)"),
        ("rato=1", "unknown parameter 'rato' (did you mean 'ratio'?); known: count, on, ratio"),
        ("ratio", "'ratio' is not a setting; write method:key=value,key=value"),
    ],
)
def test_settings_that_cannot_be_used_name_kind_label_and_way_out(
    kind: Any, setting: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(kind, f"method:{setting}")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{SINGULAR[kind]} 'method': ")


def test_needed_parameters_are_asked_for(kind: Any) -> None:
    what = SINGULAR[kind]
    with pytest.raises(
        ConfigError, match=rf"^{what} 'needs' needs rank, mode; write needs:rank=…$"
    ):
        bind(kind, "needs")
    with pytest.raises(ConfigError, match=f"{what} 'needs' needs mode; write needs:mode=…"):
        bind(kind, "needs:rank=2")
    assert bind(kind, "needs:rank=2,mode=b").build().rank == 2


def test_what_a_file_needs_can_be_typed_as_told(kind: Any, file: Path) -> None:
    file.write_text("class Needs:\n    def __init__(self, rank: int) -> None: ...\n")
    with pytest.raises(ConfigError) as caught:
        bind(kind, f"{file}:Needs")
    told = f"{SINGULAR[kind]} 'Needs' needs rank; write {file}:Needs:rank=…"
    assert str(caught.value) == told


def test_what_peers_agree_on_does_not_tell_how_it_was_written(kind: Any) -> None:
    texts = ("method:ratio=0.10", "method", "method:tau=none")
    [agreed] = {bind(kind, text).agreement() for text in texts}
    assert "ratio=0.1," in agreed
    assert bind(kind, "method:on=yes").agreement() != agreed


def test_constructors_that_refuse_are_named(kind: Any) -> None:
    what = SINGULAR[kind]
    with pytest.raises(ConfigError, match=f"^{what} 'breaks': how=config is refused$"):
        bind(kind, "breaks:how=config").build()
    with pytest.raises(PluginError, match=f"{what} 'breaks' cannot be built: ValueError: a bug"):
        bind(kind, "breaks").build()


def test_unknown_names_name_the_nearest_all_known_and_the_way_to_a_file(kind: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(kind, "methd:ratio=1")
    noun = "function" if kind == "models" else "Class"
    assert str(caught.value) == (
        f"unknown {SINGULAR[kind]} 'methd' (did you mean 'method'?); known: bare, breaks, method, "
        f"needs; or name a file: path/to/file.py:{noun}"
    )


@pytest.mark.parametrize("text", ["", ":ratio=1", "=", "méthode", "a\nb"])
def test_odd_names_are_refused_in_the_same_way(kind: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown {SINGULAR[kind]}"):
        bind(kind, text)


def test_a_class_of_a_file_is_bound_like_any_other(kind: Any, file: Path) -> None:
    bound = bind(kind, f"{file}:Mine:ratio=0.25,mode=b")
    assert (bound.label, str(bound)) == ("Mine", "Mine:ratio=0.25,mode=b")
    assert re.fullmatch(r"Mine@[0-9a-f]{12}", bound.identity)
    built = bound.build()
    assert (built.ratio, built.mode) == (0.25, "b")
    assert type(built) is type(bind(kind, f"{file}:Mine").build())
    assert bind(kind, f"{file}:Other").build() is not None
    with pytest.raises(ConfigError, match=f"{SINGULAR[kind]} 'Mine': unknown parameter 'rato'"):
        bind(kind, f"{file}:Mine:rato=1")


def test_a_name_of_ones_own_is_bound_like_any_other(kind: Any, own: Path, file: Path) -> None:
    own.write_text(f"[{kind}.mine]\ntarget = 'mine.py:Mine'\nreconstruction = true")
    bound = bind(kind, "mine:mode=b")
    assert (bound.label, bound.build().mode, bound.title) == ("mine", "b", "mine-recon")
    assert bound.identity.startswith("mine=Mine@")


def test_parameters_that_cannot_be_read_are_the_authors_error(
    install: Callable[..., None],
) -> None:
    install("splitlab.probes", alien="builtins:type")
    with pytest.raises(PluginError, match="the parameters of probe 'alien' cannot be read"):
        bind("probes", "alien")
    assert "cannot be read" in (broken("probes", entries("probes")["alien"]) or "")


def test_a_reconstruction_says_so_in_its_title(monkeypatch: pytest.MonkeyPatch) -> None:
    group: dict[str, dict[str, Any]] = {"m": {"target": f"{__name__}:Method"}}
    monkeypatch.setattr(tables, "catalogue", lambda: {"plugins": group})
    assert bind("plugins", "m").title == "m"
    group["m"]["reconstruction"] = True
    assert bind("plugins", "m").title == "m-recon"


def test_only_a_plugin_s_settings_change_while_a_run_goes_on(kind: Any) -> None:
    text = "method:ratio=0.4..0.2..0.1,count=1..2..3"
    if kind != "plugins":
        with pytest.raises(ConfigError, match=r"ratio=0.4..0.2..0.1 is not allowed; ratio takes"):
            bind(kind, text)
        return
    bound = bind(kind, text)
    assert (bound.pieces, str(bound)) == (3, text)
    assert brief(kind, "method:ratio=0.1..0.1,count=3") == "method:ratio=0.1..0.1"
    with pytest.raises(
        ConfigError, match=r"ratio=1.0..2.0, count=1..2..3: .* need as many values each"
    ):
        bind(kind, "method:ratio=1..2,count=1..2..3")


# Models.


@pytest.fixture
def nets(own: Path, file: Path) -> Path:
    """Name a model of a file, and presets of it."""
    own.write_text(
        "[models.net]\ntarget = 'mine.py:net'\n"
        "[models.deep]\npreset = 'net:depth=9,wide=yes'\ncut = 2\n"
        "[models.deeper]\npreset = 'deep:depth=12'\n"
        "[models.wrong]\npreset = 'net:dept=9'\n"
    )
    return file


def test_a_model_is_built_for_so_many_classes_which_users_do_not_set(nets: Path) -> None:
    bound = bind("models", "net:depth=5")
    assert bound.params == {"depth": 5, "wide": False}
    assert bound.build(classes=10) == (10, 5, False)
    assert bind("models", f"{nets}:net:wide=on").build(classes=2) == (2, 2, True)
    with pytest.raises(ConfigError, match=r"^model 'net': classes is not .*; the data decide it$"):
        bind("models", "net:classes=3")


def test_a_preset_is_its_base_with_settings_and_the_users_on_top(nets: Path) -> None:
    deep = bind("models", "deep")
    assert (str(deep), deep.given) == ("deep", {})
    assert deep.build(classes=3) == (3, 9, True)
    changed = bind("models", "deep:depth=4")
    assert (str(changed), changed.given, changed.label) == ("deep:depth=4", {"depth": 4}, "deep")
    assert changed.build(classes=3) == (3, 4, True)
    assert bind("models", "deeper").build(classes=3) == (3, 12, True)
    assert bind("models", "deeper:wide=no").build(classes=3) == (3, 12, False)


def test_peers_compare_a_presets_base_file_and_settings(nets: Path) -> None:
    deep = bind("models", "deep").agreement()
    assert re.fullmatch(r"deep=net=net@[0-9a-f]{12}:depth=9,wide=true", deep)
    assert bind("models", "deep:wide=no").agreement() != deep
    nets.write_text(nets.read_text() + "\n# edited\n")
    assert bind("models", "deep").agreement() != deep


def test_a_preset_with_a_setting_that_is_none_is_broken(nets: Path) -> None:
    with pytest.raises(ConfigError, match=r"model 'wrong': unknown parameter 'dept' .*'depth'"):
        bind("models", "wrong")
    found = {name: broken("models", e) for name, e in entries("models").items() if name != "vit"}
    assert "unknown parameter 'dept'" in (found.pop("wrong") or "")
    assert set(found.values()) == {None}


# Stacks.


@pytest.fixture
def mine(own: Path, file: Path) -> Path:
    """Start in a folder with a registry that names the plugin file and a stack of it."""
    own.write_text(
        "[plugins.mine]\ntarget = 'mine.py:Mine'\n"
        "[stacks.mine-twice]\nplugins = ['mine:ratio=0.25', 'mine']\n"
        "[stacks.both]\nplugins = ['mine:ratio=0.4', 'adc:ratio=0.3']\n"
    )
    return own


def test_a_stack_stands_for_its_plugins_and_passes_settings_on(mine: Path) -> None:
    assert [b.build().ratio for b in bind_stack(["mine-twice"])] == [0.25, 0.5]
    assert [str(b) for b in bind_stack(["both"])] == ["mine:ratio=0.4", "adc:ratio=0.3"]
    changed = bind_stack(["both:ratio=0.2,alloc=fifth", "mine"])
    assert [str(b) for b in changed] == ["mine:ratio=0.2", "adc:ratio=0.3,alloc=fifth", "mine"]
    assert {b.kind for b in changed} == {"plugin"}
    with pytest.raises(ConfigError, match=r"stack 'both' \(.* \+ .*\): unknown parameter 'bits'"):
        bind_stack(["both:bits=3"])
    with pytest.raises(ConfigError, match=r"unknown plugin 'bot' .did you mean 'both'"):
        bind_stack(["bot"])


def test_files_of_a_stack_are_where_the_registry_says(
    own: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("[stacks.both]\nplugins = ['mine.py:Mine:ratio=0.4', 'adc']")
    (own.parent / "elsewhere").mkdir()
    monkeypatch.chdir(own.parent / "elsewhere")
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    assert [str(b) for b in bind_stack(["both"])] == ["Mine:ratio=0.4", "adc"]


def test_a_stack_is_made_of_plugins(own: Path) -> None:
    own.write_text("[stacks.both]\nplugins = ['adc-q8', 'zstd']\n[stacks.odd]\nplugins = ['ad']")
    with pytest.raises(
        ConfigError,
        match=r"stack .adc-q8.; .* write adc:ratio=0.4, quantize:bits=8 instead",
    ):
        bind_stack(["both"])
    found = {name: broken("stacks", entry) for name, entry in entries("stacks").items()}
    assert "unknown plugin 'ad'" in (found["odd"] or "")
    assert "names the stack" in (found["both"] or "")
    assert found["adc-q8"] is None


def test_a_stack_whose_name_ships_is_refused(own: Path) -> None:
    own.write_text("[stacks.adc-token-select]\nplugins = ['adc']\n[stacks.empty]\nplugins = []")
    with pytest.raises(ConfigError, match="two stacks are called 'adc-token-select'"):
        bind_stack(["adc-token-select"])
    with pytest.raises(ConfigError, match=r"plugins of \[stacks.empty\] must be a list"):
        bind_stack(["empty"])


@pytest.mark.parametrize("name", catalogue()["stacks"])
def test_every_stack_that_ships_can_work(name: str) -> None:
    members = [(bound.label, bound.build()) for bound in bind_stack([name])]
    assert len(members) > 1
    check_order(
        [
            Declared(
                label,
                plugin.traits(),
                on_graph=hasattr(plugin, "after_client_forward"),
                on_message=hasattr(plugin, "before_send"),
            )
            for label, plugin in members
        ]
    )


# What is broken.


def test_what_is_broken_is_found_by_importing_it(install: Callable[..., None]) -> None:
    install(
        "splitlab.plugins",
        absent="a_package_that_is_not_there:Alien",
        function=f"{__name__}:bind",
        adc="thief:ADC",
        well=f"{__name__}:Method",
        needs=f"{__name__}:Needs",
    )
    found = {name: broken("plugins", entry) for name, entry in entries("plugins").items()}
    assert "ModuleNotFoundError" in (found.pop("absent") or "")
    assert "is a function; it must be a class" in (found.pop("function") or "")
    assert "thief:ADC" in (found.pop("adc") or "")
    assert set(found.values()) == {None}
    assert bind("plugins", "well:ratio=0.3").build().given["ratio"] == 0.3
    assert bind("plugins", "adc-batch-merge").build() is not None


def test_a_module_that_ends_the_interpreter_is_broken(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "leaves_as_well.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    install("splitlab.plugins", alien="leaves_as_well:X")
    assert "SystemExit: 3" in (broken("plugins", entries("plugins")["alien"]) or "")


def test_what_ships_is_not_imported_to_tell() -> None:
    for kind in (*LOADABLE, "stacks", "datasets"):
        assert [
            broken(kind, entry) for entry in entries(kind).values() if broken(kind, entry)
        ] == []


# Members joined by a plus.


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("adc", ("adc",)),
        ("adc+half:bits=8", ("adc", "half:bits=8")),
        (" adc + half:a=1,b=2 ", ("adc", "half:a=1,b=2")),
        ("a:x=1e+5", ("a:x=1e+5",)),
        ("a:x=1.e+5,y=2E+07+b:z=3e-2+c", ("a:x=1.e+5,y=2E+07", "b:z=3e-2", "c")),
        ("a:x=1e+b", ("a:x=1e", "b")),
        ("dir/file.py:Class:x=1+adc", ("dir/file.py:Class:x=1", "adc")),
    ],
)
def test_members_of_a_stack(text: str, members: tuple[str, ...]) -> None:
    assert split_stack(text) == members


@pytest.mark.parametrize("text", ["", " ", "+", "adc++adc", "adc+", "+adc"])
def test_empty_members(text: str) -> None:
    with pytest.raises(ConfigError, match=r"empty.*write plugins joined by '\+'"):
        split_stack(text)


def test_a_plus_in_the_path_of_a_file_is_the_paths(tmp_path: Path) -> None:
    file = tmp_path / "a+b" / "mine.py"
    file.parent.mkdir()
    file.write_text("class Mine: pass\n", encoding="utf-8")
    assert split_stack(f"{file}:Mine:x=1+adc") == (f"{file}:Mine:x=1", "adc")
    assert split_stack("a+b/mine.py:Mine") == ("a", "b/mine.py:Mine")  # there is no such file


def test_a_stack_is_written_in_one_text_or_in_several() -> None:
    apart = bind_stack(["adc", "quantize:bits=4"])
    assert [str(b) for b in bind_stack(["adc+quantize:bits=4"])] == [str(b) for b in apart]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("adc", "adc"),
        ("nowhere", "nowhere"),
        ("adc:ratio=0.1", "adc"),
        ("adc:tol=1e-3,ratio=0.20", "adc:ratio=0.2,tol=0.001"),
        ("nowhere:b=1,a=2", "nowhere:a=2,b=1"),
        ("adc:nothing=1", "adc:nothing=1"),
    ],
)
def test_texts_that_mean_the_same_are_one(text: str, told: str) -> None:
    assert brief("plugins", text) == told


def test_what_a_preset_sets_is_its_default_and_what_must_be_given_has_none(tmp_path: Path) -> None:
    assert brief("models", "vit-mini:heads=2,patch=4") == "vit-mini:heads=2"
    file = tmp_path / "m.py"
    file.write_text("def model(*, classes: int, width: int, depth: int = 2): ...\n")
    assert brief("models", f"{file}:model:depth=2,width=8") == f"{file}:model:width=8"
