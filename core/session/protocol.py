"""What both sides of a session share: the agreement, frame limits, and errors that are told."""

from __future__ import annotations

import contextlib

from splitlab.core.contract.errors import Diverged, LinkError, ProtocolError, SplitlabError
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Kind, Message

__all__ = [
    "HELLO_BYTES",
    "PROTOCOL",
    "Agreement",
    "compare",
    "ended",
    "frame_limit",
    "line",
    "reason",
    "tell",
]

PROTOCOL = 1
HELLO_BYTES = 1 << 16
"""The largest frame before the handshake."""

Agreement = dict[str, str]
"""What both peers must have in common, by the name that the user knows it by."""


def frame_limit(message_bytes: int) -> int:
    """Return the largest frame after the handshake, from the size of an uncompressed batch."""
    # A codec may send more than it got (values and indices), hardly four times as much.
    return 4 * message_bytes + (1 << 20)


def compare(client: Agreement, server: Agreement) -> None:
    """Raise `ProtocolError` with both values if the peers differ."""
    for key in [*server, *client]:
        if client.get(key) != server.get(key):
            raise ProtocolError(
                f"the peers differ in {line(key)}: client {line(client.get(key))}, "
                f"server {line(server.get(key))}; give both the same options"
            )


def tell(link: Link, error: BaseException, timeout: float) -> None:
    """Tell the other peer, if it still listens, why this one ends."""
    kind = "" if isinstance(error, SplitlabError) else f"{type(error).__name__}: "
    meta: dict[str, object] = {"error": line(f"{kind}{error}")}
    if isinstance(error, Diverged):
        meta["diverged"] = True
    # If the link is what failed, or the peer is gone, nobody is left to be told.
    with contextlib.suppress(LinkError):
        link.send(Message(Kind.ERROR, meta=meta), timeout)


def ended(message: Message, who: str, kind: type[LinkError]) -> SplitlabError:
    """Return what to raise of an ERROR message: the other peer's divergence is this one's, too."""
    if message.meta.get("diverged") is True:
        return Diverged(reason(message))
    return kind(f"{who} ended the run: {reason(message)}")


def reason(message: Message) -> str:
    """Return what an ERROR message says, in one line of bounded length."""
    text = message.meta.get("error")
    return line(text) if isinstance(text, str) else "it gives no reason"


def line(text: object) -> str:
    """Return the text in one line of bounded length."""
    return " ".join(str(text).split())[:1000]
