"""docs/deploy.md: its commands as they stand there, between two network namespaces."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from splitlab.core import run
from splitlab.core.catalogue.tables import ROOT
from splitlab.core.runs.records import read_records

DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")

SET_UP = """
refuse() { echo "$1" >&2; exit 77; }
unshare -n sleep 300 & holder=$!
trap 'kill $holder' EXIT
sleep 0.5
there="nsenter -t $holder -n"
ip link set lo up && $there ip link set lo up || refuse "no loopback"
ip link add name near0 type veth peer name far0 netns $holder || refuse "no veth pair"
ip addr add 10.9.0.1/24 dev near0 && ip link set near0 up || refuse "no address"
$there ip addr add 10.9.0.2/24 dev far0 && $there ip link set far0 up || refuse "no address"
$there bash -c "$2" & far=$!
bash -c "$1" || exit
wait $far
"""


def commands(begin: str, having: str = "") -> list[str]:
    """Return the lines of code that begin so, as the page has them."""
    found = re.findall(rf"(?m)^    ({re.escape(begin)}.*)$", DEPLOY)
    return [line for line in found if having in line]


def test_the_page_names_only_options_that_there_are() -> None:
    """The rest of what it says is run below, where namespaces are allowed."""
    assert len(commands("splitlab serve", "--tls-ca")) == 1
    assert len(commands("splitlab join", "--secret-file")) == 1
    assert len(commands("torchrun")) == 2


def between(near: str, far: str, folder: Path) -> str:
    """Run a command on either machine; returns what they print."""
    tools = ("unshare", "nsenter", "ip", "bash")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"no {', '.join(missing)} here, with which two network namespaces are made")
    ended = subprocess.run(
        ["unshare", "-rn", "bash", "-c", SET_UP, "bash", near, far],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        cwd=folder,
    )
    if ended.returncode == 77 or "unshare:" in ended.stderr:
        pytest.skip(f"network namespaces are not allowed here: {' '.join(ended.stderr.split())}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and ``splitlab`` and ``torchrun`` as a user types them."""
    for name, module in (("splitlab", "splitlab"), ("torchrun", "torch.distributed.run")):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m {module} "$@"\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    return tmp_path


SHORT = "--budget steps=3 --output near/r"

FAULTS = {
    "a cable cut for 20 s": "ip link set near0 down; sleep 20; ip link set near0 up",
    "another address": "ip addr del 10.9.0.1/24 dev near0; ip addr add 10.9.0.3/24 dev near0",
}
"""What is done to the client's end of the network, amid its run."""

AMID = """
{join} & joined=$!
until grep -qs '"step": 5,' near/r/metrics.jsonl; do
    kill -0 $joined || exit 1
    sleep 0.1
done
{fault}
wait $joined
"""


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.parametrize("option", ["--tls-ca", "--secret-file"])
def test_serve_and_join(option: str, installed: Path) -> None:
    if option == "--tls-ca":
        pytest.importorskip("cryptography")
        [prepare] = commands("splitlab certs", "--host")
    else:
        [prepare] = commands("(umask 077")
        if shutil.which("openssl") is None:
            pytest.skip("no openssl here, with which the secret is made")
    subprocess.run(["bash", "-c", prepare], check=True, cwd=installed, capture_output=True)
    [serve], [join] = commands("splitlab serve", option), commands("splitlab join", option)
    said = between(f"{join} {SHORT}", f"{serve} --output far/r", installed)
    assert "served 3 steps" in said
    assert (installed / "near" / "r" / "summary.json").is_file()


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_over_tls_outlives_what_the_network_does(fault: str, installed: Path) -> None:
    pytest.importorskip("cryptography")
    [prepare] = commands("splitlab certs", "--host")
    subprocess.run(["bash", "-c", prepare], check=True, cwd=installed, capture_output=True)
    [serve], [join] = commands("splitlab serve", "--tls-ca"), commands("splitlab join", "--tls-ca")
    more = "--batch-size 16 --timeout 5"
    join += f" {more} --budget steps=60 --eval-every 1000 --output near/r"
    near = AMID.format(join=join, fault=FAULTS[fault])
    said = between(near, f"{serve} {more} --output far/r", installed)
    assert "served 60 steps" in said
    assert "the client is back after" in said
    run(
        plugins=["adc"],
        batch_size=16,
        budget="steps=60",
        eval_every=1000,
        output=str(installed / "alone"),
    )
    disturbed, alone = (
        [row.loss for row in read_records(installed / name)] for name in ("near/r", "alone")
    )
    assert disturbed == alone
    assert len(alone) == 61


@pytest.mark.long
@pytest.mark.timeout(200)
def test_torchrun_with_gloo(installed: Path) -> None:
    near, far = commands("torchrun")
    said = between(f"{near} {SHORT}", f"{far} --budget steps=3 --output far/r", installed)
    assert "served 3 steps" in said
    assert "gloo encrypts nothing and checks nothing that arrives" in said
    assert (installed / "near" / "r" / "summary.json").is_file()
