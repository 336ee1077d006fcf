"""W&B's offline files hold what the run logged; it neither asks nor prints, and ends no run."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import LoggedRun
from splitlab.core.contract.errors import Notice

wandb = pytest.importorskip("wandb", exc_type=ImportError)
from splitlab.plugins.loggers.wandb import WandB  # noqa: E402  it is skipped before


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let no login, setting or folder of the user's be found, and W&B's process end."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for place in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(tmp_path / place))
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()


def scan(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, behind the seven bytes of W&B's header."""
    at, block, whole = 7, 2**15, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for a header: padding
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield whole
            whole = b""


def values(items: Iterable[Any]) -> dict[str, Any]:
    return {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}


def read(file: Path) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Return the rows of an offline run, and what it said of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from wandb.proto.wandb_internal_pb2 import Record
    rows: list[dict[str, Any]] = []
    known: dict[str, list[Any]] = {}
    for data in scan(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append(values(record.history.item))
        else:
            known.setdefault(kind, []).append(getattr(record, kind))
    return rows, known


def points(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, number in row.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((row["_step"], number))
    return found


def test_what_a_run_logged_is_in_its_offline_files_and_goes_on_under_its_id(
    log: Callable[..., Path],
    again: Callable[..., None],
    logged: Callable[[Path], Any],
    id_of: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = log("wandb:project=mine,mode=offline")
    id = id_of(folder)
    [file] = folder.glob(f"wandb/offline-run-*/run-{id}.wandb")
    rows, known = read(file)
    wanted = {n: p for n, p in logged(folder).items() if not n.startswith("summary/")}
    assert points(rows) == wanted
    [run] = known["run"]
    assert (run.run_id, run.project, run.display_name) == (id, "mine", "a run")
    assert {*run.tags} == {"a tag", "b"}
    options = values(run.config.update)
    assert (options["plugins"], options["batch_size"]) == ("quantize", 8)
    summary = values(item for each in known["summary"] for item in each.update)
    written = json.loads((folder / "summary.json").read_text())
    assert (summary["accuracy"], summary["bytes_up"]) == (written["accuracy"], written["bytes_up"])
    assert known["exit"][-1].exit_code == 0
    again(folder)
    [more] = {*folder.glob(f"wandb/offline-run-*/run-{id}.wandb")} - {file}
    steps = {step for at in points(read(more)[0]).values() for step, _ in at}
    assert steps == {3, 4, 5}
    assert capfd.readouterr() == ("", "")


def test_a_run_that_failed_has_failed_there(tmp_path: Path) -> None:
    logger = WandB(mode="offline", folder=str(tmp_path / "all"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.begin(LoggedRun("a" * 16, "r", tmp_path / "r", 0, {}, tags=("t" * 80,)))
        logger.log(1, {"train/loss": float("nan")})
        logger.end("diverged", {})
    wandb.teardown()  # and all is on the disk
    [file] = (tmp_path / "all").glob("wandb/offline-run-*/*.wandb")
    _, known = read(file)
    assert known["exit"][-1].exit_code == 1
    assert not (tmp_path / "r").exists()


class Terminal:
    """A standard stream that says it is a terminal, at which nobody sits."""

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        raise AssertionError("somebody was asked")

    read = readline


@pytest.mark.parametrize(
    ("key", "words"), [(None, "wandb login"), (40 * "0", "(?i)connect|timed out|timeout|deadline")]
)
def test_without_a_login_or_a_network_nobody_is_asked_and_the_run_goes_on(
    log: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    key: str | None,
    words: str,
) -> None:
    monkeypatch.setattr("splitlab.plugins.loggers.wandb._SECONDS", 1)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(sys, "stdin", Terminal())
        with pytest.warns(Notice, match="logger 'wandb' failed and is told no more") as caught:
            folder = log("wandb")
    [notice] = caught
    assert re.search(words, str(notice.message))
    assert (folder / "summary.json").is_file()
    assert capfd.readouterr() == ("", "")
