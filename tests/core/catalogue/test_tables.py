"""The tables: what ships, what the user adds, what packages bring; and what is wrong with them."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.catalogue.tables import (
    LOADABLE,
    ROOT,
    SINGULAR,
    catalogue,
    entries,
    installed,
    notices,
)

KINDS: tuple[Any, ...] = (*LOADABLE, "stacks", "datasets", "studies")


@pytest.fixture
def named(own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name the user's own registry by the variable, from another folder."""
    path = own.parent / "named.toml"
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(path))
    return path


# What ships.


def test_facts_of_an_entry_are_the_rest_of_its_table() -> None:
    entry = entries("plugins")["adc"]
    table = catalogue()["plugins"]["adc"]
    assert (entry.name, entry.summary, entry.source) == ("adc", table["summary"], "splitlab")
    assert dict(entry.facts) == {k: v for k, v in table.items() if k not in ("target", "summary")}
    assert entry.problem is None


def test_every_summary_is_one_short_line() -> None:
    for kind, group in catalogue().items():
        for name, table in group.items():
            assert "\n" not in table["summary"], (kind, name)
            assert 10 < len(table["summary"]) < 120, (kind, name)
            assert not table["summary"].endswith("."), (kind, name)


def test_root_is_where_the_catalogue_lies() -> None:
    assert (ROOT / "registry.toml").is_file()
    kinds = {"plugins", "stacks", "transports", "datasets", "models", "probes", "loggers"}
    assert kinds <= set(catalogue())
    assert catalogue().keys() <= set(KINDS)


def test_what_ships_is_written_as_a_users_own_must_be(named: Path, own: Path) -> None:
    named.write_bytes((ROOT / "registry.toml").read_bytes())
    assert notices() == []
    for kind in KINDS:
        assert list(entries(kind)) == list(catalogue().get(kind, {}))
        assert {entry.problem for entry in entries(kind).values()} <= {None}


def test_models_that_ship_are_a_family_and_a_preset_of_it() -> None:
    models = catalogue()["models"]
    assert models["vit"]["target"] == "splitlab.core.models.vit:vit"
    assert models["timm"]["target"] == "splitlab.core.models.timm_models:timm_model"
    mini = entries("models")["vit-mini"]
    assert (
        mini.target
        == mini.facts["preset"]
        == ("vit:image_size=28,patch=4,channels=1,width=64,depth=6,heads=4")
    )
    assert mini.facts["cut"] == 3
    assert (mini.folder / mini.facts["weights"]).is_file()


def test_the_probe_that_ships_is_listed() -> None:
    assert entries("probes")["time"].target == "splitlab.plugins.probes.time:Time"


# The user's own registry.


EVERYTHING = """
[plugins.mine]
target = "mine.py:Mine"
summary = "a method of my own"
more = 3
[stacks.mine-twice]
plugins = ["mine:ratio=0.25", "sub/mine.py:Mine:ratio=1"]
[transports.pigeon]
target = "birds:Pigeon"
[links.slow]
target = "links.py:Slow"
[probes.watch]
target = "probes.py:Watch"
[loggers.paper]
target = "logs.py:Paper"
[models.net]
target = "nets.py:net"
[models.small-net]
preset = "nets.py:net:depth=3"
weights = "small.safetensors"
cut = 2
[datasets.photos]
files = { train = "a.parquet", test = "b.parquet" }
classes = 3
[studies.grid]
summary = "a grid of my own"
stacks = ["none", "mine.py:Mine"]
over = { cut = [1, 2] }
"""


