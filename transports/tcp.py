"""Two processes or two machines over TCP.

Both ways wait in the kernel, with its deadlines (``SO_RCVTIMEO``, ``SO_SNDTIMEO``): a poll before
every call would cost more than the call. The kernel counts all waits of one call, whether something
moved or not: a peer that falls silent amid a frame is found out after one deadline, two at most.

With a certificate the stream is TLS 1.3's, by Python's ``ssl``, which does not know the kernel's
deadlines: the socket does not block then, and waits are polls. With a certificate or a secret a
connection begins as `splitlab.transports.proof` says; without, with the first frame. What TLS and
that beginning add crosses the network and stands in no ledger: that counts frames.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Literal

import torch

from splitlab.core.contract.errors import ConfigError, NetworkError, ProtocolError, RefusedError
from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Kind, Message
from splitlab.core.wire.checksum import Sum, packed
from splitlab.core.wire.decode import InMemory, Reader
from splitlab.core.wire.encode import Frame, encode
from splitlab.core.wire.layout import MAGIC
from splitlab.transports.address import Address
from splitlab.transports.admission import (
    FURTHER,
    Reception,
    Steps,
    complete,
    held,
    ready,
    trouble,
)
from splitlab.transports.proof import MAGIC as CLAIM
from splitlab.transports.proof import MAGIC_BYTES, NoOpening, claim, judge, refusal
from splitlab.transports.staging import CudaCopies, Staging
from splitlab.transports.trust import Trust

__all__ = ["Tcp", "TcpLink", "TcpListener", "TlsLink", "bind", "dial"]

_RETRY_SECONDS = 0.05
_TRIES = 3
"""Connections that may end before a server has let this client in."""
_LOST = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
# Waking a sleeping core costs more than a small message: about 100 µs in a virtual machine.
_SPIN_SECONDS = 300e-6
_MAX_BUFFERS = os.sysconf("SC_IOV_MAX")
_RECORD_BYTES = 1 << 14  # of TLS, at most
_TLS = b"\x16"  # what a handshake begins with
_OPENING_SECONDS = 10.0


class Tcp:
    """Frames on a TCP stream (a `splitlab.core.contract.link.NetworkTransport`).

    Args:
        nodelay: whether a message leaves at once; otherwise the kernel may hold its tail back until
            what was sent before is acknowledged (Nagle's algorithm), which saves packets.
        tls_cert, tls_key, tls_ca, secret_file, insecure: who may connect, as `Trust`. A server with
            a certificate, and a client with a CA, speak TLS.
    """

    place: Literal["beside"] = "beside"
    default_address = "tcp://127.0.0.1:0"

    def __init__(
        self,
        *,
        nodelay: bool = True,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        tls_ca: str | None = None,
        secret_file: str | None = None,
        insecure: bool = False,
    ) -> None:
        self._nodelay = nodelay
        self._trust = Trust(tls_cert, tls_key, tls_ca, secret_file, insecure)

    def unavailable(self) -> str | None:
        """Return None: it works everywhere."""
        return None

    def launched(self) -> None:
        """Return None: no launcher starts TCP peers."""
        return None

    def listen(self, address: str, *, device: torch.device) -> TcpListener:
        """Bind exactly the host and port of the address."""
        parsed = Address.parse(address, "tcp")
        self._trust.check_server()
        bound = bind(parsed, self._trust.check_host)
        address = str(parsed._replace(port=bound.getsockname()[1]))
        return TcpListener(bound, address, self._trust, nodelay=self._nodelay, device=device)

    def connect(self, address: str, *, device: torch.device, timeout: float) -> TcpLink:
        """Connect, waiting for a server that is not there yet, and to be let in."""
        parsed = Address.parse(address, "tcp")
        self._trust.check_client()
        deadline = time.monotonic() + timeout
        tries = 1
        while True:
            try:
                return self._admitted(parsed, device, deadline)
            except TimeoutError:
                told = f"the server there did not let this client in for {timeout:g} s"
                raise NetworkError(f"{parsed}: {told}; it may have another client") from None
            except _LOST as error:
                # The network may have cut it off, or a flood of others at the server.
                if tries == _TRIES or time.monotonic() > deadline - _RETRY_SECONDS:
                    told = trouble(error, client=True)
                    told += " before it let this client in; it may ask for TLS, or for a secret"
                    raise NetworkError(f"{parsed}: {told}") from None
                tries += 1
                time.sleep(_RETRY_SECONDS)
            except (RefusedError, OSError) as error:
                kind = NetworkError
                if isinstance(error, (RefusedError, ssl.SSLError)):
                    kind = RefusedError
                raise kind(f"{parsed}: {trouble(error, client=True)}") from None

    def _admitted(self, address: Address, device: torch.device, deadline: float) -> TcpLink:
        """Return a link to a server that let this client in."""
        connection = dial(address, max(0.1, deadline - time.monotonic()))
        if not self._trust.secured:
            return TcpLink(connection, str(address), nodelay=self._nodelay, device=device)
        connection.setblocking(False)
        steps = self._enter(connection, address, device)
        try:
            return complete(connection.fileno(), steps, max(0.1, deadline - time.monotonic()))
        finally:
            steps.close()

    def _enter(
        self, connection: socket.socket, address: Address, device: torch.device
    ) -> Steps[TcpLink]:
        """Do the client's part of the handshake."""
        with ExitStack() as failed:
            failed.callback(connection.close)
            binding, make, host = b"", TcpLink, address.host.partition("%")[0]
            if self._trust.client is not None:
                secured = self._trust.client.wrap_socket(
                    connection, server_hostname=host, do_handshake_on_connect=False
                )
                failed.callback(secured.close)
                yield from ready(secured.do_handshake, wants=select.POLLIN)
                # In TLS 1.3 a server looks at the client's certificate when the client is done.
                if not (yield from ready(secured.recv, 1, wants=select.POLLIN)):
                    raise ConnectionResetError
                binding = secured.getpeercert(binary_form=True) or b""
                connection, make = secured, TlsLink
            yield from held(connection, claim(self._trust.secret, binding))
            link = make(connection, str(address), nodelay=self._nodelay, device=device)
            failed.pop_all()
        return link


class TcpListener:
    """A bound port (a `splitlab.core.contract.link.PatientListener`)."""

    def __init__(
        self,
        bound: socket.socket,
        address: str,
        trust: Trust,
        *,
        nodelay: bool,
        device: torch.device,
    ) -> None:
        self.address = address
        self._socket = bound
        self._trust = trust
        self._binding = trust.certificate
        self._nodelay = nodelay
        self._device = device
        self._limits: Limits | None = None
        self._reception = Reception(bound, _name, self._greet)

    def accept(self, timeout: float) -> TcpLink:
        """Return the link to the peer that is let in first."""
        return self._first(timeout, _OPENING_SECONDS, None, lambda line: None)

    def hear(
        self, timeout: float, *, opening: float, limits: Limits, away: Callable[[str], None]
    ) -> TcpLink:
        """Return the link to the peer whose first message is whole first; see the contract."""
        return self._first(timeout, opening, limits, away)

    def close(self) -> None:
        """Free the port, from any thread: who listens in another one gets `NetworkError`."""
        self._reception.close()
        self._socket.close()

    def _first(
        self, timeout: float, opening: float, limits: Limits | None, away: Callable[[str], None]
    ) -> TcpLink:
        self._limits = limits
        try:
            return self._reception.first(timeout, opening, away)
        except TimeoutError:
            raise NetworkError(
                f"no client came to {self.address} in {timeout:g} s; "
                f"start one with `splitlab join {self.address}`"
            ) from None
        except (OSError, ValueError) as error:
            closed = self._reception.closed
            reason = "this listener is closed" if closed else getattr(error, "strerror", error)
            raise NetworkError(f"{self.address}: {reason}") from None

    def _look(self, connection: socket.socket) -> Steps[None]:
        """Tell by the first bytes who asks for more than this server, or for less, and say so."""
        peek = socket.MSG_PEEK
        began = yield from ready(connection.recv, MAGIC_BYTES, peek, wants=select.POLLIN)
        tls = self._trust.server is not None
        if tls and began in (MAGIC, CLAIM):
            if began == CLAIM:
                connection.send(refusal(tls))
            else:
                _tell(connection, "this server speaks TLS only; give --tls-ca FILE")
            raise NetworkError("it speaks no TLS: it has no --tls-ca")
        if not tls and began[:1] == _TLS:
            _tell(connection, "this server speaks no TLS")  # which TLS understands as far
            raise NetworkError("it speaks TLS, and this server does not: it has no --tls-cert")
        if not self._trust.secured and began == CLAIM:
            connection.send(refusal(tls))
            raise NetworkError("it gave a --secret-file, and this server has none")

    def _greet(self, connection: socket.socket, remote: str) -> Steps[TcpLink]:
        """Do the server's part of the handshake."""
        with ExitStack() as failed:
            failed.callback(connection.close)
            make = TcpLink
            if self._trust.secured or self._limits is not None:
                yield from self._look(connection)
            if self._trust.server is not None:
                secured = self._trust.server.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                failed.callback(secured.close)
                yield from ready(secured.do_handshake, wants=select.POLLIN)
                yield FURTHER
                yield from ready(secured.send, b"\0", wants=select.POLLOUT)
                connection, make = secured, TlsLink
            if self._trust.secured:
                try:
                    yield from held(connection, judge(self._trust.secret, self._binding))
                except NoOpening as error:
                    if error.began == MAGIC:
                        _tell(
                            connection,
                            "this server lets in who knows its secret; give the same "
                            "--secret-file FILE",
                        )
                    raise
                yield FURTHER
            link = make(connection, remote, nodelay=self._nodelay, device=self._device)
            if self._limits is not None:
                link.limits = self._limits
                yield from link.hear()
            failed.pop_all()
        return link


class TcpLink:
    """One end of a connection (a `splitlab.core.contract.link.SeverableLink`).

    Tensors of a GPU go by way of page-locked memory, in chunks; they arrive on the device of the
    peer if that is one, and in CPU memory otherwise.
    """

    def __init__(
        self, connection: socket.socket, remote: str, *, nodelay: bool, device: torch.device
    ) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(nodelay))
        self.remote = remote
        self._socket = connection
        self._staging = Staging(CudaCopies(device)) if device.type == "cuda" else None
        self._reader = Reader(land=self._staging.land if self._staging else InMemory)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._timeout = 0.0
        self._heard: Message | ProtocolError | None = None

    @property
    def limits(self) -> Limits:
        """What the next frame may declare."""
        return self._reader.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._reader.limits = limits

    def send(self, message: Message, timeout: float) -> int:
        """Send the message from where its tensors lie, or chunk by chunk from a GPU."""
        frame = encode(message)
        message.sent(frame.nbytes)
        try:
            self._set_deadline(timeout)
            for buffers in self._buffers(frame):
                while buffers:
                    buffers = self._send_some(buffers)
        except OSError as error:
            raise self._blame(error, f"took nothing for {timeout:g} s") from None
        return frame.nbytes

    def receive(self, timeout: float) -> Message:
        """Return the next message; large tensors were received straight into their memory."""
        if self._heard is not None:
            return self._recalled()
        try:
            self._set_deadline(timeout)
            message = self._reader.take()
            while message is None:
                self._spin()
                count = self._receive_some(self._reader.buffer())
                if count == 0:
                    raise ConnectionResetError
                message = self._reader.advance(count)
            return message
        except OSError as error:
            raise self._blame(error, f"sent nothing for {timeout:g} s") from None

    def hear(self) -> Steps[None]:
        """Take in the first message as it comes; `receive` returns it, or raises what is wrong."""
        try:
            while self._heard is None:
                count = yield from ready(self._at_hand, wants=select.POLLIN)
                if count == 0:
                    raise ConnectionResetError
                self._heard = self._reader.advance(count)
        except ProtocolError as error:
            self._heard = error

    def close(self) -> None:
        """Close the connection; what was sent is still delivered."""
        self._socket.close()

    def sever(self) -> None:
        """End the connection at once, from any thread."""
        with suppress(OSError):  # it has ended
            # Not TLS's own: it would let go what another thread may be in.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _recalled(self) -> Message:
        heard, self._heard = self._heard, None
        if isinstance(heard, ProtocolError):
            raise heard
        assert heard is not None
        return heard

    def _at_hand(self) -> int:
        """Receive what is there; `BlockingIOError` if nothing is."""
        return self._socket.recv_into(self._reader.buffer(), 0, socket.MSG_DONTWAIT)

    def _receive_some(self, buffer: memoryview) -> int:
        """Receive into the buffer, waiting for the first byte; return how many, 0 at the end."""
        return self._socket.recv_into(buffer)

    def _buffers(self, frame: Frame) -> Iterator[list[memoryview]]:
        """Yield what is to be sent, in lists; each must be sent before the next is asked for."""
        if self._staging is None or not self._staging.serves(frame.tensors):
            yield from frame.pieces()
            return
        found, head = Sum(), [memoryview(frame.head)]
        for chunk in self._staging.outgoing(frame.tensors):
            yield [*head, chunk]
            found.update(chunk)
            head = []
        yield [*head, memoryview(packed(found.intdigest()))]

    def _spin(self) -> None:
        """Look for an answer for a moment before sleeping in the kernel."""
        if self._readable.poll(0):
            return
        end = time.perf_counter() + _SPIN_SECONDS
        while not self._readable.poll(0) and time.perf_counter() < end:
            os.sched_yield()  # on a busy machine the other end may wait for this very core

    def _send_some(self, buffers: list[memoryview]) -> list[memoryview]:
        """Send what the kernel takes before the deadline; return the rest."""
        sent = self._socket.sendmsg(buffers[:_MAX_BUFFERS])
        for index, buffer in enumerate(buffers):
            if sent < len(buffer):
                return [buffer[sent:], *buffers[index + 1 :]]
            sent -= len(buffer)
        return []

    def _set_deadline(self, timeout: float) -> None:
        if timeout == self._timeout:
            return
        microseconds = max(1, round(timeout * 1e6))  # zero would mean forever
        value = struct.pack("@ll", *divmod(microseconds, 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        self._timeout = timeout

    def _blame(self, error: OSError, silence: str) -> NetworkError:
        if isinstance(error, (BlockingIOError, TimeoutError)):
            return NetworkError(f"{self.remote}: the other end {silence}")
        reason = "this link is closed" if self._socket.fileno() < 0 else trouble(error, client=None)
        return NetworkError(f"{self.remote}: {reason}")


class TlsLink(TcpLink):
    """One end of a connection under TLS; its socket does not block."""

    _socket: ssl.SSLSocket

    def __init__(self, connection: socket.socket, remote: str, **options: Any) -> None:
        super().__init__(connection, remote, **options)
        connection.setblocking(False)
        self._writable = select.poll()
        self._writable.register(connection, select.POLLOUT)

    def _buffers(self, frame: Frame) -> Iterator[list[memoryview]]:
        """Yield what is to be sent; what is small is put together, so that it is one record."""
        for buffers in super()._buffers(frame):
            put: list[memoryview] = []
            small: list[memoryview] = []
            for buffer in buffers:
                if len(buffer) < _RECORD_BYTES:
                    small.append(buffer)
                    continue
                put += [*_together(small), buffer]
                small = []
            yield [*put, *_together(small)]

    def _send_some(self, buffers: list[memoryview]) -> list[memoryview]:
        """Send the first buffer; OpenSSL returns when it has gone, or would wait."""
        first, *rest = buffers
        while True:
            try:
                sent = self._socket.send(first)
                return [first[sent:], *rest] if sent < len(first) else rest
            except ssl.SSLWantWriteError:
                if not self._writable.poll(self._timeout * 1000):
                    raise TimeoutError from None

    def _spin(self) -> None:
        """Do not look: a record that has come may be in OpenSSL's memory."""

    def _at_hand(self) -> int:
        return self._socket.recv_into(self._reader.buffer())

    def _receive_some(self, buffer: memoryview) -> int:
        """Receive one record, or all that a large buffer takes: a call returns one at most."""
        look, count = super()._spin, 0
        end = len(buffer) if len(buffer) >= _RECORD_BYTES else 1
        receive = self._socket.recv_into
        while count < end:
            try:
                more = receive(buffer[count:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not count:
                    look()
                if not self._readable.poll(self._timeout * 1000):
                    raise TimeoutError from None
                continue
            if not more:
                break  # the next call will see the end again
            count += more
        return count

    def _set_deadline(self, timeout: float) -> None:
        self._timeout = timeout


def _together(buffers: list[memoryview]) -> list[memoryview]:
    return [memoryview(b"".join(buffers))] if buffers else []


def _name(where: Any) -> str:
    return str(Address("tcp", where[0], where[1]))


def _tell(connection: socket.socket, why: str) -> None:
    """Tell a client that began with a frame, in a frame, why it is turned away."""
    said = b"".join(encode(Message(Kind.ERROR, meta={"error": why})).buffers())
    connection.send(said)  # the kernel has room for it, or the client is told nothing


def bind(address: Address, check: Callable[[Address, str], None]) -> socket.socket:
    """Return a socket that listens on exactly this host and port.

    Args:
        address: where.
        check: is called with the address and the number of its host before that, and may raise.

    Raises:
        NetworkError: it is in use, or unknown.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise NetworkError(f"cannot listen on {address}: {error.strerror}") from None
    try:
        check(address, str(where[0]))
        # A restarted server gets its port back at once; two servers still cannot share it.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen()
    except ConfigError:
        bound.close()
        raise
    except OSError as error:
        bound.close()
        raise NetworkError(
            f"cannot listen on {address}: {error.strerror}; "
            "choose another port, or port 0 for any free one"
        ) from None
    return bound


def dial(address: Address, timeout: float) -> socket.socket:
    """Return a connection; while nobody listens, try again until the deadline."""
    deadline = time.monotonic() + timeout
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((address.host, address.port), remaining)
            # On loopback, a port that is free may be lent to the very socket that looks for it.
            own = connection.getsockname() == connection.getpeername()
        except (ConnectionRefusedError, TimeoutError):
            time.sleep(min(_RETRY_SECONDS, remaining))
            continue
        except OSError as error:
            raise NetworkError(f"cannot reach {address}: {error.strerror}") from None
        if not own:
            return connection
        connection.close()
    raise NetworkError(
        f"no server at {address} after {timeout:g} s; start one with "
        f"`splitlab serve --address {address}` (one that has its client takes no other)"
    )
