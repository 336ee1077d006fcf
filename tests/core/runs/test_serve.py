"""A server serves one client: its checkpoints, its numbers, and where they lie."""

from __future__ import annotations

import dataclasses
import queue
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from splitlab.core import (
    ConfigError,
    Interrupted,
    Kind,
    Link,
    Message,
    NetworkError,
    PluginError,
    ProtocolError,
    Role,
    run,
)
from splitlab.core.command.main import main
from splitlab.core.runs.checkpoint import plan_mark
from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Decided, make_for_server
from splitlab.core.runs.records import (
    SERVER_METRICS,
    StepRecord,
    read_ledger,
    read_records,
    read_summary,
    version_line,
)
from splitlab.core.runs.serve import HANDSHAKE_SECONDS, _Clients, open_session, serve
from splitlab.core.session.client import ClientSession
from splitlab.core.session.protocol import PROTOCOL
from splitlab.core.wire.checksum import packed, sum_of
from splitlab.core.wire.ledger import Ledger
from splitlab.transports.inprocess import InProcess
from splitlab.transports.tcp import Tcp, TcpLink

pytestmark = pytest.mark.usefixtures("starts_fast")

AGREEMENT = {"stack": "none", "cut": "3"}
MARKS = {"run": "0123456789abcdef", "seed": "0", "plan": plan_mark(AGREEMENT)}
HELLO: dict[str, Any] = {
    "protocol": PROTOCOL,
    "agreement": AGREEMENT,
    "run": "run",
    "step": 0,
    "marks": MARKS,
    "session": "00112233445566778899aabbccddeeff",
    "timeout": 60.0,
}


def shake_hands(
    client: ClientSession, agreement: Mapping[str, str], step: int = 0, run: str = MARKS["run"]
) -> None:
    marks = MARKS | {"plan": plan_mark(agreement), "run": run}
    client.open(agreement, run="r", step=step, batch_bytes=1000, marks=marks)


def activation(step: int) -> Message:
    made = Message(Kind.ACTIVATION, step)
    made.put("activations", torch.zeros(10), Role.PAYLOAD)
    return made


def train_and_save(table: Any, step: int) -> None:
    """Train the one step that leads to this number of them, and save."""
    for message in (activation(step - 1), Message(Kind.CONTROL, step, meta={"do": "save"})):
        table.client_end.send(message, 1.0)
        assert table.server.turn()


def session_with_checkpoints(output: Path | None) -> Any:
    """Return a session that keeps real checkpoints, and the client's end of its link."""
    state: dict[str, torch.Tensor] = {"x": torch.zeros(1)}
    reported: list[Path] = []
    server: Any = SimpleNamespace(
        state=lambda: (state, {"n": 1}),
        load_state=lambda tensors, values: state.update(tensors),
        settle=lambda: None,
        stack=SimpleNamespace(report=reported.append),
        handle=lambda message: Message(Kind.GRADIENT, message.step, meta={"loss": 1.0}),
        metrics={},
    )
    plan: Any = SimpleNamespace(
        agreement=AGREEMENT, batch_bytes=1000, config=Config(timeout=1.0), timeout=1.0
    )
    client_end, server_end = InProcess().pair(None)
    cleanup = ExitStack()
    session, report = open_session(server_end, server, plan, output, cleanup)
    return SimpleNamespace(
        client_end=client_end,
        server=session,
        report=report,
        end=cleanup.close,
        state=state,
        metrics=server.metrics,
        reported=reported,
    )


@pytest.mark.parametrize(
    "run",
    [
        "../other",
        "/etc",
        "a/b",
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "x" * 201,
        "a\n",
        "a b",
        "a\0",
        "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 70,
        "NUL",
        "com1.txt",
    ],
)
def test_run_names_that_are_paths_are_refused(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = session_with_checkpoints(None)
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"run": run}), 1.0)
    with pytest.raises(ProtocolError, match=r"name for the run, .*cannot name a folder"):
        table.server.turn()
    assert list(tmp_path.iterdir()) == []


