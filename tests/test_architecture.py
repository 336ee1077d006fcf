"""Who may import whom, read from the source: the shape that the design promises."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest

from splitlab.core import __all__ as PUBLIC
from splitlab.core.catalogue.tables import ROOT, catalogue

FOLDERS = ("core", "plugins", "transports")
MODULES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "assets" not in path.parts
}
CORE = [name for name in MODULES if name.startswith("core/")]
PLUGINS = [name for name in MODULES if name.startswith("plugins/")]
TRANSPORTS = [name for name in MODULES if name.startswith("transports/")]

# What a transport builds on: the contract, what it moves, and how it fails.
FOR_TRANSPORTS = {"contract.errors", "contract.message", "contract.link", "wire"}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def nodes(name: str) -> list[ast.AST]:
    return [*ast.walk(tree(name))]


@cache
def imports(name: str) -> list[str]:
    """Return what the module imports, dotted, with the names that it takes from there."""
    return [*_imports(name)]


def _imports(name: str) -> Iterator[str]:
    for node in nodes(name):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):  # `import torch`, then `torch.distributed.…`
            dotted = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", dotted):
                yield dotted


def within(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(package + ".")


def broken(names: Iterable[str], found: Callable[[str], object]) -> dict[str, object]:
    """Return what was found in each file where something was."""
    return {name: what for name in names if (what := found(name))}


def test_there_is_something_to_read() -> None:
    assert len(CORE) > 20
    assert {"plugins/adc.py", "transports/inprocess.py", "core/engine/client.py"} <= MODULES.keys()


# Who may import whom.


def test_a_plugin_sees_the_public_names_of_core_and_other_plugins() -> None:
    allowed = {f"splitlab.core.{public}" for public in PUBLIC}

    def others(name: str) -> list[str]:
        ours = [dotted for dotted in imports(name) if within(dotted, "splitlab")]
        return [d for d in ours if d not in allowed and not within(d, "splitlab.plugins")]

    assert broken(PLUGINS, others) == {}


def test_a_transport_sees_the_link_and_nothing_behind_it() -> None:
    allowed = ("splitlab.transports", *(f"splitlab.core.{module}" for module in FOR_TRANSPORTS))

    def others(name: str) -> list[str]:
        ours = [dotted for dotted in imports(name) if within(dotted, "splitlab")]
        return [d for d in ours if not any(within(d, package) for package in allowed)]

    assert broken(TRANSPORTS, others) == {}


def test_core_sees_neither_plugins_nor_transports() -> None:
    behind = ("splitlab.plugins", "splitlab.transports")

    def seen(name: str) -> list[str]:
        found = [d for d in imports(name) if any(within(d, package) for package in behind)]
        texts = [n.value for n in nodes(name) if isinstance(n, ast.Constant)]
        named = [t for t in texts if isinstance(t, str) and any(f"{b}." in t for b in behind)]
        return found + named

    assert broken(CORE, seen) == {}


def test_nobody_imports_the_bare_folders() -> None:
    def bare(name: str) -> list[str]:
        found = [
            node.module if isinstance(node, ast.ImportFrom) else alias.name
            for node in nodes(name)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        ]
        return [d for d in found if d and any(within(d, folder) for folder in FOLDERS)]

    assert broken(MODULES, bare) == {}


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("timm", "core/models/ core/data/policies.py"),
        ("rich", "core/command/show.py core/command/live.py"),
        ("matplotlib", "core/report/draw"),
        ("datasets", "core/data/tables.py"),
        ("huggingface_hub", "core/catalogue/hub.py"),
        ("torchvision", "core/data/images.py"),
        ("ray", "core/studies/ray.py"),
        ("pluggy", "core/contract/hooks.py core/engine/"),
        ("socket", "transports/tcp.py transports/channel.py transports/admission.py"),
        ("ssl", "transports/tcp.py transports/trust.py transports/admission.py"),
        ("cryptography", "core/command/certs.py"),
        ("torch.distributed", "transports/distributed.py"),
        ("ctypes", "transports/nccl.py"),
    ],
)
def test_what_may_change_under_us_is_known_in_one_place(package: str, homes: str) -> None:
    users = [name for name in MODULES if any(within(d, package) for d in imports(name))]
    assert users
    assert [name for name in users if not name.startswith(tuple(homes.split()))] == []


# Rooms of core. Which may import which is read by import-linter: see pyproject.toml, `make lint`.


def room(name: str) -> str:
    return name.split("/")[1] if name.count("/") > 1 else ""


def test_every_file_of_core_stands_in_a_room_whose_imports_are_ruled() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [rule["layers"] for rule in rules["contracts"] if rule["type"] == "layers"]
    ruled = {name.rpartition(".")[2] for layer in layers for name in layer.split(" | ")}
    assert {room(name) for name in CORE} == {"", *ruled}
    assert [name for name in CORE if not room(name)] == ["core/__init__.py"]


def test_only_the_command_room_prints() -> None:
    def prints(name: str) -> list[int]:
        calls = [n.func for n in nodes(name) if isinstance(n, ast.Call)]
        return [f.lineno for f in calls if isinstance(f, ast.Name) and f.id == "print"]

    assert broken([name for name in CORE if room(name) != "command"], prints) == {}


# What a model is made of is known in core/models; elsewhere these words mean something else.
WORDS_OF_MODELS = re.compile(r"vision ?transformer|\bblocks\b", re.IGNORECASE)
OTHER_MEANINGS = {
    "plugins/quantize.py": "blocks of numbers that share a scale",
    "plugins/fft_lowpass.py": "blocks of a spectrum",
}


def test_only_the_models_know_what_a_model_is_made_of() -> None:
    found = {
        name
        for name in MODULES
        if not name.startswith("core/models/")
        for _, text in words(name)
        if WORDS_OF_MODELS.search(text)
    }
    assert found - OTHER_MEANINGS.keys() == set(), 'say "what the client runs", or the like'
    assert OTHER_MEANINGS.keys() - found == set(), "this exception is needed no more"


def test_no_file_of_core_is_long() -> None:
    lengths = {name: len(MODULES[name].read_text("utf-8").splitlines()) for name in CORE}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_nothing_unpickles() -> None:
    forbidden = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
    calls = ("torch.load", "torch.save", "numpy.load", "np.load", "pandas.read_pickle")

    def unpickles(name: str) -> list[str]:
        keywords = [n.arg for n in nodes(name) if isinstance(n, ast.keyword)]
        found = [k for k in keywords if k == "allow_pickle"]
        for dotted in imports(name):
            # torch.distributed's object collectives pickle too.
            risky = dotted in calls or dotted.endswith(("_object", "_object_list"))
            if risky or any(within(dotted, package) for package in forbidden):
                found.append(dotted)
        return found

    # It reads tensors alone, and nothing is run.
    assert broken(MODULES, unpickles) == {"core/models/weights.py": ["torch.load"]}
    assert ast.unparse(tree("core/models/weights.py")).count("weights_only=True") == 1


# No name of what ships stands in core: no method, transport, link, probe or model.

# What may: (module, name) and why. Documentation is not looked at; the rest of these are words
# that a user reads or types, and none of them is compared with anything (see the test after).
WORDS_FOR_USERS = {
    ("core/catalogue/scaffold.py", "adc"): "an example in the README that it writes",
    ("core/runs/config.py", "inprocess"): "the default of --transport",
    ("core/runs/config.py", "vit-mini"): "the default of --model",
    ("core/testing/tiny.py", "vit"): "its method that makes the kit's smallest model",
    ("core/runs/serve.py", "tcp"): "the way out in an error",
    ("core/command/certs.py", "adc"): "the commands to use what it made",
    ("core/command/certs.py", "tcp"): "the commands to use what it made",
    ("core/command/check.py", "adc"): "the examples in --help",
    ("core/command/check.py", "quantize"): "an example in --help, and the way out in an error",
    ("core/command/check.py", "tcp"): "the examples in --help",
    ("core/command/compare.py", "adc"): "the examples in --help",
    ("core/command/compare.py", "quantize"): "the examples in --help",
    ("core/command/estimate.py", "lte"): "the examples in --help",
    ("core/command/join.py", "adc"): "the examples in --help",
    ("core/command/join.py", "tcp"): "the examples in --help",
    ("core/command/main.py", "adc"): "the examples in --help",
    ("core/command/main.py", "tcp"): "the examples in --help",
    ("core/command/links.py", "lte"): "the examples in --help",
    ("core/command/loggers.py", "tensorboard"): "the examples in --help",
    ("core/command/loggers.py", "wandb"): "the examples in --help",
    ("core/command/transports.py", "tcp"): "the examples in --help",
    ("core/command/plugins.py", "adc"): "the examples in --help",
    ("core/command/report.py", "adc"): "the examples in --help",
    ("core/command/report.py", "lte"): "the examples in --help",
    ("core/command/run.py", "adc"): "the examples in --help",
    ("core/command/run.py", "adc-batch-merge"): "the examples in --help",
    ("core/command/run.py", "adc-token-select"): "the examples in --help",
    ("core/command/run.py", "lte"): "an example in --help",
    ("core/command/run.py", "tcp"): "the examples in --help",
    ("core/command/runs.py", "adc"): "the examples in --help",
    ("core/command/serve.py", "adc"): "the examples in --help",
    ("core/command/serve.py", "tcp"): "the examples in --help",
    ("core/command/studies.py", "adc"): "the examples in --help",
    ("core/command/study.py", "adc"): "the examples in --help",
    ("core/command/study.py", "topk"): "the examples in --help",
    ("core/studies/definition.py", "adc"): "an example in an error",
    ("core/command/trace.py", "adc"): "the examples in --help",
    ("core/command/trace.py", "quantize"): "the examples in --help",
}


# Words that are in every Python program besides: the constant, the verb of `typing`, the module
# `time`, the package `timm`, from which models come, and three digits of a number; and words of the
# field, which the contract itself is written in.
EVERYDAY = {
    *("none", "cast", "time", "timm", "3g"),
    *("activations", "attention", "clusters", "selection"),
}


def names_that_ship() -> list[str]:
    kinds = ("plugins", "stacks", "transports", "links", "probes", "loggers", "models")
    named = [name for kind in kinds for name in catalogue().get(kind, ())]
    return [name for name in named if name not in EVERYDAY]


@cache
def any_of_them() -> re.Pattern[str]:
    """Return what finds a name of what ships in a text, as a word or within one."""
    names = {variant for name in names_that_ship() for variant in variants(name)}
    return re.compile("|".join(map(re.escape, names)), re.IGNORECASE)


def mentions(text: str, name: str) -> bool:
    """Whether the name is a word of the text; `adc` is none of `adc-batch-merge`."""
    return bool(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text, re.IGNORECASE))


def words(name: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield every string, and every identifier as its words, outside of docstrings."""
    documentation = {
        id(node.value)
        for node in nodes(name)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in nodes(name):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documentation:
                yield node, node.value
            continue
        fields = ("id", "attr", "arg", "name", "asname", "module")
        for text in (getattr(node, field, None) for field in fields):
            if isinstance(text, str):
                # TcpLink and tcp_link both hold the word tcp.
                yield node, re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_.]", " ", text)