def test_a_registry_in_the_folder_adds_names_of_every_kind(own: Path) -> None:
    own.write_text(EVERYTHING)
    folder = own.parent
    mine = entries("plugins")["mine"]
    assert (mine.target, mine.summary) == (f"{folder}/mine.py:Mine", "a method of my own")
    assert (mine.source, mine.folder, mine.facts["more"]) == (str(own), folder, 3)
    both = entries("stacks")["mine-twice"]
    assert both.facts["plugins"] == ["mine:ratio=0.25", f"{folder}/sub/mine.py:Mine:ratio=1"]
    assert both.target == f"mine:ratio=0.25 + {folder}/sub/mine.py:Mine:ratio=1"
    assert entries("transports")["pigeon"].target == "birds:Pigeon"
    assert entries("links")["slow"].target == f"{folder}/links.py:Slow"
    assert entries("probes")["watch"].target == f"{folder}/probes.py:Watch"
    grid = entries("studies")["grid"]
    assert grid.facts["stacks"] == ["none", f"{folder}/mine.py:Mine"]
    assert (grid.summary, grid.facts["over"]) == ("a grid of my own", {"cut": [1, 2]})
    assert entries("loggers")["paper"].target == f"{folder}/logs.py:Paper"
    assert entries("models")["net"].target == f"{folder}/nets.py:net"
    small = entries("models")["small-net"]
    assert small.target == small.facts["preset"] == f"{folder}/nets.py:net:depth=3"
    assert small.folder / small.facts["weights"] == folder / "small.safetensors"
    photos = entries("datasets")["photos"]
    assert photos.folder / photos.facts["files"]["train"] == folder / "a.parquet"
    for kind in KINDS:
        assert set(catalogue().get(kind, {})) < set(entries(kind))
    assert notices() == []


def test_a_registry_is_found_by_its_variable_from_anywhere(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text(EVERYTHING)
    elsewhere = own.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert "mine" not in entries("plugins")
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    assert entries("plugins")["mine"].target == f"{own.parent}/mine.py:Mine"
    monkeypatch.setenv("SPLITLAB_REGISTRY", os.path.relpath(own))
    assert entries("plugins")["mine"].target == f"{own.parent}/mine.py:Mine"
    monkeypatch.setenv("SPLITLAB_REGISTRY", "")
    assert "mine" not in entries("plugins")
    monkeypatch.chdir(own.parent)
    assert "mine" in entries("plugins")


def test_the_named_registry_is_read_instead_of_the_folders(own: Path, named: Path) -> None:
    own.write_text("[plugins.here]\ntarget = 'a:B'")
    named.write_text("[plugins.there]\ntarget = 'a:B'")
    assert "there" in entries("plugins")
    assert "here" not in entries("plugins")


def test_an_edited_registry_is_read_again(own: Path) -> None:
    own.write_text("[plugins.one]\ntarget = 'a:B'")
    assert entries("plugins")["one"].target == "a:B"
    own.write_text("[plugins.one]\ntarget = 'a:C'")  # as long, and as young
    assert entries("plugins")["one"].target == "a:C"
    own.unlink()
    assert "one" not in entries("plugins")


def test_what_callers_do_to_the_answer_is_not_seen_by_others(own: Path) -> None:
    own.write_text("[plugins.one]\ntarget = 'a:B'")
    entries("plugins").clear()
    assert "one" in entries("plugins")


# A file in the folder ends no command.


@pytest.mark.parametrize(
    "text",
    ["", "version = 1", "[tool.other]\nx = 1", "[plugin.x]\ntarget = 'a:B'", "plugins = 3"],
)
def test_a_file_of_somebody_elses_is_ignored_silently(own: Path, text: str) -> None:
    own.write_text(text)
    assert list(entries("plugins")) == list(catalogue()["plugins"])
    assert notices() == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[plugins", "is not TOML: "),
        (b"[plugins.x]\ntarget = '\xff'", "is not TOML: .*utf-8"),
        (b"a = " + b"[" * 20_000, "is not TOML: "),
    ],
)
def test_a_broken_file_is_a_notice_and_nothing_else(own: Path, content: bytes, reason: str) -> None:
    own.write_bytes(content)
    for kind in KINDS:
        assert list(entries(kind)) == list(catalogue().get(kind, {}))
    [notice] = notices()
    assert re.fullmatch(rf"the registry {re.escape(str(own))} {reason}.*; it is ignored", notice)