def test_the_server_keeps_its_checkpoints_under_the_name_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for output, folder in (
        (None, tmp_path / "runs" / "a.b+c-1"),
        (tmp_path / "out", tmp_path / "out"),
    ):
        hello = HELLO | {"run": "a.b+c-1" if output is None else "ignored by it"}
        first = session_with_checkpoints(output)
        first.state["x"] += 7
        for message in (
            Message(Kind.HELLO, meta=hello),
            activation(0),
            Message(Kind.CONTROL, 1, meta={"do": "save"}),
        ):
            first.client_end.send(message, 1.0)
            assert first.server.turn()
        assert (folder / "checkpoints" / "step-00000001" / "server.safetensors").is_file()
        first.end()
        second = session_with_checkpoints(output)
        second.client_end.send(Message(Kind.HELLO, meta=hello | {"step": 1}), 1.0)
        assert second.server.turn()
        assert second.state["x"] == 7


def test_a_step_that_the_server_does_not_have_is_told(tmp_path: Path) -> None:
    table = session_with_checkpoints(tmp_path)
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"step": 3}), 1.0)
    with pytest.raises(ConfigError, match="the server has no checkpoint of step 3"):
        table.server.turn()
    assert "no checkpoint of step 3" in table.client_end.receive(1.0).meta["error"]


def test_the_server_logs_its_numbers_and_forgets_those_of_later_steps(tmp_path: Path) -> None:
    log = tmp_path / SERVER_METRICS
    for resumed, steps, left in ((0, (0, 1, 2), [1, 2, 3]), (0, (0,), [1])):
        table = session_with_checkpoints(tmp_path)
        table.metrics["probe"] = {"x": 0.5}
        table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"step": resumed}), 1.0)
        assert table.server.turn()
        for step in steps:
            table.client_end.send(activation(step), 1.0)
            assert table.server.turn()
        table.client_end.send(Message(Kind.CONTROL, len(steps), meta={"do": "finish"}), 1.0)
        assert not table.server.turn()
        records = read_records(tmp_path, SERVER_METRICS)
        assert records == [StepRecord(n, metrics={"probe": {"x": 0.5}}) for n in left]
        assert table.reported == []  # the client's goodbye waits for no probe
        table.report()
        assert table.reported == [tmp_path / "probes"]
        table.end()
    assert log.read_text().startswith(version_line())


def greet(table: Any, **changes: Any) -> None:
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | changes), 1.0)
    assert table.server.turn()


def test_a_new_run_does_not_forget_what_another_left(tmp_path: Path) -> None:
    first = session_with_checkpoints(tmp_path)
    greet(first)
    train_and_save(first, 1)
    first.end()
    other = session_with_checkpoints(tmp_path)
    with pytest.raises(ConfigError, match=r"holds checkpoints of another run, .*--output"):
        greet(other, marks=MARKS | {"run": "another"})
    other.end()
    kept = tmp_path / "checkpoints" / "step-00000001" / "server.safetensors"
    assert kept.is_file()
    with pytest.raises(
        ConfigError, match=r"server.safetensors is of plan \w+, not of plan another"
    ):
        greet(
            session := session_with_checkpoints(tmp_path),
            step=1,
            marks=MARKS | {"plan": "another"},
        )
    session.end()
    again = session_with_checkpoints(tmp_path)
    greet(again)  # the same run, whose client was killed before it wrote its first
    assert not kept.exists()
    again.end()


def test_a_folder_serves_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitlab.core.runs.serve._PATIENCE", 0.0)
    first, second = (session_with_checkpoints(tmp_path) for _ in range(2))
    greet(first)
    with pytest.raises(ConfigError, match=r"is in use by process \d+"):
        greet(second)
    assert "is in use by process" in second.client_end.receive(1.0).meta["error"]
    first.end()
    assert not list(tmp_path.glob("*.lock"))


def test_the_client_is_offered_a_step_that_both_have(tmp_path: Path) -> None:
    table = session_with_checkpoints(tmp_path)
    greet(table)
    for step in (1, 2):
        train_and_save(table, step)
    table.end()
    file = tmp_path / "checkpoints" / "step-00000002" / "server.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for steps, older in (("1 2", 1), ("2", 0), ("x -1", 0)):
        table = session_with_checkpoints(tmp_path)
        more = {"steps": steps, "again": "splitlab join A --resume R"}
        told = (
            rf"is damaged .*; go on from step {older} with: splitlab join A --resume R --from-step"
        )
        with pytest.raises(ConfigError, match=told):
            greet(table, step=2, marks=MARKS | more)
        table.end()


