"""Who may connect over TCP: certificates, secrets and strangers, at real sockets."""

from __future__ import annotations

import datetime
import errno
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from splitlab.core.contract.errors import ConfigError, NetworkError, ProtocolError
from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing import TRANSPORT_CHECKS, check_transport
from splitlab.core.wire.encode import encode
from splitlab.transports import admission
from splitlab.transports.proof import MAGIC
from splitlab.transports.tcp import _TLS, Tcp, TcpLink, TcpListener, TlsLink
from splitlab.transports.trust import Trust

CPU = torch.device("cpu")
SOON = 20.0
SECRET = "a secret of the lab's\n"


def files(lab: Path, name: str, *without: str) -> dict[str, Any]:
    given = {
        "tls_cert": str(lab / f"{name}.pem"),
        "tls_key": str(lab / f"{name}.key"),
        "tls_ca": str(lab / "ca.pem"),
    }
    return {key: value for key, value in given.items() if key not in without}


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture(params=["plain", "tls", "secret", "tls+secret"])
def options(
    request: pytest.FixtureRequest, lab: Path, secret: Callable[[str], str]
) -> dict[str, Any]:
    """What is asked of both ends, by the transport's parameters."""
    given = files(lab, "server") if "tls" in request.param else {}
    return given | ({"secret_file": secret(SECRET)} if "secret" in request.param else {})


class Server:
    """Accepts in a thread until somebody is let in.

    Attributes:
        away: lines about everybody else.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, opening: float = 5.0, wait: float = SOON, **options: Any
    ) -> None:
        self.away: list[str] = []
        self._wait = wait
        self.listener = Tcp(**options).listen("tcp://127.0.0.1:0", device=CPU)
        self.address = self.listener.address
        self.port = int(self.address.rpartition(":")[2])
        self.link = pool.submit(self._hear, opening)

    def _hear(self, opening: float) -> TcpLink:
        limits = Limits(frame_bytes=1 << 16)
        return self.listener.hear(self._wait, opening=opening, limits=limits, away=self.away.append)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def served(self, **options: Any) -> None:
        """Meet the client that may come, and part."""
        host = options.pop("host", "127.0.0.1")
        made = Tcp(**options).connect(f"tcp://{host}:{self.port}", device=CPU, timeout=SOON)
        with closing(made) as client:
            client.send(Message(Kind.HELLO, meta={"run": "hello"}), SOON)
            with closing(self.link.result(SOON)) as link:
                assert link.receive(SOON).meta == {"run": "hello"}
                link.send(message(100), SOON)
                assert len(client.receive(SOON)["activations"]) == 100

    def wait_for(self, told: str) -> None:
        deadline = time.monotonic() + 5
        while not any(told in line for line in self.away):
            assert time.monotonic() < deadline, self.away
            time.sleep(0.01)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        wait([self.link], SOON)  # a listener is its thread's, which may be amid a handshake
        self.listener.close()


def message(size: int) -> Message:
    made = Message(Kind.ACTIVATION, 3)
    made.put("activations", torch.arange(size, dtype=torch.float32), Role.PAYLOAD)
    made.put("targets", torch.arange(3), Role.TARGETS)
    return made


# The contract.


@pytest.mark.parametrize("check", [check.name for check in TRANSPORT_CHECKS])
@pytest.mark.parametrize("options", ["tls", "secret", "tls+secret"], indirect=True)
def test_the_contract(options: dict[str, Any], check: str) -> None:
    class Secured(Tcp):
        def __init__(self) -> None:
            super().__init__(**options)

    Secured.__module__ = Tcp.__module__  # where a check corrupts frames
    report = check_transport(Secured, only=[check])
    report.raise_if_failed()


def test_messages_of_all_sizes_arrive_whole_both_ways(lab: Path, aside: ThreadPoolExecutor) -> None:
    secured = Tcp(**files(lab, "server"))
    with closing(secured.listen("tcp://localhost:0", device=CPU)) as listener:
        accepted = aside.submit(listener.accept, SOON)
        client = secured.connect(listener.address, device=CPU, timeout=SOON)
        server = accepted.result()
    assert isinstance(client, TlsLink)
    assert client._socket.version() == "TLSv1.3"
    with closing(client), closing(server):
        for size in (0, 1, 1000, 4080, 4096, 5000, 100_000, 1_500_000):
            for near, far in ((client, server), (server, client)):
                sent = message(size)
                sending = aside.submit(near.send, sent, SOON)
                arrived = far.receive(SOON)
                assert sending.result() == arrived.frame_bytes == encode(message(size)).nbytes
                assert torch.equal(arrived["activations"], torch.arange(size, dtype=torch.float32))
        many = Message(Kind.ACTIVATION)
        for index in range(1024):
            many.put(str(index), torch.full((2,), index), Role.SIDE)
        sending = aside.submit(client.send, many, SOON)
        assert [
            int(t[1]) for t in map(server.receive(SOON).__getitem__, map(str, range(1024)))
        ] == [*range(1024)]


def test_a_slow_reader_under_tls_is_not_a_silent_one(lab: Path, aside: ThreadPoolExecutor) -> None:
    secured = Tcp(**files(lab, "server"))
    with closing(secured.listen("tcp://127.0.0.1:0", device=CPU)) as listener:
        accepted = aside.submit(listener.accept, SOON)
        client = secured.connect(listener.address, device=CPU, timeout=SOON)
        server: Any = accepted.result()
    large = message(4_000_000)
    size = encode(large).nbytes

    def read_slowly() -> int:
        server._socket.settimeout(5)
        count = 0
        while count < size:
            if count % 500_000 < 16_384:
                time.sleep(0.02)
            count += len(server._socket.recv(1_000_000))
        return count

    with closing(client), closing(server):
        started = time.monotonic()
        reading = aside.submit(read_slowly)
        assert client.send(large, 0.3) == size
        assert reading.result() == size
        assert time.monotonic() - started > 0.3


# Certificates.


def test_a_client_without_a_certificate_may_know_a_secret(
    lab: Path, secret: Callable[[str], str], aside: ThreadPoolExecutor
) -> None:
    file = secret(SECRET)
    with Server(aside, **files(lab, "server", "tls_ca"), secret_file=file) as server:
        server.served(tls_ca=str(lab / "ca.pem"), secret_file=file)
    assert server.away == []


@pytest.fixture
def expired(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with certificates of the lab's authority that are no longer good."""
    from splitlab.core.command import certs

    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).write_bytes((lab / name).read_bytes())
    monkeypatch.setattr(certs, "_SKEW", datetime.timedelta(days=2))
    monkeypatch.setattr(certs, "_end", lambda now, days: now - datetime.timedelta(days=1))
    certs.make(tmp_path, ["localhost"], ["client"])
    return tmp_path


