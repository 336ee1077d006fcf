"""torch.distributed point-to-point: gloo between CPUs, NCCL between GPUs.

The only module that imports ``torch.distributed``. Every link owns a process group of two ranks,
client 0 and server 1; there is no default group, so nothing is global. The peers meet in a store of
keys and values: the listener hosts it at its address, or, for ``env://``, torchrun does.

A frame travels as a tensor of `OPENING_BYTES`, the header, and then each tensor from where it lies.
gloo begins to send when the other end receives. Neither library tells progress, so a deadline holds
for each of these parts. Neither can go on after a failure or a deadline, so the link closes itself.

Who only talks to the store, such as a port scan, is never met. A client that fails while the group
of the two opens has spoilt it: `CollectiveListener.accept` says so, and does not try again.

Neither library authenticates the other end or checks what arrives below the frame: use them between
machines that trust each other.
"""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed

from splitlab.core.contract.errors import ConfigError, NetworkError, ProtocolError
from splitlab.core.contract.link import DEFAULT_LIMITS, Limits
from splitlab.core.contract.message import Message
from splitlab.core.wire.decode import assemble, parse_header, parse_opening
from splitlab.core.wire.encode import encode
from splitlab.core.wire.layout import OPENING_BYTES, flat
from splitlab.transports.address import Address
from splitlab.transports.tcp import bind, dial

__all__ = ["CollectiveLink", "CollectiveListener", "Gloo", "Nccl"]

dist: Any = torch.distributed  # its annotations leave out most of what is used here

_TORCHRUN = "env://"
_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
_CLIENT, _SERVER = 0, 1
# Once both peers have come to the store, opening their group is a matter of milliseconds.
_OPENING_SECONDS = 60.0


class CollectiveLink(ABC):
    """One end of a group of two (a `splitlab.core.contract.link.Link`).

    Args:
        store: where the two ranks find each other; nobody else uses its keys.
        rank: the own rank.
        device: the peer's device.
        interface: address of the own network interface; gloo's choice if None.
        remote: who is at the other end.
        timeout: seconds for opening the group.
    """

    device: torch.device
    """Where tensors are sent from and received."""

    def __init__(
        self,
        store: Any,
        rank: int,
        device: torch.device,
        interface: str | None,
        remote: str,
        timeout: float,
    ) -> None:
        self.limits: Limits = DEFAULT_LIMITS
        self.remote = remote
        self._other = 1 - rank
        store.set_timeout(timedelta(seconds=timeout))
        self._group: Any = self._open(store, rank, device, interface, timeout)

    def send(self, message: Message, timeout: float) -> int:
        """Send the message; tensors on other devices than the link's are copied there."""
        frame = encode(message)
        message.sent(frame.nbytes)
        head = torch.frombuffer(bytearray(frame.head), dtype=torch.uint8)
        parts = [head[:OPENING_BYTES], head[OPENING_BYTES:], *map(flat, frame.tensors)]
        parts = [part.to(self.device) for part in parts]
        self._move("send", parts, timeout, f"the other end took nothing for {timeout:g} s")
        return frame.nbytes

    def receive(self, timeout: float) -> Message:
        """Return the next message; its tensors lie in one allocation on the link's device."""
        opening = parse_opening(self._receive_bytes(OPENING_BYTES, timeout), self.limits)
        raw = self._receive_bytes(opening.header_bytes, timeout)
        header = parse_header(raw, opening, self.limits)
        data = self._allocate(opening.data_bytes)
        places = sorted((slot.begin, slot.end) for slot in header.slots if slot.end > slot.begin)
        self._receive_into([data[begin:end] for begin, end in places], timeout)
        return assemble(opening, header, [slot.in_tensor(data) for slot in header.slots])

    def close(self) -> None:
        """Leave the group: its connections and threads end with it."""
        self._group = None

    def _allocate(self, size: int) -> torch.Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        except RuntimeError:
            raise ProtocolError(
                f"the other end's frame declares {size} bytes of tensors, "
                f"more than can be allocated on {self.device}"
            ) from None

    def _receive_bytes(self, count: int, timeout: float) -> bytes:
        part = torch.empty(count, dtype=torch.uint8, device=self.device)
        self._receive_into([part], timeout)
        return part.cpu().numpy().tobytes()

    def _receive_into(self, parts: Sequence[torch.Tensor], timeout: float) -> None:
        self._move("recv", parts, timeout, f"the other end sent nothing for {timeout:g} s")

    def _move(
        self, operation: str, parts: Sequence[torch.Tensor], timeout: float, silence: str
    ) -> None:
        if self._group is None:
            raise NetworkError(f"{self.remote}: this link is closed")
        try:
            self._try(operation, parts, timeout)
            return
        except RuntimeError as error:
            failure = _translate(self.remote, error, silence)
        # Outside of the handler: the traceback of the library's error holds the connections open.
        self.close()
        raise failure

    def _try(self, operation: str, parts: Sequence[torch.Tensor], timeout: float) -> None:
        start = getattr(self._group, operation)
        works = [start([part], self._other, 0) for part in parts]
        for work in works:
            self._wait(work, timeout)

    @abstractmethod
    def _open(
        self,
        store: Any,
        rank: int,
        device: torch.device,
        interface: str | None,
        timeout: float,
    ) -> Any:
        """Set `device` and return the group."""

    @abstractmethod
    def _wait(self, work: Any, timeout: float) -> None:
        """Return when the work is done; `RuntimeError` if it failed, or was not done in time."""


