"""A TCP connection as bytes with deadlines: what goes beside the links of gloo and NCCL.

It knows no frames. Every wait ends by its deadline, and whoever waits for something else meanwhile
asks `Channel.gone` whether the other end still lives.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable

from splitlab.core.contract.errors import NetworkError
from splitlab.transports.address import Address
from splitlab.transports.admission import complete, held
from splitlab.transports.proof import Exchange
from splitlab.transports.tcp import bind, dial

__all__ = ["Channel", "Door", "sent_nothing", "took_nothing"]

_MAX_BUFFERS = os.sysconf("SC_IOV_MAX")
_HUNG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)  # the last is Linux's


class Channel:
    """One end of a connection.

    Args:
        connection: as it was accepted or dialled.
        remote: who is at the other end, for error messages.

    Attributes:
        remote: as the argument.
        hosts: numbers of the own end and of the other one.
    """

    def __init__(self, connection: socket.socket, remote: str) -> None:
        # What is said here is short, and is always waited for.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.remote = remote
        self.hosts: tuple[str, str] = (connection.getsockname()[0], connection.getpeername()[0])
        self._socket = connection
        self._end = select.poll()
        self._end.register(connection, _HUNG_UP)

    @classmethod
    def to(cls, address: Address, timeout: float) -> Channel:
        """Return a channel to who listens there; errors of `splitlab.transports.tcp.dial`."""
        return cls(dial(address, timeout), str(address))

    def send(self, buffers: list[memoryview], timeout: float, silence: str = "") -> None:
        """Send all of the buffers.

        Args:
            buffers: bytes.
            timeout: seconds without progress.
            silence: what a wait in vain means; that the other end took nothing, by default.
        """
        try:
            self._socket.settimeout(timeout)
            while buffers:
                sent = self._socket.sendmsg(buffers[:_MAX_BUFFERS])
                while buffers and sent >= len(buffers[0]):
                    sent -= len(buffers[0])
                    buffers = buffers[1:]
                if sent:
                    buffers = [buffers[0][sent:], *buffers[1:]]
        except (OSError, ValueError) as error:
            raise self._blame(error, silence or took_nothing(timeout)) from None

    def receive(self, count: int, timeout: float, silence: str = "") -> bytearray:
        """Return so many bytes; arguments as `receive_into`."""
        memory = bytearray(count)
        self.receive_into(memoryview(memory), timeout, silence)
        return memory

    def receive_into(self, memory: memoryview, timeout: float, silence: str = "") -> None:
        """Fill the memory.

        Args:
            memory: bytes.
            timeout: seconds without progress.
            silence: what a wait in vain means; that the other end sent nothing, by default.
        """
        try:
            self._socket.settimeout(timeout)
            while memory:
                count = self._socket.recv_into(memory)
                if count == 0:
                    raise ConnectionResetError
                memory = memory[count:]
        except (OSError, ValueError) as error:
            raise self._blame(error, silence or sent_nothing(timeout)) from None

    def hold(self, exchange: Exchange, timeout: float, silence: str = "") -> None:
        """Hold an exchange such as `splitlab.transports.proof.judge`; arguments as `receive_into`.

        Args:
            exchange: what is said.
            timeout: seconds for all of it.
            silence: as there.
        """
        try:
            self._socket.setblocking(False)
            complete(self._socket.fileno(), held(self._socket, exchange), timeout)
        except (OSError, ValueError) as error:
            raise self._blame(error, silence or sent_nothing(timeout)) from None

    def gone(self) -> bool:
        """Return whether the other end has closed, or this one; at once, whatever is unread."""
        return self._socket.fileno() < 0 or bool(self._end.poll(0))

    def fails(self, what: str) -> NetworkError:
        """Return the error that says what happened to this connection."""
        return NetworkError(f"{self.remote}: {what}")

    def closed(self) -> NetworkError:
        """Return the error of a connection that ended."""
        ours = self._socket.fileno() < 0
        return self.fails("this link is closed" if ours else "the other end closed the connection")

    def close(self) -> None:
        """Close the connection; what was sent is still delivered."""
        self._socket.close()

    def _blame(self, error: Exception, silence: str) -> NetworkError:
        if self._socket.fileno() < 0 or isinstance(error, ConnectionError):
            return self.closed()
        if isinstance(error, (TimeoutError, BlockingIOError)):
            return self.fails(silence)
        return self.fails(getattr(error, "strerror", None) or str(error))


def took_nothing(timeout: float) -> str:
    """Say what it means that a message was sent in vain."""
    return f"the other end took nothing for {timeout:g} s"


def sent_nothing(timeout: float) -> str:
    """Say what it means that a message was awaited in vain."""
    return f"the other end sent nothing for {timeout:g} s"


class Door:
    """A port at which others knock.

    Args:
        address: where to listen; port 0 stands for any free one.
        check: as of `splitlab.transports.tcp.bind`.

    Raises:
        NetworkError: it is in use, or unknown.
    """

    def __init__(self, address: Address, check: Callable[[Address, str], None]) -> None:
        self._socket = bind(address, check)
        self.address = address._replace(port=self._socket.getsockname()[1])

    def take(self, deadline: float, remote: str) -> Channel | None:
        """Return a channel to who knocks next, or None if nobody does by the deadline.

        Args:
            deadline: of `time.monotonic`.
            remote: of the channel.
        """
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._socket.settimeout(left)
                connection = self._socket.accept()[0]
            except TimeoutError:
                break
            except OSError:
                raise NetworkError(f"{self.address}: this listener is closed") from None
            try:
                return Channel(connection, remote)
            except OSError:  # it is gone already
                connection.close()
        return None

    def close(self) -> None:
        """Free the port."""
        self._socket.close()
