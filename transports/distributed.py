"""What is used of torch.distributed: gloo between two CPUs, and the store that torchrun hosts.

The only module that imports it. Every link owns a group of two ranks; there is no default group, so
nothing is global.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed

from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.transports.address import Address
from splitlab.transports.channel import Channel
from splitlab.transports.tcp import bind

__all__ = [
    "TORCHRUN",
    "GlooCarrier",
    "Store",
    "check_torchrun",
    "has_gloo",
    "host_store",
    "launched_rank",
    "port_of",
    "store_of",
    "store_of_torchrun",
    "translate",
]

Store = Any
dist: Any = torch.distributed  # its annotations leave out most of what is used here

TORCHRUN: Final = "env://"
_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


def has_gloo() -> bool:
    """Return whether torch is built with gloo."""
    return bool(dist.is_available() and dist.is_gloo_available())


def host_store(host: str) -> tuple[Store, int]:
    """Return a store of keys and values that listens at this address, and its port."""
    bound = bind(Address("gloo", host, 0), lambda address, number: None)  # where the peers met
    port = bound.getsockname()[1]
    # A socket that the store makes itself listens on every interface.
    hosting = {"is_master": True, "master_listen_fd": bound.detach()}
    return dist.TCPStore(host, port, wait_for_workers=False, **hosting), port


def port_of(word: str) -> int:
    """Return the port that a word says; `ValueError` if it is none."""
    if not 0 < (port := int(word)) < 2**16:
        raise ValueError(f"{port} is no port")
    return port


def store_of(host: str, port: int, timeout: float) -> Store:
    """Return the store that somebody hosts there; `RuntimeError` if nobody does."""
    return dist.TCPStore(host, port, timeout=timedelta(seconds=timeout))


class GlooCarrier:
    """Moves tensors that lie in CPU memory (a `Carrier`).

    gloo begins to send when the other end receives, and notices by itself that it is gone.

    Args:
        channel: to the other rank.
        store: where the two ranks find each other; nobody else uses it.
        rank: the own rank.
        timeout: seconds for opening the group.
    """

    device = torch.device("cpu")

    def __init__(self, channel: Channel, store: Store, rank: int, timeout: float) -> None:
        self._channel = channel
        self._other = 1 - rank
        limit = timedelta(seconds=timeout)
        store.set_timeout(limit)
        options = dist.ProcessGroupGloo._Options()
        # The interface that leads to the other end, as TCP has shown.
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=channel.hosts[0])]
        options._timeout = limit
        options._threads = 1  # for collective operations, which a link does not use
        self._group: Any = dist.ProcessGroupGloo(store, rank, 2, options)

    def ready(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the parts in CPU memory."""
        return [part.cpu() for part in parts]

    def allocate(self, size: int) -> torch.Tensor:
        """Return memory of so many bytes."""
        return torch.empty(size, dtype=torch.uint8)

    def send(
        self, parts: Sequence[torch.Tensor], timeout: float, silence: str
    ) -> Callable[[], None]:
        """Begin to send the parts, and return what waits for the end."""
        works = self._start("send", parts, silence)
        return lambda: self._end(works, timeout, silence)

    def receive(self, parts: Sequence[torch.Tensor], timeout: float, silence: str) -> None:
        """Receive into the parts."""
        self._end(self._start("recv", parts, silence), timeout, silence)

    def close(self) -> None:
        """Leave the group: its connections and threads end with it."""
        self._group = None

    def _start(self, operation: str, parts: Sequence[torch.Tensor], silence: str) -> list[Any]:
        if self._group is None:
            raise self._channel.closed()
        start = getattr(self._group, operation)
        return [start([part], self._other, 0) for part in parts]

    def _end(self, works: list[Any], timeout: float, silence: str) -> None:
        try:
            for work in works:
                work.wait(timedelta(seconds=timeout))
        except RuntimeError as error:
            raise translate(self._channel.remote, error, silence) from None
        finally:
            work = None
            works.clear()  # or the traceback of a failure holds the connections open


def launched_rank() -> str | None:
    """Return the rank of this process if torchrun started it."""
    if any(name not in os.environ for name in _VARIABLES):
        return None
    return os.environ["RANK"]


def check_torchrun(rank: int) -> None:
    """Raise `ConfigError` unless torchrun started this process as that of two ranks."""
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{TORCHRUN} reads what torchrun sets, and these are missing: {', '.join(missing)}; "
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


def store_of_torchrun(timeout: float) -> tuple[Store, Address]:
    """Return the store that both ranks have, and the address of its host.

    Raises:
        ValueError: the variables make no sense.
        RuntimeError: it cannot be reached.
    """
    limit = timedelta(seconds=timeout)
    store, _, _ = next(dist.rendezvous(TORCHRUN, timeout=limit))
    store = dist.PrefixStore("splitlab", store)
    store.set_timeout(limit)
    return store, Address("env", os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def translate(remote: str, error: RuntimeError, silence: str) -> NetworkError:
    """Say in one line what the library's error means; ``silence`` is what a timeout means here."""
    text = str(error).lower()
    if "timed out" in text or "timeout" in text:
        return NetworkError(f"{remote}: {silence}")
    if any(sign in text for sign in ("closed", "reset by peer", "broken pipe", "remote")):
        return NetworkError(f"{remote}: the other end closed the connection")
    line = re.sub(r"^\[[^\]]*\] *", "", str(error).strip()).split("\n")[0]
    return NetworkError(f"{remote}: {line}")
