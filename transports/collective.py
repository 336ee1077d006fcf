"""gloo between CPUs and NCCL between GPUs, each beside a TCP connection.

A frame's head goes by TCP, and so do its tensors if they are small (`BULK_BYTES` in all): two ranks
that share a GPU wait a time slice for every operation of NCCL's, whatever its size. Larger tensors
go as one operation of the library, from where they lie::

    sender                          receiver
    head, checksum  ── TCP ──>      judged by the limits, and memory taken
                    <── TCP ──      GO
    tensors         ═ library ═>    tensors
                    <── TCP ──      DONE

So nothing is begun that the other end does not await, and no end leaves before the other one has
all. An end that closes, dies or refuses is noticed by TCP. Neither library tells progress, so a
deadline holds for each arrow. Neither can go on after a failure, so the link closes itself.

The client is rank 0, the server rank 1. They meet at the server's address, or, for ``env://``, by
the store that torchrun hosts.

Who only knocks, such as a port scan, is never met. A client that fails while the group of the two
opens has spoilt it: `CollectiveListener.accept` says so, and does not try again.

gloo and NCCL encrypt nothing, and neither does the store by which gloo's ends find each other: use
them between machines that trust each other, in a network of their own. With a secret, who knocks
must prove to know it before any of that is begun, which keeps out who came by mistake, and nobody
who reaches the ports of the libraries. What arrives in CPU memory is held against the frame's
checksum; of tensors that NCCL brings from GPU to GPU there is none, and zeros go in its place.
"""

from __future__ import annotations

import os
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final, Literal, NamedTuple, Protocol, TypeVar

import torch

from splitlab.core.contract.errors import ConfigError, NetworkError, Notice, ProtocolError
from splitlab.core.contract.link import DEFAULT_LIMITS, Limits
from splitlab.core.contract.message import Message
from splitlab.core.wire.checksum import SUM_BYTES, packed, sum_of
from splitlab.core.wire.decode import (
    Header,
    Opening,
    assemble,
    check_tensors,
    parse_header,
    parse_opening,
)
from splitlab.core.wire.encode import encode
from splitlab.core.wire.layout import OPENING_BYTES, flat
from splitlab.transports.address import Address
from splitlab.transports.channel import Channel, Door, sent_nothing, took_nothing
from splitlab.transports.distributed import (
    TORCHRUN,
    GlooCarrier,
    check_torchrun,
    has_gloo,
    host_store,
    launched_rank,
    port_of,
    store_of,
    store_of_torchrun,
    translate,
)
from splitlab.transports.nccl import SHARES_A_GPU, NcclCarrier, loaded, unique_id_of
from splitlab.transports.proof import claim, judge
from splitlab.transports.trust import Trust, is_loopback

__all__ = ["BULK_BYTES", "CollectiveLink", "CollectiveListener", "Gloo", "Nccl"]

BULK_BYTES: Final = 2**16
"""Tensors of a frame that take more bytes than this go by the library, others by TCP.

About here the bytes begin to cost more, on their way through the CPU, than GO, DONE and the start
of an operation do.
"""

_T = TypeVar("_T")

_CLIENT, _SERVER = 0, 1
# Once both peers have come, opening their group is a matter of milliseconds, of seconds with NCCL.
_OPENING_SECONDS = 60.0
_GREETING_SECONDS = 10.0
_GREETING_BYTES = 512

# As long as what else may come at their place, the opening of a frame.
_GO = b"GO".ljust(OPENING_BYTES, b"\0")
_DONE = b"DONE".ljust(OPENING_BYTES, b"\0")