def variants(name: str) -> set[str]:
    return {name, name.replace("-", " ")}


def test_no_name_of_a_plugin_or_transport_stands_in_core() -> None:
    found = {
        (module, name)
        for module in CORE
        for _, text in words(module)
        if any_of_them().search(text)  # nearly never, and found out fast
        for name in names_that_ship()
        if any(mentions(text, variant) for variant in variants(name))
        if room(module) != "models" or name not in catalogue()["models"]
    }
    assert found - WORDS_FOR_USERS.keys() == set(), "core must not know who it works with"
    assert WORDS_FOR_USERS.keys() - found == set(), "this exception is needed no more"


def test_core_decides_nothing_by_such_a_name() -> None:
    assert broken(CORE, decides_by) == {}


def decides_by(module: str) -> list[str]:
    """Return the words that are names of what ships, and that the module compares or looks up."""
    deciding: list[ast.AST] = []
    for node in nodes(module):
        if isinstance(node, ast.Compare):
            deciding += [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            deciding.append(node.value)
        elif isinstance(node, ast.Dict):
            deciding += [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript):
            deciding.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            looks = node.func.attr in ("startswith", "endswith", "get", "pop", "index", "count")
            deciding += node.args if looks else []
    texts = [
        constant.value
        for node in deciding
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
        if isinstance(constant.value, str) and any_of_them().search(constant.value)
    ]
    # The models are the ones to tell families apart.
    own = catalogue()["models"] if room(module) == "models" else ()
    sought = [name for name in names_that_ship() if name not in own]
    return [t for t in texts for name in sought if mentions(t, name)]


# Nothing heavy before it is needed.


@pytest.mark.parametrize(
    "code",
    [
        "import splitlab.core",
        "from splitlab.core import hookimpl, ConfigError, PluginError, Config",
        "from splitlab.core.command.main import main; main(['plugins'])",
        "from splitlab.core.command.main import main; main(['plugins', '--json'])",
        "from splitlab.core.command.main import main; main(['datasets'])",
        "from splitlab.core.command.main import main; main(['links'])",
        "from splitlab.core.command.main import main; main(['links', '--json'])",
        "from splitlab.core.command.main import main; main(['probes'])",
        "from splitlab.core.command.main import main; main(['probes', '--json'])",
        "from splitlab.core.command.main import main; main(['--help'])",
        "from splitlab.core.command.main import main; main(['run', '--help'])",
        "from splitlab.core.command.main import main; main(['compare', '--help'])",
        "from splitlab.core.command.main import main; main(['trace', '--help'])",
        "from splitlab.core.command.main import main; main(['report', '--help'])",
        "from splitlab.core.command.main import main; main(['estimate', '--help'])",
    ],
)
def test_help_and_listings_do_not_wait_for_torch(code: str, tmp_path: Path) -> None:
    program = f"""
import sys
try:
    {code}
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "timm", "datasets", "torchvision", "numpy", "matplotlib", "splitlab.plugins"}}
sys.exit(f"imported {{heavy & sys.modules.keys()}}" if heavy & sys.modules.keys() else 0)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


# What ships can be used.


def test_every_public_name_exists() -> None:
    core = importlib.import_module("splitlab.core")
    for name in PUBLIC:
        found = getattr(core, name)
        assert getattr(found, "__name__", name) == name or get_origin(found) is Literal, name
        assert name in dir(core)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    core = importlib.import_module("splitlab.core")
    with pytest.raises(AttributeError, match="has no attribute 'Stack'"):
        _ = core.Stack


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in ("plugins", "transports") for name in catalogue()[group]],
)
def test_every_target_of_the_catalogue_is_a_documented_class(group: Any, name: str) -> None:
    from splitlab.core.catalogue.loading import load
    from splitlab.core.contract.settings import parameters

    factory = load(group, name)
    assert isinstance(factory, type)
    assert factory.__module__.startswith(f"splitlab.{group}.")
    assert factory.__doc__
    assert len(factory.__doc__) > 30
    assert importlib.import_module(factory.__module__).__doc__
    if group == "plugins":
        for parameter in parameters(factory).values():
            assert f"{parameter.name}:" in factory.__doc__, (
                f"{name} does not explain {parameter.name}"
            )
    else:
        factory()


def test_the_catalogue_names_the_hooks_that_a_plugin_has() -> None:
    from splitlab.core.catalogue.loading import load
    from splitlab.core.contract.hooks import HookSpecs

    data = list(vars(HookSpecs))
    data = data[data.index("after_client_forward") : data.index("gradient_return") + 1]
    listed = {name: set(table["hooks"]) for name, table in catalogue()["plugins"].items()}
    assert listed == {
        name: {hook for hook in data if hasattr(load("plugins", name), hook)} for name in listed
    }


def test_every_module_says_what_lives_there() -> None:
    assert broken(MODULES, lambda name: not ast.get_docstring(tree(name))) == {}


# Tests mirror the source: core/ROOM/x.py is tested in tests/core/ROOM/test_x.py.

DECLARED = "declares fields and protocols, which mypy checks and every peer's test uses"
KIT = "a part of the kit, of which every check of tests/core/testing is made"
WITHOUT_A_MIRROR = {
    "core/contract/batch.py": DECLARED,
    "core/contract/hooks.py": "declares the hooks; tests/core/engine/test_stack.py reads its texts",
    "core/contract/link.py": DECLARED,
    "core/contract/part.py": DECLARED,
    "core/report/results.py": DECLARED,
    "core/testing/decoding.py": KIT,
    "core/testing/expect.py": KIT,
    "core/testing/subject.py": KIT,
}
# Tests of what lies across files.
WITHOUT_A_SOURCE = {
    "helpers/test_forking.py": "what stands in for Python in tests of two processes",
    "helpers/test_proxy.py": "what does to connections what networks do",
    "core/studies/test_shipped.py": "the studies that ship",
    "test_architecture.py": "who may import whom",
    "test_conformance.py": "the kit's checks of every plugin that ships",
    "test_deploy.py": "the commands of docs/deploy.md, between two network namespaces",
    "test_docs.py": "the documents",
    "test_examples.py": "the examples and the README",
    "test_faults.py": "what becomes of a run to whose connection something happens",
    "test_gpu.py": "what a GPU must do as a CPU does, and the script that looks at it",
    "test_hostile.py": "what a hostile peer sends to either side, whatever the stack",
    "test_kills.py": "what becomes of a run whose processes are stopped and killed",
    "test_pairs.py": "plugins two by two",
    "test_science.py": "the script of the paper's regime",
    "test_results.py": "the pages of results, and what writes them",
    "transports/test_contract.py": "what all transports have in common",
}
TESTS = ROOT / "tests"


def test_tests_mirror_the_source() -> None:
    sources = {name for name in MODULES if not name.endswith("__init__.py")}
    mirrors = {name: name.rpartition("/")[::2] for name in sources}
    wanted = {f"{folder}/test_{file}": name for name, (folder, file) in mirrors.items()}
    there = {
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("test_*.py")
        if "assets" not in path.parts
    }
    missing = {name for test, name in wanted.items() if test not in there}
    assert missing - WITHOUT_A_MIRROR.keys() == set(), "write its tests"
    assert WITHOUT_A_MIRROR.keys() - missing == set(), "this exception is needed no more"
    astray = there - wanted.keys()
    assert astray - WITHOUT_A_SOURCE.keys() == set(), "call it like what it tests"
    assert WITHOUT_A_SOURCE.keys() - astray == set(), "this exception is needed no more"


def test_every_test_file_asserts_something_and_none_is_long() -> None:
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 900, path
        assert re.search(r"\bassert |raises\(|raise_if_failed|\.check\(", text), path
