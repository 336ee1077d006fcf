"""``splitlab certs``: a private certificate authority, and certificates of a server and clients."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitlab.core.command.options import Parser, declare
from splitlab.core.command.streams import say
from splitlab.core.contract.errors import ConfigError

if TYPE_CHECKING:
    from splitlab.core.command.options import Commands

__all__ = ["add", "make"]

_MORE = """\
Makes a certificate authority of your own in a folder, ca.pem and ca.key, a
certificate of the server, server.pem and server.key, and one of every client,
NAME.pem and NAME.key. Keys are readable by you alone. Nothing is overwritten:
where there is an authority already, it signs what is new. ca.key is needed for
that only; keep it where neither server nor client is. A client needs ca.pem and
its own two files. Needs the package cryptography (pip install splitlab[certs]).
"""

_EXAMPLES = """\
  splitlab certs lab --host gpu1.example.org      for a server there, and one client
  splitlab certs lab --host 10.0.0.2 --client ann --client bob
  splitlab certs lab --client carol               one more, of the same authority
"""

_HERE = ("localhost", "127.0.0.1", "::1")
_CA_DAYS = 3650
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,62}", re.ASCII)
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_SKEW = timedelta(hours=1)
"""How far clocks may differ."""


def add(commands: Commands) -> Parser:
    """Add the command."""
    parser = declare(
        commands,
        "certs",
        _certs,
        "make the certificates with which serve and join trust each other",
        takes="DIR [--host NAME]… [--client NAME]… [--days N]",
        more=_MORE,
        examples=_EXAMPLES,
    )
    parser.add_argument("folder", metavar="DIR", help="where to; it is made")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="name or number by which clients reach the server, besides localhost; repeat it",
    )
    parser.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="NAME",
        help="make a certificate of this client; repeat it (default: one that is called client)",
    )
    parser.add_argument(
        "--days",
        type=int,
        default=365,
        metavar="N",
        help="how long certificates are good; the authority is ten years (default: 365)",
    )
    return parser


def _certs(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder).expanduser()
    made = make(folder, arguments.host, arguments.client, arguments.days)
    files = [str(folder / name) for name in made]
    say(f"made {', '.join(files)}; good for {arguments.days:,} days")
    host = next((name for name in arguments.host if not name.startswith("*")), "HOST")
    at = f"[{host}]" if ":" in host else host
    if "server.pem" in made:
        own = _options(folder, "server")
        say(f"on one machine:\n  splitlab run --transport tcp {own} --plugin adc")
        say(f"on the server:\n  splitlab serve --address tcp://0.0.0.0:4711 {own} --plugin adc")
    for name in made:
        client = name.removesuffix(".pem")
        if name.endswith(".pem") and client not in ("ca", "server"):
            say(
                f"on a client, with ca.pem, {name} and {client}.key:\n"
                f"  splitlab join tcp://{at}:4711 {_options(folder, client)} --plugin adc"
            )
    return 0


def _options(folder: Path, name: str) -> str:
    files = {"cert": folder / f"{name}.pem", "key": folder / f"{name}.key", "ca": folder / "ca.pem"}
    return " ".join(f"--tls-{option} {shlex.quote(str(path))}" for option, path in files.items())


def make(
    folder: Path, hosts: Sequence[str], clients: Sequence[str], days: float = 365
) -> list[str]:
    """Make certificates and return the names of the files.

    Args:
        folder: where to; one that holds an authority gets only what is asked for.
        hosts: names and numbers of the server, besides those of loopback.
        clients: names; one is made with a new authority if there are none.
        days: how long they are good from now on.

    Raises:
        ConfigError: a name or number that cannot be, a file that is there already, or the package
            cryptography is missing.
    """
    if not 0 < days <= _CA_DAYS:
        raise ConfigError(f"--days {days} is not allowed; 1 to {_CA_DAYS}, as long as an authority")
    for host in hosts:
        _check_host(host)
    for name in clients:
        if not _NAME.fullmatch(name) or name in ("ca", "server"):
            raise ConfigError(
                f"--client {name!r} is not allowed; up to 63 letters, digits and . _ + -, other "
                "than ca and server"
            )
    try:
        authority = _Authority(folder, days)
    except ImportError:
        raise ConfigError(
            "certificates need the package cryptography; install it with: "
            "pip install 'splitlab[certs]'"
        ) from None
    names = list(dict.fromkeys(clients)) or ["client"] * authority.new
    server = bool(hosts) or authority.new
    if not (names or server):
        raise ConfigError(
            f"{folder} holds an authority and its certificates; add some with --client NAME, or "
            "name another folder"
        )
    wanted = [*["ca"] * authority.new, *["server"] * server, *names]
    for file in (folder / f"{name}.{kind}" for name in wanted for kind in ("pem", "key")):
        if os.path.lexists(file):
            raise ConfigError(f"{file} is there already; remove it, or choose another name")
    made: dict[str, bytes] = dict(authority.files) if authority.new else {}
    if server:
        made |= authority.signed("server", dict.fromkeys((*_HERE, *hosts)))
    for name in names:
        made |= authority.signed(name)
    _write(folder, made)
    return [*made]


def _check_host(host: str) -> None:
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        # What ends in digits is a mistyped number: nobody looks it up as a name.
        if not _HOST.fullmatch(host) or ".." in host or host.rpartition(".")[2].isdigit():
            raise ConfigError(
                f"--host {host!r} is not allowed; a name or number by which clients reach the "
                "server, such as gpu1.example.org or 10.0.0.2"
            ) from None
        return
    if number.is_unspecified:
        raise ConfigError(
            f"--host {host} stands for every interface; name the one that clients connect to"
        )


def _write(folder: Path, made: dict[str, bytes]) -> None:
    """Write all files or none: what is there is never overwritten, keys are the user's alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, content in made.items():
            path = folder / name
            mode = 0o600 if name.endswith(".key") else 0o644
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                written.append(path)
                file.write(content)
    except BaseException:
        for path in written:
            path.unlink()
        raise


