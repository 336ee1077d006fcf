"""``splitlab join``: over which transport, and what it says where no server is, or one differs."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.command.main import main
from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("starts_fast")

HERE = ["--weights", "none", "--threads", "1", "--device", "cpu"]
FAST = [*HERE, "--budget", "steps=1"]


def test_no_server_at_the_address(fails: Callable[..., str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = fails("join", f"tcp://127.0.0.1:{port}", "--timeout", "0.5", *FAST)
    assert f"127.0.0.1:{port}" in line
    assert "splitlab serve" in line
    assert "names no transport" in fails("join", "localhost:1", *FAST)


def test_json_is_all_that_a_client_prints(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (["--json"], []):
        assert main(["join", "no\x1bwhere", *quiet, *FAST]) == ConfigError.status
        assert ("join   no\\x1bwhere" in capsys.readouterr().out) is (not quiet)


MINE = """
from pathlib import Path

from splitlab.transports.tcp import Tcp


class Mine(Tcp):
    def __init__(self, *, log: str, nodelay: bool = True) -> None:
        super().__init__(nodelay=nodelay)
        Path(log).write_text(str(nodelay))
"""


@pytest.mark.parametrize("registered", [False, True])
def test_a_transport_of_another_name_has_its_settings_at_both_ends(
    registered: bool,
    small_data: str,
    unlistened: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started_server: Any,
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    name = f"{tmp_path}/mine.py:Mine"
    if registered:
        name = "plain-tcp"
        (tmp_path / "own.toml").write_text('[transports.plain-tcp]\ntarget = "mine.py:Mine"\n')
        monkeypatch.setenv("SPLITLAB_REGISTRY", str(tmp_path / "own.toml"))
    logs = {role: tmp_path / role for role in ("client", "server")}
    text = {role: f"{name}:nodelay=false,log={log}" for role, log in logs.items()}
    common = [*HERE, "--batch-size", "8"]
    theirs = ["--address", "tcp://127.0.0.1:0", "--classes", "2", "--transport", text["server"]]
    own = ["--transport", text["client"], "--budget", "steps=1", "--output", str(tmp_path / "r")]
    with started_server(tmp_path, *common, *theirs) as (server, address):
        assert main(["join", address, *common, *own, "--data-dir", small_data]) == 0
        server.communicate(timeout=20)
    assert server.returncode == 0
    assert {role: log.read_text() for role, log in logs.items()} == dict.fromkeys(logs, "False")
    assert RunFolder.open(tmp_path / "r").read_config().transport == text["client"]


def test_the_transport_judges_the_address(fails: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('transport = "tcp:nodelay=false"\n')
    for given in (["--transport", "tcp"], ["--config", str(file)]):
        line = fails("join", "gloo://127.0.0.1:1", *given, *FAST)
        assert "'gloo://127.0.0.1:1' is not an address of this transport; write tcp://" in line


def test_peers_that_differ(fails: Any, tmp_path: Path, started_server: Any) -> None:
    stack = ["--plugin", "adc:ratio=0.2"]
    with started_server(tmp_path, *HERE, *stack) as (server, address):
        for own, told in (
            ([], "stack: client none, server adc"),
            (["--plugin", "adc"], "adc's ratio: client 0.1, server 0.2"),
            ([*stack, "--cut", "2"], "cut: client 2, server 3"),
            ([*stack, "--model", "vit_tiny_patch16_224"], "model: client vit_tiny.+, server vit-m"),
        ):
            line = fails("join", address, "--quiet", *HERE, *own, "--output", str(tmp_path / "r"))
            assert re.search(rf"the server ended the run: the peers differ in {told}.*; give", line)
            assert re.search(
                rf"^turned away tcp.*: the peers differ in {told}", next(server.stdout)
            )
        assert server.poll() is None  # it waits on
    assert not (tmp_path / "r").exists()


def test_it_says_at_once_where_it_waits_and_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said: list[str] = []

    def train(arguments: Any, connect: str) -> int:
        said.append(capsys.readouterr().out)
        return 0

    monkeypatch.setattr("splitlab.core.command.join.train", train)
    address = "tcp://there:1"
    (tmp_path / "config.toml").write_text("timeout = 7.5\n")
    resume = ["--resume", str(tmp_path)]
    for options in ([], ["--timeout", "3"], resume, [*resume, "--timeout", "4"], ["--quiet"]):
        assert main(["join", address, *options]) == 0
    assert [re.findall(r"to (\S+) s", line) for line in said] == [["60"], ["3"], ["7.5"], ["4"], []]
    assert all(
        line.startswith(f"join   {address}: ") and line.count("\n") == 1 for line in said[:4]
    )
    assert said[4] == ""


def test_a_file_of_a_run_in_one_process_names_the_way_out(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('transport = "inprocess"\n')
    line = fails("join", "tcp://127.0.0.1:1", "--quiet", "--config", str(file), *FAST)
    assert "transport 'inprocess' has both peers in one process and cannot join a server" in line
    assert "give the server's with --transport" in line
    line = fails("serve", "--address", "tcp://127.0.0.1:0", "--config", str(file), *HERE)
    assert "transport 'inprocess' has both peers in one process and serves nobody" in line
    assert "give another with --transport" in line
