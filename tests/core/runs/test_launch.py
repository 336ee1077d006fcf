"""Two processes: the same run over every transport, and what happens when one of them ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import run
from splitlab.core.catalogue.links import working_transports

pytestmark = pytest.mark.usefixtures("starts_fast")

TWO_PROCESS = [name for name in working_transports() if name != "inprocess"]


@pytest.mark.parametrize("transport", TWO_PROCESS)
def test_every_transport_gives_the_same_run(
    real: Any, transport: str, easy_data: str, tmp_path: Path
) -> None:
    for name in ("inprocess", transport):
        run(
            plugins=["adc"],
            data_dir=easy_data,
            output=str(tmp_path / name / "r"),  # its name travels too
            transport=name,
            budget="steps=6",
            **real.SMALL,
        )
    folders = [tmp_path / name / "r" for name in ("inprocess", transport)]
    assert real.losses(folders[0]) == real.losses(folders[1])
    ledgers = [(folder / "ledger.json").read_text() for folder in folders]
    assert ledgers[0] == ledgers[1]


def test_torchrun_starts_both_peers(real: Any, easy_data: str, tmp_path: Path) -> None:
    options = {"transport": "gloo", "budget": "steps=3", "plugin": "adc"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*torchrun, *real.command("run", *real.flags(easy_data, tmp_path / "launched", **options))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "served 3 steps" in done.stdout
    run(
        plugins=["adc"],
        data_dir=easy_data,
        output=str(tmp_path / "inprocess"),
        budget="steps=3",
        **real.SMALL,
    )
    assert real.losses(tmp_path / "launched") == real.losses(tmp_path / "inprocess")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's TCP_INFO")
def test_ledger_equals_the_kernels_counters(
    real: Any, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitlab.transports import tcp

    counters: list[tuple[int, int]] = []
    server_closed = 8  # CLOSE_WAIT, in the kernel's numbers
    close = tcp.TcpLink.close

    def read_then_close(link: Any) -> None:
        sock = link._socket
        if sock.fileno() >= 0:
            # struct tcp_info: 8 bytes, 24 u32, two u64 rates, then bytes_acked, bytes_received.
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acked, received = struct.unpack_from("=QQ", info, 120)
            # It counts the connection's SYN and FIN as one byte each.
            counters.append((acked - 1, received - (info[0] == server_closed)))
        close(link)

    monkeypatch.setattr(tcp.TcpLink, "close", read_then_close)
    result = run(
        plugins=["adc"],
        data_dir=easy_data,
        output=str(tmp_path / "r"),
        transport="tcp",
        budget="steps=3",
        **real.SMALL,
    )
    [(sent, received)] = counters
    totals = {
        way: sum(sum(phase[way].values()) for phase in result.ledger.counts.values())
        for way in ("up", "down")
    }
    assert totals == {"up": sent, "down": received}


# Ends.


@pytest.mark.parametrize("transport", ["inprocess", "tcp"])
def test_ctrl_c_ends_both_peers_with_a_checkpoint(
    real: Any, transport: str, easy_data: str, tmp_path: Path
) -> None:
    options = {"transport": transport, "budget": "steps=100000", "eval_every": 100000}
    process = subprocess.Popen(
        real.command("run", *real.flags(easy_data, tmp_path / "r", **options)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    real.wait_for_steps(tmp_path / "r", 5, process)
    servers = real.children(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    told = re.fullmatch(
        r"splitlab: error: interrupted after step (\d+); go on from the checkpoint of step \1 "
        rf"with: splitlab run --resume {tmp_path / 'r'}\n",
        stderr,
    )
    assert told
    assert len(real.losses(tmp_path / "r")) == int(told[1])
    assert not any(real.alive(pid) for pid in servers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_either_peer_ends_a_run_with_a_checkpoint(
    real: Any, number: signal.Signals, easy_data: str, tmp_path: Path
) -> None:
    """SIGTERM is sent to the server of ``serve`` here, SIGHUP to the client of ``join``."""
    own = {key: real.SMALL[key] for key in ("weights", "batch_size", "threads", "lr", "device")}
    options = [text for k, v in own.items() for text in (f"--{k.replace('_', '-')}", str(v))]
    serving = subprocess.Popen(
        real.command("serve", "--classes", "4", "--output", str(tmp_path / "s"), *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert serving.stdout is not None
    address = serving.stdout.readline().split()[-1]
    more = {"budget": "steps=100000", "eval_every": 100000}
    joining = subprocess.Popen(
        real.command("join", address, "--quiet", *real.flags(easy_data, tmp_path / "r", **more)),
        stderr=subprocess.PIPE,
        text=True,
    )
    real.wait_for_steps(tmp_path / "r", 5, joining)
    told, other = (serving, joining) if number == signal.SIGTERM else (joining, serving)
    told.send_signal(number)
    stderr = {one: one.communicate(timeout=60)[1] for one in (told, other)}
    assert joining.returncode == 130
    assert "error: interrupted after step" in stderr[joining]
    assert ("asks to stop" in stderr[joining]) is (told is serving)
    assert serving.returncode == (130 if told is serving else 1)
    step = json.loads((tmp_path / "r" / "state.json").read_text())
    assert step["state"] == "interrupted"
    for folder, role in (("r", "client"), ("s", "server")):
        name = f"step-{step['step']:08}"
        assert (tmp_path / folder / "checkpoints" / name / f"{role}.safetensors").is_file()


def test_a_client_that_is_killed_before_it_is_linked_leaves_no_server(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    """It is killed when both are ready, and the server waits for it."""
    (tmp_path / "transport.py").write_text(
        "from splitlab.transports.tcp import Tcp\n"
        "import os, signal\n"
        "class Slow(Tcp):\n"
        "    def connect(self, address, *, device, timeout):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    transport = f"{tmp_path}/transport.py:Slow"
    options = {"transport": transport, "budget": "steps=1"}
    client = subprocess.Popen(
        real.command("run", "--quiet", *real.flags(easy_data, tmp_path / "r", **options))
    )
    servers: set[int] = set()
    while client.poll() is None:
        servers |= set(real.children(client.pid))
        time.sleep(0.01)
    assert client.returncode == -signal.SIGKILL
    assert servers
    deadline = time.monotonic() + 20
    while any(map(real.alive, servers)):
        assert time.monotonic() < deadline, "the server outlived its client"
        time.sleep(0.05)


@pytest.mark.parametrize("transport", TWO_PROCESS)
def test_a_killed_server_ends_the_client_within_its_deadline(
    real: Any, transport: str, easy_data: str, tmp_path: Path
) -> None:
    options = {"transport": transport, "budget": "steps=100000", "timeout": 20}
    options |= {"checkpoint_every": 5, "eval_every": 100000}
    client = subprocess.Popen(
        real.command("run", *real.flags(easy_data, tmp_path / "r", **options)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    real.wait_for_steps(tmp_path / "r", 12, client)
    [server] = real.children(client.pid)
    os.kill(server, signal.SIGKILL)
    killed = time.monotonic()
    _, stderr = client.communicate(timeout=60)
    assert time.monotonic() - killed < 25
    assert client.returncode == 1
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("splitlab: error:")
    assert "the server process was killed" in last
    assert f"--resume {tmp_path / 'r'}" in last
    assert "Traceback" not in stderr
    if transport != "tcp":
        return  # a run that goes on does not depend on how it was linked
    resumed = run(resume=tmp_path / "r", budget="steps=16")
    assert resumed.summary["steps"] == 16 or resumed.summary["steps"] > 16


@pytest.mark.parametrize("transport", TWO_PROCESS)
def test_a_killed_client_ends_the_server(
    real: Any, transport: str, easy_data: str, tmp_path: Path
) -> None:
    options = {"transport": transport, "budget": "steps=100000", "timeout": 20}
    client = subprocess.Popen(
        real.command("run", "--quiet", *real.flags(easy_data, tmp_path / "r", **options))
    )
    real.wait_for_steps(tmp_path / "r", 3, client)
    [server] = real.children(client.pid)
    client.kill()
    client.wait(10)
    deadline = time.monotonic() + 30
    while real.alive(server):
        assert time.monotonic() < deadline, "the server process outlived its client"
        time.sleep(0.05)
    log = (tmp_path / "r" / "server.log").read_text()
    assert "splitlab: error:" in log
    assert "Traceback" not in log
