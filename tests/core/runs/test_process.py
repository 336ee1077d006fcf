"""A server's process before and after it knows what to serve: a shell script stands in for it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core import NetworkError
from splitlab.core.runs.process import ServerProcess


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ServerProcess]:
    """Return a function that starts a script, whose $FD is where it announces its address."""

    def start(script: str) -> ServerProcess:
        file = tmp_path / "python"
        file.write_text(f'#!/bin/sh\nfor FD in "$@"; do :; done\n{script}\n')
        file.chmod(0o755)
        monkeypatch.setattr("splitlab.core.runs.process.sys.executable", str(file))
        return ServerProcess()

    return start


def test_it_is_told_what_to_serve_and_announces_where(
    started: Callable[[str], ServerProcess], tmp_path: Path
) -> None:
    script = f'read ORDERS; echo "$ORDERS" > {tmp_path}/orders; echo tcp://here:1 > /dev/fd/$FD'
    with started(script) as process:
        address = process.serve(["--classes", "3"], tmp_path / "log")
        assert address == "tcp://here:1"
    told = json.loads((tmp_path / "orders").read_text())
    assert told == {"arguments": ["--classes", "3"], "log": str(tmp_path / "log")}
    process.close()  # a second time


def test_one_that_was_told_nothing_ends_at_once(started: Callable[[str], ServerProcess]) -> None:
    began = time.monotonic()
    with started("exec sleep 100"):
        pass
    assert time.monotonic() - began < 50


def test_one_that_is_told_and_does_not_end_is_made_to(
    started: Callable[[str], ServerProcess], tmp_path: Path
) -> None:
    began = time.monotonic()
    with started("read ORDERS; echo tcp://here:1 > /dev/fd/$FD; exec sleep 100") as process:
        process.serve([], tmp_path / "log")
        process.patience = 0.1
    assert time.monotonic() - began < 50


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo splitlab: error: no torch; exit 3", "ended with status 3: no torch"),
        ("read ORDERS; exit 1", "ended with status 1: it printed nothing"),
        ("read ORDERS; echo a >&2; echo b >&2; exit 1", "ended with status 1: b"),
        ("read ORDERS; echo early; echo late > LOG; exit 1", "ended with status 1: late"),
        ("kill -9 $$", "was killed"),
    ],
)
def test_the_client_is_told_why_it_did_not_start(
    script: str, told: str, started: Callable[[str], ServerProcess], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with (
        started(script.replace("LOG", str(log))) as process,
        pytest.raises(NetworkError) as caught,
    ):
        process.serve([], log)
    assert str(caught.value) == f"the server process did not start; the server process {told}"


ORDERS = """
import sys
from splitlab.core.runs.process import orders
print("before", flush=True)
print(orders())
print("after", file=sys.stderr)
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize("told", [True, False])
def test_the_process_prints_into_its_log_once_it_knows_it(told: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    line = json.dumps({"arguments": ["--wait", "3"], "log": str(log)}) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", ORDERS],
        input=line if told else "",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    if told:
        assert (done.stdout, done.stderr) == ("before\n", "")
        assert sorted(log.read_text().splitlines()) == ["['--wait', '3']", "after"]
    else:
        assert (done.stdout, done.stderr) == ("before\nNone\n", "after\n")


ORPHAN = """
import time
from splitlab.core.runs import process
process._LINK_SECONDS = 0.0
try:
    process.orders()
    time.sleep(20)
except KeyboardInterrupt:
    print("ended")
"""


def test_the_process_ends_with_its_client_also_in_the_background_of_a_script(
    tmp_path: Path,
) -> None:
    """There SIGINT is ignored, and so it is by what is started there."""
    log = tmp_path / "log"
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", ORPHAN]
    line = json.dumps({"arguments": [], "log": str(log)}) + "\n"
    subprocess.run(ignoring, input=line, text=True, timeout=15, check=True)
    assert log.read_text() == "ended\n"
