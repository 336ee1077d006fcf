"""``new-plugin``: what it writes works as it is."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.scaffold import new_plugin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return new_plugin("my-method", tmp_path / "new")


def test_the_package_is_complete(folder: Path) -> None:
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(files) == ["README.md", "my_method.py", "pyproject.toml", "test_my_method.py"]
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["entry-points"]["splitlab.plugins"] == {
        "my-method": "my_method:MyMethod"
    }
    assert project["tool"]["setuptools"]["py-modules"] == ["my_method"]
    ast.parse(files["test_my_method.py"])
    assert not any(word in text for text in files.values() for word in ("CLASS", "MODULE", "NAME"))


def test_the_method_trains_and_gradients_are_those_of_autograd(folder: Path, tiny: Any) -> None:
    bound = bind("plugins", f"{folder / 'my_method.py'}:MyMethod:ratio=0.5")
    client, server = tiny.pair([bound])
    conversation = client.train(tiny.batch(), 0)
    message = next(conversation)
    assert message["activations"].shape == (6, 5, 8)
    answer = server.handle(tiny.travel(message))
    assert answer["gradient"].shape == (6, 5, 8)
    with pytest.raises(StopIteration):
        conversation.send(tiny.travel(answer))
    assert client.stack.nominal_ratio() == (0.5, 0.5)
    assert torch.isfinite(torch.tensor(tiny.train(client, server, [1, 2]))).all()


@pytest.mark.parametrize("ratio", ["0", "1.5", "nan"])
def test_the_method_refuses_odd_ratios(folder: Path, ratio: str) -> None:
    with pytest.raises(ConfigError, match=r"ratio=.* is refused"):
        bind("plugins", f"{folder / 'my_method.py'}:MyMethod:ratio={ratio}").build()


def test_it_is_found_by_its_name_once_it_is_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[..., None]
) -> None:
    monkeypatch.syspath_prepend(folder)
    install("splitlab.plugins", **{"my-method": "my_method:MyMethod"})
    assert bind("plugins", "my-method:ratio=0.2").build() is not None
    del sys.modules["my_method"]


@pytest.mark.parametrize("name", ["", "My", "my_method", "2x", "a--b", "-a", "a-", "class", "a b"])
def test_names_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be a plugin's name; take small letters"):
        new_plugin(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["random", "torch", "true", "traits", "cut"])
def test_names_of_modules_and_words_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"choose another, as in my-{name}"):
        new_plugin(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["adc", "adc-q8"])
def test_names_that_are_taken_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the name {name!r} is taken by .*; choose another"):
        new_plugin(name, tmp_path / "new")


def test_nothing_is_overwritten(folder: Path) -> None:
    (folder / "my_method.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists already; choose another"):
        new_plugin("my-method", folder)
    assert (folder / "my_method.py").read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot write to"):
        new_plugin("other", folder / "my_method.py" / "below")
