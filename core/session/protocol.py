"""What both sides of a session share: the agreement, frame limits, and errors that are told."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from splitlab.core.contract.errors import (
    DamagedError,
    Diverged,
    LinkError,
    ProtocolError,
    SplitlabError,
)
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Kind, Message

__all__ = [
    "BYE",
    "ENDED",
    "HELLO_BYTES",
    "LEAST_SECONDS",
    "MARKS",
    "MOST_SECONDS",
    "MOST_STEPS",
    "NO_SESSION",
    "PROTOCOL",
    "Agreement",
    "compare",
    "ended",
    "frame_limit",
    "line",
    "names_a_folder",
    "names_a_run",
    "number_of",
    "reason",
    "seconds_of",
    "tell",
]

PROTOCOL = 3
HELLO_BYTES = 1 << 16
"""The largest frame before the handshake."""
BYE = "bye"
"""What a client does last: from then on nobody waits for it."""
LEAST_SECONDS, MOST_SECONDS = 0.1, 1e6
"""Of a timeout."""
MOST_STEPS = 2**63 - 1
"""Steps, samples, batches and messages that there may be; more is no number to count with."""
NO_SESSION = (
    "this server does not have that session, or has it no more; go on from the last checkpoint"
)
ENDED = "this server's run has ended"
_TOLD = 8
"""How many differences an error lists."""
_VALUE = 200
"""How much it tells of a value, in characters."""

MARKS = ("run", "seed", "plan")
"""What a HELLO says of the checkpoint to go on from, or of those to come: what they belong to."""

Agreement = dict[str, str]
"""What both peers must have in common, by the name that the user knows it by."""


def frame_limit(message_bytes: int) -> int:
    """Return the largest frame after the handshake, from the size of an uncompressed batch."""
    # A codec may send more than it got (values and indices), hardly four times as much.
    return 4 * message_bytes + (1 << 20)


_NAME_BYTES = 200
"""Of a folder's name; file systems take 255."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE | re.ASCII)


def names_a_run(name: str) -> bool:
    """Return whether a client may call its run so: one line of bounded length, and no path."""
    slashes = {"/", "\\"} & {*name}
    return 0 < len(name) <= _NAME_BYTES and name.isprintable() and not slashes and name[0] != "."


def names_a_folder(name: str) -> bool:
    """Return whether a server may call a folder so, as its client does: no path, no device."""
    return (
        re.fullmatch(r"\w[\w.+-]*", name) is not None
        and len(name.encode(errors="replace")) <= _NAME_BYTES
        and not name.endswith(".")
        and _DEVICES.fullmatch(name) is None
    )


def compare(client: Agreement, server: Agreement) -> None:
    """Raise `ProtocolError` with both values of everything in which the peers differ.

    What only one of them has, such as an option that the other leaves at its default, is told if
    nothing else is.
    """
    different = [key for key in {**server, **client} if client.get(key) != server.get(key)]
    keys = [key for key in different if key in client and key in server] or different
    if keys:
        told = [
            f"{line(key)[:_VALUE]}: client {_value(client, key)}, server {_value(server, key)}"
            for key in keys[:_TOLD]
        ]
        more = f"; and in {len(keys) - _TOLD} more" if len(keys) > _TOLD else ""
        raise ProtocolError(
            f"the peers differ in {'; '.join(told)}{more}; give both the same options"
        )


def _value(agreement: Agreement, key: str) -> str:
    return line(agreement[key])[:_VALUE] if key in agreement else "the default"


def tell(link: Link, error: BaseException, timeout: float) -> None:
    """Tell the other peer, if it still listens, why this one ends."""
    kind = "" if isinstance(error, SplitlabError) else f"{type(error).__name__}: "
    meta: dict[str, object] = {"error": line(f"{kind}{error}")}
    if isinstance(error, Diverged):
        meta["diverged"] = True
    if isinstance(error, DamagedError):
        meta["damaged"] = True
    # If the link is what failed, or the peer is gone, nobody is left to be told.
    with contextlib.suppress(LinkError):
        link.send(Message(Kind.ERROR, meta=meta), timeout)


def ended(message: Message, who: str, kind: type[LinkError]) -> SplitlabError:
    """Return what to raise of an ERROR message: the other peer's divergence is this one's, too."""
    if message.meta.get("diverged") is True:
        return Diverged(reason(message))
    if message.meta.get("damaged") is True:
        return DamagedError(f"{who} heard something else: {reason(message)}")
    return kind(f"{who} ended the run: {reason(message)}")


def reason(message: Message) -> str:
    """Return what an ERROR message says, in one line of bounded length."""
    text = message.meta.get("error")
    return line(text) if isinstance(text, str) else "it gives no reason"


def line(text: object) -> str:
    """Return the text in one line of bounded length; what does not print, as Python escapes it."""
    words = " ".join(str(text).split())[:1000]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def number_of(message: Message, word: str) -> int | None:
    """Return a count that a message says; None if it is none."""
    said = message.meta.get(word)
    return said if type(said) is int and 0 <= said <= MOST_STEPS else None


def seconds_of(message: Message, word: str, otherwise: float) -> float:
    """Return seconds that a message says, if they make sense."""
    said: Any = message.meta.get(word)
    if type(said) not in (int, float) or not 0 <= said <= MOST_STEPS:
        return otherwise
    return float(said)
