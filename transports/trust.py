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

__all__ = ["Trust", "is_loopback", "read_secret", "tls_trouble"]

_LEAST_SECRET_BYTES: Final = 16
_MOST_SECRET_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 24
"""Far more than all public authorities take."""


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
        certificate: the peer's own, as DER; empty without one.

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
        text, private = _own(tls_cert, tls_key) if tls_cert else (b"", True)
        self.server = self._context(ssl.PROTOCOL_TLS_SERVER) if tls_cert else None
        self.client = self._context(ssl.PROTOCOL_TLS_CLIENT) if tls_ca else None
        if self.server is not None:
            self.server.num_tickets = 0  # no session is gone on with
            self.server.verify_mode = ssl.CERT_REQUIRED if tls_ca else ssl.CERT_NONE
        self.certificate = _der(tls_cert, text) if tls_cert else b""
        self.secret = read_secret(secret_file) if secret_file else None
        if not private:
            warnings.warn(
                f"others on this machine may read the private key in {tls_key or tls_cert}; "
                "chmod 600 it",
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

    def _context(self, protocol: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self._ca:
            _read("--tls-ca", self._ca)
            try:
                context.load_verify_locations(self._ca)
            except ssl.SSLError:
                raise ConfigError(f"--tls-ca {self._ca} holds no certificate in PEM form") from None
            if not context.cert_store_stats()["x509_ca"]:
                raise ConfigError(
                    f"--tls-ca {self._ca} is a peer's certificate and no authority's; give the "
                    "file of who signs it (ca.pem of those that `splitlab certs` makes)"
                )
        if self._cert:
            self._load_chain(context, self._cert)
        return context

    def _load_chain(self, context: ssl.SSLContext, cert: str) -> None:
        name, key = ("--tls-key", self._key) if self._key else ("--tls-cert", cert)

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


def _own(cert: str, key: str | None) -> tuple[bytes, bool]:
    """Return what a file of a certificate holds, and whether its private key is private."""
    text, private = _read("--tls-cert", cert)
    return text, _read("--tls-key", key)[1] if key else private


def _der(cert: str, text: bytes) -> bytes:
    """Return the first certificate of a file that OpenSSL has taken, which does not show it."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    _, found, rest = text.decode("ascii", "replace").partition(begin)
    if not found:
        raise ConfigError(
            f"--tls-cert {cert} holds a certificate in another form than {begin}; convert it with: "
            f"openssl x509 -in {cert}"
        )
    return ssl.PEM_cert_to_DER_cert(begin + rest.partition(end)[0] + end)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach this host's number."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def read_secret(path: str) -> bytes:
    """Return what a file of a secret holds, without white space around it.

    Raises:
        ConfigError: it cannot be read, others may read it, or it is too short for a secret.
    """
    raw, private = _read("--secret-file", path)
    if not private:
        raise ConfigError(
            f"others on this machine may read --secret-file {path}; keep it to yourself with: "
            f"chmod 600 {path}"
        )
    secret = raw.strip()
    if not _LEAST_SECRET_BYTES <= len(secret) <= _MOST_SECRET_BYTES:
        raise ConfigError(
            f"--secret-file {path} holds {len(secret)} bytes; a secret has "
            f"{_LEAST_SECRET_BYTES} to {_MOST_SECRET_BYTES}: make one with "
            "`openssl rand -hex 32 > FILE`"
        )
    return secret


def tls_trouble(error: ssl.SSLError, client: bool | None) -> str:
    """Say what a failure of TLS means, as the rest of a line about the other end.

    Args:
        error: of the handshake, of what was read first behind it, or later.
        client: whether this end of a handshake is the client; None when it is done.
    """
    if client is None:
        return f"what came under TLS was damaged, or changed on the way ({_words(error)})"
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
    way_out = "; start it with --tls-cert: without, anybody on the way can read" if client else ""
    return f"the {other} does not speak TLS ({_words(error)}){way_out}"


def _words(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or "no reason").lower().replace("_", " ")


def _read(option: str, path: str) -> tuple[bytes, bool]:
    """Return what a file holds, and whether its owner alone may read or change it."""
    try:
        # What is no file may never begin, or never end, and be empty when it is read once more.
        with open(path, "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(
                    f"{option} {path} is no file, and is read more than once; save what it gives "
                    "in a file"
                )
            if found.st_size > _MOST_BYTES:
                raise ConfigError(
                    f"{option} {path} has {found.st_size:,} bytes, and at most {_MOST_BYTES:,} are "
                    "read; name another file"
                )
            return file.read(_MOST_BYTES), not found.st_mode & 0o077
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option} {path} cannot be read: {why}") from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