def test_a_file_that_cannot_be_read_is_a_notice(own: Path) -> None:
    own.symlink_to(own)  # a loop; permissions stop no administrator
    assert list(entries("plugins")) == list(catalogue()["plugins"])
    [notice] = notices()
    assert "cannot be read: " in notice
    assert notice.endswith("; it is ignored")


def test_a_folder_of_that_name_is_no_registry(own: Path) -> None:
    own.mkdir()
    assert list(entries("plugins")) == list(catalogue()["plugins"])
    assert notices() == []


def test_a_folder_that_is_gone_holds_no_registry(own: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        assert list(entries("plugins")) == list(catalogue()["plugins"])
        assert notices() == []
    finally:
        os.chdir(tmp_path)


@pytest.mark.parametrize(
    ("project", "ignored"),
    [
        ('[project]\nname = "splitlab"', True),
        ('[project]\nname = "mine"', False),
        ("project = 3", False),
        ("[tool.x]", False),
        ("[project", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("text", ["[plugins.mine]\ntarget = 'a:B'", "[plugins"])
def test_the_registry_of_another_checkout_is_ignored_silently(
    own: Path, project: str, ignored: bool, text: str
) -> None:
    own.write_text(text)
    (own.parent / "pyproject.toml").write_text(project)
    found = "mine" in entries("plugins") or bool(notices())
    assert found is not ignored


def test_the_shipped_registry_is_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITLAB_REGISTRY", raising=False)
    monkeypatch.chdir(ROOT)
    assert {entry.problem for entry in entries("plugins").values()} == {None}
    assert notices() == []
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(ROOT / "registry.toml"))
    assert {entry.problem for entry in entries("plugins").values()} == {None}


# A table that cannot be used spoils only its own name.


@pytest.mark.parametrize("where", ["own", "named"])
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("[plugins.x]\nsummary = 'no target'", r"[plugins.x] needs the key 'target'"),
        ("[stacks.x]\ntarget = 'a:B'", "[stacks.x] needs the key 'plugins'"),
        ("[probes.x]\n", "[probes.x] needs the key 'target'"),
        ("[models.x]\ncut = 3", "[models.x] needs the key 'target' or 'preset'"),
        (
            "[models.x]\ntarget = 'a:b'\npreset = 'vit'",
            "[models.x] has the keys 'target' and 'preset'; give one of them",
        ),
        ("[models.x]\npreset = ['vit']", "preset of [models.x] must be a text"),
        ("[models.x]\npreset = 'vit'\nweights = 1", "weights of [models.x] must be a text"),
        ("[models.x]\npreset = 'vit'\ncut = '3'", "cut of [models.x] must be a whole number"),
        ("[models.x]\npreset = 'vit'\ncut = true", "cut of [models.x] must be a whole number"),
        ("[plugins]\nx = 'a:B'", "[plugins.x] must be a table"),
        ("[datasets]\nx = 3", "[datasets.x] must be a table"),
        ("[plugins.x]\ntarget = 5", "target of [plugins.x] must be a text"),
        ("[links.x]\ntarget = ['a:B']", "target of [links.x] must be a text"),
        ("[plugins.x]\ntarget = 'a'", "must be 'module:Class' or 'FILE.py:Class', not 'a'"),
        ("[plugins.x]\ntarget = 'a.py:'", "must be 'module:Class' or 'FILE.py:Class', not"),
        ("[plugins.x]\ntarget = 'a:B'\nsummary = 1", "summary of [plugins.x] must be a text"),
        (
            "[plugins.x]\ntarget = 'a:B'\nreconstruction = 'no'",
            "reconstruction of [plugins.x] must be true or false",
        ),
        ("[stacks.x]\nplugins = 'adc'", "plugins of [stacks.x] must be a list of plugins"),
        ("[stacks.x]\nplugins = []", "plugins of [stacks.x] must be a list of plugins"),
        ("[stacks.x]\nplugins = ['adc', 1]", "plugins of [stacks.x] must be a list"),
        ("[studies.x]\nstacks = 3", "stacks of [studies.x] must be a list of stacks"),
        ("[studies.x]\nstacks = [1]", "stacks of [studies.x] must be a list of stacks"),
    ],
)
def test_a_broken_table_is_a_problem_of_its_name_and_a_notice(
    own: Path, table: str, reason: str, where: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(where)
    kind: Any = re.findall(r"\w+", table)[0]
    path.write_text(f"{table}\n[transports.well]\ntarget = 'a:B'\n")
    entry = entries(kind)["x"]
    assert entry.problem is not None
    assert entry.problem.startswith(f"the registry {path}: ")
    assert reason in entry.problem
    assert notices() == [entry.problem]
    assert entries("transports")["well"].problem is None
    assert all(e.problem is None for name, e in entries(kind).items() if name != "x")


@pytest.mark.parametrize("name", ["a:b", "a b", "a,b", "a=b", "a\\nb", ""])
def test_a_name_that_nobody_could_type_is_a_notice_in_one_line(own: Path, name: str) -> None:
    own.write_text(f'[plugins."{name}"]\ntarget = "a:B"')
    [notice] = notices()
    assert "is a name that nobody could type" in notice
    assert "\n" not in notice


def test_an_unknown_kind_of_table_beside_known_ones_is_a_notice(own: Path) -> None:
    own.write_text(
        "models = 3\n[plugins.mine]\ntarget = 'a:B'\n[plugin.other]\ntarget = 'a:B'\n[xyz]\n"
    )
    assert {"mine", "adc"} <= entries("plugins").keys()
    told = dict(zip(("models", "plugin", "xyz"), sorted(notices()), strict=True))
    assert told["models"] == f"the registry {own}: models must be tables, as in [models.NAME]"
    assert "unknown table 'plugin' (did you mean 'plugins'?)" in told["plugin"]
    assert told["plugin"].endswith("; it is ignored")
    assert "unknown table 'xyz'; known: datasets, links, loggers, models" in told["xyz"]


# A file that the user named must be a registry.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[plugin.x]\ntarget = 'a:B'", r"unknown table 'plugin' \(did you mean 'plugins'\?\)"),
        (b"plugins = 3", "has no table of splitlab's"),
        (b"[plugins", "is not TOML"),
        (b"\xff", "is not TOML"),
    ],
)
def test_a_named_file_that_is_no_registry_says_why(
    named: Path, content: bytes, reason: str
) -> None:
    named.write_bytes(content)
    for ask in (lambda: entries("plugins"), notices):
        with pytest.raises(ConfigError, match=reason) as caught:
            ask()
        assert str(named) in str(caught.value)
        assert "$SPLITLAB_REGISTRY" in str(caught.value)


