"""What is special about gloo and NCCL: launchers, processes that die, and what may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed

from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.transports.collective import Gloo, Nccl

CPU = torch.device("cpu")
SOON = 30.0
TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"}

pytestmark = pytest.mark.skipif(bool(Gloo().unavailable()), reason=str(Gloo().unavailable()))


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in (TORCHRUN | variables).items():
        monkeypatch.setenv(name, value)


def test_a_launcher_gives_each_process_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Gloo().launched() is None
    launch(monkeypatch, RANK="0")
    assert Gloo().launched() == ("client", "env://")
    launch(monkeypatch, RANK="1")
    assert Gloo().launched() == ("server", "env://")


def test_without_a_launcher_the_missing_variables_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"missing: MASTER_ADDR, MASTER_PORT, WORLD_SIZE;"):
        Gloo().connect("env://", device=CPU, timeout=1)
    with pytest.raises(ConfigError, match=r"missing: MASTER_ADDR"):
        Gloo().listen("env://", device=CPU)


def test_a_link_joins_two_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, WORLD_SIZE="4")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4; start exactly two processes"):
        Gloo().connect("env://", device=CPU, timeout=1)


def test_the_ranks_have_their_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, RANK="0")
    with pytest.raises(ConfigError, match=r"RANK is 0 .* the client is rank 0, the server rank 1"):
        Gloo().listen("env://", device=CPU)
    launch(monkeypatch, RANK="1")
    with pytest.raises(ConfigError, match=r"RANK is 1 .* the client is rank 0"):
        Gloo().connect("env://", device=CPU, timeout=1)


def test_variables_that_make_no_sense_are_the_users_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, MASTER_PORT="http")
    with pytest.raises(ConfigError, match="torchrun's variables cannot be used"):
        Gloo().connect("env://", device=CPU, timeout=1)


def test_a_launched_peer_that_stays_alone_ends_by_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
    launch(monkeypatch, MASTER_PORT=listener.address.rpartition(":")[2], RANK="1")
    listener.close()
    start = time.monotonic()
    with pytest.raises(NetworkError, match="env://"):
        Gloo().listen("env://", device=CPU).accept(1)
    assert time.monotonic() - start < 5


PEER = """
import torch
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.transports.collective import Gloo

role, address = Gloo().launched()
cpu = torch.device("cpu")
if role == "client":
    link = Gloo().connect(address, device=cpu, timeout=60)
    message = Message(Kind.ACTIVATION, 3)
    message.put("activations", torch.arange(4.0), Role.PAYLOAD)
    link.send(message, 60)
    assert link.receive(60).step == 4
    print("the client has its answer")
else:
    listener = Gloo().listen(address, device=cpu)
    link = listener.accept(60)
    assert link.receive(60)["activations"].tolist() == [0, 1, 2, 3]
    link.send(Message(Kind.GRADIENT, 4), 60)
link.close()
"""


def test_torchrun_joins_both_peers(tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the client has its answer" in done.stdout


DYING = """
import sys
import torch
from splitlab.transports.collective import Gloo

link = Gloo().connect(sys.argv[1], device=torch.device("cpu"), timeout=60)
link.receive(60)
"""


def test_a_process_that_is_killed_is_noticed_at_once() -> None:
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
    process = subprocess.Popen([sys.executable, "-c", DYING, listener.address])
    try:
        link = listener.accept(60)
        listener.close()
        threading.Timer(0.2, process.kill).start()
        start = time.monotonic()
        with pytest.raises(NetworkError, match="the other end closed the connection"):
            link.receive(SOON)
        assert time.monotonic() - start < 5
        link.close()
    finally:
        process.kill()
        process.wait()


def test_nothing_listens_beyond_loopback() -> None:
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
    port = int(listener.address.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if os.path.exists(table)
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == port
    ]
    assert listening == [f"0100007F:{port:04X}"]
    listener.close()


def nccl_without(monkeypatch: pytest.MonkeyPatch, **facts: object) -> str | None:
    """What NCCL misses on a machine of these facts; a single GPU and NCCL 2.30.7 otherwise."""
    facts = {"built": True, "gpu": True, "gpus": 1, "version": (2, 30, 7)} | facts
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: facts["built"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: facts["gpu"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: facts["gpus"])
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: facts["version"])
    return Nccl().unavailable()


def test_nccl_says_precisely_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is built without NCCL" in str(nccl_without(monkeypatch, built=False))
    assert nccl_without(monkeypatch, gpu=False) == "NCCL needs a CUDA GPU, and torch finds none"
    reason = nccl_without(monkeypatch, version=(2, 28, 9))
    assert reason == "two peers can share the one GPU from NCCL 2.30 on, and this is NCCL 2.28.9"
    assert nccl_without(monkeypatch) is None
    assert nccl_without(monkeypatch, gpus=2, version=(2, 28, 9)) is None


def test_old_nccl_serves_a_peer_that_is_alone_on_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert nccl_without(monkeypatch, version=(2, 28, 9)) is None


def test_nccl_refuses_a_peer_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match="this peer computes on cpu; choose --device cuda"):
        Nccl().listen("nccl://127.0.0.1:0", device=CPU)
    with pytest.raises(ConfigError, match="this peer computes on cpu"):
        Nccl().connect("nccl://127.0.0.1:1", device=CPU, timeout=1)
