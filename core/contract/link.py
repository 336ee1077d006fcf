"""The contract of a link between two peers, of the transports that make links, and of wrappers.

A transport is a class named in ``registry.toml`` (or by an entry point of the group
``splitlab.transports``, or as ``FILE.py:Class``); its constructor's parameters are its settings. It
moves messages as frames and knows neither hooks nor models. Every wait has a deadline. Blame, as in
`splitlab.core.contract.errors`: `ConfigError` for an address or device that cannot be used,
`ProtocolError` for a frame that the format does not allow, `NetworkError` for silence, loss of
connection and addresses in use.

A link wrapper stands around any link and passes on what it does not change: it delays, loses,
shapes or watches. It is named the same way (``[links.NAME]``, group ``splitlab.links``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import torch

from splitlab.core.contract.message import Message

__all__ = [
    "DEFAULT_LIMITS",
    "InsideTransport",
    "Limits",
    "Link",
    "LinkWrapper",
    "Listener",
    "NetworkTransport",
    "PatientListener",
    "PeerRole",
    "SeverableLink",
    "TimedWrapper",
    "Transport",
    "WrappedLink",
]

PeerRole = Literal["client", "server"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an incoming frame may declare; see `splitlab.core.wire`."""

    frame_bytes: int = 2**31
    header_bytes: int = 2**20
    tensors: int = 1024
    dimensions: int = 8
    name_length: int = 128


DEFAULT_LIMITS: Final = Limits()


class Link(Protocol):
    """One end of a connection between exactly two peers. Not thread-safe.

    After a `LinkError` a link is good for nothing but closing.

    Attributes:
        limits: what an incoming frame may declare; the session narrows it after the handshake.
        remote: who is at the other end, for error messages, such as ``"tcp://10.0.0.2:4711"``.
    """

    limits: Limits

    @property
    def remote(self) -> str:
        """Who is at the other end."""
        ...

    def send(self, message: Message, timeout: float) -> int:
        """Send the message, mark it as sent (`Message.sent`) and return the bytes of its frame.

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


class SeverableLink(Link, Protocol):
    """A link that another one to the same `PatientListener` may take the place of.

    A client that has one makes another connection when this one is lost.
    """

    def sever(self) -> None:
        """End the connection at once, from any thread: who waits at it gets `NetworkError`."""
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


class PatientListener(Listener, Protocol):
    """A listener that hears several at once: nobody who is no client uses it up or holds it up.

    A client whose connection is lost comes back to it, for which it is listened at in a thread;
    `close` from another one ends that.
    """

    def hear(
        self, timeout: float, *, opening: float, limits: Limits, away: Callable[[str], None]
    ) -> SeverableLink:
        """Return the link to the peer whose first message is there first, whole.

        What follows its arrival, `Link.receive` returns at once, or raises. The others go on when
        this is called again.

        Args:
            timeout: seconds to wait; then `NetworkError`.
            opening: seconds that one of them may take for all up to its first message.
            limits: of that message.
            away: is told in a line of everybody who was let go for another reason.
        """
        ...


class NetworkTransport(Protocol):
    """Makes links between two processes. The server listens, the client connects.

    The device is where the peer computes. Tensors arrive there if the transport reaches it by
    itself (NCCL, and TCP a GPU), and in CPU memory otherwise; `Message.to` moves them.

    Attributes:
        place: says that the server is a process beside the client's, or elsewhere.
        default_address: where `listen` listens if no address is given; loopback, a free port.
    """

    @property
    def place(self) -> Literal["beside"]:
        """Say that the server is a process of its own."""
        ...

    @property
    def default_address(self) -> str:
        """Say where `listen` listens if no address is given."""
        ...

    def unavailable(self) -> str | None:
        """Return why this transport cannot work on this machine, or None if it can."""
        ...

    def launched(self) -> tuple[PeerRole, str] | None:
        """Return (role, address) if a launcher such as torchrun started both peers, else None."""
        ...

    def listen(self, address: str, *, device: torch.device) -> Listener:
        """Bind the address at once; `NetworkError` if it is taken."""
        ...

    def connect(self, address: str, *, device: torch.device, timeout: float) -> Link:
        """Connect to a listener; a refused connection is tried again until the deadline."""
        ...


class InsideTransport(Protocol):
    """Makes both ends of a link in one process.

    Tensors arrive on the device that they were sent from, or in CPU memory; `Message.to` moves them
    to where the receiver computes.

    Attributes:
        place: says that the server is inside of the client's process.
    """

    @property
    def place(self) -> Literal["inside"]:
        """Say that the server is in the client's process."""
        ...

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


Transport = NetworkTransport | InsideTransport
"""A transport says itself, by its ``place``, how its server comes to be."""


class LinkWrapper(Protocol):
    """Stands around links; one instance for each end, built with the user's settings."""

    def wrap(self, link: Link, role: PeerRole) -> Link:
        """Return a link that does what the wrapper adds, and everything else as ``link`` does.

        Args:
            link: the end of a link, perhaps wrapped already; most wrappers return a subclass of
                `WrappedLink` made of it.
            role: of the peer at this end. Both ends are wrapped: what an end sends is its own to
                delay or lose.
        """
        ...


class TimedWrapper(LinkWrapper, Protocol):
    """A wrapper that can tell how long it takes, which ``splitlab estimate`` asks."""

    def seconds(self, role: PeerRole, frame_bytes: int, *purpose: str | int) -> float:
        """Return how long a frame is on its way, from the sender's first byte on.

        Args:
            role: of the peer that sends it.
            frame_bytes: its length.
            purpose: what random delays follow: the kind of its message, and the training step. The
                same purpose takes as long at every time.
        """
        ...


class WrappedLink:
    """Passes everything on to the link inside (a `Link`); subclasses change what they are for."""

    def __init__(self, inside: Link) -> None:
        self.inside = inside

    @property
    def limits(self) -> Limits:
        """What an incoming frame may declare."""
        return self.inside.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.inside.limits = limits

    @property
    def remote(self) -> str:
        """Who is at the other end."""
        return self.inside.remote

    def send(self, message: Message, timeout: float) -> int:
        """Send the message; see `Link.send`."""
        return self.inside.send(message, timeout)

    def receive(self, timeout: float) -> Message:
        """Return the next message; see `Link.receive`."""
        return self.inside.receive(timeout)

    def close(self) -> None:
        """Release everything; see `Link.close`."""
        self.inside.close()
