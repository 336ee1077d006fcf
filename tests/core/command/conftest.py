"""What tests of several commands need: a command that must fail, and a server beside the test."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from splitlab.core.command.main import main
from splitlab.core.contract.errors import ConfigError, Diverged, SplitlabError

Server = tuple[subprocess.Popen[str], str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command that must fail with one line on stderr: that line."""

    def run(*arguments: str) -> str:
        status = main(arguments)
        error = capsys.readouterr().err
        assert status in (SplitlabError.status, ConfigError.status, Diverged.status)
        assert error.startswith("splitlab: error: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that types what no parser takes: the one line of the answer."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        out, error = capsys.readouterr()
        assert stop.value.code == 2
        assert out == ""
        assert error.startswith("splitlab: error: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that returns the help of a command, with every space once."""

    def run(*command: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    return run


@contextmanager
def _started_server(folder: Path, *options: str) -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, "-m", "splitlab", "serve", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    ) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"tcp://\S+", server.stdout.readline())
            assert address is not None
            yield server, address[0]
        finally:
            server.kill()


@pytest.fixture
def started_server() -> Callable[..., AbstractContextManager[Server]]:
    """Return a function that starts `splitlab serve` in a folder: the process and its address."""
    return _started_server
