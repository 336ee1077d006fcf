"""Checks of what crosses the link: its bytes, and that the other peer needs nothing else."""

from __future__ import annotations

import json

import safetensors.torch

from splitlab.core.contract.errors import PluginError
from splitlab.core.contract.message import Kind, Role
from splitlab.core.testing.fresh import address
from splitlab.core.testing.links import joined, one_of_each_kind
from splitlab.core.testing.report import Skipped, Warned
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.testing.subject import TURNS, Subject
from splitlab.core.testing.tiny import thaw
from splitlab.core.wire.checksum import SUM_BYTES
from splitlab.core.wire.layout import PREFIX_BYTES
from splitlab.core.wire.ledger import Direction, Ledger

__all__ = ["bytes_are_real", "frames_are_enough", "same_over_every_link"]

_NOTES = 1024
"""Bytes of JSON notes in a message; what grows with the batch belongs into a tensor."""
_FAR = 2.0
"""Measured over nominal, from which on the difference is odd."""


def bytes_are_real(s: Subject) -> str | None:
    """A plain reader finds the bytes that the ledger counts; no notes smuggle numbers."""
    client = s.working().client
    ledger, crossed = Ledger(), 0
    found: dict[Direction, list[int]] = {"up": [], "down": []}
    for raw in s.base.frames:
        message = thaw(raw)
        direction: Direction = "up" if message.kind is Kind.ACTIVATION else "down"
        ledger.add(message, direction)
        crossed += len(raw)
        body = raw[PREFIX_BYTES:-SUM_BYTES]
        read = sum(t.nbytes for t in safetensors.torch.load(body).values())
        held = sum(message[name].nbytes for name in message)
        size = len(json.dumps(message.notes)) if message.notes else 0
        if read != held or message.frame_bytes != len(raw):
            raise s.failed(
                f"{message!r} holds {held} bytes of tensors, a plain reader finds {read}"
            )
        if size > _NOTES:
            raise s.failed(
                f"the {message.kind.name} message carries {size} bytes of notes "
                f"({', '.join(message.notes)}) in its header; put numbers into a tensor of "
                "Role.SIDE"
            )
        if message.training:
            sent = [message[n].nbytes for n in message if message.role(n) is not Role.TARGETS]
            found[direction].append(sum(sent))
    if ledger.total("up") + ledger.total("down") != crossed:
        raise s.failed(f"the ledger does not count {crossed} bytes as they crossed")
    nominal = client.stack.nominal_ratio()
    peer = client.peer
    whole = 4 * peer.batch_size * peer.tokens * peer.width
    measured = [sum(sizes) / len(sizes) / whole for sizes in found.values()]
    remark = ", ".join(
        f"{way} {got:.3f} (nominal {ratio:.3g})"
        for way, got, ratio in zip(found, measured, nominal, strict=True)
    )
    if any(got > _FAR * ratio for got, ratio in zip(measured, nominal, strict=True)):
        return Warned(f"{remark}: far more than nominal, if only on so small a model")
    return remark


def frames_are_enough(s: Subject) -> str | None:
    """A fresh peer in another process answers the same frames with the same frames."""
    s.repeating()
    if s.base.shared:
        raise s.failed(
            f"{', '.join(s.base.shared)} is one object for client and server and changed in "
            "training; keep what changes in the instance, made in setup, and send what the other "
            "peer needs"
        )
    if s.fresh is None:
        raise Skipped("no fresh peer in another process: none was given")
    where = address(s.stack, s.text)
    if isinstance(where, str):
        raise Skipped(f"no fresh peer in another process: {where}")
    ups, downs = s.base.frames[0::2], s.base.frames[1::2]
    for role, arriving, expected in (("server", ups, downs), ("client", downs, ups)):
        try:
            sent = s.fresh.replay(role, s.tiny, where, TURNS, arriving)  # type: ignore[arg-type]
        except LookupError as error:
            raise Skipped(f"no fresh peer in another process: {error}") from None
        except PluginError as error:
            s.needs_more_than_frames = True
            raise s.failed(
                f"a fresh {role} in another process cannot go by the frames alone: {error}; put "
                "all that it needs into the message"
            ) from None
        found = difference(
            [Seen.of(thaw(raw)) for raw in expected], [Seen.of(thaw(raw)) for raw in sent]
        )
        if found:
            s.needs_more_than_frames = True
            raise s.failed(
                f"a fresh {role} in another process answers the same frames otherwise, first in "
                f"{found}; it must go by the message alone, not by what this process remembers"
            )
    return None


def same_over_every_link(s: Subject) -> str | None:
    """One run is the same bits over a link inside of one process and over a network."""
    base = s.repeating()
    tried = []
    for name in one_of_each_kind():
        with joined(name) as carry:
            couple = s.run(s.couple(carry=carry))
        if found := difference(base.arrived, couple.arrived):
            raise s.failed(f"over {name} the run is another, first in {found}")
        tried.append(name)
    if not tried:
        raise Skipped("no transport works here; `splitlab transports` says what is missing")
    return f"over {' and '.join(tried)}"
