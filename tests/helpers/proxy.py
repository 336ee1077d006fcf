"""A TCP proxy between a client and a server, which does to their connection what networks do.

It knows where frames begin and end (by the wire's own reader), so that a fault strikes a given one;
of TLS it sees records, of a proof of the secret its pieces. What it has forwarded, whole unit by
whole unit, stands in `FaultProxy.seen`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from splitlab.core import Kind, Message, ProtocolError
from splitlab.core.wire.checksum import SUM_BYTES
from splitlab.core.wire.decode import Reader
from splitlab.core.wire.layout import MAGIC, OPENING_BYTES
from splitlab.transports.address import Address

__all__ = ["FAULTS", "PARTS", "Fault", "FaultProxy", "Unit", "name_of"]

Direction = Literal["up", "down"]

FAULTS = {
    "cut": "the connection ends for both peers, in good order (FIN)",
    "reset": "the connection ends for both peers with a reset (RST)",
    "stall": "nothing passes for some seconds, either way; then all of it does",
    "silence": "nothing passes any more, either way, and neither peer is told",
    "truncate": "the first half passes, then its receiver is told that nothing more comes (FIN)",
    "flip": "one bit of it arrives changed",
    "duplicate": "it arrives twice",
    "drop": "it does not arrive, and all that follows does",
    "throttle": "it passes in slow drops",
    "half-close": "it passes, then its receiver is told that nothing more comes (FIN)",
    "refuse": "a reset, and who connects next is turned away at once, several times",
    "away": "a reset, and nobody listens for some seconds",
    "move": "a reset for the client, which comes back from another address; the server is not told",
    "forget": "a reset for the server; the client is not told",
    "late": "a reset for the client; the server gets it when the client has come back already",
}
"""What can happen, by name; ``it`` is the frame, or the record of TLS, that is struck."""

PARTS = ("opening", "header", "tensors", "checksum")
"""Of a frame, of which `flip` may change a bit."""

ELSEWHERE = "127.0.0.2"
"""Where a client comes from that has moved."""

_TLS = (0x14, 0x15, 0x16, 0x17)
_RECORD = struct.Struct(">BHH")
"""Type, version and length of a record of TLS."""
_PIECE = 1 << 16
_DROPS = 8


class Unit(NamedTuple):
    """What is struck as a whole: a frame, a record of TLS, a piece of what is no frame.

    Attributes:
        direction: ``up`` from the client, ``down`` from the server.
        name: what a frame says, as `name_of`; otherwise ``record`` or ``proof``, or ``damaged`` of
            all behind what is no frame and should be one.
        raw: its bytes.
        parts: where its parts lie, by the names in `PARTS`; without those that have no bytes.
    """

    direction: Direction
    name: str
    raw: bytes
    parts: dict[str, slice]


@dataclass
class Fault:
    """What is to happen, and whether it has.

    Attributes:
        kind: of `FAULTS`.
        direction: of the unit that is struck.
        name: of the unit; any if None.
        skip: so many that fit pass unharmed.
        times: how often it strikes.
        where: of `cut` and its like: 0 before the unit, 1 behind it, a share in it.
        part: of a frame, of which `flip` changes a bit; anywhere in the unit if None.
        bit: which one of them, counted from the part's first, and round.
        seconds: of `stall` and `away`; all that `throttle` takes.
        count: connections that `refuse` turns away; units that are said on the next connection
            until what is `late` arrives.
        struck: how often it has struck.
    """

    kind: str
    direction: Direction
    name: str | None = None
    skip: int = 0
    times: int = 1
    where: float = 0.5
    part: str | None = None
    bit: int = 77
    seconds: float = 0.1
    count: int = 2
    struck: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        assert self.kind in FAULTS, f"unknown fault {self.kind!r}; known: {', '.join(FAULTS)}"
        assert self.part in (None, *PARTS), f"unknown part {self.part!r}"

    @property
    def over(self) -> bool:
        """Whether it has struck as often as it was to."""
        return self.struck >= self.times

    def strikes(self, unit: Unit) -> bool:
        """Return whether it strikes this one, and take note of it."""
        if self.over or unit.direction != self.direction or self.name not in (None, unit.name):
            return False
        if self.part is not None and self.part not in unit.parts:
            return False
        self.skip -= 1
        self.struck += self.skip < 0
        return self.skip < 0

    def first(self, raw: bytes) -> bytes:
        """Return what passes of a unit before the connection ends."""
        if self.where in (0, 1):
            return raw if self.where else b""
        return raw[: min(max(1, int(self.where * len(raw))), len(raw) - 1)]

    def flipped(self, unit: Unit) -> bytes:
        """Return the unit with one bit changed."""
        raw = bytearray(unit.raw)
        # Of a record the type is left alone: what is none is no TLS any more.
        place = unit.parts[self.part] if self.part else slice(min(5, len(raw) - 1), len(raw))
        size = place.stop - place.start
        raw[place.start + self.bit // 8 % size] ^= 1 << self.bit % 8
        return bytes(raw)


def name_of(message: Message) -> str:
    """Return what a frame says: its kind, and which one of that kind."""
    if message.kind is Kind.ACTIVATION:
        return f"ACTIVATION of {'training' if message.training else 'evaluation'}"
    if message.kind is Kind.CONTROL:
        return f"CONTROL {message.meta.get('do') or message.meta.get('did')}"
    return message.kind.name


class _Splitter:
    """Bytes of one direction become units, as they are whole."""

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._raw = bytearray()
        self._reader: Reader | None = None
        self._fed = 0
        self._damaged = False
        self._secured: bool | None = None

    def take(self, more: bytes) -> Iterator[Unit]:
        self._raw += more
        while self._raw:
            if self._secured is None:
                self._secured = self._raw[0] in _TLS
            if self._damaged:
                unit = self._cut("damaged", len(self._raw), {})
            elif self._secured:
                unit = self._record()
            elif self._reader is None and not MAGIC.startswith(self._raw[: len(MAGIC)]):
                unit = self._cut("proof", len(self._raw), {})
            else:
                self._reader = self._reader or Reader()
                try:
                    unit = self._frame(self._reader)
                except ProtocolError:  # a stranger, or what an earlier fault has left
                    self._damaged = True
                    continue
            if unit is None:
                return
            yield unit

    @property
    def rest(self) -> bytes:
        """What has come of a unit that is not whole."""
        return bytes(self._raw)

    def _record(self) -> Unit | None:
        if len(self._raw) < _RECORD.size:
            return None
        size = _RECORD.size + _RECORD.unpack_from(self._raw)[2]
        return self._cut("record", size, {}) if len(self._raw) >= size else None

    def _frame(self, reader: Reader) -> Unit | None:
        message = reader.take()
        while message is None and self._fed < len(self._raw):
            buffer = reader.buffer()
            count = min(len(buffer), len(self._raw) - self._fed)
            buffer[:count] = self._raw[self._fed : self._fed + count]
            self._fed += count
            message = reader.advance(count)
        if message is None:
            return None
        size = message.frame_bytes
        data = sum(message[name].nbytes for name in message)
        ends = [OPENING_BYTES, size - SUM_BYTES - data, size - SUM_BYTES, size]
        places = map(slice, [0, *ends], ends)
        parts = {n: p for n, p in zip(PARTS, places, strict=True) if p.stop > p.start}
        self._fed -= size
        return self._cut(name_of(message), size, parts)

    def _cut(self, name: str, size: int, parts: dict[str, slice]) -> Unit:
        raw = bytes(self._raw[:size])
        del self._raw[:size]
        return Unit(self._direction, name, raw, parts)


class _Flow:
    """One direction of a connection: where it comes from, where it goes, and what is under way."""

    def __init__(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.splitter = _Splitter(direction)
        self.out: deque[bytes] = deque()
        self.busy = 0.0
        """Until when slow drops are under way."""
        self.deaf = False
        """Whether what comes is swallowed."""
        self.heard = False
        """Whether nothing more comes."""
        self.ended = False
        """Whether nothing more goes out behind what is there."""
        self.told = False
        """Whether the receiver was told so."""


class _Pair:
    """A connection of the client's, and the one to the server that goes with it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = {"client": client, "server": server}
        self.flows = {"up": _Flow("up", client, server), "down": _Flow("down", server, client)}
        self.held = 0.0
        """Until when nothing passes."""
        self.units = 0
        self.silent = False
        """Whether the end of one of them is kept from the other."""