def test_a_client_that_may_not_come_is_told_and_the_right_one_is_served(
    lab: Path, other_lab: Path, expired: Path, aside: ThreadPoolExecutor
) -> None:
    ca = {"tls_ca": str(lab / "ca.pem")}
    wrong = {
        "shows no certificate": ca,
        "is not to be trusted: unable to get local issuer": files(other_lab, "client") | ca,
        "is not to be trusted: certificate has expired": files(expired, "client"),
    }
    with Server(aside, **files(lab, "server")) as server:
        for told, given in wrong.items():
            with pytest.raises(NetworkError) as caught:
                Tcp(**given).connect(server.address, device=CPU, timeout=SOON)
            server.wait_for(told)
            expected = (
                "asks for a certificate; give --tls-cert" if given == ca else "not trust this"
            )
            assert expected in str(caught.value)
            assert server.address in str(caught.value)
        server.served(**files(lab, "client"))


def test_a_server_that_is_another_is_refused(
    lab: Path, other_lab: Path, expired: Path, aside: ThreadPoolExecutor
) -> None:
    with Server(aside, **files(lab, "server")) as server:
        with pytest.raises(
            NetworkError, match=r"server's certificate is not to be trusted: self-signed"
        ):
            Tcp(**files(other_lab, "client")).connect(server.address, device=CPU, timeout=SOON)
        server.wait_for("does not trust this side's certificate")
        there = f"tcp://127.0.0.2:{server.port}"
        server.served(**files(lab, "client"), host="localhost")
    with (
        Server(aside, wait=0.5, **files(expired, "server")) as server,
        pytest.raises(NetworkError, match=r"not to be trusted: certificate has expired"),
    ):
        Tcp(**files(lab, "client")).connect(server.address, device=CPU, timeout=SOON)
    listener = Tcp(**files(lab, "server")).listen("tcp://127.0.0.2:0", device=CPU)
    there = listener.address
    accepted = aside.submit(listener.accept, 0.5)
    with closing(listener):
        with pytest.raises(NetworkError, match=r"IP address mismatch, .*127.0.0.2"):
            Tcp(**files(lab, "client")).connect(there, device=CPU, timeout=SOON)
        assert isinstance(accepted.exception(), NetworkError)


