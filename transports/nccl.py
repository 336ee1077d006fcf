"""NCCL between two GPUs, or two ranks on one: the only module that knows its library.

It is called as it is (nccl.h), not by way of torch's process group. That one watches its works in
threads of its own, which end the process when something fails, opens its connections without a
deadline, and knows the version that torch was built with, not the one that is loaded. A link needs
nine calls.

The communicator does not block: whatever it begins is asked for until it is done, the other end is
gone, or the deadline has passed. `ncclCommAbort` ends it at any time, and waits for nobody.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import torch

from splitlab.core.contract.errors import NetworkError
from splitlab.transports.channel import Channel

__all__ = ["SHARES_A_GPU", "Library", "NcclCarrier", "loaded", "unique_id_of"]

SHARES_A_GPU: Final = (2, 30)
"""The version from which on two ranks may share a GPU."""
_SETTINGS = {
    "NCCL_MULTI_RANK_GPU_ENABLE": "1",
    "NCCL_RAS_ENABLE": "0",  # a thread that listens for questions about jobs, to the process's end
}

_SONAME = "libnccl.so.2"
_UNIQUE_ID_BYTES = 128
_UINT8 = 1
_SUCCESS, _REMOTE_ERROR, _IN_PROGRESS = 0, 6, 7
# Long enough to cost nothing, short enough to be no part of what a message takes.
_LOOK_SECONDS = 2e-5
# An abort is local; one that takes longer waits for a GPU that does not answer any more.
_ABORT_SECONDS = 10.0

_Call = Callable[[int, int, int, int, int], int]


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_char * _UNIQUE_ID_BYTES),)


class _Config(ctypes.Structure):
    """The head of ``ncclConfig_t`` as of version 2.14; its size tells the library so."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cga_cluster_size", ctypes.c_int),
    )


def _does_not_block() -> _Config:
    undefined = -(2**31)
    return _Config(ctypes.sizeof(_Config), 0xCAFEBEEF, 2_14_00, 0, undefined)


class Library:
    """The calls of NCCL; ``comm`` and ``stream`` are addresses.

    Raises:
        OSError: there is no such library.
    """

    def __init__(self) -> None:
        # The linker knows a library by this name: the result is the one that torch has loaded,
        # or whatever LD_PRELOAD has put in its place.
        self._library = library = ctypes.CDLL(_SONAME)
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        to_number = ctypes.POINTER(number)
        arguments: dict[str, tuple[Any, ...]] = {
            "ncclGetVersion": (to_number,),
            "ncclGetUniqueId": (ctypes.POINTER(_UniqueId),),
            "ncclCommInitRankConfig": (
                ctypes.POINTER(pointer),
                number,
                _UniqueId,
                number,
                ctypes.POINTER(_Config),
            ),
            "ncclCommGetAsyncError": (pointer, to_number),
            "ncclSend": (pointer, size, number, number, pointer, pointer),
            "ncclRecv": (pointer, size, number, number, pointer, pointer),
            "ncclGroupStart": (),
            "ncclGroupEnd": (),
            "ncclCommAbort": (pointer,),
        }
        for name, types in arguments.items():
            call = getattr(library, name)
            call.argtypes, call.restype = types, number
        for name, argument in (("ncclGetErrorString", number), ("ncclGetLastError", pointer)):
            call = getattr(library, name)
            call.argtypes, call.restype = (argument,), ctypes.c_char_p

    def version(self) -> tuple[int, int, int]:
        """Return the version of the library that is loaded."""
        found = ctypes.c_int()
        self._library.ncclGetVersion(ctypes.byref(found))
        return found.value // 10_000, found.value // 100 % 100, found.value % 100

    def unique_id(self) -> tuple[int, bytes]:
        """Return (status, what both ranks are to be given)."""
        made = _UniqueId()
        status: int = self._library.ncclGetUniqueId(ctypes.byref(made))
        return status, bytes(made)

    def begin(self, unique_id: bytes, rank: int) -> tuple[int, int | None]:
        """Begin a communicator of two ranks on the current GPU; return (status, comm)."""
        comm = ctypes.c_void_p()
        status: int = self._library.ncclCommInitRankConfig(
            ctypes.byref(comm),
            2,
            _UniqueId.from_buffer_copy(unique_id),
            rank,
            ctypes.byref(_does_not_block()),
        )
        return status, comm.value

    def status(self, comm: int) -> int:
        """Return how far the communicator has come with what was begun."""
        found = ctypes.c_int()
        status: int = self._library.ncclCommGetAsyncError(comm, ctypes.byref(found))
        return status or found.value

    def group_start(self) -> int:
        """Begin a group: what follows in this thread is one operation."""
        return int(self._library.ncclGroupStart())

    def group_end(self) -> int:
        """Begin the operation."""
        return int(self._library.ncclGroupEnd())

    def send(self, address: int, count: int, peer: int, comm: int, stream: int) -> int:
        """Send so many bytes from the memory of the GPU."""
        return int(self._library.ncclSend(address, count, _UINT8, peer, comm, stream))

    def receive(self, address: int, count: int, peer: int, comm: int, stream: int) -> int:
        """Receive so many bytes into the memory of the GPU."""
        return int(self._library.ncclRecv(address, count, _UINT8, peer, comm, stream))

    def abort(self, comm: int) -> None:
        """End the communicator and whatever it does on the GPU; nothing may use it any more."""
        self._library.ncclCommAbort(comm)

    def says(self, status: int, comm: int | None) -> str:
        """Return what a status means, and the last error if there is one, in one line."""
        texts = (self._library.ncclGetErrorString(status), self._library.ncclGetLastError(comm))
        return "; ".join(" ".join(text.decode(errors="replace").split()) for text in texts if text)


