"""Names, files and entry points become classes and functions; what cannot be says why."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError, PluginError
from splitlab.core.catalogue.loading import check_kind, find, load, split
from splitlab.core.catalogue.tables import LOADABLE, SINGULAR, Loadable, catalogue

CLASSES: tuple[Any, ...] = tuple(kind for kind in LOADABLE if kind != "models")


class Found:
    """What an entry point of this file names."""


def function() -> None: ...


@pytest.fixture(autouse=True)
def this_file_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)


# Texts.


@pytest.mark.parametrize("kind", LOADABLE)
@pytest.mark.parametrize(
    ("text", "head", "given"),
    [
        ("name", "name", {}),
        ("name:a=1", "name", {"a": "1"}),
        ("name: a = 1 ,b=x=y,,c=", "name", {"a": "1", "b": "x=y", "c": ""}),
        ("name:a=b:c", "name", {"a": "b:c"}),
        ("f.py:Mine", "f.py:Mine", {}),
        ("/x/f.py:Mine:a=1,b=2", "/x/f.py:Mine", {"a": "1", "b": "2"}),
        ("", "", {}),
    ],
)
def test_a_text_is_a_head_and_settings(
    kind: Any, text: str, head: str, given: dict[str, str]
) -> None:
    assert split(kind, text) == (head, given)


@pytest.mark.parametrize("kind", LOADABLE)
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ratio", "'ratio' is not a setting; write method:key=value,key=value"),
        ("ratio=1,,count", "'count' is not a setting"),
        ("ratio=1,count=2,ratio=1", "ratio is given twice; give it once"),
    ],
)
def test_settings_of_another_form_name_the_kind_and_the_way_out(
    kind: Any, setting: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        split(kind, f"method:{setting}")
    assert str(caught.value).startswith(f"{SINGULAR[kind]} 'method': ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        ("plugins", "plugin file 'a/b.py': name the class too, as in a/b.py:MyMethod"),
        ("probes", "probe file 'a/b.py': name the class too, as in a/b.py:MyProbe"),
        ("loggers", "logger file 'a/b.py': name the class too, as in a/b.py:MyLogger"),
        ("transports", "transport file 'a/b.py': name the class too, as in a/b.py:MyTransport"),
        ("links", "link file 'a/b.py': name the class too, as in a/b.py:MyLink"),
        ("models", "model file 'a/b.py': name the function too, as in a/b.py:my_model"),
    ],
)
def test_a_file_alone_is_not_enough(kind: Any, example: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(example)}$"):
        split(kind, "a/b.py")


# Names.


def test_unknown_names_name_the_nearest_and_all_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown transport 'tpc' .did you mean 'tcp'"):
        load("transports", "tpc")
    with pytest.raises(ConfigError) as caught:
        load("plugins", "adc-q9")
    assert "(did you mean 'adc-q8'?)" in str(caught.value)  # stacks are among the known
    assert str(caught.value).endswith("; or name a file: path/to/file.py:Class")
    with pytest.raises(ConfigError, match=r"unknown probe 'tim' .*; known: .*time; or name a file"):
        load("probes", "tim")
    with pytest.raises(ConfigError, match=r"unknown link 'qq'; known: .*lte.*; or name a file"):
        load("links", "qq")
    with pytest.raises(ConfigError, match=r"unknown model .*path/to/file\.py:function"):
        load("models", "vitt")


@pytest.mark.parametrize("name", ["adc", "topk"])
def test_what_ships_is_loaded_by_its_name(name: str) -> None:
    target = catalogue()["plugins"][name]["target"]
    factory = load("plugins", name)
    assert f"{factory.__module__}:{factory.__name__}" == target
    assert find("plugins", name).identity == name


def test_an_entry_with_a_problem_is_refused(own: Path) -> None:
    own.write_text("[probes.x]\nsummary = 'no target'\n[plugins.adc]\ntarget = 'a:B'")
    with pytest.raises(ConfigError, match=r"registry.toml: \[probes.x\] needs the key 'target'"):
        load("probes", "x")
    with pytest.raises(ConfigError, match="two plugins are called 'adc'"):
        load("plugins", "adc")


# Entry points.


@pytest.mark.parametrize("kind", LOADABLE)
def test_an_entry_point_is_loaded_like_what_ships(install: Callable[..., None], kind: Any) -> None:
    install(f"splitlab.{kind}", alien=f"{__name__}:Found", gone=f"{__name__}:Gone")
    assert load(kind, "alien").__name__ == "Found"
    with pytest.raises(PluginError, match="cannot be imported: AttributeError"):
        load(kind, "gone")


@pytest.mark.parametrize("kind", LOADABLE)
def test_an_entry_point_that_cannot_be_imported_says_what_brings_it(
    install: Callable[..., None], kind: Any
) -> None:
    install(f"splitlab.{kind}", alien="a_package_that_is_not_there:Alien")
    with pytest.raises(
        PluginError,
        match=rf"{SINGULAR[kind]} 'alien' \(a_package_that_is_not_there:Alien, from .*\) cannot be "
        "imported: ModuleNotFoundError",
    ):
        load(kind, "alien")


@pytest.mark.parametrize("kind", CLASSES)
def test_all_but_models_must_be_classes(install: Callable[..., None], kind: Any) -> None:
    install(f"splitlab.{kind}", alien=f"{__name__}:function")
    with pytest.raises(PluginError, match=r"is a function; it must be a class$"):
        load(kind, "alien")


def test_a_model_may_be_a_function_and_nothing_else(install: Callable[..., None]) -> None:
    install("splitlab.models", net=f"{__name__}:function", odd=f"{__name__}:CLASSES")
    assert load("models", "net").__name__ == "function"
    with pytest.raises(PluginError, match=r"is a tuple; it must be a function$"):
        load("models", "odd")


def test_a_module_that_ends_the_interpreter_is_broken(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "leaves_at_once.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    install("splitlab.plugins", alien="leaves_at_once:X")
    with pytest.raises(PluginError, match="SystemExit: 3"):
        load("plugins", "alien")


def test_an_error_of_ours_during_import_keeps_its_kind(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = "from splitlab.core import ConfigError\nraise ConfigError('no GPU')\n"
    (tmp_path / "needs_gpu_xyz.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    install("splitlab.plugins", alien="needs_gpu_xyz:X")
    for name in ("alien", f"{tmp_path}/needs_gpu_xyz.py:X"):
        with pytest.raises(ConfigError, match=r"^no GPU$"):
            load("plugins", name)


# Files.


@pytest.mark.parametrize("kind", LOADABLE)
def test_a_name_of_another_kind_is_told_apart(kind: Any) -> None:
    name, other = ("adc", "plugin") if kind != "plugins" else ("vit-mini", "model")
    with pytest.raises(ConfigError) as caught:
        load(kind, name)
    told = f"{name!r} is a {other}, not a {SINGULAR[kind]}; --{other} {name} takes it"
    assert str(caught.value) == told


@pytest.mark.parametrize("kind", LOADABLE)
def test_a_class_of_a_file_is_of_any_kind(file: Path, kind: Any) -> None:
    assert load(kind, f"{file}:Mine").__doc__ == "Mine."
    assert load(kind, f"{file}:Mine") is load(kind, f"{file}:Mine")


def test_a_function_of_a_file_is_a_model(file: Path) -> None:
    assert load("models", f"{file}:net")(classes=3) == (3, 2, False)


@pytest.mark.parametrize("kind", LOADABLE)
def test_a_registry_names_files_relative_to_itself(
    own: Path, file: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    own.write_text(f"[{kind}.mine]\ntarget = 'mine.py:Mine'")
    (own.parent / "elsewhere").mkdir()
    monkeypatch.chdir(own.parent / "elsewhere")
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    loaded = find(kind, "mine")
    assert loaded.factory.__name__ == "Mine"
    assert re.fullmatch(r"mine=Mine@[0-9a-f]{12}", loaded.identity)


def test_identity_is_the_content_of_a_file_and_not_its_place(file: Path) -> None:
    one = find("probes", f"{file}:Mine").identity
    moved = file.with_name("moved.py")
    moved.write_text(file.read_text())
    assert find("probes", f"{moved}:Mine").identity == one
    assert str(file.parent) not in one
    file.write_text(file.read_text().replace("0.5", "0.6"))
    edited = find("probes", f"{file}:Mine")
    assert edited.identity != one
    assert edited.factory().ratio == 0.6


@pytest.mark.parametrize("kind", CLASSES)
def test_files_that_cannot_be_used_say_why(file: Path, tmp_path: Path, kind: Any) -> None:
    what = SINGULAR[kind]
    with pytest.raises(ConfigError, match=rf"{what} file .*absent\.py' does not exist"):
        load(kind, f"{tmp_path}/absent.py:Mine")
    with pytest.raises(
        ConfigError, match=rf"'net' .* is a model, not a {what}; --model .*py:net t"
    ):
        load(kind, f"{file}:net")
    for name in ("Min", "number", "dataclasses", ""):
        with pytest.raises(ConfigError, match=r"unknown class in mine\.py.* known: Mine, Other$"):
            load(kind, f"{file}:{name}")
    for text, reason in (
        ("\nraise OSError('x')", r"OSError: x \(mine\.py:2\)$"),
        ("def", "SyntaxError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
    ):
        file.write_text(text)
        for _ in range(2):  # no half-made module is left
            with pytest.raises(
                PluginError, match=rf"{what} file .*mine\.py' cannot be imported: {reason}"
            ):
                load(kind, f"{file}:Mine")


def test_an_import_that_is_interrupted_is_not_half_there_afterwards(file: Path) -> None:
    file.write_text("class Mine: ...\nraise KeyboardInterrupt")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            load("plugins", f"{file}:Mine")


def test_a_file_without_that_model_lists_what_makes_models(file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown function in mine\.py.* 'nett' .*'net'.*known: net$"
    ):
        load("models", f"{file}:nett")


# Presets.


def test_a_preset_is_loaded_as_what_it_names(own: Path, file: Path) -> None:
    own.write_text(
        "[models.net]\ntarget = 'mine.py:net'\n"
        "[models.deep]\npreset = 'net:depth=9,wide=yes'\n"
        "[models.deeper]\npreset = 'deep:depth=12'\n"
        "[models.direct]\npreset = 'mine.py:net:depth=4'\n"
    )
    assert load("models", "deep").__name__ == "net"
    assert find("models", "deep").settings == {"depth": "9", "wide": "yes"}
    assert find("models", "deeper").settings == {"depth": "12", "wide": "yes"}
    assert re.fullmatch(r"deeper=deep=net=net@[0-9a-f]{12}", find("models", "deeper").identity)
    assert re.fullmatch(r"direct=net@[0-9a-f]{12}", find("models", "direct").identity)
    assert find("models", "direct").settings == {"depth": "4"}


@pytest.mark.parametrize("kind", LOADABLE)
@pytest.mark.parametrize("text", ["name:", "name: ", "name:,", "file.py:Name:"])
def test_a_colon_with_nothing_behind_it_is_refused(kind: Loadable, text: str) -> None:
    with pytest.raises(ConfigError, match=r"nothing stands behind the colon; write .*:key=value"):
        split(kind, text)


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("models", "adc", "'adc' is a plugin, not a model; --plugin adc takes it"),
        ("models", "cifar10", "'cifar10' is a data set, not a model; --dataset cifar10 takes it"),
        ("models", "tsflora", "'tsflora' is a stack, not a model; --plugin tsflora takes it"),
        ("plugins", "vit-mini", "'vit-mini' is a model, not a plugin; --model vit-mini takes it"),
        ("datasets", "tcp", "'tcp' is a transport, not a data set; --transport tcp takes it"),
    ],
)
def test_a_name_of_another_kind_says_what_takes_it(kind: Any, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_kind(kind, name)
    check_kind(kind, "nobody")


def test_a_preset_that_leads_nowhere_says_which(own: Path) -> None:
    own.write_text(
        "[models.a]\npreset = 'b:x=1'\n[models.b]\npreset = 'a'\n"
        "[models.other]\npreset = 'vitt:depth=2'\n[models.odd]\npreset = 'vit:depth'\n"
    )
    with pytest.raises(ConfigError, match=r"model 'a' is a preset of itself: a -> b -> a"):
        load("models", "a")
    found = find("models", "other")  # a name of a library's, which only the models know
    assert found.factory is load("models", "timm")
    assert found.settings == {"name": "vitt", "depth": "2"}
    with pytest.raises(ConfigError, match=r"'depth' is not a setting"):
        load("models", "odd")


def test_preset_is_a_word_of_models_alone(own: Path, file: Path) -> None:
    own.write_text("[plugins.mine]\ntarget = 'mine.py:Mine'\npreset = 'adc'")
    assert load("plugins", "mine").__name__ == "Mine"