def test_a_clients_certificate_makes_no_server(lab: Path, aside: ThreadPoolExecutor) -> None:
    with (
        Server(aside, wait=0.5, **files(lab, "client")) as server,
        pytest.raises(NetworkError, match=r"server's certificate is not to be trusted: unsuitable"),
    ):
        Tcp(**files(lab, "client")).connect(server.address, device=CPU, timeout=SOON)


def test_a_tls_older_than_1_3_is_refused(lab: Path, aside: ThreadPoolExecutor) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(lab / "ca.pem")
    with Server(aside, **files(lab, "server")) as server:
        with server.socket() as bare, pytest.raises(ssl.SSLError, match=r"(?i)alert.*version"):
            old.wrap_socket(bare, server_hostname="localhost")
        server.wait_for("speaks a TLS older than 1.3")
        server.served(**files(lab, "client"))


def test_both_ends_say_which_of_them_speaks_tls(lab: Path, aside: ThreadPoolExecutor) -> None:
    with Server(aside, **files(lab, "server")) as server:
        with closing(Tcp().connect(server.address, device=CPU, timeout=SOON)) as plain:
            plain.send(Message(Kind.HELLO), SOON)
            assert "speaks TLS only; give --tls-ca" in plain.receive(SOON).meta["error"]
        server.wait_for("it speaks no TLS: it has no --tls-ca")
        server.served(**files(lab, "client"))
    with Server(aside) as server:
        with pytest.raises(NetworkError, match=r"the server does not speak TLS.*; start it with"):
            Tcp(**files(lab, "client")).connect(server.address, device=CPU, timeout=SOON)
        server.wait_for("it speaks TLS, and this server does not")
        server.served()


@pytest.mark.parametrize(
    ("tls", "told", "away"),
    [
        (True, "speaks TLS only; give --tls-ca FILE", "it speaks no TLS: it has no --tls-ca"),
        (False, "knows no secret; start it with the same", "and this server has none"),
    ],
)
def test_who_gives_a_secret_alone_is_told_at_once_what_else_the_server_asks_for(
    tls: bool,
    told: str,
    away: str,
    lab: Path,
    secret: Callable[[str], str],
    aside: ThreadPoolExecutor,
) -> None:
    given = files(lab, "server") if tls else {}
    with Server(aside, **given) as server:
        with pytest.raises(NetworkError, match=told):
            Tcp(secret_file=secret(SECRET)).connect(server.address, device=CPU, timeout=SOON)
        server.wait_for(away)
        server.served(**given)


def test_who_changes_what_is_on_the_way_ends_the_link_and_is_no_reason_to_leave_tls_out(
    lab: Path, aside: ThreadPoolExecutor
) -> None:
    secured = Tcp(**files(lab, "server"))
    with closing(secured.listen("tcp://127.0.0.1:0", device=CPU)) as listener:
        accepted = aside.submit(listener.accept, SOON)
        client: Any = secured.connect(listener.address, device=CPU, timeout=SOON)
        server = accepted.result()
    with closing(client), closing(server), socket.fromfd(client._socket.fileno(), 2, 1) as way:
        way.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
        for end in (server, client):  # the client hears that its record was a bad one
            with pytest.raises(NetworkError, match="damaged, or changed on the way") as caught:
                end.receive(SOON)
            assert "--tls-ca" not in str(caught.value)


