"""Addresses as users write them: ``scheme://host:port``, IPv6 hosts in brackets."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from splitlab.core.contract.errors import ConfigError

__all__ = ["Address"]


class Address(NamedTuple):
    """Where a peer listens. A host is a name or a number; port 0 stands for any free one."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, scheme: str) -> Address:
        """Read an address of this scheme, or raise `ConfigError`."""
        try:
            parts = urlsplit(text)
            found = (parts.scheme, parts.hostname, parts.port)
            (parts.hostname or "").encode("idna")  # as whoever looks it up does
        except ValueError:
            found = ("", None, None)
        if found[0] != scheme or found[1] is None or found[2] is None:
            raise ConfigError(
                f"{text!r} is not an address of this transport; "
                f"write {scheme}://HOST:PORT, for example {scheme}://127.0.0.1:4711"
            )
        return cls(scheme, found[1], found[2])

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
