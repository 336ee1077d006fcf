"""Frames that no peer of this run sends: named changes of good messages, and a table to send them.

Every change keeps the frame valid as a frame, checksums and all: what is wrong is what it says. The
frames that are wrong as frames stand in tests/core/wire/test_decode.py.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from splitlab.core import Kind, Message, ProtocolError, Role
from splitlab.core.catalogue.binding import bind_stack
from splitlab.core.engine.conversation import hold
from splitlab.core.session.client import ClientSession
from splitlab.core.session.protocol import PROTOCOL
from splitlab.core.session.server import ServerSession
from splitlab.core.testing.tiny import Tiny, freeze, thaw
from splitlab.core.wire.checksum import packed, sum_of
from splitlab.core.wire.layout import OPENING, OWN_SUM, VERSION
from splitlab.core.wire.ledger import Ledger
from splitlab.transports.inprocess import InProcess

__all__ = ["STACKS", "TINY", "Table", "answered", "changes", "put", "sealed"]

TINY = Tiny()

STACKS = {
    "none": ["none"],
    "adc": ["adc:ratio=0.4"],
    "c3sl": ["c3sl:group=2"],
    "quantize": ["quantize:bits=4"],
    "aqsgd": ["aqsgd"],
    "powersgd": ["powersgd:rank=2"],
    "splitfc": ["splitfc:ratio=0.4"],
    "zstd": ["zstd"],
    "topk and zstd": ["topk:ratio=0.2", "zstd"],
    "adc and quantize": ["adc:ratio=0.4", "quantize:bits=8"],
}

AGREEMENT = {"stack": "…"}
HELLO = {
    "protocol": PROTOCOL,
    "agreement": AGREEMENT,
    "run": "run",
    "step": 0,
    "marks": {"run": "0", "seed": "0", "plan": "0"},
    "session": "00112233445566778899aabbccddeeff",
    "timeout": 60.0,
}

Change = Callable[[Message], None]

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint64,
]
JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    10**300,
    math.nan,
    math.inf,
    "x",
    [],
    [1],
    {},
    {"shape": [6, 0, 16], "dtype": "float32"},
    {"shape": [2**31, 2**31, 2**31], "dtype": "float32"},
    {"shape": [1, 1, 1], "dtype": "float64"},
    {"activations": ["float32", 2**40]},
    {"activations": ["float8_e4m3fn", 6, 5, 16]},
    [[[[[[1]]]]]],
]


class Table:
    """A server behind a finished handshake, and the client whose messages are changed."""

    def __init__(self, stack: list[str], steps: int = 0) -> None:
        self.client, self.server = TINY.pair(bind_stack(stack))
        self.near, self.far = InProcess().pair(None)
        self.session = ServerSession(
            self.far,
            self.server,
            AGREEMENT,
            batch_bytes=4 * 6 * 5 * 16,
            timeout=1.0,
            resume=lambda run, step, marks: None,
            save=lambda step, keep: None,
        )
        self.errors: list[Exception] = []
        self.ask(Message(Kind.HELLO, meta=HELLO))
        self.step = 0
        for _ in range(steps):
            hold(self.client.train(TINY.batch(self.step), self.step), self.ask)
            self.step += 1

    def ask(self, message: Message) -> Message:
        """Take any message to the server; raise what it raises, if the other end is told of it."""
        self.near.send(message, 1.0)
        try:
            self.session.turn()
        except Exception as error:
            told = self.near.receive(1.0)
            assert told.kind is Kind.ERROR
            assert "\n" not in str(told.meta["error"])
            self.errors.append(error)
            raise
        return self.near.receive(1.0)

    def question(self, what: str) -> tuple[Any, Message]:
        """Return a conversation of the client, and what it asks first, as it arrives."""
        batch = TINY.batch(self.step)
        if what == "train":
            talk: Any = self.client.train(batch, self.step)
        else:
            talk = self.client.query(batch, 0, stacked=what == "query")
        return talk, thaw(freeze(next(talk)))


COUPLES: dict[str, tuple[Any, bytes]] = {}
"""Clients that have refused everything so far, and what a server answers them."""


def answered(stack: list[str], what: str, change: Change) -> Message:
    """Let a client hear a changed answer to its first question; return the answer as it was.

    Raises:
        SplitlabError: the client does.
    """
    key = f"{stack} {what}"
    client, good = COUPLES.pop(key, (None, b""))
    server = None
    if client is None:
        client, server = TINY.pair(bind_stack(stack))
    batch = TINY.batch()
    talk: Any = client.train(batch, 0)
    if what == "query":
        talk = client.query(batch, 0, stacked=True)
    asked = next(talk)
    good = freeze(server.handle(thaw(freeze(asked)))) if server else good
    answer = thaw(good)
    change(answer)
    greeting = {"protocol": PROTOCOL, "timeout": 60.0, "waits": 300.0}
    words = [Message(Kind.HELLO, meta=greeting), answer]

    def serve() -> None:
        far.receive(1.0)
        far.send(words.pop(0), 1.0)

    near, far = InProcess().pair(serve)
    session = ClientSession(near, Ledger(), 1.0)
    session.exchange(Message(Kind.HELLO, meta=HELLO))
    again = Message(asked.kind, asked.step, training=asked.training, stacked=asked.stacked)
    try:
        heard = session.exchange(again)
        with contextlib.suppress(StopIteration):
            talk.send(heard)
    except ProtocolError:
        COUPLES[key] = client, good
        raise
    return thaw(good)


def sealed(header: bytes, data: bytes, kind: int, flags: int) -> tuple[bytes, bytearray]:
    """Return head and rest of a frame with this header and these tensors, with its checksums."""
    front = (b"SPLT", VERSION, kind, flags, 0, 0, sum_of([header]), 8 + len(header) + len(data))
    head = OPENING.pack(*front, 0, len(header))
    own = packed(sum_of([head[: OWN_SUM.start], head[OWN_SUM.stop :]]))
    head = head[: OWN_SUM.start] + own + head[OWN_SUM.stop :]
    return head + header, bytearray(data + packed(sum_of([data])))


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Return the change that puts another tensor in a place."""

    def change(message: Message) -> None:
        message.put(name, make(message[name]), message.role(name))

    return change


