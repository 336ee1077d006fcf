"""Two processes or two machines over TCP.

Both ways wait in the kernel, with its deadlines (``SO_RCVTIMEO``, ``SO_SNDTIMEO``): a poll before
every call would cost more than the call. The kernel counts all waits of one call, whether something
moved or not: a peer that falls silent amid a frame is found out after one deadline, two at most.

Nothing here authenticates the other end or hides the data: listen on loopback or in a network that
you trust.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Literal

import torch

from splitlab.core.contract.errors import NetworkError
from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Message
from splitlab.core.wire.checksum import Sum, packed
from splitlab.core.wire.decode import InMemory, Reader
from splitlab.core.wire.encode import Frame, encode
from splitlab.transports.address import Address
from splitlab.transports.staging import CudaCopies, Staging

__all__ = ["Tcp", "TcpLink", "TcpListener", "bind", "dial"]

_RETRY_SECONDS = 0.05
# Waking a sleeping core costs more than a small message: about 100 µs in a virtual machine.
_SPIN_SECONDS = 300e-6
_MAX_BUFFERS = os.sysconf("SC_IOV_MAX")


class Tcp:
    """Frames on a TCP stream (a `splitlab.core.contract.link.NetworkTransport`).

    Args:
        nodelay: whether a message leaves at once; otherwise the kernel may hold its tail back until
            what was sent before is acknowledged (Nagle's algorithm), which saves packets.
    """

    place: Literal["beside"] = "beside"
    default_address = "tcp://127.0.0.1:0"

    def __init__(self, *, nodelay: bool = True) -> None:
        self._nodelay = nodelay

    def unavailable(self) -> str | None:
        """Return None: it works everywhere."""
        return None

    def launched(self) -> None:
        """Return None: no launcher starts TCP peers."""
        return None

    def listen(self, address: str, *, device: torch.device) -> TcpListener:
        """Bind exactly the host and port of the address."""
        parsed = Address.parse(address, "tcp")
        bound = bind(parsed)
        address = str(parsed._replace(port=bound.getsockname()[1]))
        return TcpListener(bound, address, nodelay=self._nodelay, device=device)

    def connect(self, address: str, *, device: torch.device, timeout: float) -> TcpLink:
        """Connect, waiting for a server that is not there yet."""
        parsed = Address.parse(address, "tcp")
        connection = dial(parsed, timeout)
        return TcpLink(connection, str(parsed), nodelay=self._nodelay, device=device)


class TcpListener:
    """A bound port (a `splitlab.core.contract.link.Listener`)."""

    def __init__(
        self, bound: socket.socket, address: str, *, nodelay: bool, device: torch.device
    ) -> None:
        self.address = address
        self._socket = bound
        self._nodelay = nodelay
        self._device = device

    def accept(self, timeout: float) -> TcpLink:
        """Return the link to the peer that connects first."""
        try:
            self._socket.settimeout(timeout)
            connection, where = self._socket.accept()
        except TimeoutError:
            raise NetworkError(
                f"no client came to {self.address} in {timeout:g} s; "
                f"start one with `splitlab join {self.address}`"
            ) from None
        except OSError as error:
            reason = "this listener is closed" if self._socket.fileno() < 0 else error.strerror
            raise NetworkError(f"{self.address}: {reason}") from None
        remote = str(Address("tcp", where[0], where[1]))
        return TcpLink(connection, remote, nodelay=self._nodelay, device=self._device)

    def close(self) -> None:
        """Free the port."""
        self._socket.close()


class TcpLink:
    """One end of a connection (a `splitlab.core.contract.link.Link`).

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
        try:
            self._set_deadline(timeout)
            message = self._reader.take()
            while message is None:
                self._spin()
                count = self._socket.recv_into(self._reader.buffer())
                if count == 0:
                    raise ConnectionResetError
                message = self._reader.advance(count)
            return message
        except OSError as error:
            raise self._blame(error, f"sent nothing for {timeout:g} s") from None

    def close(self) -> None:
        """Close the connection; what was sent is still delivered."""
        self._socket.close()

    def _buffers(self, frame: Frame) -> Iterator[list[memoryview]]:
        """Yield what is to be sent, in lists; each must be sent before the next is asked for."""
        if self._staging is None or not self._staging.serves(frame.tensors):
            yield from frame.pieces()
            return
        found, head = Sum(), [memoryview(frame.head)]
        for chunk in self._staging.outgoing(frame.tensors):
            found.update(chunk)
            yield [*head, chunk]
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
        if isinstance(error, BlockingIOError):
            return NetworkError(f"{self.remote}: the other end {silence}")
        if isinstance(error, ConnectionError):
            return NetworkError(f"{self.remote}: the other end closed the connection")
        reason = "this link is closed" if self._socket.fileno() < 0 else error.strerror
        return NetworkError(f"{self.remote}: {reason}")


def bind(address: Address) -> socket.socket:
    """Return a socket that listens on exactly this host and port, or raise `NetworkError`."""
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise NetworkError(f"cannot listen on {address}: {error.strerror}") from None
    try:
        # A restarted server gets its port back at once; two servers still cannot share it.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen()
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
        except (ConnectionRefusedError, TimeoutError):
            time.sleep(min(_RETRY_SECONDS, remaining))
            continue
        except OSError as error:
            raise NetworkError(f"cannot reach {address}: {error.strerror}") from None
        # On loopback, a port that is free may be lent to the very socket that looks for it.
        if connection.getsockname() != connection.getpeername():
            return connection
        connection.close()
    raise NetworkError(
        f"no server at {address} after {timeout:g} s; start one with "
        f"`splitlab serve --address {address}` (one that has its client takes no other)"
    )