class GlooLink(CollectiveLink):
    """Tensors lie in CPU memory."""

    def _open(
        self,
        store: Any,
        rank: int,
        device: torch.device,
        interface: str | None,
        timeout: float,
    ) -> Any:
        self.device = torch.device("cpu")
        limit = timedelta(seconds=timeout)
        if interface is None:
            return dist.ProcessGroupGloo(store, rank, 2, limit)
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=interface)]
        options._timeout = limit
        options._threads = 1  # for collective operations, which a link does not use
        return dist.ProcessGroupGloo(store, rank, 2, options)

    def _wait(self, work: Any, timeout: float) -> None:
        work.wait(timedelta(seconds=timeout))


class NcclLink(CollectiveLink):
    """Tensors lie on the peer's GPU."""

    def _open(
        self,
        store: Any,
        rank: int,
        device: torch.device,
        interface: str | None,
        timeout: float,
    ) -> Any:
        self.device = device
        # Left alone, torch's watchdog ends the whole process when it meets a failed or late work.
        # Deadlines are ours, so it shall look on.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
        if torch.cuda.device_count() == 1:
            os.environ.setdefault("NCCL_MULTI_RANK_GPU_ENABLE", "1")
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(days=365)
        self._group = group = dist.ProcessGroupNCCL(store, rank, 2, options)
        # NCCL connects at the first operation; both peers are known to be here only now.
        token = torch.zeros(1, dtype=torch.uint8, device=device)
        self._move(
            "send" if rank == _CLIENT else "recv", [token], timeout, "the other end did not come"
        )
        return group

    def _wait(self, work: Any, timeout: float) -> None:
        # `work.wait` would only tell the stream to wait, and a stream has no deadline.
        deadline = time.monotonic() + timeout
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise RuntimeError("timed out")
            time.sleep(2e-5)
        work.wait()

    def close(self) -> None:
        """Abort the communicator, which never waits for the other peer."""
        if self._group is not None:
            self._group.abort()
        super().close()


class CollectiveListener:
    """A store that waits for clients (a `splitlab.core.contract.link.Listener`).

    The store's port is free again when the listener and all links that met there are closed.
    """

    def __init__(
        self,
        link: type[CollectiveLink],
        address: str,
        device: torch.device,
        store: Any,
    ) -> None:
        self.address = address
        self._link = link
        self._device = device
        self._store = store
        self._turn = 1

    def accept(self, timeout: float) -> CollectiveLink:
        """Return the link to the next client."""
        if self.address == _TORCHRUN:
            return _meet_by_torchrun(self._link, _SERVER, self._device, timeout)
        if self._store is None:
            raise NetworkError(f"{self.address}: this listener is closed")
        silence = f"no client came in {timeout:g} s; start one with `splitlab join {self.address}`"
        store = dist.PrefixStore(f"link{self._turn}", self._store)
        try:
            store.wait(["interface"], timedelta(seconds=timeout))
            self._turn += 1
            interface = store.get("interface").decode()
            remote = f"the client of {self.address}"
            opening = min(timeout, _OPENING_SECONDS)
            return self._link(store, _SERVER, self._device, interface, remote, opening)
        except RuntimeError as error:
            raise _translate(self.address, error, silence) from None

    def close(self) -> None:
        """Take no more clients."""
        self._store = None