def changes(good: Message) -> Iterator[tuple[str, Change]]:
    """Yield every change of a message by a name of its own."""
    for name in good:
        yield from _of_tensor(name, good[name])
        for role in Role:
            if role is not good.role(name):
                yield f"{name} as {role}", lambda m, n=name, r=role: m.put(n, m.take(n), r)
        yield f"no {name}", lambda m, n=name: m.take(n)
        yield f"{name} renamed", lambda m, n=name: m.put(n + "2", m.take(n), Role.PAYLOAD)
    for role in Role:
        yield f"one more {role}", lambda m, r=role: m.put("more", torch.zeros(6, 5, 16), r)
        yield f"a thousand more {role}", lambda m, r=role: _many(m, r)
    for plugin in (*good.notes, "adc", "loss", "stranger"):
        for number, junk in enumerate(JUNK):
            yield f"note {number} of {plugin}", lambda m, p=plugin, j=junk: m.notes.update({p: [j]})
        if plugin in good.notes:
            yield f"no note of {plugin}", lambda m, p=plugin: m.notes.pop(p)
            yield f"note of {plugin} twice", lambda m, p=plugin: m.push(p, m.notes[p][0])
            yield from _of_note(plugin, good.notes[plugin][0])
    for word in ("gradient", "loss", "loss_sum", "do", "did", "agreement", "error"):
        for junk in (None, True, 0, -5.0, 1e308, math.nan, math.inf, "x", {}):
            yield f"{word} {junk!r}", lambda m, w=word, j=junk: m.meta.update({w: j})
        if word in good.meta:
            yield f"no {word}", lambda m, w=word: m.meta.pop(w)
    for kind in Kind:
        yield f"kind {kind.name}", lambda m, k=kind: setattr(m, "kind", k)
    for step in (1, 7, 2**32, 2**63, 2**64 - 1):
        yield f"step {step}", lambda m, s=step: setattr(m, "step", s)
    yield "stacked flipped", lambda m: setattr(m, "stacked", not m.stacked)
    yield "training flipped", lambda m: setattr(m, "training", not m.training)


def _of_tensor(name: str, good: torch.Tensor) -> Iterator[tuple[str, Change]]:
    for dtype in DTYPES:
        if dtype is not good.dtype:
            yield f"{name} {dtype}", put(name, lambda t, d=dtype: t.to(torch.float32).to(d))
    for axis in range(good.ndim):
        shape = list(good.shape)
        for size in (0, 1, shape[axis] + 1, 2 * shape[axis], 1000):
            other = [*shape[:axis], size, *shape[axis + 1 :]]
            if math.prod(other) < 2**18:
                yield f"{name} {other}", put(name, lambda t, s=other: torch.zeros(s, dtype=t.dtype))
    yield f"{name} flat", put(name, lambda t: t.reshape(-1))
    yield f"{name} a scalar", put(name, lambda t: t.new_zeros(()))
    yield f"{name} deep", put(name, lambda t: t.reshape(t.shape + (1,) * (8 - t.ndim)))
    yield f"{name} empty", put(name, lambda t: t.new_zeros(0))
    yield f"{name} all ones", put(name, lambda t: _bytes(t, 255))
    yield f"{name} zeros", put(name, torch.zeros_like)
    yield f"{name} shuffled", put(name, lambda t: _bytes(t, None))
    if good.is_floating_point():
        for value in (math.nan, math.inf, -math.inf):
            yield f"{name} {value}", put(name, lambda t, v=value: _one(t, v))
        yield f"{name} largest", put(name, lambda t: torch.full_like(t, torch.finfo(t.dtype).max))


def _of_note(plugin: str, note: Any) -> Iterator[tuple[str, Change]]:
    """Change one number, or one word, in a note that a plugin left."""
    for path, value in _leaves(note, ()):
        for junk in (0, -1, 2, 2**31, 2**70, 10**300, 1.5, math.nan, True, None, "float64", []):
            if junk != value or type(junk) is not type(value):
                yield f"note of {plugin} {path} {junk!r:.20}", _at(plugin, path, junk)


def _leaves(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from _leaves(node[key], (*path, key))
    else:
        yield path, node


def _at(plugin: str, path: tuple[Any, ...], junk: Any) -> Change:
    def change(message: Message) -> None:
        notes = copy.deepcopy(message.notes[plugin])
        node: Any = notes
        for key in (0, *path)[:-1]:
            node = node[key]
        node[(0, *path)[-1]] = junk
        message.notes[plugin] = notes

    return change


def _many(message: Message, role: Role) -> None:
    for number in range(900):
        message.put(str(number), torch.zeros(0), role)


def _one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.float().clone()
    if changed.numel():
        changed.view(-1)[-1] = value
    return changed.to(tensor.dtype)


def _bytes(tensor: torch.Tensor, value: int | None) -> torch.Tensor:
    raw = tensor.contiguous().view(-1).view(torch.uint8).clone()
    if value is None:
        raw = torch.randint(0, 256, raw.shape, generator=torch.Generator().manual_seed(0)).byte()
    else:
        raw.fill_(value)
    return raw.view(tensor.dtype).view(tensor.shape)