class FaultProxy:
    """Listens on a port of its own, and carries each connection on to the server.

    Args:
        upstream: address of the server, as ``tcp://HOST:PORT``; may be changed.
        faults: what is to happen, one after the other: the next one waits until the one before
            has struck as often as it was to.
        seconds: after which it ends by itself, with all connections, so that nobody hangs on it.

    Attributes:
        address: where the client is to connect.
        seen: direction and name of every unit that came, in order.
        connections: how many came.
    """

    def __init__(self, upstream: str, faults: Sequence[Fault] = (), seconds: float = 30.0) -> None:
        self.upstream = upstream
        self.faults = [*faults]
        self.seen: list[tuple[str, str]] = []
        self.connections = 0
        self._until = time.monotonic() + seconds
        self._listener: socket.socket | None = None
        self._port = 0
        self._listen()
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._pairs: set[_Pair] = set()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._away = 0
        self._from: str | None = None
        self._kept: tuple[int, Callable[[], None]] | None = None
        self._failed: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name="fault proxy")

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._wake.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._failed and error[0] is None:
            raise self._failed[0]

    def check(self) -> None:
        """Raise `AssertionError` if a fault has not struck as often as it was to."""
        idle = [fault for fault in self.faults if not fault.over]
        assert not idle, f"never struck: {idle}; there came {self.seen}"

    # The loop; all below is of its thread.

    def _run(self) -> None:
        try:
            self._woken.setblocking(False)
            self._selector.register(self._woken, selectors.EVENT_READ)
            while self._turn():
                pass
        except Exception as error:  # noqa: BLE001 - raised where the test is
            self._failed.append(error)
        finally:
            self._selector.close()
            for pair in self._pairs:
                for end in pair.ends.values():
                    end.close()
            for each in (self._listener, self._wake, self._woken):
                if each is not None:
                    each.close()

    def _turn(self) -> bool:
        now = time.monotonic()
        if now >= self._until:
            return False
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        self._watch(now)
        due = [self._until, *(pair.held for pair in self._pairs if pair.held > now)]
        due += [self._later[0][0]] if self._later else []
        for key, events in self._selector.select(max(0.0, min(due) - now)):
            if key.fileobj is self._woken:
                return False
            if key.fileobj is self._listener:
                self._accept()
                continue
            pair, end = key.data
            if pair in self._pairs and end.fileno() >= 0:
                self._move(pair, end, events)
        return True

    def _watch(self, now: float) -> None:
        """Wait for whom there is anything to do."""
        wanted: dict[socket.socket, tuple[int, Any]] = {}
        if self._listener is not None:
            wanted[self._listener] = selectors.EVENT_READ, None
        for pair in self._pairs:
            if pair.held > now:
                continue
            for flow in pair.flows.values():
                for end, event in self._wants(flow):
                    before = wanted.get(end, (0, None))[0]
                    wanted[end] = before | event, (pair, end)
        for key in [*self._selector.get_map().values()]:
            if key.fileobj is not self._woken and key.fileobj not in wanted:
                self._selector.unregister(key.fileobj)
        known = self._selector.get_map()
        for end, (events, data) in wanted.items():
            if end not in known:
                self._selector.register(end, events, data)
            elif known[end].events != events:
                self._selector.modify(end, events, data)

    @staticmethod
    def _wants(flow: _Flow) -> Iterator[tuple[socket.socket, int]]:
        if flow.source.fileno() >= 0 and not flow.heard:
            yield flow.source, selectors.EVENT_READ
        if flow.sink.fileno() >= 0 and flow.out:
            yield flow.sink, selectors.EVENT_WRITE

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._later, (when, next(self._order), what))

    # Connections.

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen()
        listener.setblocking(False)
        self._listener, self._port = listener, listener.getsockname()[1]

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client = self._listener.accept()[0]
        except OSError:
            return  # it is gone already
        self.connections += 1
        if self._away:
            self._away -= 1
            _reset(client)
            return
        where = Address.parse(self.upstream, "tcp")
        try:
            source = (self._from, 0) if self._from else None
            server = socket.create_connection((where.host, where.port), 5, source)
        except OSError:
            _reset(client)
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add(_Pair(client, server))

    def _end(self, pair: _Pair, *, reset: bool = False) -> None:
        """End a connection at both ends."""
        self._pairs.discard(pair)
        for end in pair.ends.values():
            self._forget(end)
            _reset(end) if reset else end.close()

    def _drop(self, pair: _Pair, who: str) -> None:
        """Reset one end of a connection; the other is not told, and nothing passes any more."""
        self._silence(pair)
        self._forget(pair.ends[who])
        _reset(pair.ends[who])

    @staticmethod
    def _silence(pair: _Pair) -> None:
        """Let nothing pass any more, and neither end know."""
        pair.silent = True
        for flow in pair.flows.values():
            flow.out.clear()
            flow.ended = flow.told = flow.deaf = True

    def _forget(self, end: socket.socket) -> None:
        if end.fileno() >= 0 and end in self._selector.get_map():
            self._selector.unregister(end)

    def _move(self, pair: _Pair, end: socket.socket, events: int) -> None:
        for flow in pair.flows.values():
            if events & selectors.EVENT_WRITE and flow.sink is end:
                self._flush(pair, flow)
            if events & selectors.EVENT_READ and flow.source is end and pair in self._pairs:
                self._read(pair, flow)
        flows = pair.flows.values()
        if pair in self._pairs and all(flow.told and not flow.deaf for flow in flows):
            self._end(pair)

    def _read(self, pair: _Pair, flow: _Flow) -> None:
        try:
            raw = flow.source.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            raw = None
        if not raw and pair.silent:
            self._forget(flow.source)
            flow.source.close()
            if all(end.fileno() < 0 for end in pair.ends.values()):
                self._pairs.discard(pair)
        elif not raw and flow.deaf:
            self._end(pair)
        elif raw is None:
            self._end(pair, reset=True)
        elif not raw:
            flow.heard = True
            self._put(pair, flow, flow.splitter.rest)
            self._finish(pair, flow)
        elif not flow.deaf:
            for unit in flow.splitter.take(raw):
                self._pass(pair, flow, unit)
                if pair not in self._pairs or flow.deaf or flow.ended:
                    return

    def _in_turn(self, flow: _Flow, what: Callable[[], None]) -> None:
        """Do it behind the slow drops that are under way, or now."""
        if flow.busy > time.monotonic():
            self._at(flow.busy, what)
        else:
            what()

    def _put(self, pair: _Pair, flow: _Flow, raw: bytes) -> None:
        """Let this go out behind what is under way."""

        def put() -> None:
            flow.out.append(raw)
            if pair in self._pairs and pair.held <= time.monotonic():
                self._flush(pair, flow)

        if raw:
            self._in_turn(flow, put)

    def _flush(self, pair: _Pair, flow: _Flow) -> None:
        try:
            while flow.out:
                sent = flow.sink.send(flow.out[0])
                flow.out[0] = flow.out[0][sent:]
                if not flow.out[0]:
                    flow.out.popleft()
        except BlockingIOError:
            return
        except OSError:
            if not flow.deaf:
                self._end(pair, reset=True)
            return
        if flow.ended and not flow.told:
            flow.told = True
            try:
                flow.sink.shutdown(socket.SHUT_WR)
            except OSError:
                self._end(pair)

    def _finish(self, pair: _Pair, flow: _Flow) -> None:
        """Let nothing go out behind what is under way."""

        def finish() -> None:
            flow.ended = True
            if pair in self._pairs:
                self._flush(pair, flow)

        self._in_turn(flow, finish)

    # Faults.

    def _pass(self, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self.seen.append((unit.direction, unit.name))
        pair.units += 1
        fault = next((fault for fault in self.faults if not fault.over), None)
        if fault is not None and fault.strikes(unit):
            getattr(self, f"_on_{fault.kind.replace('-', '_')}")(fault, pair, flow, unit)
        else:
            self._put(pair, flow, unit.raw)
        if self._kept and pair.units == self._kept[0]:  # the client has come back, and was answered
            deliver, self._kept = self._kept[1], None
            deliver()

    def _on_cut(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._put(pair, flow, fault.first(unit.raw))
        self._end(pair)

    def _on_reset(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._put(pair, flow, fault.first(unit.raw))
        self._end(pair, reset=True)

    def _on_stall(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        flow.out.append(unit.raw)
        pair.held = time.monotonic() + fault.seconds

    def _on_silence(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._silence(pair)

    def _on_truncate(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        flow.deaf = True
        self._put(pair, flow, fault.first(unit.raw))
        self._finish(pair, flow)

    def _on_flip(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._put(pair, flow, fault.flipped(unit))

    def _on_duplicate(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._put(pair, flow, unit.raw + unit.raw)

    def _on_drop(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None: ...

    def _on_throttle(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        size = math.ceil(len(unit.raw) / _DROPS)
        for begin in range(0, len(unit.raw), size):
            self._put(pair, flow, unit.raw[begin : begin + size])
            flow.busy = max(flow.busy, time.monotonic()) + fault.seconds / _DROPS

    def _on_half_close(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        flow.deaf = True
        self._put(pair, flow, unit.raw)
        self._finish(pair, flow)

    def _on_refuse(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._away = fault.count
        self._on_reset(fault, pair, flow, unit)

    def _on_away(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        if self._listener is not None:
            self._forget(self._listener)
            self._listener.close()
            self._listener = None
            self._at(time.monotonic() + fault.seconds, self._listen)
        self._on_reset(fault, pair, flow, unit)

    def _on_move(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._from = ELSEWHERE
        if flow.sink is pair.ends["server"]:
            self._put(pair, flow, fault.first(unit.raw))
        self._drop(pair, "client")

    def _on_forget(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        if flow.sink is pair.ends["client"]:
            self._put(pair, flow, fault.first(unit.raw))
        self._drop(pair, "server")

    def _on_late(self, fault: Fault, pair: _Pair, flow: _Flow, unit: Unit) -> None:
        self._drop(pair, "client")
        server = pair.ends["server"]

        def deliver() -> None:
            with contextlib.suppress(OSError):  # the server has closed it
                server.send(unit.raw)

        if unit.direction == "up":
            self._kept = fault.count, deliver


def _reset(end: socket.socket) -> None:
    """Close a connection so that the other end hears of a reset."""
    if end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()