def test_a_plain_client_of_a_server_with_a_secret_is_told(
    secret: Callable[[str], str], aside: ThreadPoolExecutor
) -> None:
    file = secret(SECRET)
    with Server(aside, secret_file=file) as server:
        with closing(Tcp().connect(server.address, device=CPU, timeout=SOON)) as plain:
            plain.send(Message(Kind.HELLO), SOON)
            assert "give the same --secret-file" in plain.receive(SOON).meta["error"]
        server.wait_for("not as a client does")
        wrong = Tcp(secret_file=secret("another of the lab's secrets"))
        with pytest.raises(NetworkError, match="refused the proof of the secret"):
            wrong.connect(server.address, device=CPU, timeout=SOON)
        server.wait_for("its proof of the secret is wrong")
        server.served(secret_file=file)


def test_a_handshake_that_is_replayed_is_refused(
    secret: Callable[[str], str], aside: ThreadPoolExecutor
) -> None:
    """Who has listened to a handshake on a network without TLS can do nothing with it."""
    file = secret(SECRET)
    heard: list[bytes] = []
    with (
        Server(aside, secret_file=file) as server,
        socket.create_server(("127.0.0.1", 0)) as tap,
        server.socket() as far,
    ):

        def listen() -> None:
            near, _ = tap.accept()
            with near:
                pairs = {near: far, far: near}
                while data := (one := select.select([*pairs], [], [], SOON)[0][0]).recv(4096):
                    pairs[one].sendall(data)
                    if one is near:
                        heard.append(data)

        listening = aside.submit(listen)
        server.port = tap.getsockname()[1]
        server.served(secret_file=file)
        listening.result(SOON)
    with Server(aside, secret_file=file) as server:
        with server.socket() as replay:
            replay.sendall(b"".join(heard))
            replay.settimeout(5)
            with suppress(ConnectionError):
                while replay.recv(4096):
                    pass
        server.wait_for("its proof of the secret is wrong")
        server.served(secret_file=file)