def test_a_named_file_that_is_missing_says_so(named: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$SPLITLAB_REGISTRY: cannot read .*named.toml: No su"):
        entries("plugins")
    named.mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*named.toml: Is a directory"):
        entries("plugins")


# Names that two take.


def test_a_name_of_ones_own_may_not_be_one_that_ships(own: Path) -> None:
    own.write_text(
        "[plugins.adc]\ntarget = 'mine.py:Mine'\n[stacks.adc-token-select]\nplugins = ['adc']\n"
        "[datasets.cifar10]\nhub = 'me/cifar'\n[models.vit-mini]\npreset = 'vit:depth=9'\n"
        "[probes.time]\nsummary = 'no target'"
    )
    assert "two plugins are called 'adc'" in (entries("plugins")["adc"].problem or "")
    stack = entries("stacks")["adc-token-select"]
    assert "two stacks are called 'adc-token-select'" in (stack.problem or "")
    data = entries("datasets")["cifar10"].problem or ""
    assert "two data sets are called 'cifar10': uoft-cs/cifar10 (from splitlab) and me/cif" in data
    assert "two models are called" in (entries("models")["vit-mini"].problem or "")
    probe = entries("probes")["time"].problem or ""
    assert f"and a table that cannot be used (from {own}); rename or remove one" in probe
    assert entries("plugins")["topk"].problem is None
    assert entries("datasets")["cifar100"].problem is None


def test_a_table_that_stands_for_what_ships_is_no_clash(own: Path) -> None:
    kept = {"plugins": "adc", "stacks": "adc-q8", "models": "vit-mini", "datasets": "cifar10"}
    lines = []
    for kind, name in kept.items():
        lines.append(f"[{kind}.{name}]")
        lines += [
            f"{key} = {value!r}"
            for key, value in catalogue()[kind][name].items()
            if not isinstance(value, bool)
        ]
    own.write_text("\n".join(lines))
    assert tomllib.loads(own.read_text()).keys() == kept.keys()
    for kind, name in kept.items():
        entry = entries(kind)[name]  # type: ignore[index]
        assert (entry.problem, entry.source) == (None, "splitlab")
    assert notices() == []


def test_what_such_a_table_would_change_is_not_dropped_silently(own: Path) -> None:
    own.write_text(
        f"[models.vit-mini]\npreset = '{catalogue()['models']['vit-mini']['preset']}'\n"
        "weights = 'mine.safetensors'\n"
    )
    assert entries("models")["vit-mini"].facts["weights"] == "core/assets/vit_mini.safetensors"
    [notice] = notices()
    assert "[models.vit-mini] is one that ships" in notice
    assert "give yours another name" in notice


def test_files_of_ones_own_do_not_stand_for_those_that_ship(own: Path) -> None:
    own.write_text(
        "[datasets.fashion-mnist-mini]\nfiles = { train = 'a.parquet', test = 'b.parquet' }"
    )
    problem = entries("datasets")["fashion-mnist-mini"].problem or ""
    assert "two data sets are called" in problem
    assert "a.parquet, b.parquet" in problem


# Entry points of other packages.


@pytest.mark.parametrize("kind", LOADABLE)
def test_entry_points_are_listed_without_being_imported(
    install: Callable[..., None], kind: Any
) -> None:
    install(f"splitlab.{kind}", alien="a_package_that_is_not_there:Alien")
    listed = entries(kind)
    assert listed["alien"].target == "a_package_that_is_not_there:Alien"
    assert listed["alien"].source != "splitlab"
    assert listed["alien"].summary == ""
    assert set(catalogue().get(kind, {})) < set(listed)


def test_an_entry_point_that_takes_a_shipped_name_is_a_problem(
    install: Callable[..., None],
) -> None:
    install("splitlab.plugins", adc="thief:ADC", alien="thief:Method")
    problem = entries("plugins")["adc"].problem or ""
    assert re.match(r"two plugins are called 'adc': .* \(from splitlab\) and thief:ADC", problem)
    assert entries("plugins")["alien"].problem is None


def test_a_plugin_that_is_called_like_a_stack_makes_that_stack_a_problem(
    install: Callable[..., None],
) -> None:
    install("splitlab.plugins", **{"adc-q8": "thief:ADC"})
    assert "two stacks are called 'adc-q8'" in (entries("stacks")["adc-q8"].problem or "")


def test_a_package_is_found_where_python_looks_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the files that an installer writes, and its name as the source."""
    assert "outside" not in {point.name for point in installed("splitlab.probes")}
    place = tmp_path / "outside_package-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text("[splitlab.probes]\noutside = outside:Probe\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    entry = entries("probes")["outside"]
    assert (entry.target, entry.source) == ("outside:Probe", "outside-package")


def test_every_kind_has_a_word_for_one_of_it() -> None:
    assert SINGULAR.keys() == set(KINDS)


@pytest.mark.parametrize("content", [b"", b"# nothing yet\n", b"[plugins]\n"])
def test_an_empty_registry_adds_nothing(named: Path, own: Path, content: bytes) -> None:
    named.write_bytes(content)
    own.write_bytes(content)
    assert entries("plugins").keys() == catalogue()["plugins"].keys()
    assert notices() == []


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf[plugins.x]\ntarget = 'a:B'\n"])
def test_a_byte_order_mark_is_read_over(own: Path, content: bytes) -> None:
    own.write_bytes(content)
    assert entries("plugins")["x"].target == "a:B"
    assert notices() == []
