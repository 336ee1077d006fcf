"""``splitlab join``: what it says where there is no server, or one that differs."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAST = ["--weights", "none", "--threads", "1", "--budget", "steps=1"]


def test_no_server_at_the_address(fails: Callable[..., str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = fails(
        "join",
        f"tcp://127.0.0.1:{port}",
        "--timeout",
        "0.5",
        *FAST,
        "--weights",
        "none",
    )
    assert f"127.0.0.1:{port}" in line
    assert "splitlab serve" in line
    assert "names no transport" in fails("join", "localhost:1", *FAST)


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        (["--plugin", "adc:ratio=0.2"], "stack"),
        (["--cut", "2"], "cut"),
        (["--model", "vit_tiny_patch16_224", "--image-size", "32"], "model"),
    ],
)
def test_peers_that_differ(
    theirs: list[str],
    named: str,
    fails: Callable[..., str],
    tmp_path: Path,
    started_server: Any,
) -> None:
    base = ["--weights", "none", "--threads", "1"]
    own = ["--plugin", "adc"] if named == "stack" else []
    with started_server(tmp_path, *base, *theirs) as (server, address):
        line = fails("join", address, *base, *own, "--output", str(tmp_path / "r"))
        _, stderr = server.communicate(timeout=20)
    assert re.search(rf"the peers differ in {named}: client .+, server .+; give both", line)
    assert server.returncode == 1
    assert stderr.startswith("splitlab: error: the peers differ in")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()