FAILS_AT = """
from splitlab.core import hookimpl


class FailsAt:
    def __init__(self, *, role: str) -> None:
        self.fails = role

    @hookimpl
    def setup(self, peer):
        self.role = peer.role

    @hookimpl
    def report(self, folder):
        if self.role == self.fails:
            raise ValueError("no room")
        (folder / "done").touch()
"""


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_probe_that_fails_in_report_costs_no_summary(
    role: str, real: Any, two_classes: str, tmp_path: Path
) -> None:
    (tmp_path / "probe.py").write_text(FAILS_AT)
    options: dict[str, Any] = {"data_dir": two_classes, "budget": "steps=1", **real.SMALL}
    folder = tmp_path / "r"
    summary = f"in {folder}" if role == "client" else "at the client"
    with pytest.raises(PluginError) as caught:
        run(probes=[f"{tmp_path}/probe.py:FailsAt:role={role}"], output=str(folder), **options)
    assert str(caught.value) == (
        "probe 'FailsAt' failed in report: ValueError: no room (probe.py:16); the run is complete, "
        f"its summary is {summary}"
    )
    assert read_summary(folder).steps == 1
    assert read_ledger(folder).total("up", "training") > 0


def test_a_probe_that_fails_at_the_server_is_its_error_and_not_the_clients(
    real: Any, two_classes: str, tmp_path: Path
) -> None:
    (tmp_path / "probe.py").write_text(FAILS_AT)
    options: dict[str, Any] = {"data_dir": two_classes, "budget": "steps=1", **real.SMALL}
    folder = tmp_path / "r"
    probe = f"{tmp_path}/probe.py:FailsAt:role=server"
    result = run(probes=[probe], output=str(folder), transport="tcp", **options)
    assert result.summary.steps == 1
    assert (folder / "probes" / "FailsAt" / "done").is_file()
    last = (folder / "server.log").read_text().splitlines()[-1]
    assert last.startswith("splitlab: error: probe 'FailsAt' failed in report: ValueError: no room")


# Who comes to a listener.

CPU = torch.device("cpu")
TINY = Config(
    transport="tcp",
    model="vit:image_size=8,channels=1,patch=4,width=4,depth=2,heads=1",
    plugins=("adc:ratio=0.2",),
    weights="none",
    device="cpu",
    threads=1,
    timeout=5.0,
)


class Serving:
    """A server of `TINY` in a thread, and what it says.

    Attributes:
        ended: number of steps, or the error.
    """

    def __init__(self, output: Path, **options: Any) -> None:
        decided = Decided.of(options.pop("config", TINY))
        plan, _ = make_for_server(decided, 2, peers_here=1)
        self.agreement = dict(plan.agreement)
        self.said: queue.Queue[str] = queue.Queue()
        self.ended: list[object] = []
        chosen = {"output": str(output), "wait": 20.0} | options
        self._thread = threading.Thread(target=self._serve, args=(decided, chosen))

    def _serve(self, decided: Decided, options: Any) -> None:
        try:
            self.ended.append(serve(decided, 2, say=self.said.put, **options))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.ended.append(error)

    def __enter__(self) -> Serving:
        self._thread.start()
        self.address = self.next().split()[-1]
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(20)

    def next(self) -> str:
        return self.said.get(timeout=20)

    def socket(self) -> socket.socket:
        host, _, port = self.address.removeprefix("tcp://").rpartition(":")
        return socket.create_connection((host, int(port)), 5)

    def link(self) -> Link:
        return Tcp().connect(self.address, device=CPU, timeout=5)

    def hello(self, step: int = 0, **changes: str) -> None:
        """Shake hands, and say goodbye."""
        with closing(self.link()) as link:
            client = ClientSession(link, Ledger(), 5.0)
            shake_hands(client, self.agreement | changes, step)
            client.finish(step)


