"""Who may connect is the place's: no number, no row, and asked of a transport that can do it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config, ConfigError, run
from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.settings import ACCESS
from splitlab.core.report.naming import plan_key
from splitlab.core.runs.access import ACCESS_FILES, Access


def test_the_fields_are_the_parameters_of_transports() -> None:
    assert tuple(Access.__dataclass_fields__) == ACCESS
    assert Config().access == {}
    given = dict.fromkeys(ACCESS_FILES, "/file")
    assert Config(**given, insecure=True).access == given | {"insecure": True}  # type: ignore[arg-type]


def test_a_row_is_the_same_whoever_may_connect() -> None:
    assert plan_key(Config(tls_ca="/ca", insecure=True)) == plan_key(Config())


@pytest.mark.parametrize("name", ACCESS_FILES)
def test_an_empty_name_keeps_nobody_out_and_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} '' names no file"):
        Config(**{name: ""})  # type: ignore[arg-type]


def test_files_are_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    placed = Config(tls_ca="ca.pem", secret_file="~/secret").placed()
    assert placed.tls_ca == str(tmp_path / "ca.pem")
    assert placed.secret_file == os.path.expanduser("~/secret")
    assert placed.tls_cert is None


@pytest.mark.parametrize(
    ("transport", "access", "told"),
    [
        ("inprocess", {"secret_file": "x"}, r"'inprocess' takes no --secret-file; these do: .*tcp"),
        ("gloo", {"tls_ca": "x"}, r"'gloo' takes no --tls-ca; these do: tcp; choose one"),
        ("tcp", {"tls_ca": "/no/file"}, r"--tls-ca /no/file cannot be read: No such file"),
    ],
)
def test_a_transport_that_cannot_do_it_is_refused(
    transport: str, access: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        load_transport(transport, access)


@pytest.mark.parametrize("name", ACCESS)
def test_they_are_no_settings(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{name} is not to be set here; {option} decides it"):
        load_transport(f"tcp:{name}=x")


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography")
    from splitlab.core.command.certs import make

    make(tmp_path / "lab", [], [])
    secret = tmp_path / "lab" / "secret"
    secret.touch(0o600)
    secret.write_text("x" * 40)
    return tmp_path / "lab"


@pytest.mark.usefixtures("starts_fast")
def test_a_run_hands_it_to_its_own_server_and_ends_with_the_same_numbers(
    lab: Path, real: Any, two_classes: str, tmp_path: Path, losses: Callable[[Path], Any]
) -> None:
    options: dict[str, Any] = {"data_dir": two_classes, "budget": "steps=2", **real.SMALL}
    secured = {
        "tls_cert": str(lab / "server.pem"),
        "tls_key": str(lab / "server.key"),
        "tls_ca": str(lab / "ca.pem"),
        "secret_file": str(lab / "secret"),
    }
    folders = tmp_path / "secured", tmp_path / "inside"
    ledgers = [
        run(transport=transport, output=str(folder), **more, **options).ledger.counts
        for transport, folder, more in (("tcp", folders[0], secured), ("inprocess", folders[1], {}))
    ]
    assert ledgers[0] == ledgers[1]  # what TLS adds is in no ledger
    assert losses(folders[0]) == losses(folders[1])
    assert f'tls_ca = "{lab}/ca.pem"' in (folders[0] / "config.toml").read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tls_ca": "ca.pem"}, r"--tls-ca .*ca.pem is not enough .* --tls-cert and --tls-key, too"),
        ({"tls_cert": "server.pem", "tls_key": "server.key"}, r"--tls-cert .* give --tls-ca, too"),
    ],
)
def test_a_run_whose_own_server_could_not_serve_it_starts_none(
    given: dict[str, str], told: str, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitlab.core.runs.run.ServerProcess", lambda: pytest.fail("started one"))
    files = {name: str(lab / file) for name, file in given.items()}
    with pytest.raises(ConfigError, match=told):
        run(transport="tcp", output=str(tmp_path / "run"), **files)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def losses(real: Any) -> Callable[[Path], Any]:
    made: Callable[[Path], Any] = real.losses
    return made
