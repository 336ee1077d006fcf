"""Either process is stopped, asked to end, or killed at any point, and the run is the same.

Here a few points of all are tried; marked long, both sides of every message of every step, of a
stack with and without a state, on plain TCP and under TLS. A probe lets the process do it to
itself, so that it happens exactly there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from faulted import Lab
from safetensors.torch import load_file

from splitlab.core import run

pytestmark = [
    pytest.mark.usefixtures("starts_fast"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them"),
]

STEPS = 4
POINTS = ("says", "heard")
"""Before a message leaves, and behind one that has come."""
SIGNALS = {
    "stopped for a moment": signal.SIGSTOP,
    "stopped for longer than the timeout": signal.SIGSTOP,
    "asked to end": signal.SIGTERM,
    "killed": signal.SIGKILL,
}
TIMEOUT = 2.0

PROBE = """
import os
from pathlib import Path

from splitlab.core import hookimpl


class Strike:
    def __init__(self, *, role: str, step: int, point: str, number: int, once: str) -> None:
        self.at = (role, step, point)
        self.number = number
        self.once = Path(once)

    @hookimpl
    def setup(self, peer):
        self.role = peer.role

    @hookimpl(wrapper=True)
    def before_send(self, message):
        yield
        self.strike(message, "says")

    @hookimpl(wrapper=True)
    def after_receive(self, message):
        self.strike(message, "heard")
        yield

    def strike(self, message, point):
        if message.training and (self.role, message.step, point) == self.at:
            if not self.once.exists():
                self.once.write_text(str(os.getpid()))
                os.kill(os.getpid(), self.number)
"""


class Kill(NamedTuple):
    """What happens to whom, and when."""

    what: str
    role: str
    step: int
    point: str
    stack: str
    link: str

    def __str__(self) -> str:
        where = f"{self.role} {self.what} as it {self.point} in step {self.step + 1}"
        return f"{where}, {self.stack}, {self.link}"


def every() -> Iterator[Kill]:
    """Yield all of them."""
    for what, role in product(SIGNALS, ("client", "server")):
        for step, point in product(range(STEPS), POINTS):
            for stack, link in product(("adc", "aqsgd"), ("plain", "tls")):
                yield Kill(what, role, step, point, stack, link)


def some() -> list[Kill]:
    """Return a few: one of each kind, at another peer and another point each."""
    return [
        Kill("stopped for longer than the timeout", "server", 1, "says", "aqsgd", "tls"),
        Kill("asked to end", "client", 2, "heard", "adc", "plain"),
        Kill("killed", "client", 2, "says", "aqsgd", "plain"),
        Kill("killed", "server", 3, "heard", "aqsgd", "tls"),
    ]


class Table:
    """Two processes, and what they leave.

    Args:
        lab: has data and certificates.
        folder: an empty one.
        kill: what is to happen.
    """

    def __init__(self, lab: Lab, folder: Path, kill: Kill) -> None:
        self.folder, self.kill = folder, kill
        self._lab = lab
        self._processes: list[subprocess.Popen[str]] = []
        (folder / "probe.py").write_text(PROBE)
        self.struck = folder / "struck"
        self.probe = (
            f"{folder}/probe.py:Strike:role={kill.role},step={kill.step},point={kill.point},"
            f"number={int(SIGNALS[kill.what])},once={self.struck}"
        )
        own, self.patience = lab.options(kill.stack), 20.0
        waits = kill.what == "killed" and kill.role == "server"  # for nobody who comes back
        own |= {"timeout": TIMEOUT, "reconnect": 1.0 if waits else self.patience}
        self._own = own | {"probes": [self.probe]}

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "splitlab", *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=self.folder)
        self._processes.append(process)
        return process

    def _flags(self, **more: Any) -> list[str]:
        names = {"plugins": "plugin", "probes": "probe"}
        return [
            text
            for key, value in (self._own | more).items()
            for one in ([*value] if isinstance(value, list | tuple) else [value])
            for text in (f"--{names.get(key, key).replace('_', '-')}", str(one))
        ]

    def serve(self) -> tuple[subprocess.Popen[str], str]:
        """Start a server; returns its address, too."""
        access = self._lab.access(self.kill.link)[1]
        more = ["--classes", "2", "--output", str(self.folder / "s"), "--wait", "30"]
        process = self._start("serve", *more, *self._flags(**access))
        assert process.stdout is not None
        return process, process.stdout.readline().split()[-1]

    def join(self, address: str, *, resume: bool = False) -> subprocess.Popen[str]:
        """Start a client."""
        access = self._lab.access(self.kill.link)[0]
        if resume:
            again = [t for k, v in access.items() for t in (f"--{k.replace('_', '-')}", v)]
            return self._start(
                "join", address, "--quiet", "--resume", str(self.folder / "r"), *again
            )
        where = {"data_dir": self._lab.data, "output": str(self.folder / "r")}
        budget = {"budget": f"steps={STEPS}", "checkpoint_every": 1, "eval_every": 2}
        return self._start("join", address, "--quiet", *self._flags(**access, **where, **budget))

    def wait(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Return status and last words of a process that ends."""
        error = process.communicate(timeout=60)[1]
        assert "Traceback" not in error
        return process.returncode, error

    def strikes(self) -> int:
        """Wait until it has happened; returns the process's number."""
        deadline = time.monotonic() + 60
        while not (self.struck.exists() and self.struck.read_text()):
            assert all(process.poll() is None for process in self._processes), "ended early"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return int(self.struck.read_text())

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()

    def came(self) -> tuple[str, dict[str, torch.Tensor]]:
        """Return log and last checkpoints."""
        return read(self.folder / "r", self.folder / "s")

    def undisturbed(self, again: Path) -> tuple[str, dict[str, torch.Tensor]]:
        """Return those of a run in this process to which nothing happens."""
        own = {k: v for k, v in self._own.items() if k not in ("transport", "timeout", "reconnect")}
        budget: dict[str, Any] = {
            "budget": f"steps={STEPS}",
            "checkpoint_every": 1,
            "eval_every": 2,
        }
        run(data_dir=self._lab.data, output=str(again / "r"), **own, **budget)
        return read(again / "r", again / "r")


