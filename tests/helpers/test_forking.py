"""What stands in for Python does to a test what Python would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forking import behind

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is Python itself")
pytestmark = pytest.mark.usefixtures("starts_fast")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@linux
def test_a_command_is_forked_and_has_its_own_folder_files_and_status(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[plugins.mine]\n")
    with subprocess.Popen(
        [sys.executable, "-m", "splitlab", "plugins", "acd"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SPLITLAB_REGISTRY": "own.toml"},
    ) as process:
        out, error = process.communicate(timeout=60)
    assert behind(process.pid) != process.pid
    assert (process.returncode, out) == (2, "")
    assert "unknown plugin 'acd'" in error
    assert "own.toml" in error, "it has the folder and the environment"


def test_what_is_not_the_command_line_is_python() -> None:
    program = "import os, sys; print(os.getpid()); sys.exit('torch' in sys.modules)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert int(out) == process.pid


@linux
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_reaches_the_fork(number: int, status: int, tmp_path: Path) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("this shell started the tests where Ctrl-C is ignored, and so do the peers")
    command = [sys.executable, "-m", "splitlab", "serve", "--weights", "none", "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        forked = behind(process.pid)
        assert forked != process.pid
        process.send_signal(number)
        assert process.wait(60) == status
    deadline = time.monotonic() + 60
    while alive(forked):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@linux
def test_where_an_import_might_have_read_the_environment_nothing_is_forked() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "splitlab", "plugins", "acd"],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    ) as process:
        _, error = process.communicate(timeout=60)
    assert b"unknown plugin 'acd'" in error
    assert behind(process.pid) == process.pid
