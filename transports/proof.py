"""What is said on a connection before its first frame: whether the client is let in.

Pure exchanges: a generator yields bytes to send, or how many it wants to be sent; who drives it has
the connection. Spoken only where the server asks for a certificate or a secret; the client begins::

    client                                     server
    opening: magic, has a secret, nonce     ─►
                                            ◄─ reply: admitted | refused | challenge with a nonce
    proof: HMAC-SHA256 of all that was said ─►
                                            ◄─ reply: admitted with the server's own proof | refused

The two proofs name the role of who makes them, cover both nonces, which are new every time, and are
compared in constant time: none can be replayed, reflected or learned byte by byte. The client
proves first, so that a stranger gets nothing that it could try words on. Under TLS they cover the
server's certificate too (as RFC 5929's tls-server-end-point does), so that a proof cannot be handed
on to another server: Python's ssl offers TLS 1.3's own binding (tls-exporter) nowhere, and
tls-unique is of TLS 1.2.

Without TLS the proof holds for the beginning of a connection: what follows can be read, and be
changed by who sits on the way.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Generator
from typing import Final

from splitlab.core.contract.errors import NetworkError, RefusedError

__all__ = ["MAGIC", "MAGIC_BYTES", "Exchange", "NoOpening", "claim", "judge", "refusal"]

Exchange = Generator[bytes | int, bytes | None, None]
"""Yields what to send, or how many bytes it is to be sent."""

MAGIC: Final = b"SPA\x01"
"""Begins an opening and a reply; the last byte is the version."""
MAGIC_BYTES: Final = len(MAGIC)

_NONCE_BYTES = 32
_REPLY_BYTES = MAGIC_BYTES + 1 + _NONCE_BYTES
_NOTHING = bytes(_NONCE_BYTES)

_ADMITTED, _CHALLENGE, _NEEDED, _UNKNOWN, _WRONG, _NO_TLS = range(6)
_REFUSALS = {
    _NEEDED: "the server lets in who knows its secret; give the same --secret-file",
    _UNKNOWN: "the server knows no secret; start it with the same --secret-file",
    _WRONG: "the server refused the proof of the secret; give both peers the same --secret-file",
    _NO_TLS: "the server speaks TLS only; give --tls-ca FILE",
}


class NoOpening(NetworkError):
    """Who connected begins with something else.

    Attributes:
        began: its first bytes.
    """

    def __init__(self, text: str, began: bytes) -> None:
        super().__init__(text)
        self.began = began


def claim(secret: bytes | None, binding: bytes) -> Exchange:
    """Ask to be let in, and know that the server is the right one.

    Args:
        secret: that both know, or None.
        binding: what both know of the channel below; empty without TLS.

    Raises:
        RefusedError: the client was not let in, or the server does not know the secret.
    """
    opening = MAGIC + bytes([secret is not None]) + secrets.token_bytes(_NONCE_BYTES)
    yield opening
    reply = yield _REPLY_BYTES
    assert reply is not None
    status = _status(reply)
    if secret is None:
        if status == _CHALLENGE:
            status = _NEEDED
    elif status == _CHALLENGE:
        said = opening + reply
        mine = _proof(secret, b"client", binding, said)
        yield mine
        reply = yield _REPLY_BYTES
        assert reply is not None
        status, theirs = _status(reply), reply[-_NONCE_BYTES:]
        expected = _proof(secret, b"server", binding, said + mine)
        if status == _ADMITTED and not hmac.compare_digest(theirs, expected):
            raise RefusedError(
                "who listens there does not know the secret of --secret-file: it is not your "
                "server, or was given another one"
            )
    elif status == _ADMITTED:
        status = _UNKNOWN
    if status != _ADMITTED:
        raise RefusedError(_REFUSALS.get(status, f"the server's answer {status} is unknown here"))


def judge(secret: bytes | None, binding: bytes) -> Exchange:
    """Let in who knows the secret, or everybody if there is none; arguments as `claim`.

    Raises:
        NoOpening: who came begins with something else.
        NetworkError: it was refused, and told so.
    """
    began = yield MAGIC_BYTES
    assert began is not None
    if began != MAGIC:
        raise NoOpening(f"it begins with {began!r}, not as a client does", began)
    rest = yield 1 + _NONCE_BYTES
    assert rest is not None
    opening, knows = began + rest, rest[0] == 1
    if knows is not (secret is not None):
        yield _reply(_NEEDED if secret else _UNKNOWN)
        raise NetworkError(
            "it gave no --secret-file, which this server asks for"
            if secret
            else "it gave a --secret-file, and this server has none"
        )
    if secret is None:
        yield _reply(_ADMITTED)
        return
    challenge = _reply(_CHALLENGE, secrets.token_bytes(_NONCE_BYTES))
    yield challenge
    theirs = yield _NONCE_BYTES
    assert theirs is not None
    said = opening + challenge
    if not hmac.compare_digest(theirs, _proof(secret, b"client", binding, said)):
        yield _reply(_WRONG)
        raise NetworkError("its proof of the secret is wrong: it has another --secret-file")
    yield _reply(_ADMITTED, _proof(secret, b"server", binding, said + theirs))


def refusal(tls: bool) -> bytes:
    """Return the reply to an opening that was not awaited: TLS comes first, or nothing is asked."""
    return _reply(_NO_TLS if tls else _UNKNOWN)


def _proof(secret: bytes, role: bytes, binding: bytes, said: bytes) -> bytes:
    bound = hashlib.sha256(binding).digest()
    return hmac.digest(secret, b"splitlab " + role + bound + said, "sha256")


def _reply(status: int, nonce: bytes = _NOTHING) -> bytes:
    return MAGIC + bytes([status]) + nonce


def _status(reply: bytes) -> int:
    if not reply.startswith(MAGIC):
        raise RefusedError(
            f"who listens there answers with {reply[:MAGIC_BYTES]!r}: it asks for neither "
            "certificate nor secret, or is no server of this version"
        )
    return reply[MAGIC_BYTES]