def opening(body: int = 64, header: int = 16, version: int = 3) -> bytes:
    """Return the first bytes of a HELLO frame that declares these lengths."""
    front = struct.pack("<4sHBBQQQQQ", b"SPLT", version, 1, 3, 0, 0, 0, 0, body)
    back = struct.pack("<Q", header)
    return front + packed(sum_of([front + back])) + back


REQUEST = b"GET / HTTP/1.1\r\n\r\n"
STRANGERS = {
    REQUEST: "does not speak splitlab's wire format",
    opening(body=2**63): r"frame has \d+ bytes; allowed on this link: 65536",
    opening(body=2**12, header=2**62): r"header of \d+ bytes; allowed",
    opening(version=9): "speaks version 9 of the wire format, this side version 3",
    opening(body=64, header=48)[:20]: "the other end closed the connection",
    b"": "the other end closed the connection",
}


def test_a_server_survives_what_is_no_client(tmp_path: Path) -> None:
    with Serving(tmp_path) as serving:
        for sent, told in STRANGERS.items():
            with serving.socket() as stranger:
                stranger.sendall(sent)
                stranger.shutdown(socket.SHUT_WR)
                line = serving.next()
            assert re.search(f"^turned away tcp://.*: .*{told}", line)
            assert line.isprintable()
        with serving.socket() as stranger:  # closed at once, and not in good order
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert serving.next().endswith("the other end closed the connection")
        serving.hello()
    assert serving.ended == [0]
    assert serving.next() == "served 0 steps to the end of the client's run"


def test_silent_strangers_delay_nobody_and_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 <= HANDSHAKE_SECONDS <= 10
    with Serving(tmp_path) as serving, serving.socket(), serving.socket() as half:
        half.sendall(opening()[:10])
        started = time.monotonic()
        serving.hello()
        assert time.monotonic() - started < HANDSHAKE_SECONDS / 2
    assert serving.ended == [0]
    monkeypatch.setattr("splitlab.core.runs.serve.HANDSHAKE_SECONDS", 0.2)
    with Serving(tmp_path / "again") as serving:
        with serving.socket(), serving.socket() as half:
            half.sendall(opening()[:10])
            for _ in range(2):
                assert serving.next().endswith("its handshake was not done in 0.2 s")
        serving.hello()
    assert serving.ended == [0]


def test_a_flood_of_strangers_does_not_fill_the_terminal(tmp_path: Path) -> None:
    with Serving(tmp_path) as serving:
        for _ in range(40):
            with serving.socket() as stranger:
                stranger.sendall(b"\x1b[2J" * 20)
        serving.hello()
    assert serving.ended == [0]
    said = [*serving.said.queue]
    assert len(said) == 22
    assert re.search(r"^turned away 20 more, the last of them tcp://127.0.0.1:", said[-2])
    assert all(text.isprintable() for text in said)


def test_a_client_that_does_not_fit_is_told_and_the_right_one_is_served(tmp_path: Path) -> None:
    with Serving(tmp_path) as serving:
        for changes in ({"seed": "7"}, {"adc's ratio": "0.3", "cut": "1"}, {"classes": "3"}):
            with pytest.raises(ProtocolError) as caught:
                serving.hello(**changes)
            told = [
                f"{key}: client {theirs}, server {serving.agreement[key]}"
                for key, theirs in changes.items()
            ]
            line = serving.next()
            for one in told:
                assert one in str(caught.value)
                assert one in line
            assert str(caught.value).count("client") == len(changes)
        with pytest.raises(ProtocolError, match="the server has no checkpoint of step 3"):
            serving.hello(step=3)
        assert "no checkpoint of step 3" in serving.next()
        serving.hello()
    assert serving.ended == [0]


FIRST = {
    "activation": Message(Kind.ACTIVATION),
    "goodbye": Message(Kind.CONTROL, meta={"do": "finish"}),
    "error": Message(Kind.ERROR, meta={"error": "no\x1b[2J room"}),
    "malformed": Message(Kind.HELLO, meta={"protocol": PROTOCOL}),
    "version": Message(Kind.HELLO, meta=HELLO | {"protocol": 99}),
}


