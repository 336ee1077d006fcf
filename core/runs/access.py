"""Who may connect: options that decide no number, and that the transport is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.settings import ACCESS
from splitlab.core.runs.option import GROUPS, option

__all__ = ["ACCESS_FILES", "Access"]

_LINK = GROUPS[4]
ACCESS_FILES = tuple(name for name in ACCESS if name != "insecure")
"""The fields that name files."""


@dataclass(frozen=True)
class Access:
    """The fields of `Config` about who may connect. Each peer has its own."""

    tls_cert: str | None = option(
        None,
        "this peer's certificate, for TLS (`splitlab certs` makes one)",
        metavar="FILE.pem",
        group=_LINK,
    )
    tls_key: str | None = option(None, "and its private key", metavar="FILE", group=_LINK)
    tls_ca: str | None = option(
        None,
        "who signs the other peer's certificate, which must then show one; a client with it speaks "
        "TLS, and checks the server's name",
        metavar="FILE.pem",
        group=_LINK,
    )
    secret_file: str | None = option(
        None,
        "what both peers must prove to know: 16 bytes or more that nobody else may read",
        metavar="FILE",
        group=_LINK,
    )
    insecure: bool = option(
        False,
        "let anybody connect from other machines: for networks that you trust",
        group=_LINK,
    )

    @property
    def access(self) -> dict[str, Any]:
        """What was given, by the parameters of a transport."""
        return {name: value for name in ACCESS if (value := getattr(self, name))}

    def check_both(self) -> None:
        """Raise `ConfigError` if one of the peers lacks something, of a run that has both."""
        if bool(self.tls_ca) is not bool(self.tls_cert):
            given, lacking = (
                (f"--tls-ca {self.tls_ca}", "--tls-cert and --tls-key")
                if self.tls_ca
                else (f"--tls-cert {self.tls_cert}", "--tls-ca")
            )
            raise ConfigError(
                f"{given} is not enough for a run that starts its server itself; give {lacking}, "
                "too (`splitlab certs DIR` makes them), or name a server elsewhere with "
                "`splitlab join`"
            )
