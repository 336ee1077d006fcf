"""Who may connect: certificates, a secret, or anybody in a network that the user trusts.

A transport's parameters of these names come from the options of the same names (``--tls-ca``).
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
import warnings
from typing import Final

from splitlab.core.contract.errors import ConfigError, Notice

__all__ = ["LEAST_SECRET_BYTES", "Trust", "is_loopback", "read_secret", "tls_trouble"]

LEAST_SECRET_BYTES: Final = 16
_MOST_SECRET_BYTES: Final = 1 << 16


class Trust:
    """What both ends of a connection ask of each other, read from its files.

    Args:
        tls_cert: PEM file of this peer's certificate, and of what is between it and the CA.
        tls_key: PEM file of its private key; it may be in the certificate's file.
        tls_ca: PEM file of who signs the other peer's certificate.
        secret_file: file of what both peers know.
        insecure: whether others than this machine may connect without any of these.

    Attributes:
        server: makes TLS's server end; None without a certificate.
        client: makes TLS's client end, which checks the host's name; None without a CA.
        secret: what both peers know, or None.

    Raises:
        ConfigError: a file cannot be used, or one is given without another that it needs.
    """

    def __init__(
        self,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        tls_ca: str | None = None,
        secret_file: str | None = None,
        insecure: bool = False,
    ) -> None:
        if tls_key and not tls_cert:
            raise ConfigError(f"--tls-key {tls_key} needs its certificate; give --tls-cert FILE")
        self._cert, self._key, self._ca = tls_cert, tls_key, tls_ca
        self._insecure = insecure
        self.server = self._context(ssl.PROTOCOL_TLS_SERVER) if tls_cert else None
        self.client = self._context(ssl.PROTOCOL_TLS_CLIENT) if tls_ca else None
        if self.server is not None:
            self.server.num_tickets = 0  # no session is gone on with
            self.server.verify_mode = ssl.CERT_REQUIRED if tls_ca else ssl.CERT_NONE
        self.secret = read_secret(secret_file) if secret_file else None
        key = tls_key or tls_cert
        if key and os.stat(key).st_mode & 0o077:
            warnings.warn(
                f"others on this machine may read the private key in {key}; chmod 600 it",
                Notice,
                stacklevel=2,
            )

    @property
    def secured(self) -> bool:
        """Whether a connection begins with anything but its first frame."""
        return bool(self._cert or self._ca or self.secret)

    def check_server(self) -> None:
        """Raise `ConfigError` if a server lacks something."""
        if self._ca and self.server is None:
            raise ConfigError(
                f"--tls-ca {self._ca} at a server needs a certificate of its own; give --tls-cert "
                "and --tls-key (`splitlab certs DIR` makes them)"
            )

    def check_client(self) -> None:
        """Raise `ConfigError` if a client lacks something."""
        if self._cert and self.client is None:
            raise ConfigError(
                f"--tls-cert {self._cert} at a client needs --tls-ca FILE, which says whom it "
                "trusts; for a certificate of a public CA, the system's file of them"
            )

    def check_host(self, address: object, host: str) -> None:
        """Raise `ConfigError` if strangers could come there and be let in.

        Args:
            address: as the user wrote it.
            host: number that was found for it.
        """
        if self._insecure or self.secret or (self.server and self._ca) or is_loopback(host):
            return
        raise ConfigError(
            f"{address} can be reached from other machines, and whoever comes would be served; "
            "give --tls-cert, --tls-key and --tls-ca (`splitlab certs DIR` makes them), or "
            "--secret-file FILE, or --insecure in a network that you trust"
        )

    def own_certificate(self) -> bytes:
        """Return the server's certificate as DER; empty without TLS."""
        if not self._cert:
            return b""
        text = _read("--tls-cert", self._cert).decode("ascii", "replace")
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        return ssl.PEM_cert_to_DER_cert(begin + text.partition(begin)[2].partition(end)[0] + end)

    def _context(self, protocol: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self._ca:
            _read("--tls-ca", self._ca)
            try:
                context.load_verify_locations(self._ca)
            except ssl.SSLError:
                raise ConfigError(f"--tls-ca {self._ca} holds no certificate in PEM form") from None
        if self._cert:
            self._load_chain(context, self._cert)
        return context

    def _load_chain(self, context: ssl.SSLContext, cert: str) -> None:
        name, key = ("--tls-key", self._key) if self._key else ("--tls-cert", cert)
        _read("--tls-cert", cert)
        _read(name, key)

        def encrypted() -> str:
            raise ConfigError(
                f"{name} {key} is encrypted; nobody is asked for its pass phrase: decrypt it"
            )

        try:
            context.load_cert_chain(cert, self._key, encrypted)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                told = f"--tls-key {key} is not the key of --tls-cert {cert}"
            else:
                told = (
                    f"--tls-cert {cert} and {key} are not a certificate and its private key in PEM "
                    f"form ({_words(error)})"
                )
            raise ConfigError(f"{told}; give the two that belong together") from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach this host's number."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def read_secret(path: str) -> bytes:
    """Return what a file of a secret holds, without white space around it.

    Raises:
        ConfigError: it cannot be read, others may read it, or it is too short for a secret.
    """
    raw = _read("--secret-file", path, _MOST_SECRET_BYTES + 1)
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise ConfigError(
            f"others on this machine may read --secret-file {path}; keep it to yourself with: "
            f"chmod 600 {path}"
        )
    secret = raw.strip()
    if not LEAST_SECRET_BYTES <= len(secret) <= _MOST_SECRET_BYTES:
        raise ConfigError(
            f"--secret-file {path} holds {len(secret)} bytes; a secret has {LEAST_SECRET_BYTES} to "
            f"{_MOST_SECRET_BYTES}: make one with `openssl rand -hex 32 > FILE`"
        )
    return secret


def tls_trouble(error: ssl.SSLError, client: bool) -> str:
    """Say what a failed handshake means, as the rest of a line about the other end.

    Args:
        error: of the handshake, or of what was read first behind it.
        client: whether this end is the client.
    """
    other = "server" if client else "client"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the {other}'s certificate is not to be trusted: {error.verify_message.rstrip('.')}"
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the client shows no certificate, which --tls-ca asks for"
    if "CERTIFICATE_REQUIRED" in reason:
        return "the server asks for a certificate; give --tls-cert and --tls-key"
    if reason in ("UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW") or (
        "PROTOCOL_VERSION" in reason
    ):
        return f"the {other} speaks a TLS older than 1.3"
    if any(word in reason for word in ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_")):
        return f"the {other} does not trust this side's certificate ({_words(error)})"
    if "ALERT" in reason:
        return f"the {other} ended the TLS handshake ({_words(error)})"
    way_out = "; leave --tls-ca out, or start it with --tls-cert" if client else ""
    return f"the {other} does not speak TLS ({_words(error)}){way_out}"


def _words(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or "no reason").lower().replace("_", " ")


def _read(option: str, path: str, most: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror}") from None
