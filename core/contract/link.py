"""The contract of a link between the two peers, and of the transports that make links.

A transport is a class named in ``registry.toml`` (or by an entry point of the group
``splitlab.transports``), built without arguments. It moves frames of `splitlab.core.wire.frame` and knows
neither hooks nor models. Every wait has a deadline. Blame, as in `splitlab.core.contract.errors`:
`ConfigError` for an address or device that cannot be used, `ProtocolError` for a frame that the
format does not allow, `NetworkError` for silence, loss of connection and addresses in use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.message import Message
from splitlab.core.catalogue.registry import entries, load
from splitlab.core.wire.frame import Limits

__all__ = ["Link", "Listener", "PairTransport", "Transport", "load_transport", "working_transports"]


class Link(Protocol):
    """One end of a connection between exactly two peers. Not thread-safe.

    After a `LinkError` a link is good for nothing but closing.

    Attributes:
        limits: what an incoming frame may declare; the session narrows it after the handshake.
        peer: who is at the other end, for error messages, such as ``"tcp://10.0.0.2:4711"``.
    """

    limits: Limits
    peer: str

    def send(self, message: Message, timeout: float) -> int:
        """Freeze the message, send it and return the bytes of its frame (``message.frame_bytes``).

        May wait until the other end receives.

        Args:
            message: tensors on any device; sent from the memory where they lie if they can be.
            timeout: seconds without progress after which `NetworkError` is raised.
        """
        ...

    def receive(self, timeout: float) -> Message:
        """Return the next message; `NetworkError` after ``timeout`` seconds without progress."""
        ...

    def close(self) -> None:
        """Release everything at once; allowed twice. The other end sees the connection end."""
        ...


class Listener(Protocol):
    """Waits for one peer.

    Attributes:
        address: where it really listens (a port 0 has become a number); what `connect` is given.
    """

    address: str

    def accept(self, timeout: float) -> Link:
        """Return the link to the first peer; `NetworkError` after ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Take no more peers. Links made before stay open, and may hold the port until closed."""
        ...


@runtime_checkable
class Transport(Protocol):
    """Makes links between two processes. The server listens, the client connects.

    The device is where the peer computes. Tensors arrive there if the transport reaches it by
    itself (NCCL), and in CPU memory otherwise.

    Attributes:
        default_address: where `listen` listens if no address is given; loopback, a free port.
    """

    default_address: str

    def unavailable(self) -> str | None:
        """Return why this transport cannot work on this machine, or None if it can."""
        ...

    def launched(self) -> tuple[Literal["client", "server"], str] | None:
        """Return (role, address) if a launcher such as torchrun started both peers, else None."""
        ...

    def listen(self, address: str, *, device: torch.device) -> Listener:
        """Bind the address at once; `NetworkError` if it is taken."""
        ...

    def connect(self, address: str, *, device: torch.device, timeout: float) -> Link:
        """Connect to a listener; a refused connection is tried again until the deadline."""
        ...


@runtime_checkable
class PairTransport(Protocol):
    """Makes both ends of a link in one process."""

    def unavailable(self) -> str | None:
        """Return why this transport cannot work on this machine, or None if it can."""
        ...

    def pair(self, serve: Callable[[], object] | None = None) -> tuple[Link, Link]:
        """Return (client end, server end).

        Args:
            serve: lets the server take one turn (receive one message, send the answer); called by
                the client end's `receive` when nothing has arrived. Without it each end belongs to
                a thread of its own.
        """
        ...


def load_transport(name: str) -> Transport | PairTransport:
    """Return a new transport of that name.

    Raises:
        ConfigError: no such name, or it cannot work on this machine: says what is missing and
            which transports work here.
    """
    transport: Transport | PairTransport = load("transports", name)()
    missing = transport.unavailable()
    if missing:
        works = ", ".join(working_transports()) or "none"
        raise ConfigError(f"transport {name!r} cannot be used here: {missing}; these can: {works}")
    return transport


def working_transports() -> list[str]:
    """Return the names of all transports that work on this machine."""
    found = []
    for name in entries("transports"):
        try:
            if load("transports", name)().unavailable() is None:
                found.append(name)
        except Exception:  # noqa: BLE001 (an outside package that is broken works nowhere)
            continue
    return sorted(found)