class Carrier(Protocol):
    """Moves the bytes of tensors to the other rank, when that one awaits them.

    Attributes:
        device: where tensors are sent from and arrive.
    """

    device: torch.device

    def ready(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the parts where they can be sent from, computed."""
        ...

    def allocate(self, size: int) -> torch.Tensor:
        """Return memory of so many bytes, flat, uint8; `RuntimeError` if there is none."""
        ...

    def send(
        self, parts: Sequence[torch.Tensor], timeout: float, silence: str
    ) -> Callable[[], None]:
        """Begin to send parts (flat, uint8); return what waits, when the other end has all.

        Both may raise `NetworkError`, of this text if time is up.
        """
        ...

    def receive(self, parts: Sequence[torch.Tensor], timeout: float, silence: str) -> None:
        """Receive into the parts, as many and as long as are sent; errors as `send`."""
        ...

    def close(self) -> None:
        """Release everything, without the other rank; allowed twice."""
        ...


class _Arrived(NamedTuple):
    """A frame as far as it came by TCP; without tensors if they go by the library."""

    opening: Opening
    header: Header
    data: torch.Tensor | None
    total: bytearray


class CollectiveLink:
    """One end of a group of two (a `splitlab.core.contract.link.Link`).

    Args:
        channel: to the other end.
        carrier: of large tensors.
    """

    def __init__(self, channel: Channel, carrier: Carrier) -> None:
        self.limits: Limits = DEFAULT_LIMITS
        self.remote = channel.remote
        self._channel = channel
        self._carrier = carrier
        self._waiting: deque[_Arrived] = deque()

    @property
    def device(self) -> torch.device:
        """Where tensors arrive."""
        return self._carrier.device

    def send(self, message: Message, timeout: float) -> int:
        """Send the message; large tensors on other devices than the link's are copied there."""
        frame = encode(message)
        message.sent(frame.nbytes)
        with self._closed_by_failure():
            if frame.data_bytes <= BULK_BYTES:
                self._channel.send(frame.buffers(), timeout)
                return frame.nbytes
            silence = took_nothing(timeout)
            parts = self._carrier.ready([flat(tensor) for tensor in frame.tensors])
            total = packed(_sum_on_cpu(parts))
            self._channel.send([memoryview(frame.head), memoryview(total)], timeout)
            self._await(_GO, timeout, silence)
            end = self._carrier.send(parts, timeout, silence)
            self._await(_DONE, timeout, silence)
            end()
        return frame.nbytes

    def receive(self, timeout: float) -> Message:
        """Return the next message; its tensors lie in one allocation on the link's device."""
        with self._closed_by_failure():
            if self._waiting:
                opening, header, data, total = self._waiting.popleft()
            else:
                raw = self._channel.receive(OPENING_BYTES, timeout)
                opening, header, data, total = self._read(raw, timeout)
            if data is None:
                data = self._fetch(opening, header, timeout)
                if data.is_cpu:
                    check_tensors(opening, _sum_on_cpu([data]), total)
        tensors = [slot.in_tensor(data) for slot in header.slots]
        return assemble(opening, header, tensors)

    def close(self) -> None:
        """Leave the group; the other end hears of it first."""
        self._channel.close()
        self._carrier.close()

    @contextmanager
    def _closed_by_failure(self) -> Iterator[None]:
        try:
            yield
        except NetworkError:
            self.close()
            raise

    def _read(self, raw: bytes | bytearray, timeout: float) -> _Arrived:
        """Receive what goes by TCP of the frame that begins with these bytes."""
        opening = parse_opening(raw, self.limits)
        raw = self._channel.receive(opening.header_bytes, timeout)
        header = parse_header(raw, opening, self.limits)
        if opening.data_bytes > BULK_BYTES:
            return _Arrived(opening, header, None, self._channel.receive(SUM_BYTES, timeout))
        data = torch.empty(opening.data_bytes, dtype=torch.uint8)
        if opening.data_bytes:
            self._channel.receive_into(data.numpy().data, timeout)
        total = self._channel.receive(SUM_BYTES, timeout)
        check_tensors(opening, _sum_on_cpu([data]), total)
        return _Arrived(opening, header, data.to(self._carrier.device), total)

    def _fetch(self, opening: Opening, header: Header, timeout: float) -> torch.Tensor:
        """Receive the tensors that the other end holds ready."""
        try:
            data = self._carrier.allocate(opening.data_bytes)
        except RuntimeError:
            raise ProtocolError(
                f"the other end's frame declares {opening.data_bytes} bytes of tensors, "
                f"more than can be allocated on {self._carrier.device}"
            ) from None
        places = sorted((slot.begin, slot.end) for slot in header.slots if slot.end > slot.begin)
        parts = [data[begin:end] for begin, end in places]
        self._channel.send([memoryview(_GO)], timeout)
        self._carrier.receive(parts, timeout, sent_nothing(timeout))
        self._channel.send([memoryview(_DONE)], timeout)
        return data

    def _await(self, word: bytes, timeout: float, silence: str) -> None:
        """Return when the other end says the word; frames sent before wait for `receive`."""
        while (raw := self._channel.receive(OPENING_BYTES, timeout, silence)) != word:
            self._waiting.append(self._read(raw, timeout))


def _sum_on_cpu(parts: Sequence[torch.Tensor]) -> int:
    """Return the checksum of flat parts; of those on a GPU, which nothing sums up, 0."""
    return sum_of([part.numpy().data for part in parts]) if parts[0].is_cpu else 0


class _Stranger(NetworkError):
    """Who came does not speak as a client does."""


class CollectiveListener:
    """A port that waits for clients (a `splitlab.core.contract.link.Listener`)."""

    def __init__(self, transport: _Collective, device: torch.device, door: Door | None) -> None:
        self.address = TORCHRUN if door is None else str(door.address)
        self._transport = transport
        self._device = device
        self._door = door

    def accept(self, timeout: float) -> CollectiveLink:
        """Return the link to the next client; opening it may take as long again, at most 60 s."""
        if self._door is None:
            return _meet_by_torchrun(self._transport, _SERVER, self._device, timeout)
        silence = f"no client came in {timeout:g} s; start one with `splitlab join {self.address}`"
        return self._transport.welcome(self._door, self._device, timeout, silence)

    def close(self) -> None:
        """Free the port."""
        if self._door is not None:
            self._door.close()


class _Collective(ABC):
    """How the peers meet."""

    place: Literal["beside"] = "beside"
    scheme: str

    def __init__(self, *, secret_file: str | None = None, insecure: bool = False) -> None:
        self._trust = Trust(secret_file=secret_file, insecure=insecure)

    @property
    def default_address(self) -> str:
        """Loopback, a free port."""
        return f"{self.scheme}://127.0.0.1:0"

    def launched(self) -> tuple[Literal["client", "server"], str] | None:
        """Return (role, ``env://``) if torchrun started this process."""
        rank = launched_rank()
        if rank is None:
            return None
        return "client" if rank == str(_CLIENT) else "server", TORCHRUN

    def listen(self, address: str, *, device: torch.device) -> CollectiveListener:
        """Bind the address; with ``env://`` only check what torchrun has set."""
        self._check_device(device)
        if address == TORCHRUN:
            check_torchrun(_SERVER)
            return CollectiveListener(self, device, None)
        door = Door(Address.parse(address, self.scheme), self._check_host)
        return CollectiveListener(self, device, door)

    def connect(self, address: str, *, device: torch.device, timeout: float) -> CollectiveLink:
        """Meet the listener, waiting for one that is not there yet."""
        self._check_device(device)
        if address == TORCHRUN:
            return _meet_by_torchrun(self, _CLIENT, device, timeout)
        silence = f"the server accepted nobody for {timeout:g} s"
        return self.visit(Address.parse(address, self.scheme), device, timeout, silence)

    def visit(
        self, address: Address, device: torch.device, timeout: float, silence: str
    ) -> CollectiveLink:
        """Return the client's end of a link to who listens there."""
        deadline = time.monotonic() + timeout
        channel = Channel.to(address, timeout)
        if self._trust.secured:
            try:
                channel.hold(claim(self._trust.secret, b""), _left(deadline), silence)
            except NetworkError as error:
                channel.close()
                raise channel.fails(str(error).removeprefix(f"{channel.remote}: ")) from None
        return self._link(channel, _CLIENT, device, _left(deadline), silence)

    def welcome(
        self, door: Door, device: torch.device, timeout: float, silence: str
    ) -> CollectiveLink:
        """Return the server's end of a link to the next client that knocks."""
        deadline = time.monotonic() + timeout
        opening = min(timeout, _OPENING_SECONDS)
        while (channel := door.take(deadline, f"the client of {door.address}")) is not None:
            try:
                late = f"the other end did not come in {opening:g} s"
                self._prove(channel, min(opening, _GREETING_SECONDS))
                return self._link(channel, _SERVER, device, opening, late)
            except _Stranger:
                continue
        raise NetworkError(f"{door.address}: {silence}")

    def _prove(self, channel: Channel, timeout: float) -> None:
        """Let who came prove that it knows the secret, or raise `_Stranger`."""
        if self._trust.secured:
            try:
                channel.hold(judge(self._trust.secret, b""), timeout)
            except NetworkError as error:
                channel.close()
                raise _Stranger(str(error)) from None

    def _check_host(self, address: Address, number: str) -> None:
        self._trust.check_host(address, number)
        self.warn(address, number)

    def warn(self, address: Address, number: str) -> None:
        """Say in a `Notice` what an address means that others can reach."""
        if not is_loopback(number):
            warnings.warn(
                f"{self.scheme} encrypts nothing and checks nothing that arrives; {address} is for "
                "a network that you trust (tcp has TLS)",
                Notice,
                stacklevel=2,
            )

    def _link(
        self, channel: Channel, rank: int, device: torch.device, timeout: float, silence: str
    ) -> CollectiveLink:
        try:
            return CollectiveLink(channel, self._open(channel, rank, device, timeout, silence))
        except RuntimeError as error:
            channel.close()
            raise translate(channel.remote, error, silence) from None
        except (NetworkError, ProtocolError):
            channel.close()
            raise

    @abstractmethod
    def _open(
        self, channel: Channel, rank: int, device: torch.device, timeout: float, silence: str
    ) -> Carrier:
        """Return what carries tensors to the other rank; `RuntimeError` is the library's."""

    def _invite(self, channel: Channel, invitation: str, timeout: float) -> None:
        """Say to who came where the server waits, and raise `_Stranger` if it does not answer."""
        greeting = f"splitlab {self.scheme} {invitation}".encode().ljust(_GREETING_BYTES)
        seconds = min(timeout, _GREETING_SECONDS)
        try:
            channel.send([memoryview(greeting)], seconds)
            answer = channel.receive(_GREETING_BYTES, seconds)
        except NetworkError as error:
            raise _Stranger(str(error)) from None
        if bytes(answer) != greeting:
            raise _Stranger(f"{channel.remote}: {bytes(answer)[:8]!r} is no greeting")

    def _invitation(
        self, channel: Channel, read: Callable[[str], _T], timeout: float, silence: str
    ) -> _T:
        """Return where the server waits, as ``read`` makes it of a word."""
        greeting = channel.receive(_GREETING_BYTES, timeout, silence)
        try:
            name, scheme, word = greeting.decode().split()
            if (name, scheme) != ("splitlab", self.scheme):
                raise ValueError
            invitation = read(word)
        except ValueError:
            raise ProtocolError(
                f"{channel.remote}: who listens there is no {self.scheme} server of splitlab's; "
                "both peers must name the same transport"
            ) from None
        channel.send([memoryview(greeting)], timeout)
        return invitation

    def _check_device(self, device: torch.device) -> None:  # noqa: B027  gloo serves them all
        """Refuse a device that this library cannot serve."""


class Gloo(_Collective):
    """Frames by TCP and gloo between CPUs, in a network that you trust.

    A `splitlab.core.contract.link.NetworkTransport`.

    Args:
        secret_file, insecure: who may connect, as `splitlab.transports.trust.Trust`.
    """

    scheme = "gloo"

    def unavailable(self) -> str | None:
        """Return why gloo cannot work here, or None."""
        return None if has_gloo() else f"torch {torch.__version__} is built without gloo"

    def _open(
        self, channel: Channel, rank: int, device: torch.device, timeout: float, silence: str
    ) -> Carrier:
        own, other = channel.hosts
        if rank == _SERVER:
            store, port = host_store(own)
            self._invite(channel, str(port), timeout)
        else:
            port = self._invitation(channel, port_of, timeout, silence)
            store = store_of(other, port, timeout)
        return GlooCarrier(channel, store, rank, timeout)


class Nccl(_Collective):
    """Frames by TCP and NCCL between GPUs, in a network that you trust.

    A `splitlab.core.contract.link.NetworkTransport`. Each peer has a GPU of its own, or both share
    one, which NCCL allows from version 2.30 on.

    Args:
        secret_file, insecure: who may connect, as `splitlab.transports.trust.Trust`.
    """

    scheme = "nccl"

    def unavailable(self) -> str | None:
        """Return why NCCL cannot work here, or None."""
        if not torch.cuda.is_available():
            return "NCCL needs a CUDA GPU, and torch finds none"
        library = loaded()
        if library is None:
            return f"torch {torch.__version__} came without NCCL (libnccl.so.2)"
        version = library.version()
        alone = os.environ.get("LOCAL_WORLD_SIZE") == "1"  # torchrun puts the other peer elsewhere
        if torch.cuda.device_count() == 1 and version < SHARES_A_GPU and not alone:
            found = ".".join(map(str, version))
            return (
                f"two peers can share the one GPU from NCCL 2.30 on, and NCCL {found} is loaded; "
                "a newer libnccl.so.2 in LD_PRELOAD takes its place"
            )
        return None

    def _open(
        self, channel: Channel, rank: int, device: torch.device, timeout: float, silence: str
    ) -> Carrier:
        library = loaded()
        assert library is not None  # or `unavailable` has said so
        if rank == _SERVER:
            status, unique_id = library.unique_id()
            if status:
                raise channel.fails(f"NCCL: {library.says(status, None)}")
            self._invite(channel, unique_id.hex(), timeout)
        else:
            unique_id = self._invitation(channel, unique_id_of, timeout, silence)
        return NcclCarrier(library, channel, rank, device, unique_id, timeout)

    def _check_device(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f"nccl moves tensors between GPUs, and this peer computes on {device}; "
                "choose --device cuda, or --transport gloo"
            )


def _meet_by_torchrun(
    transport: _Collective, rank: int, device: torch.device, timeout: float
) -> CollectiveLink:
    """Return this rank's end of a link; the server tells the client in torchrun's store where."""
    check_torchrun(rank)
    silence = f"the other end did not come in {timeout:g} s"
    deadline = time.monotonic() + timeout
    try:
        store, master = store_of_torchrun(timeout)
        if rank == _CLIENT:
            address = Address.parse(store.get("server").decode(), transport.scheme)
            return transport.visit(address, device, _left(deadline), silence)
        with closing(Channel.to(master, timeout)) as probe:  # the interface that leads there
            door = Door(Address(transport.scheme, probe.hosts[0], 0), transport.warn)
        with closing(door):
            store.set("server", str(door.address))
            return transport.welcome(door, device, _left(deadline), silence)
    except ValueError as error:
        raise ConfigError(f"torchrun's variables cannot be used: {error}") from None
    except RuntimeError as error:
        raise translate(TORCHRUN, error, silence) from None


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
