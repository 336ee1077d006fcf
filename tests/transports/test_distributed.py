"""What is used of torch.distributed: launchers, and what only gloo does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.transports.collective import Gloo
from splitlab.transports.distributed import translate

CPU = torch.device("cpu")
TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"}

pytestmark = pytest.mark.skipif(bool(Gloo().unavailable()), reason=str(Gloo().unavailable()))


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
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


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Wait timeout", "nobody came"),
        ("[/pytorch/gloo/pair.cc:1] Timed out waiting 50ms for recv", "nobody came"),
        ("[/x/pair.cc:2] Connection closed by peer [127.0.0.1]:1", "the other end closed the co"),
        ("[/x/y.cc:3] Something else\nand more", "Something else"),
    ],
)
def test_errors_of_the_library_are_told_in_one_line(said: str, meant: str) -> None:
    text = str(translate("gloo://h:1", RuntimeError(said), "nobody came"))
    assert text.startswith(f"gloo://h:1: {meant}")
    assert "\n" not in text