@pytest.mark.parametrize("first", FIRST)
def test_a_confused_client_is_turned_away(first: str, tmp_path: Path) -> None:
    words = {
        "activation": "began with ACTIVATION, not with HELLO",
        "goodbye": "began with CONTROL, not with HELLO",
        "error": r"the client ended the run: no\x1b[2J room",
        "malformed": "sent a malformed HELLO",
        "version": "the peers differ in protocol: client 99, server 3",
    }
    sent = Message(FIRST[first].kind, meta=FIRST[first].meta)
    with Serving(tmp_path) as serving:
        with closing(serving.link()) as link:
            link.send(sent, 5.0)
            assert link.receive(5.0).kind is Kind.ERROR
        assert words[first] in serving.next()
        serving.hello()
    assert serving.ended == [0]


def test_after_the_handshake_an_error_ends_the_server(tmp_path: Path) -> None:
    with Serving(tmp_path) as serving, closing(serving.link()) as link:
        shake_hands(ClientSession(link, Ledger(), 5.0), serving.agreement)
        link.send(Message(Kind.CONTROL, 4, meta={"do": "save"}), 5.0)
        assert link.receive(5.0).kind is Kind.ERROR
    [error] = serving.ended
    assert isinstance(error, ProtocolError)
    assert "asks to save after step 4, and 0 are trained" in str(error)


def test_a_second_client_is_told_that_the_server_has_one(tmp_path: Path) -> None:
    with Serving(tmp_path) as serving, closing(serving.link()) as link:
        first = ClientSession(link, Ledger(), 5.0)
        shake_hands(first, serving.agreement)
        for run in ("another", MARKS["run"]):
            with (
                pytest.raises(ProtocolError, match=r"takes one (client )?only"),
                closing(serving.link()) as other,
            ):
                shake_hands(ClientSession(other, Ledger(), 0.2), serving.agreement, run=run)
        assert "takes one only" in serving.next()
        first.finish(0)
    assert serving.ended == [0]


