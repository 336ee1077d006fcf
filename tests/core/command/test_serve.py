"""``splitlab serve``: what it refuses, what it prints, and how it meets nonsense."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config, ConfigError
from splitlab.core.command.main import main
from splitlab.core.command.serve import scheme, serve_config
from splitlab.core.runs.plan import Decided

pytestmark = pytest.mark.usefixtures("starts_fast", "unlistened")

HERE = ["--weights", "none", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, int, dict[str, Any]]]:
    """What the server would have been started with; it says one line."""
    calls: list[tuple[Config, int, dict[str, Any]]] = []

    def serve(decided: Decided, classes: int, *, say: Any, **options: Any) -> int:
        calls.append((decided.config, classes, options))
        say("serving")
        return 0

    module = importlib.import_module("splitlab.core.runs.serve")
    monkeypatch.setattr(module, "serve", serve)
    return calls


def test_the_address_names_the_transport(served: list[Any]) -> None:
    assert main(["serve"]) == 0
    assert main(["serve", "--address", "gloo://127.0.0.1:0", "--classes", "7"]) == 0
    assert main(["serve", "--transport", "gloo", "--dataset", "cifar100"]) == 0
    assert [(config.transport, classes) for config, classes, _ in served] == [
        ("tcp", 10),
        ("gloo", 7),
        ("gloo", 100),
    ]
    assert [options["address"] for *_, options in served] == [None, "gloo://127.0.0.1:0", None]
    assert served[0][2]["wait"] == 86400
    with pytest.raises(ConfigError, match="address 'localhost:1' names no transport; write it as"):
        scheme("localhost:1")


def test_a_transport_that_was_given_stays_with_its_settings(
    served: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('transport = "tcp:nodelay=false"\n')
    there = ["--address", "tcp://127.0.0.1:0"]
    assert main(["serve", *there, "--transport", "tcp:nodelay=false"]) == 0
    assert main(["serve", *there, "--config", str(file)]) == 0
    assert main(["serve", *there, "--transport", "mine.py:Mine:a=1", "--config", str(file)]) == 0
    assert [config.transport for config, *_ in served] == [
        "tcp:nodelay=false",
        "tcp:nodelay=false",
        "mine.py:Mine:a=1",
    ]
    assert {options["address"] for *_, options in served} == {there[1]}


def test_the_transport_judges_the_address(fails: Callable[..., str]) -> None:
    line = fails("serve", "--address", "gloo://127.0.0.1:0", "--transport", "tcp", *HERE)
    assert "'gloo://127.0.0.1:0' is not an address of this transport; write tcp://" in line


def test_a_server_that_a_run_started_shares_the_machine(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] | None = ["--wait", "3", "--classes", "7", "--seed", "5"]
    monkeypatch.setattr("splitlab.core.command.serve.orders", lambda: told)
    assert main(["serve", "--announce", "9"]) == 0
    config, classes, options = served[0]
    assert (config.seed, classes, options["wait"]) == (5, 7, 3)
    told = None  # the client is gone
    assert main(["serve", "--announce", "9"]) == 0
    assert len(served) == 1
    assert main(["serve", "--output", "here"]) == 0
    assert [(o["announce"], o["peers_here"], o["output"], o["patient"]) for *_, o in served] == [
        (9, 2, None, False),
        (None, 1, "here", True),
    ]


def test_it_says_what_goes_on_unless_it_is_to_be_quiet(
    served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"address": None, "classes": 2}
    assert serve_config(Config(transport="tcp"), **options) == 0
    assert capsys.readouterr().out == "serving\n"
    assert serve_config(Config(transport="tcp"), quiet=True, **options) == 0
    assert capsys.readouterr().out == ""


def test_options_of_the_client_are_refused(refuses: Callable[..., str]) -> None:
    line = refuses("serve", "--budget", "steps=1")
    assert "unknown option --budget: other commands take it" in line


def test_a_port_in_use(fails: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        line = fails("serve", "--address", address, *HERE)
    assert address.removeprefix("tcp://") in line
    assert "in use" in line


@pytest.mark.parametrize(
    ("option", "value"), [("--classes", "0"), ("--wait", "-1"), ("--wait", "inf")]
)
def test_serve_refuses_numbers_that_cannot_be(
    option: str, value: str, fails: Callable[..., str]
) -> None:
    assert f"{option} {value}" in fails("serve", f"{option}={value}")


def test_serve_needs_the_number_of_classes(fails: Callable[..., str]) -> None:
    assert "unknown data set" in fails("serve", "--dataset", "mine")