def read(client: Path, server: Path) -> tuple[str, dict[str, torch.Tensor]]:
    tensors = {}
    for role, place in (("client", client), ("server", server)):
        file = place / "checkpoints" / f"step-{STEPS:08}" / f"{role}.safetensors"
        tensors |= {f"{role} {name}": tensor for name, tensor in load_file(file).items()}
    return (client / "metrics.jsonl").read_text(), tensors


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    pytest.importorskip("cryptography")
    return Lab(tmp_path_factory.mktemp("kills"))


def check(kill: Kill, lab: Lab, folder: Path) -> None:
    """Do it, and hold what came of the run against an undisturbed one."""
    table = Table(lab, folder, kill)
    try:
        server, address = table.serve()
        client = table.join(address)
        struck = table.strikes()
        if SIGNALS[kill.what] is signal.SIGSTOP:
            time.sleep(0.2 if kill.what == "stopped for a moment" else 1.5 * TIMEOUT)
            os.kill(struck, signal.SIGCONT)
        elif kill.what == "asked to end":
            for process in (client, server):
                status, error = table.wait(process)
                asked = process is (client if kill.role == "client" else server)
                assert status == (130 if asked or process is client else 1), error
                assert f"interrupted after step {kill.step + 1}" in error or process is server
            server, address = table.serve()
            client = table.join(address, resume=True)
        elif kill.role == "client":
            assert client.wait(30) == -signal.SIGKILL
            client = table.join(address, resume=True)  # to the same server, which waits
        else:
            assert server.wait(30) == -signal.SIGKILL
            status, error = table.wait(client)
            assert status == 1
            assert "--resume" in error or not kill.step
            server, address = table.serve()
            # A run that never made a step leaves no folder.
            client = table.join(address, resume=kill.step > 0)
        for process in (client, server):
            status, error = table.wait(process)
            assert status == 0, error
        log, tensors = table.came()
    finally:
        table.close()
    whole, theirs = table.undisturbed(folder / "whole")
    assert log == whole
    assert tensors.keys() == theirs.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.parametrize("kill", some(), ids=str)
def test_a_run_is_the_same(kill: Kill, lab: Lab, tmp_path: Path) -> None:
    check(kill, lab, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kill", [kill for kill in every() if kill not in some()], ids=str)
def test_a_run_is_the_same_wherever_it_happens(kill: Kill, lab: Lab, tmp_path: Path) -> None:
    check(kill, lab, tmp_path)