def test_nobody_fits_in_time(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(
        config=TINY, links=(), agreement=AGREEMENT, batch_bytes=1000, timeout=TINY.timeout
    )
    wait = 0.05

    class Meeting:
        """A client that differs comes at once, and then nobody."""

        address = "tcp://here:1"
        came = False

        def accept(self, timeout: float) -> Link:
            if self.came:
                time.sleep(wait)
                raise NetworkError(f"no client came in {timeout:g} s")
            self.came = True
            client_end, server_end = InProcess().pair(None)
            client_end.send(Message(Kind.HELLO, meta=HELLO | {"agreement": {"cut": "4"}}), 1.0)
            return server_end

        def close(self) -> None: ...

    said: list[str] = []
    clients = _Clients(Meeting(), plan, wait, True, said.append)
    server: Any = object()
    with closing(clients), pytest.raises(NetworkError) as caught:
        clients.first(lambda: server, str(tmp_path))
    last = (
        "the client in this process: the peers differ in cut: client 4, server 3; "
        "give both the same options"
    )
    assert said == [f"turned away {last}"]
    assert str(caught.value) == (
        f"no client that fits came to tcp://here:1 in 0.05 s; turned away: 1, at last {last}"
    )


def test_between_two_sessions_a_server_can_be_stopped_and_waits_anew(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(config=TINY, links=(), timeout=TINY.timeout)
    for stops, wait, error, told in (
        (True, 60.0, Interrupted, "interrupted while no client was there"),
        (False, 0.05, NetworkError, "no client came to tcp://.* in 0.05 s"),
    ):
        listener = Tcp().listen("tcp://127.0.0.1:0", device=CPU)
        clients = _Clients(listener, plan, wait, True, print, lambda stops=stops: stops)
        clients._returning.begin(SimpleNamespace(session="s"), "run")  # type: ignore[arg-type]
        clients._returning.pause()
        with closing(clients), pytest.raises(error, match=told):
            clients._accept()


def test_after_a_session_a_server_waits_as_long_as_before_the_first(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(
        config=TINY, links=(), agreement=AGREEMENT, batch_bytes=1000, timeout=TINY.timeout
    )
    listener = Tcp().listen("tcp://127.0.0.1:0", device=CPU)
    clients = _Clients(listener, plan, 0.3, True, print)
    client_end, came = InProcess().pair(None)
    client_end.send(Message(Kind.HELLO, meta=HELLO | {"agreement": {"cut": "4"}}), 1.0)
    clients._returning.begin(SimpleNamespace(session="s"), "run")  # type: ignore[arg-type]
    clients._until = began = time.monotonic()
    server: Any = object()
    with closing(clients), pytest.raises(NetworkError, match="no client that fits came"):
        clients.first(lambda: server, str(tmp_path), came)  # type: ignore[arg-type]
    assert time.monotonic() - began >= 0.3


def test_the_server_of_a_run_ends_with_its_client_and_not_with_strangers(tmp_path: Path) -> None:
    serving = Serving(tmp_path, patient=False)
    with serving, serving.socket(), serving.socket() as stranger:
        stranger.sendall(REQUEST)
        assert "does not speak splitlab's wire format" in serving.next()
        with pytest.raises(ProtocolError):
            serving.hello(seed="7")
        assert "seed: client 7" in serving.next()
        with pytest.raises(ProtocolError, match="no checkpoint of step 3"):
            serving.hello(step=3)  # its own, whose handshake fits
    [error] = serving.ended
    assert isinstance(error, ConfigError)
    assert serving.said.empty()


def test_a_server_waits_for_a_client_that_lost_its_connection_and_then_ends(
    tmp_path: Path,
) -> None:
    gone: list[str] = []

    class Counting(TcpLink):
        """Counts as a client does that comes back."""

        def send(self, message: Message, timeout: float) -> int:
            gone.append(message.kind.name)
            message.number = len(gone)
            return super().send(message, timeout)

    config = dataclasses.replace(TINY, reconnect=0.2)
    with Serving(tmp_path, config=config) as serving, serving.socket() as connection:
        link = Counting(connection, "the server", nodelay=True, device=CPU)
        shake_hands(ClientSession(link, Ledger(), 5.0), serving.agreement)
        link.sever()
        assert re.search("lost the connection .* its client has 0.2 s to return", serving.next())
    [error] = serving.ended
    assert isinstance(error, NetworkError)
    assert "its client did not return in 0.2 s" in str(error)


# Two machines.


@pytest.mark.usefixtures("unlistened")
def test_serve_and_join_go_on_where_they_were(real: Any, easy_data: str, tmp_path: Path) -> None:
    options = {"plugin": "adc", "checkpoint_every": 3, "eval_every": 100}
    client = real.flags(easy_data, tmp_path / "client" / "r", **options, budget="steps=9")
    own = {key: real.SMALL[key] for key in ("weights", "batch_size", "threads", "lr", "device")}
    server = ["--plugin", "adc", "--classes", "4"]
    server += [t for k, v in own.items() for t in (f"--{k.replace('_', '-')}", str(v))]

    with subprocess.Popen(
        real.command("serve", *server), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as serving:
        assert serving.stdout is not None
        address = serving.stdout.readline().split()[-1]
        more = [*client[:-1], "steps=100000"]
        stopped = subprocess.Popen(real.command("join", address, "--quiet", *more))
        real.wait_for_steps(tmp_path / "client" / "r", 7, stopped)
        stopped.kill()
        stopped.wait(60)
        assert "its client has 300 s to return" in serving.stdout.readline()
        again = ["--resume", str(tmp_path / "client" / "r"), "--budget", "steps=30"]
        assert main(["join", address, "--quiet", *again]) == 0
        assert "to the end of the client's run" in serving.communicate(timeout=60)[0]
        assert serving.returncode == 0
    run(
        plugins=["adc"],
        data_dir=easy_data,
        output=str(tmp_path / "whole"),
        budget="steps=30",
        checkpoint_every=3,
        eval_every=100,
        **real.SMALL,
    )
    assert real.losses(tmp_path / "client" / "r") == real.losses(tmp_path / "whole")
    assert (tmp_path / "runs" / "r" / "checkpoints" / "step-00000030").is_dir()
