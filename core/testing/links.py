"""Both ends of a link in this process, each for a thread of its own where one may wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from types import ModuleType
from typing import Any

import torch

from splitlab.core.catalogue.links import load_transport, working_transports
from splitlab.core.catalogue.loading import load
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import ConfigError, SplitlabError, reason
from splitlab.core.contract.link import (
    InsideTransport,
    Link,
    Listener,
    NetworkTransport,
    PeerRole,
    Transport,
    WrappedLink,
)
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing.report import Failed, Skipped

__all__ = [
    "LATE",
    "SOON",
    "Carry",
    "Ends",
    "Network",
    "Wrap",
    "a_message",
    "both_ends",
    "joined",
    "one_of_each_kind",
]

CPU = torch.device("cpu")
SOON = 20.0
"""Seconds; a deadline that only what is broken reaches."""
LATE = 5.0
"""Seconds within which something that happens at once has happened, on a busy machine."""

Carry = Callable[[Message, bool], Message]
"""Takes a message to the other peer: up (True) or down."""

Wrap = Callable[[Link, PeerRole], Link]
"""Puts something around the end of a link that belongs to this peer."""


def a_message(kind: Kind = Kind.ACTIVATION, step: int = 7, **meta: Any) -> Message:
    """Make a message with something of everything: no dimension, no bytes, a transposed tensor."""
    made = Message(kind, step, training=step % 2 == 0, stacked=step % 3 == 0, meta=meta)
    made.elapsed_ns = 123_456_789
    made.put("side", torch.tensor(5, dtype=torch.uint8), Role.SIDE)
    made.put("activations", torch.arange(12.0).view(3, 4).t(), Role.PAYLOAD)
    made.put("targets", torch.arange(3), Role.TARGETS)
    made.put("nothing", torch.zeros(0, 4, dtype=torch.bfloat16), Role.SIDE)
    return made


@contextmanager
def both_ends(
    transport: Transport, device: torch.device = CPU
) -> Iterator[tuple[Link, Link, ThreadPoolExecutor]]:
    """Yield the client's end of a link, the server's, and a thread for one of them.

    Args:
        transport: makes the link.
        device: of both peers; ``cuda`` is the second GPU for the server, where there are two.
    """
    with ThreadPoolExecutor(1) as aside, ExitStack() as cleanup:
        if transport.place == "inside":
            client, server = transport.pair()
        else:
            listener = transport.listen(transport.default_address, device=_servers(device))
            cleanup.callback(listener.close)
            accepted = aside.submit(listener.accept, SOON)
            client = transport.connect(listener.address, device=device, timeout=SOON)
            cleanup.callback(client.close)
            server = accepted.result()
        cleanup.callback(client.close)
        cleanup.callback(server.close)
        yield client, server, aside


@contextmanager
def joined(name: str, device: torch.device = CPU) -> Iterator[Carry]:
    """Yield what carries messages over a link of this transport, both ends in this process."""
    with both_ends(load_transport(name), device) as (client, server, aside):

        def carry(message: Message, upward: bool) -> Message:
            sender, receiver = (client, server) if upward else (server, client)
            sending = aside.submit(sender.send, message, SOON)  # it may wait for the receiver
            arrived = receiver.receive(SOON)
            sending.result()
            return arrived

        yield carry


def one_of_each_kind() -> list[str]:
    """Return a transport inside of one process and one between two, as far as they work here.

    Each is the first in the catalogue that reaches the CPU.
    """
    found: dict[bool, str] = {}
    works = working_transports()
    for name in entries("transports"):
        if name in works:
            transport = load("transports", name)()
            if _device(transport) == CPU:
                found.setdefault(transport.place == "inside", name)
    return [found[inside] for inside in (True, False) if inside in found]


class Ends:
    """A link under test: whoever makes both of its ends.

    Args:
        factory: makes the transport.
        wrap: puts something around either end.
        slack: seconds that the wrapped ends may take longer.

    Attributes:
        soon: a deadline that only what is broken reaches.
        late: seconds within which something that happens at once has happened.
    """

    def __init__(
        self,
        factory: Callable[[], Transport],
        wrap: Wrap | None = None,
        slack: float = 0.0,
    ) -> None:
        self._factory = factory
        self._wrap = wrap
        self.soon = SOON + slack
        self.late = LATE + slack

    @contextmanager
    def both(self) -> Iterator[tuple[Link, Link, ThreadPoolExecutor]]:
        """Yield the client's end, the server's end, and a thread for one of them."""
        made = self._new()
        broken: list[Exception] = []
        with both_ends(made, _device(made)) as (client, server, aside), ExitStack() as cleanup:
            near, far = client, server
            if self._wrap is not None:
                near = self._wrap(client, "client")
                cleanup.callback(near.close)
                far = self._wrap(server, "server")
                cleanup.callback(far.close)
            try:
                yield _HangsUp(near, client, broken), _HangsUp(far, server, broken), aside
            except Exception as error:
                if broken:
                    raise Failed(f"send raises {reason(broken[0])}") from error
                raise

    def module(self) -> ModuleType:
        """Return the module of the transport."""
        return sys.modules[type(self._new()).__module__]

    def networked(self) -> Network:
        """Return a transport that listens and connects, with the device that it reaches."""
        made = self._new()
        if made.place == "inside":
            raise Skipped("both ends are made in one process")
        return Network(made, _device(made), self.soon)

    def paired(self) -> InsideTransport:
        """Return a transport that makes both ends."""
        made = self._new()
        if made.place != "inside":
            raise Skipped("its ends are made by listening and connecting")
        return made

    def _new(self) -> Transport:
        made = self._factory()
        if missing := made.unavailable():
            raise Skipped(missing)
        return made


class _HangsUp(WrappedLink):
    """Closes the bare link when a send breaks, so that who receives at the other end goes on."""

    def __init__(self, inside: Link, bare: Link, broken: list[Exception]) -> None:
        super().__init__(inside)
        self._bare = bare
        self._broken = broken

    def send(self, message: Message, timeout: float) -> int:
        try:
            return self.inside.send(message, timeout)
        except SplitlabError:
            raise
        except Exception as error:
            self._broken.append(error)
            self._bare.close()
            raise


class Network:
    """A transport that listens and connects, on its device."""

    def __init__(self, transport: NetworkTransport, device: torch.device, soon: float) -> None:
        self.default = transport.default_address
        self.scheme = self.default.partition(":")[0]
        self._transport = transport
        self._device = device
        self._soon = soon

    def listen(self, address: str | None = None) -> Listener:
        """Listen there, by default at a free port."""
        device = _servers(self._device)
        return self._transport.listen(address or self.default, device=device)

    def connect(self, address: str, timeout: float | None = None) -> Link:
        """Connect to a listener."""
        wait = self._soon if timeout is None else timeout
        return self._transport.connect(address, device=self._device, timeout=wait)

    def free_address(self) -> str:
        """Return an address where nobody listens."""
        with closing(self.listen()) as listener:
            return listener.address


def _device(transport: Transport) -> torch.device:
    """Return where a peer of this transport computes: on the CPU, if its link reaches that."""
    if transport.place != "inside":
        try:
            transport.listen(transport.default_address, device=CPU).close()
        except ConfigError:
            return torch.device("cuda")
    return CPU


def _servers(device: torch.device) -> torch.device:
    """Return where the server computes if the peers are told to compute there."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", 1 % torch.cuda.device_count())
    return device
