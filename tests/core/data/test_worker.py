"""The program of a process that decodes: it ends with the one that asks, and not before."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from splitlab.core.data.decode import Job
from splitlab.core.data.fleet import Fleet

pytestmark = pytest.mark.timeout(120)


def test_a_process_ends_with_the_one_that_asks(tmp_path: Path) -> None:
    """It hears no Ctrl-C and no SIGTERM, which are sent to all; it ends when its pipe does."""
    program = (
        "import os, signal; from PIL import Image; from splitlab.core.data.fleet import Fleet; "
        "from splitlab.core.data.decode import Job\n"
        "job = Job('L', 1, 0, 'none', 0, [0], [Image.new('L', (1, 1))], False)\n"
        "fleet = Fleet(1); fleet.ask(job, job.room()); pid = fleet._all[0]._process.pid\n"
        "os.kill(pid, signal.SIGTERM); fleet.ask(job, job.room())\n"
        "print(pid, os.getpgid(pid) == os.getpgid(0), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    pid, same = done.stdout.split()
    assert same == b"False"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _runs(int(pid)):
        time.sleep(0.05)
    assert not _runs(int(pid))


def test_processes_that_are_never_closed_end_when_nobody_has_them() -> None:
    fleet = Fleet(1)
    job = Job("L", 1, 0, "none", 0, [0], [Image.new("L", (1, 1))], keep=False)
    fleet.ask(job, job.room())
    pid = fleet._all[0]._process.pid
    del fleet
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