class _Authority:
    """Signs certificates: the one of a folder, or a new one.

    Attributes:
        new: whether it was made now.
        files: its own certificate and key.
    """

    def __init__(self, folder: Path, days: float) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from cryptography.x509 import load_pem_x509_certificate

        self._days = days
        cert, key = folder / "ca.pem", folder / "ca.key"
        self.new = not (cert.exists() or key.exists())
        self.files: dict[str, bytes] = {}
        if self.new:
            self._key: Any = _new_key()
            self._cert: Any = self._built("splitlab lab CA", self._key, _CA_DAYS, authority=True)
            self.files = _pem("ca", self._cert, self._key)
            return
        try:
            self._cert = load_pem_x509_certificate(cert.read_bytes())
            self._key = load_pem_private_key(key.read_bytes(), None)
        except OSError as error:
            raise ConfigError(
                f"{error.filename} cannot be read ({error.strerror}), and an authority that is "
                "there needs both of its files; name another folder"
            ) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{folder} holds a damaged authority: {error}") from None
        if self._cert.public_key() != self._key.public_key():
            raise ConfigError(f"{key} is not the key of {cert}; name another folder")
        left = (self._cert.not_valid_after_utc - datetime.now(UTC)).days
        if days > left:
            raise ConfigError(
                f"--days {days} is longer than the authority in {folder} is good, for {left} days; "
                "give fewer, or name another folder"
            )

    def signed(self, name: str, hosts: Sequence[str] | dict[str, None] = ()) -> dict[str, bytes]:
        """Return the files of a new certificate; one with hosts is a server's."""
        key = _new_key()
        return _pem(name, self._built(name, key, self._days, hosts), key)

    def _built(
        self,
        name: str,
        key: Any,
        days: float,
        hosts: Sequence[str] | dict[str, None] = (),
        authority: bool = False,
    ) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = key if authority else self._key
        now = datetime.now(UTC)
        usage = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment"),
                *("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
                *("encipher_only", "decipher_only"),
            ),
            False,
        )
        usage |= dict.fromkeys(
            ("key_cert_sign", "crl_sign") if authority else ("digital_signature",), True
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if authority else self._cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(_end(now, days))
            .add_extension(x509.BasicConstraints(authority, 0 if authority else None), True)
            .add_extension(x509.KeyUsage(**usage), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
            )
        )
        if not authority:
            # A run on one machine shows the server's certificate from both of its peers.
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
            purposes += [ExtendedKeyUsageOID.SERVER_AUTH] if hosts else []
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
        if hosts:
            names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
            builder = builder.add_extension(names, False)
        return builder.sign(signer, hashes.SHA256())


def _end(now: datetime, days: float) -> datetime:
    return now + timedelta(days=days)


def _alternative(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(name: str, cert: Any, key: Any) -> dict[str, bytes]:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return {
        f"{name}.pem": cert.public_bytes(Encoding.PEM),
        f"{name}.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