def unique_id_of(word: str) -> bytes:
    """Return the unique id that a word says in hexadecimal digits; `ValueError` if it is none."""
    if len(unique_id := bytes.fromhex(word)) != _UNIQUE_ID_BYTES:
        raise ValueError(f"{len(unique_id)} bytes are no unique id")
    return unique_id


@functools.cache
def loaded() -> Library | None:
    """Return the library of this process, or None if there is none."""
    try:
        return Library()
    except (OSError, AttributeError):
        return None


class NcclCarrier:
    """Moves tensors between the GPUs of two ranks, with a stream of its own.

    Args:
        library: of this process.
        channel: to the other rank.
        rank: 0 or 1.
        device: the own GPU.
        unique_id: of `Library.unique_id`, the same at both ranks.
        timeout: seconds for meeting the other rank.

    Attributes:
        device: where tensors are sent from and arrive.
    """

    def __init__(
        self,
        library: Library,
        channel: Channel,
        rank: int,
        device: torch.device,
        unique_id: bytes,
        timeout: float,
    ) -> None:
        for name, value in _SETTINGS.items():  # NCCL reads them once
            os.environ.setdefault(name, value)
        self.device = device
        self._library = library
        self._channel = channel
        self._other = 1 - rank
        self._comm: int | None = None
        # What a rank waits for must not stand behind the wait of the other one: in one process,
        # both may have the same current stream.
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        try:
            self._meet(unique_id, rank, timeout)
        except BaseException:
            self.close()
            raise

    def ready(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the parts on the GPU, computed: a wait of the other GPU's would cost it time."""
        there = [part.to(self.device) for part in parts]
        torch.cuda.current_stream(self.device).synchronize()
        return there

    def allocate(self, size: int) -> torch.Tensor:
        """Return memory of so many bytes, flat, uint8."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def send(
        self, parts: Sequence[torch.Tensor], timeout: float, silence: str
    ) -> Callable[[], None]:
        """Begin to send the parts (flat, uint8, on the GPU) as one operation.

        Args:
            parts: of `ready`.
            timeout: seconds for beginning, and for the end.
            silence: what a wait in vain means.

        Returns:
            what waits until the GPU has done it, for who knows that the other end has all.
        """
        # Nobody looks for the other end: once it has all, it may leave before this GPU is done.
        calls = [(self._library.send, part) for part in parts]
        begun = self._start(calls, timeout, silence, watched=False)
        return lambda: self._end(begun, timeout, silence, watched=False)

    def receive(self, parts: Sequence[torch.Tensor], timeout: float, silence: str) -> None:
        """Receive into the parts; arguments as `send`."""
        calls = [(self._library.receive, part) for part in parts]
        begun = self._start(calls, timeout, silence, watched=True)
        self._end(begun, timeout, silence, watched=True)

    def close(self) -> None:
        """End the communicator, without the other rank."""
        comm, self._comm = self._comm, None
        if comm is not None:
            # No thread of NCCL's outlives this; one of ours may, if the GPU does not answer.
            ending = threading.Thread(target=self._library.abort, args=(comm,), daemon=True)
            ending.start()
            ending.join(_ABORT_SECONDS)

    def _meet(self, unique_id: bytes, rank: int, timeout: float) -> None:
        silence = f"the other end did not come in {timeout:g} s"
        with torch.cuda.device(self.device):
            status, self._comm = self._library.begin(unique_id, rank)
        self._check(status)
        self._wait_for(self._is_ready, timeout, silence, watched=True)
        # NCCL connects at the first operation each way; whatever can fail there shall fail here.
        mine = torch.zeros(1, dtype=torch.uint8, device=self.device)
        theirs = torch.zeros_like(mine)
        both = [(self._library.send, mine), (self._library.receive, theirs)]
        begun = self._start(both, timeout, silence, watched=True)
        self._end(begun, timeout, silence, watched=True)

    def _start(
        self,
        calls: Sequence[tuple[_Call, torch.Tensor]],
        timeout: float,
        silence: str,
        *,
        watched: bool,
    ) -> Any:
        """Return the event behind the calls when they are in the stream."""
        if self._comm is None:
            raise self._channel.closed()
        with self._gpu():
            # The memory may still be in use there, by what had it before.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            self._begin(self._comm, calls)
            self._wait_for(self._is_ready, timeout, silence, watched=watched)
            return self._stream.record_event()

    def _end(self, begun: Any, timeout: float, silence: str, *, watched: bool) -> None:
        with self._gpu():
            self._wait_for(
                lambda: self._is_ready() and begun.query(), timeout, silence, watched=watched
            )

    @contextmanager
    def _gpu(self) -> Iterator[None]:
        """Make the GPU the current one, and tell what it says."""
        try:
            with torch.cuda.device(self.device):
                yield
        except RuntimeError as error:
            # The GPU failed, not NCCL, and every call to it fails from now on: the communicator is
            # left to the end of the process.
            self._comm = None
            raise self._channel.fails(str(error).strip().split("\n")[0]) from None

    def _begin(self, comm: int, calls: Sequence[tuple[_Call, torch.Tensor]]) -> None:
        """Put the calls into the stream as one operation."""
        stream = self._stream.cuda_stream
        found = [self._library.group_start()]
        for call, part in calls:
            found.append(call(part.data_ptr(), part.numel(), self._other, comm, stream))
        found.append(self._library.group_end())  # also if one failed: the thread leaves the group
        for status in found:
            self._check(status)

    def _is_ready(self) -> bool:
        assert self._comm is not None
        status = self._library.status(self._comm)
        self._check(status)
        return status == _SUCCESS

    def _wait_for(
        self, done: Callable[[], bool], timeout: float, silence: str, *, watched: bool
    ) -> None:
        """Return when it is done; ``watched``: or raise when the other end is gone."""
        deadline = time.monotonic() + timeout
        while not done():
            if watched and self._channel.gone():
                raise self._channel.closed()
            if time.monotonic() > deadline:
                raise self._channel.fails(silence)
            time.sleep(_LOOK_SECONDS)

    def _check(self, status: int) -> None:
        if status not in (_SUCCESS, _IN_PROGRESS):
            self._fail(status)

    def _fail(self, status: int) -> NoReturn:
        # NCCL has connections of its own, and may hear of an end before we do.
        if status == _REMOTE_ERROR or self._channel.gone():
            raise self._channel.closed()
        version = ".".join(map(str, self._library.version()))
        raise NetworkError(
            f"{self._channel.remote}: NCCL {version}: {self._library.says(status, self._comm)}"
        )
