"""Configuration: what is refused, with which words, and what survives the way through a file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import Config, differences, flag, read_toml
from splitlab.core.runs.training import Training

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FLOATS = st.floats(0, 1e6)
COUNTS = st.integers(1, 2**63 - 1)
CONFIGS = st.builds(
    Config,
    plugins=st.lists(TEXT, max_size=3).map(tuple),
    transport=TEXT,
    dataset=st.none() | TEXT,
    data_dir=st.none() | TEXT,
    label_column=st.none() | TEXT,
    test_share=st.none() | st.floats(0.01, 0.99),
    augment=st.sampled_from(["none", "paper", "device:pad=2"]),
    cache=st.sampled_from(["auto", "none", "memory", "gpu"]),
    model=TEXT,
    image_size=st.none() | st.integers(1, 4096),
    pretrained=st.booleans(),
    cut=st.none() | st.integers(0, 10_000),
    batch_size=st.integers(1, 1_000_000),
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    lr=FLOATS,
    weight_decay=FLOATS,
    seed=st.integers(0, 2**63 - 1),
    budget=st.sampled_from(["steps=1", "epochs=0.5", "bytes=3MiB", "nominal=1e2"]),
    evaluate=st.sampled_from(["both", "compressed", "uncompressed"]),
    eval_every=st.none() | COUNTS,
    eval_samples=st.none() | COUNTS,
    patience=st.none() | COUNTS,
    keep=st.sampled_from(["newest", "best"]),
    checkpoint_every=st.none() | COUNTS,
    threads=st.none() | st.integers(1, 4096),
    workers=st.integers(0, 256),
    timeout=st.floats(0.1, 1e6),
    output=st.none() | TEXT,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "config.toml"


@given(config=CONFIGS)
@example(config=Config())
@example(config=Config(plugins=('a"b\\c', "\x7f\x00\r\n\t", "\u2028é😀")))
def test_a_file_brings_back_the_same_configuration(path: Path, config: Config) -> None:
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml(path) == config


def test_every_field_is_written_unless_it_is_undecided() -> None:
    written = {line.partition(" =")[0] for line in Config(cut=2).to_toml().splitlines()}
    undecided = {
        f.name for f in dataclasses.fields(Config) if getattr(Config(cut=2), f.name) is None
    }
    assert written | undecided == {spec.name for spec in dataclasses.fields(Config)}
    assert not written & undecided


def test_every_field_has_help_and_a_flag() -> None:
    for spec in dataclasses.fields(Config):
        assert len(spec.metadata["help"]) > 10, spec.name
        assert flag(spec.name).startswith("--")
    assert flag("plugins") == "--plugin"
    assert flag("batch_size") == "--batch-size"


def test_nothing_is_said_of_a_field_that_nobody_reads() -> None:
    said = {key for spec in dataclasses.fields(Config) for key in spec.metadata}
    assert said == {"help", "group", "flag", "metavar", "choices", "kinds", "unset"}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


# Names and types.


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"batchsize": 3},
            "unknown key 'batchsize' (did you mean 'batch_size'?); known: accumulate",
        ),
        ({"plugin": ["adc"]}, "did you mean 'plugins'?"),
        ({"": 1}, "unknown key ''"),
        ({"seed": "1"}, "seed = '1' is not allowed; it takes int"),
        ({"seed": 1.0}, "seed = 1.0 is not allowed; it takes int"),
        ({"seed": True}, "seed = True is not allowed; it takes int"),
        ({"seed": None}, "seed = None is not allowed; it takes int"),
        ({"lr": "0.1"}, "lr = '0.1' is not allowed; it takes float"),
        ({"lr": True}, "lr = True is not allowed; it takes float"),
        ({"cut": "3"}, "cut = '3' is not allowed; it takes int"),
        ({"pretrained": 1}, "pretrained = 1 is not allowed; it takes true | false"),
        ({"plugins": "adc"}, "plugins = 'adc' is not allowed; it takes a list of strings"),
        ({"plugins": [1]}, "plugins = [1] is not allowed; it takes a list of strings"),
        ({"model": ["x"]}, "model = ['x'] is not allowed; it takes str"),
        ({"output": {}}, "output = {} is not allowed; it takes str"),
    ],
)
def test_unknown_keys_and_wrong_types_are_told_with_where_they_stand(
    values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping(values, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert words in str(caught.value)


def test_whole_numbers_are_numbers_and_lists_are_tuples() -> None:
    config = Config.from_mapping({"lr": 1, "plugins": ["a", "b"], "cut": None, "image_size": 8})
    assert config == Config(lr=1.0, plugins=("a", "b"), image_size=8)
    assert type(config.lr) is float
    assert type(config.plugins) is tuple


# Bounds.

TRAINING = {spec.name for spec in dataclasses.fields(Training)}
"""Those of them that are no `BOUNDS` here have theirs in test_training.py."""
BOUNDS = {
    "test_share": (0.001, 0.999),
    "image_size": (1, 4096),
    "cut": (0, 10_000),
    "batch_size": (1, 1_000_000),
    "lr": (0.0, 1e6),
    "warmup": (0.0, 1e9),
    "weight_decay": (0.0, 1e6),
    "clip_norm": (1e-9, 1e9),
    "accumulate": (1, 1_000_000),
    "label_smoothing": (0.0, 0.999),
    "drop_path": (0.0, 0.999),
    "ema": (0.0, 0.999999999),
    "mixup": (0.0, 1e6),
    "seed": (0, 2**63 - 1),
    "eval_every": (1, 2**63 - 1),
    "eval_points": (1, 1_000_000),
    "eval_samples": (1, 2**63 - 1),
    "patience": (1, 2**63 - 1),
    "checkpoint_every": (1, 2**63 - 1),
    "threads": (1, 4096),
    "workers": (0, 256),
    "timeout": (0.1, 1e6),
    "reconnect": (0.0, 1e6),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_inclusive_and_named(name: str) -> None:
    low, high = BOUNDS[name]
    step = 1 if isinstance(low, int) else 1e-6
    for value in (low, high):
        assert getattr(Config(**{name: value}), name) == value
    for value in (low - step, high + max(step, high * 1e-9), float("nan"), float("inf")):
        if isinstance(low, int) and isinstance(value, float) and value not in (float("inf"),):
            value = low - 1
        with pytest.raises(ConfigError) as caught:
            Config(**{name: value})
        assert str(caught.value).startswith(f"{flag(name)} {value} is not allowed; from {low} to ")


def test_every_number_has_bounds() -> None:
    numbers = {
        spec.name
        for spec in dataclasses.fields(Config)
        if spec.name in BOUNDS or spec.name not in TRAINING
        if "int" in str(spec.type) or "float" in str(spec.type)
    }
    assert numbers == BOUNDS.keys()


@pytest.mark.parametrize(
    ("name", "near", "value"),
    [
        *(("augment", "papr", "paper"), ("optimizer", "adm", "adam"), ("evaluate", "bth", "both")),
        *(("cache", "memry", "memory"), ("worker_kind", "process", "processes")),
    ],
)
def test_choices_name_the_nearest(name: str, near: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown value of {flag(name)} '{near}'.*'{value}'"):
        Config(**{name: near})


def test_pretrained_and_a_file_of_weights_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--pretrained and --weights x exclude each other"):
        Config(pretrained=True, weights="x")
    assert Config(pretrained=True, weights="none").pretrained


# Files.


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.toml: No such"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*: Is a directory"):
        read_toml(tmp_path)
    bad = tmp_path / "bad.toml"
    for content in (b"seed = ", b"\xff\xfe", b"seed = 1\nseed = 2"):
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=r"the configuration .*bad\.toml is not TOML"):
            Config.from_toml(bad)
    bad.write_text("[tables]\nare = 1\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: unknown key 'tables'"):
        Config.from_toml(bad)


def test_a_tilde_means_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Config(output="~/x", data_dir="~/y", weights="~/z.safetensors")
    assert config.output == str(tmp_path / "x")
    assert config.data_dir == str(tmp_path / "y")
    assert config.weights == str(tmp_path / "z.safetensors")
    (tmp_path / "c.toml").write_text("output = '~/x'", encoding="utf-8")
    assert Config.from_toml("~/c.toml") == Config(output="~/x")
    assert Config(output="a~").output == "a~"


def test_a_share_and_a_split_exclude_each_other() -> None:
    assert Config(test_split="val").test_share is None
    with pytest.raises(ConfigError, match="--test-share and --test-split exclude each other"):
        Config(test_share=0.5, test_split="val")


def test_files_that_are_there_are_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.py", "w.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "d").mkdir()
    config = Config(
        plugins=("adc+m.py:A:x=1", "gone.py:B"),
        model="m.py:f",
        data_dir="d",
        weights="w.safetensors",
    )
    placed = config.placed()
    assert placed.plugins == ("adc", f"{tmp_path}/m.py:A:x=1", "gone.py:B")
    assert placed.model == f"{tmp_path}/m.py:f"
    assert (placed.data_dir, placed.weights) == (f"{tmp_path}/d", f"{tmp_path}/w.safetensors")
    assert placed.placed() == placed
    assert Config(data_dir="gone", weights="none").placed() == Config(
        data_dir="gone", weights="none"
    )


def test_differences_name_every_option() -> None:
    now, was = Config(lr=0.5, plugins=("adc",)), Config(seed=3)
    assert differences(now, was, ["seed"]) == [
        "--plugin was nothing and is now adc",
        "--lr was 0.0003 and is now 0.5",
    ]


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xef\xbb\xbfbatch_size = 4\n")
    assert Config.from_toml(file).batch_size == 4


@pytest.mark.parametrize("label", ["a", "My run 2", "ab_x-1.5+y=2@z", "größe", "x" * 80])
def test_names_and_tags_can_be_those_of_a_folder(label: str) -> None:
    assert Config(name=label, tags=(label, "b")).name == label


@pytest.mark.parametrize("label", ["", ".", "..", "a/b", "-x", " x", "x\n", "a,b", "a:b", "x" * 81])
def test_others_are_refused(label: str) -> None:
    allowed = "is not allowed; up to 80 letters, digits, spaces and . _"
    with pytest.raises(ConfigError, match="--name .*" + re.escape(allowed)):
        Config(name=label)
    with pytest.raises(ConfigError, match="--tag .*" + re.escape(allowed)):
        Config(tags=("a", label))
