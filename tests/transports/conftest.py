"""What tests of who may connect share: certificates, and secrets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates, as `splitlab certs` makes it."""
    pytest.importorskip("cryptography")
    from splitlab.core.command.certs import make

    folder = tmp_path_factory.mktemp("lab")
    make(folder, [], [])
    return folder


@pytest.fixture(scope="session")
def other_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, with an authority of its own."""
    pytest.importorskip("cryptography")
    from splitlab.core.command.certs import make

    folder = tmp_path_factory.mktemp("other")
    make(folder, [], [])
    return folder


@pytest.fixture(scope="session")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the file of a secret with this content, which nobody else may read."""

    def write(content: str) -> str:
        file = tmp_path_factory.mktemp("secret") / "file"
        file.write_text(content)
        file.chmod(0o600)
        return str(file)

    return write