def test_who_does_not_know_the_secret_has_no_frame_read(
    secret: Callable[[str], str], aside: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr("splitlab.transports.tcp.Reader", lambda **given: made.append(given))
    with Server(aside, wait=1.0, secret_file=secret(SECRET)) as server:
        for sent in (b"SPLT" + bytes(40), MAGIC + bytes(33), MAGIC + b"\x01" + bytes(64)):
            with server.socket() as stranger:
                stranger.sendall(sent)
                with suppress(OSError):  # it may be turned away before it has ended
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
        assert isinstance(server.link.exception(SOON), NetworkError)
    assert len(server.away) == 3
    assert "its proof of the secret is wrong" in server.away[2]
    assert made == []


# Strangers.


def begun() -> bytes:
    """Return a HELLO that stops in its middle."""
    return b"".join(encode(Message(Kind.HELLO, meta={"run": "x" * 500})).buffers())[:200]


GARBAGE = {
    "garbage": b"\x00\xff" * 500,
    "http": b"GET / HTTP/1.1\r\nHost: splitlab.example\r\n\r\n",
    "tls garbage": b"\x16\x03\x01\x02\x00\x01" + b"\xaa" * 600,
    "tls that stops": b"\x16\x03\x01\x02\x00\x01\x00",
    "an opening": MAGIC + b"\x01" + bytes(32),
    "half an opening": MAGIC + b"\x01",
    "half a HELLO": begun(),
    "nothing": b"",
}


def test_the_client_is_served_among_strangers_of_every_kind(
    options: dict[str, Any], aside: ThreadPoolExecutor
) -> None:
    with Server(aside, **options) as server, ExitStack() as strangers:
        for sent in GARBAGE.values():
            one = strangers.enter_context(server.socket())
            one.sendall(sent)
        if not options:  # who begins otherwise is heard, and what it said is the session's to judge
            for _ in range(2):  # four more spoke TLS or of a secret, and were turned away
                with (
                    closing(server.link.result(SOON)) as heard,
                    pytest.raises(ProtocolError, match="does not speak splitlab's wire format"),
                ):
                    heard.receive(SOON)
                server.link = aside.submit(server._hear, 5.0)
        started = time.monotonic()
        server.served(**options)
        assert time.monotonic() - started < 3


def test_strangers_that_only_sit_there_delay_nobody(
    options: dict[str, Any], aside: ThreadPoolExecutor
) -> None:
    with Server(aside, **options) as server, ExitStack() as strangers:
        for _ in range(200):
            strangers.enter_context(server.socket())
        started = time.monotonic()
        server.served(**options)
        assert time.monotonic() - started < 4
        assert len(server.listener._reception._coming) <= admission.MOST_AT_ONCE
        gone = [line for line in server.away if "it gave way to others who came" in line]
        assert len(gone) >= 200 - admission.MOST_AT_ONCE - 1


def test_who_drips_has_one_deadline_for_all(
    options: dict[str, Any], aside: ThreadPoolExecutor
) -> None:
    with Server(aside, opening=0.4, **options) as server, server.socket() as drip:
        over = threading.Event()

        def slowly() -> None:
            for byte in b"\x16\x03\x01\x02\x00\x01" if "tls_ca" in options else begun():
                if over.wait(0.05):
                    return
                try:
                    drip.sendall(bytes([byte]))
                except OSError:
                    return

        dripping = aside.submit(slowly)
        told = "its handshake was not done in 0.4 s"
        if "secret_file" in options and "tls_ca" not in options:
            told = "not as a client does"
        server.wait_for(told)
        over.set()
        dripping.result(SOON)
        server.served(**options)


def test_who_has_spoken_stays_when_the_silent_give_way(
    aside: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, secret: Callable[[str], str]
) -> None:
    monkeypatch.setattr(admission, "_FAIR_SECONDS", 0.0)
    monkeypatch.setattr(admission, "MOST_AT_ONCE", 3)
    file = secret(SECRET)
    with Server(aside, secret_file=file) as server, ExitStack() as strangers:
        busy = strangers.enter_context(server.socket())
        busy.sendall(MAGIC)
        time.sleep(0.05)
        for _ in range(6):
            strangers.enter_context(server.socket())
            time.sleep(0.01)
        port = busy.getsockname()[1]
        server.served(secret_file=file)
        assert server.away
        assert not [line for line in server.away if f":{port}:" in line]


def test_who_has_shown_something_stays_when_those_who_only_speak_give_way(
    lab: Path,
    secret: Callable[[str], str],
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client far away is through with TLS, and its proof of the secret is on its way."""
    monkeypatch.setattr(admission, "_FAIR_SECONDS", 0.0)
    monkeypatch.setattr(admission, "MOST_AT_ONCE", 3)
    given = files(lab, "server") | {"secret_file": secret(SECRET)}
    context = Trust(**given).client
    assert context is not None
    with Server(aside, **given) as server, ExitStack() as strangers:
        far = context.wrap_socket(server.socket(), server_hostname="localhost")
        with far:
            assert far.recv(1) == b"\0"
            for _ in range(9):
                strangers.enter_context(server.socket()).sendall(_TLS)
            server.served(**given)
            assert len(server.away) > 3
            assert not [line for line in server.away if f":{far.getsockname()[1]}:" in line]


def test_a_process_without_room_looks_again_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits at the socket makes it ready all the time, and nobody else could give way."""
    slept: list[float] = []
    monkeypatch.setattr("splitlab.transports.admission.time.sleep", slept.append)

    class Crowded(socket.socket):
        def accept(self) -> Any:
            if len(slept) < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    def greet(connection: socket.socket, remote: str) -> admission.Steps[str]:
        with connection:
            return remote
        yield 0

    with Crowded() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        with socket.create_connection(bound.getsockname()) as client:
            came = admission.Reception(bound, str, greet).first(SOON, 5.0, pytest.fail)
            assert came == str(client.getsockname())
    assert slept == [0.05] * 3


def test_a_port_scan_is_told_and_forgotten(
    options: dict[str, Any], aside: ThreadPoolExecutor
) -> None:
    with Server(aside, **options) as server:
        for _ in range(20):
            with server.socket() as scan:
                scan.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.served(**options)
        assert all(line.startswith("tcp://127.0.0.1:") for line in server.away)
        assert all("the other end closed the connection" in line for line in server.away)


def test_handshakes_go_on_when_somebody_looks_again(
    secret: Callable[[str], str], aside: ThreadPoolExecutor
) -> None:
    """While a session judges the first client, the clock of the second one stands still."""
    file = secret(SECRET)
    away: list[str] = []
    listener = Tcp(secret_file=file).listen("tcp://127.0.0.1:0", device=CPU)
    hear: Callable[[], TcpLink] = lambda: listener.hear(  # noqa: E731
        SOON, opening=0.3, limits=Limits(), away=away.append
    )
    with closing(listener):
        first = aside.submit(_connect_and_speak, listener, file, "first")
        with closing(hear()) as link:
            assert link.receive(SOON).meta["run"] == "first"
        second = aside.submit(_connect_and_speak, listener, file, "second")
        time.sleep(0.4)  # longer than a handshake may take
        with closing(hear()) as link:
            assert link.receive(SOON).meta["run"] == "second"
    first.result().close()
    second.result().close()
    assert away == []


def _connect_and_speak(listener: TcpListener, file: str, words: str) -> TcpLink:
    link = Tcp(secret_file=file).connect(listener.address, device=CPU, timeout=SOON)
    link.send(Message(Kind.HELLO, meta={"run": words}), SOON)
    return link


def test_a_flood_does_not_keep_a_server_beyond_its_time() -> None:
    """Whenever it looks, somebody else has come."""
    away: list[str] = []

    def refuse(connection: socket.socket, remote: str) -> admission.Steps[None]:
        with connection:
            time.sleep(0.01)
            raise NetworkError("no")
        yield 0

    with ExitStack() as strangers, socket.create_server(("127.0.0.1", 0), backlog=64) as bound:
        for _ in range(60):
            strangers.enter_context(socket.create_connection(bound.getsockname()))
        with pytest.raises(TimeoutError):
            admission.Reception(bound, str, refuse).first(0.1, 5.0, away.append)
    assert 0 < len(away) < 30


# Where it listens.


def test_a_server_for_others_says_what_it_needs(secret: Callable[[str], str]) -> None:
    for host in ("0.0.0.0", "[::]"):
        with pytest.raises(ConfigError, match=r"--tls-ca .*--secret-file .*--insecure"):
            Tcp().listen(f"tcp://{host}:0", device=CPU)
    for given in ({"secret_file": secret(SECRET)}, {"insecure": True}):
        Tcp(**given).listen("tcp://0.0.0.0:0", device=CPU).close()  # type: ignore[arg-type]


def test_a_client_waits_only_as_long_as_it_was_told(secret: Callable[[str], str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(NetworkError, match=r"did not let this client in for 0\.3 s"):
            Tcp(secret_file=secret(SECRET)).connect(address, device=CPU, timeout=0.3)
        assert time.monotonic() - started < 2


def test_closing_ends_who_listens_in_another_thread() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as bound:
        reception = admission.Reception(bound, str, lambda connection, remote: iter(()))
        ended: list[BaseException] = []

        def listen() -> None:
            try:
                reception.first(60.0, 60.0, lambda line: None)
            except OSError as error:
                ended.append(error)

        listening = threading.Thread(target=listen)
        listening.start()
        time.sleep(0.02)
        reception.close()
        listening.join(5)
        assert not listening.is_alive()
        [error] = ended
        assert isinstance(error, OSError)
        reception.close()
        with pytest.raises(OSError, match="descriptor"):
            reception.first(60.0, 60.0, lambda line: None)


@pytest.mark.parametrize("lost", [2, 3])
def test_a_connection_that_ends_before_a_client_is_let_in_is_tried_again(
    lost: int, secret: Callable[[str], str], aside: ThreadPoolExecutor
) -> None:
    file = secret(SECRET)
    with closing(Tcp(secret_file=file).listen("tcp://127.0.0.1:0", device=CPU)) as listener:
        real, ended = listener._socket.accept, 0

        def accept() -> Any:
            nonlocal ended
            connection, where = real()
            if ended < lost:
                ended += 1
                connection.close()
                raise BlockingIOError
            return connection, where

        listener._reception._bound = SimpleNamespace(  # type: ignore[assignment]
            accept=accept, fileno=listener._socket.fileno
        )
        served = aside.submit(listener.accept, SOON)
        if lost < 3:
            with closing(
                Tcp(secret_file=file).connect(listener.address, device=CPU, timeout=SOON)
            ) as link:
                assert isinstance(link, TcpLink)
                served.result(SOON).close()
        else:
            with pytest.raises(NetworkError, match="before it let this client in"):
                Tcp(secret_file=file).connect(listener.address, device=CPU, timeout=SOON)
            listener.close()
            assert isinstance(served.exception(SOON), NetworkError)
        assert ended == lost
