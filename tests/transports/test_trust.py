"""Files of who may connect: what is asked of them, and what is said of those that will not do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core.contract.errors import ConfigError, Notice
from splitlab.transports.trust import Trust, read_secret


@pytest.mark.parametrize(
    ("content", "held"), [("", 0), (" \n", 0), ("x" * 15, 15), ("\n" + "x" * 15 + "\n", 15)]
)
def test_a_short_secret_is_refused(content: str, held: int, secret: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=f"holds {held} bytes; a secret has 16 to .*openssl rand"):
        read_secret(secret(content))


def test_white_space_around_a_secret_is_none_of_it(secret: Callable[[str], str]) -> None:
    assert read_secret(secret("x" * 16)) == read_secret(secret(f"{'x' * 16}\n")) == b"x" * 16


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_secret_that_others_may_read_is_refused(mode: int, secret: Callable[[str], str]) -> None:
    file = secret("x" * 32)
    os.chmod(file, mode)
    with pytest.raises(ConfigError, match=f"others .* may read .*chmod 600 {file}"):
        Trust(secret_file=file)


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_ca", "secret_file"])
def test_a_file_that_is_not_there_is_named(name: str, lab: Path, tmp_path: Path) -> None:
    given = {"tls_cert": str(lab / "server.pem"), "tls_key": str(lab / "server.key")}
    option = f"--{name.replace('_', '-')}"
    for gone, why in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"{option} {gone} cannot be read: {why}"):
            Trust(**(given | {name: str(gone)}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_ca", "secret_file"])
def test_what_never_ends_or_never_begins_is_refused_at_once(
    name: str, lab: Path, tmp_path: Path
) -> None:
    given = {"tls_cert": str(lab / "server.pem"), "tls_key": str(lab / "server.key")}
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(1 << 33)
    option = f"--{name.replace('_', '-')}"
    for path, why in ((pipe, "is no file"), (large, "has 8,589,934,592 bytes, and at most")):
        with pytest.raises(ConfigError, match=f"{option} {path} {why}"):
            Trust(**(given | {name: str(path)}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        Trust(**(given | {name: "a\0b"}))  # type: ignore[arg-type]


def test_certificate_key_and_authority_must_belong_together(lab: Path, tmp_path: Path) -> None:
    cert, key = str(lab / "server.pem"), str(lab / "server.key")
    with pytest.raises(ConfigError, match=r"client.key is not the key of --tls-cert .*server.pem"):
        Trust(cert, str(lab / "client.key"))
    with pytest.raises(ConfigError, match="needs its certificate; give --tls-cert"):
        Trust(tls_key=key)
    with pytest.raises(ConfigError, match=r"are not a certificate and its private key"):
        Trust(cert)
    text = tmp_path / "text"
    text.write_text("nothing")
    with pytest.raises(ConfigError, match=f"--tls-ca {text} holds no certificate"):
        Trust(tls_ca=str(text))
    with pytest.raises(ConfigError, match=rf"--tls-ca {cert} is a peer's .* give .*\(ca\.pem of"):
        Trust(tls_ca=cert)
    with pytest.raises(ConfigError, match="are not a certificate and its private key"):
        Trust(str(text), key)
    with pytest.raises(ConfigError, match="at a server needs a certificate of its own"):
        Trust(tls_ca=str(lab / "ca.pem")).check_server()
    with pytest.raises(ConfigError, match="at a client needs --tls-ca"):
        Trust(cert, key).check_client()


def test_one_file_may_hold_certificate_and_key(lab: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.touch(0o600)
    both.write_text((lab / "server.key").read_text() + (lab / "server.pem").read_text())
    apart = Trust(str(lab / "server.pem"), str(lab / "server.key"))
    assert Trust(str(both)).certificate == apart.certificate != b""


def test_a_certificate_in_a_form_that_cannot_be_bound_is_refused(lab: Path, tmp_path: Path) -> None:
    """OpenSSL takes it, and both peers would make their proofs of different bytes."""
    cert, trusted = lab / "server.pem", tmp_path / "trusted.pem"
    trusted.write_text(cert.read_text().replace(" CERTIFICATE-", " X509 CERTIFICATE-"))
    with pytest.raises(ConfigError, match=r"another form than .*openssl x509 -in"):
        Trust(str(trusted), str(lab / "server.key"))


def test_a_key_that_others_may_read_is_a_notice(lab: Path, tmp_path: Path) -> None:
    key = tmp_path / "server.key"
    key.write_bytes((lab / "server.key").read_bytes())
    key.chmod(0o644)
    with pytest.warns(Notice, match=f"others .* may read the private key in {key}; chmod 600"):
        Trust(str(lab / "server.pem"), str(key))


def test_nobody_is_asked_for_a_pass_phrase(lab: Path, tmp_path: Path) -> None:
    key = tmp_path / "encrypted.key"
    key.touch(0o600)
    command = ["openssl", "ec", "-aes128", "-passout", "pass:words", "-in", str(lab / "server.key")]
    try:
        done = subprocess.run([*command, "-out", str(key)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("encrypts the key with openssl's program, which is not here")
    assert done.returncode == 0
    with pytest.raises(ConfigError, match=f"--tls-key {key} is encrypted"):
        Trust(str(lab / "server.pem"), str(key))


@pytest.mark.parametrize("host", ["0.0.0.0", "10.9.0.2", "::", "fe80::1%eth0", "192.0.2.1"])
def test_others_need_to_be_let_in_by_something(
    host: str, lab: Path, secret: Callable[[str], str]
) -> None:
    files = {"tls_cert": str(lab / "server.pem"), "tls_key": str(lab / "server.key")}
    for trust in (Trust(), Trust(**files)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError) as caught:
            trust.check_host("tcp://there:1", host)
        for remedy in ("tcp://there:1", "--tls-ca", "--secret-file", "--insecure"):
            assert remedy in str(caught.value)
    Trust(**files, tls_ca=str(lab / "ca.pem")).check_host("", host)  # type: ignore[arg-type]
    Trust(secret_file=secret("x" * 16)).check_host("", host)
    Trust(insecure=True).check_host("", host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_this_machine_needs_nothing(host: str) -> None:
    Trust().check_host("", host)