class _Collective:
    """How the peers meet."""

    place: Literal["beside"] = "beside"
    scheme: str
    link: type[CollectiveLink]

    @property
    def default_address(self) -> str:
        """Loopback, a free port."""
        return f"{self.scheme}://127.0.0.1:0"

    def launched(self) -> tuple[Literal["client", "server"], str] | None:
        """Return (role, ``env://``) if torchrun started this process."""
        if any(name not in os.environ for name in _VARIABLES):
            return None
        return "client" if os.environ["RANK"] == str(_CLIENT) else "server", _TORCHRUN

    def listen(self, address: str, *, device: torch.device) -> CollectiveListener:
        """Host the store at the address; with ``env://`` only check what torchrun has set."""
        self._check_device(device)
        if address == _TORCHRUN:
            _check_torchrun(_SERVER)
            return CollectiveListener(self.link, address, device, None)
        parsed = Address.parse(address, self.scheme)
        bound = bind(parsed)
        parsed = parsed._replace(port=bound.getsockname()[1])
        store = dist.TCPStore(
            parsed.host,
            parsed.port,
            is_master=True,
            wait_for_workers=False,
            # A socket that the store makes itself listens on every interface.
            master_listen_fd=bound.detach(),
        )
        return CollectiveListener(self.link, str(parsed), device, store)

    def connect(self, address: str, *, device: torch.device, timeout: float) -> CollectiveLink:
        """Meet the listener, waiting for one that is not there yet."""
        self._check_device(device)
        if address == _TORCHRUN:
            return _meet_by_torchrun(self.link, _CLIENT, device, timeout)
        deadline = time.monotonic() + timeout
        parsed = Address.parse(address, self.scheme)
        # This connection waits for the server, and shows which interfaces lead to each other.
        with dial(parsed, timeout) as probe:
            own, other = probe.getsockname()[0], probe.getpeername()[0]
        left = max(0.1, deadline - time.monotonic())
        try:
            hub = dist.TCPStore(parsed.host, parsed.port, timeout=timedelta(seconds=left))
            store = dist.PrefixStore(f"link{hub.add('clients', 1)}", hub)
            store.set("interface", other)
            return self.link(store, _CLIENT, device, own, address, left)
        except RuntimeError as error:
            raise _translate(
                address, error, f"the server accepted nobody for {timeout:g} s"
            ) from None

    def _check_device(self, device: torch.device) -> None:
        """Refuse a device that this library cannot serve."""


class Gloo(_Collective):
    """Frames by gloo between CPUs (a `splitlab.core.contract.link.Transport`)."""

    scheme = "gloo"
    link = GlooLink

    def unavailable(self) -> str | None:
        """Return why gloo cannot work here, or None."""
        if not dist.is_available() or not dist.is_gloo_available():
            return f"torch {torch.__version__} is built without gloo"
        return None


class Nccl(_Collective):
    """Frames by NCCL between GPUs (a `splitlab.core.contract.link.Transport`).

    Each peer has a GPU of its own, or both share one, which NCCL allows from version 2.30 on.
    """

    scheme = "nccl"
    link = NcclLink

    def unavailable(self) -> str | None:
        """Return why NCCL cannot work here, or None."""
        if not dist.is_available() or not dist.is_nccl_available():
            return f"torch {torch.__version__} is built without NCCL"
        if not torch.cuda.is_available():
            return "NCCL needs a CUDA GPU, and torch finds none"
        version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        alone = os.environ.get("LOCAL_WORLD_SIZE") == "1"  # torchrun puts the other peer elsewhere
        if torch.cuda.device_count() == 1 and version < (2, 30) and not alone:
            found = ".".join(map(str, version))
            return f"two peers can share the one GPU from NCCL 2.30 on, and this is NCCL {found}"
        return None

    def _check_device(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f"nccl moves tensors between GPUs, and this peer computes on {device}; "
                "choose --device cuda, or --transport gloo"
            )


def _check_torchrun(rank: int) -> None:
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{_TORCHRUN} reads what torchrun sets, and these are missing: {', '.join(missing)}; "
            "start both peers with `torchrun`, or name an address as HOST:PORT"
        )
    if os.environ["WORLD_SIZE"] != "2":
        raise ConfigError(
            f"a link joins two peers, and WORLD_SIZE is {os.environ['WORLD_SIZE']}; "
            "start exactly two processes"
        )
    if os.environ["RANK"] != str(rank):
        raise ConfigError(
            f"RANK is {os.environ['RANK']} in this process, which is to be rank {rank}: "
            "the client is rank 0, the server rank 1"
        )


def _meet_by_torchrun(
    link: type[CollectiveLink], rank: int, device: torch.device, timeout: float
) -> CollectiveLink:
    _check_torchrun(rank)
    master = os.environ["MASTER_ADDR"]
    interface = master if master in ("localhost", "127.0.0.1", "::1") else None
    try:
        store, _, _ = next(dist.rendezvous(_TORCHRUN, timeout=timedelta(seconds=timeout)))
        store = dist.PrefixStore("splitlab", store)
        return link(store, rank, device, interface, f"rank {1 - rank}", timeout)
    except ValueError as error:
        raise ConfigError(f"torchrun's variables cannot be used: {error}") from None
    except RuntimeError as error:
        raise _translate(_TORCHRUN, error, f"the other end did not come in {timeout:g} s") from None


def _translate(remote: str, error: RuntimeError, silence: str) -> NetworkError:
    """Say in one line what the library's error means; ``silence`` is what a timeout means here."""
    text = str(error).lower()
    if "timed out" in text or "timeout" in text:
        return NetworkError(f"{remote}: {silence}")
    if any(sign in text for sign in ("closed", "reset by peer", "broken pipe", "remote")):
        return NetworkError(f"{remote}: the other end closed the connection")
    line = re.sub(r"^\[[^\]]*\] *", "", str(error).strip()).split("\n")[0]
    return NetworkError(f"{remote}: {line}")
