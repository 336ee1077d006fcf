"""``splitlab new-plugin NAME``: a small package with a method that works, to be made one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import ConfigError

__all__ = ["new_plugin"]

_CODE = '''\
"""NAME: send the first K features of every token, fill the others with zeros.

Replace this method by yours; what each part is for stands in the comments.

1. The client cuts every token to its first K = max(1, ⌊ratio · D⌋) features.
2. The server pads with zeros to the width D.

Up: activations (B, N, K). Down: their gradient, as large. Gradient: natural, by autograd.
Evaluation is not compressed.

Shapes: B samples, N tokens, D width, K features sent.
"""

import torch

from splitlab.core import ConfigError, Cut, Peer, Traits, hookimpl

__all__ = ["CLASS"]


class CLASS:
    """Send the first features of every token.

    Args:
        ratio: ξ in (0, 1], the share of features that is sent.
    """

    # Parameters are what users write behind the name: NAME:ratio=0.2. Types come from here.
    def __init__(self, *, ratio: float = 0.1) -> None:
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio={ratio} is refused; allowed: more than 0, at most 1")
        self._ratio = ratio

    # What the plugin needs and changes: a stack that cannot work is refused before it trains.
    @hookimpl
    def traits(self) -> Traits:
        """Needs whole tokens, leaves narrower ones."""
        return Traits(needs={"features"}, changes={"features"})

    # Called once at the client and once at the server: two instances, which share nothing.
    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Remember the model's width."""
        self._width = peer.width
        self._kept = max(1, int(self._ratio * peer.width))

    # Client. On the autograd graph: what you do here is differentiated for you.
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, N, K)."""
        if cut.training:
            cut.activations = cut.activations[..., : self._kept]

    # Server. Its gradient with respect to what arrived is what travels back.
    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Replace (B, N, K) by (B, N, D)."""
        if cut.training:
            missing = self._width - self._kept
            cut.activations = torch.nn.functional.pad(cut.activations, (0, missing))

    # What a paper would report, beside what is measured.
    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ for both directions."""
        return self._kept / self._width, self._kept / self._width
'''

_TEST = '''\
"""The method keeps every promise that splitlab expects of a method."""

from splitlab.core.testing import check_plugin


def test_it_conforms() -> None:
    check_plugin("NAME").raise_if_failed()
'''

_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "splitlab-NAME"
version = "0.1.0"
description = "A compression method for splitlab."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["splitlab"]

[project.optional-dependencies]
test = ["pytest"]

# This line makes splitlab find the method by its name.
[project.entry-points."splitlab.plugins"]
NAME = "MODULE:CLASS"

[tool.setuptools]
py-modules = ["MODULE"]
"""

_README = """\
# NAME

A compression method for splitlab, the laboratory for split-learning compression.

    pip install -e '.[test]'
    splitlab check NAME                    # does it keep every promise of a method?
    splitlab trace --plugin NAME           # what does one step send?
    splitlab run --plugin NAME             # train with it
    splitlab compare --plugin none --plugin NAME --plugin adc --ratio 0.1
    pytest

The method is in `MODULE.py`. Without installing anything it runs as a file:

    splitlab run --plugin MODULE.py:CLASS
"""


_IMPORTED = ("ConfigError", "Cut", "Peer", "Traits")


def new_plugin(name: str, directory: Path | None = None) -> Path:
    """Write a package with a method that works, and return its folder.

    Args:
        name: as users will type it: small letters, digits and hyphens, beginning with a letter.
        directory: where to write; a new folder called like the method by default.

    Raises:
        ConfigError: a name that cannot be one or is taken, or a folder that exists.
    """
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise ConfigError(
            f"{name!r} cannot be a plugin's name; take small letters, digits and single hyphens, "
            "beginning with a letter, and no word of Python, as in my-method"
        )
    class_name = "".join(map(str.capitalize, name.split("-")))
    if (
        importlib.util.find_spec(module) is not None
        or keyword.iskeyword(class_name)
        or class_name in _IMPORTED
    ):
        raise ConfigError(
            f"{name!r} is also the name of a Python module or word that is there already; "
            f"choose another, as in my-{name}"
        )
    taken = entries("plugins").get(name) or entries("stacks").get(name)
    if taken:
        raise ConfigError(f"the name {name!r} is taken by {taken.target}; choose another")
    folder = directory if directory is not None else Path(name)
    words = {"CLASS": class_name, "MODULE": module, "NAME": name}
    try:
        folder.mkdir(parents=True)
        for file, text in (
            (f"{module}.py", _CODE),
            (f"test_{module}.py", _TEST),
            ("pyproject.toml", _PROJECT),
            ("README.md", _README),
        ):
            filled = re.sub(r"\b(CLASS|MODULE|NAME)\b", lambda word: words[word[1]], text)
            (folder / file).write_text(filled, encoding="utf-8")
    except FileExistsError:
        raise ConfigError(
            f"the folder {folder} exists already; choose another name, or another --directory"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    return folder
