"""``splitlab certs``: files that TLS takes, with names and purposes; nothing is overwritten."""

from __future__ import annotations

import shlex
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.command.main import main

x509: Any = pytest.importorskip("cryptography.x509")


def read(file: Path) -> Any:
    return x509.load_pem_x509_certificate(file.read_bytes())


def test_what_is_made_and_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = tmp_path / "a lab"
    named = ["--host", "gpu1.example.org", "--host", "10.0.0.2", "--host", "localhost"]
    clients = ["--client", "ann", "--client", "bob", "--days", "30"]
    assert main(["certs", str(lab), *named, *clients]) == 0
    names = ["ann", "bob", "ca", "server"]
    assert sorted(file.stem for file in lab.glob("*.pem")) == names
    assert sorted(file.stem for file in lab.glob("*.key")) == names
    for file in lab.iterdir():
        assert file.stat().st_mode & 0o777 == (0o600 if file.suffix == ".key" else 0o644)
    assert lab.stat().st_mode & 0o077 == 0
    server = read(lab / "server.pem")
    alternative = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in alternative] == [
        *("localhost", "127.0.0.1", "::1", "gpu1.example.org", "10.0.0.2")
    ]
    lifetime = server.not_valid_after_utc - server.not_valid_before_utc
    assert (lifetime.days, lifetime.seconds) == (30, 3600)
    said = capsys.readouterr().out
    for command in ("splitlab run", "splitlab serve", "splitlab join tcp://gpu1.example.org:4711"):
        line = next(line for line in said.splitlines() if line.strip().startswith(command))
        words = shlex.split(line)
        for option in ("--tls-cert", "--tls-key", "--tls-ca"):
            assert Path(words[words.index(option) + 1]).is_file()


def test_they_hold_by_the_strictest_rules(tmp_path: Path) -> None:
    assert main(["certs", str(tmp_path)]) == 0
    for name, purpose, good in (
        ("server", ssl.Purpose.SERVER_AUTH, True),
        ("server", ssl.Purpose.CLIENT_AUTH, True),
        ("client", ssl.Purpose.CLIENT_AUTH, True),
        ("client", ssl.Purpose.SERVER_AUTH, False),
    ):
        assert verified(tmp_path, name, purpose) is good


def verified(lab: Path, name: str, purpose: ssl.Purpose) -> bool:
    """Shake hands in memory: one end shows the certificate, the other looks at it."""
    ask = ssl.create_default_context(purpose, cafile=str(lab / "ca.pem"))
    ask.verify_flags |= ssl.VERIFY_X509_STRICT
    ask.verify_mode = ssl.CERT_REQUIRED
    asks_server = purpose is ssl.Purpose.SERVER_AUTH
    show = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if asks_server else ssl.PROTOCOL_TLS_CLIENT)
    show.load_cert_chain(lab / f"{name}.pem", lab / f"{name}.key")
    if not asks_server:
        ask.load_cert_chain(lab / "server.pem", lab / "server.key")
        show.check_hostname, show.verify_mode = False, ssl.CERT_NONE
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = ask.wrap_bio(
        down if asks_server else up,
        up if asks_server else down,
        server_side=not asks_server,
        server_hostname="localhost" if asks_server else None,
    )
    shows = show.wrap_bio(
        up if asks_server else down, down if asks_server else up, server_side=asks_server
    )
    done: set[Any] = set()
    for _ in range(6):
        for end in (shows, asks):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
            except ssl.SSLError:
                continue  # the alert of the other
    return asks in done


def test_nothing_is_overwritten_and_more_can_be_made(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    lab = str(tmp_path / "lab")
    assert main(["certs", lab]) == 0
    before = {file.name: file.read_bytes() for file in Path(lab).iterdir()}
    assert "add some with --client NAME" in fails("certs", lab)
    assert f"{lab}/client.pem is there already" in fails("certs", lab, "--client", "client")
    assert f"{lab}/server.pem is there already" in fails("certs", lab, "--host", "a.example.org")
    assert main(["certs", lab, "--client", "carol"]) == 0
    after = {file.name: file.read_bytes() for file in Path(lab).iterdir()}
    assert after.keys() - before.keys() == {"carol.pem", "carol.key"}
    assert {name: after[name] for name in before} == before
    assert read(Path(lab, "carol.pem")).issuer == read(Path(lab, "ca.pem")).subject
    assert verified(Path(lab), "carol", ssl.Purpose.CLIENT_AUTH)


def test_nothing_is_good_for_longer_than_its_authority(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = str(tmp_path / "lab")
    monkeypatch.setattr("splitlab.core.command.certs._CA_DAYS", 30.5)
    assert main(["certs", lab, "--days", "30"]) == 0
    monkeypatch.undo()
    told = fails("certs", lab, "--client", "carol")
    assert f"--days 365 is longer than the authority in {lab} is good, for 30 days" in told
    assert main(["certs", lab, "--client", "carol", "--days", "30"]) == 0


def test_half_an_authority_is_none(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert main(["certs", str(tmp_path / "lab")]) == 0
    key = tmp_path / "lab" / "ca.key"
    content = key.read_bytes()
    key.unlink()
    assert f"{key} cannot be read" in fails("certs", str(tmp_path / "lab"), "--client", "a")
    key.write_bytes(content[:50])
    assert "holds a damaged authority" in fails("certs", str(tmp_path / "lab"), "--client", "a")
    key.write_bytes((tmp_path / "lab" / "server.key").read_bytes())
    assert "is not the key of" in fails("certs", str(tmp_path / "lab"), "--client", "a")
    assert not (tmp_path / "lab" / "a.pem").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--host", "0.0.0.0"), "stands for every interface"),
        (("--host", "::"), "stands for every interface"),
        (("--host", "a b"), "--host 'a b' is not allowed"),
        (("--host", ""), "--host '' is not allowed"),
        (("--host", "10.0.0.256"), "--host '10.0.0.256' is not allowed"),
        (("--host", "a..b"), "--host 'a..b' is not allowed"),
        (("--client", "../x"), "--client '../x' is not allowed"),
        (("--client", "ca"), "--client 'ca' is not allowed"),
        (("--client", "server"), "--client 'server' is not allowed"),
        (("--days", "0"), "--days 0 is not allowed"),
        (("--days", "-3"), "--days -3 is not allowed"),
        (("--days", "3651"), "--days 3651 is not allowed; 1 to 3650"),
    ],
)
def test_bad_values_are_named_and_nothing_is_made(
    given: tuple[str, ...], told: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    assert told in fails("certs", str(tmp_path / "lab"), *given)
    assert not (tmp_path / "lab").exists()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    assert "file" in fails("certs", str(tmp_path / "file"))


def test_a_missing_package_is_named(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == "cryptography":
            monkeypatch.setitem(sys.modules, name, None)
    line = fails("certs", str(tmp_path / "lab"))
    assert "pip install 'splitlab[certs]'" in line
    assert not (tmp_path / "lab").exists()
