"""Folders are held by one process at a time, and files are written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.runs import disk
from splitlab.core.runs.disk import DiskError, append_whole, hold, write_whole, writing


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with hold(tmp_path, "client"):
        told = rf"{tmp_path.name} is in use by process {os.getpid()} on {platform.node()} since"
        with pytest.raises(ConfigError, match=told), hold(tmp_path, "client"):
            pass
        with hold(tmp_path, "server"):  # the other peer of the run
            assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path, "client"):
        pass


def test_the_lock_of_a_dead_holder_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from splitlab.core.runs.disk import hold\n"
        "with hold(Path(sys.argv[1]), 'client'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} on"):
            hold(tmp_path, "client").__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert (tmp_path / "client.lock").exists()
    with hold(tmp_path, "client"):
        assert (tmp_path / "client.lock").read_text().startswith(f"process {os.getpid()} on")


def test_who_waits_gets_the_lock_of_one_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hold(tmp_path, "server")
    first.__enter__()
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: first.__exit__(None, None, None))
    with hold(tmp_path, "server", patience=60.0):
        assert (tmp_path / "server.lock").exists()


def test_a_folder_made_to_be_held_goes_if_nothing_came_of_it(tmp_path: Path) -> None:
    with hold(tmp_path / "a", "comparison"):
        pass
    assert not (tmp_path / "a").exists()
    with hold(tmp_path / "b", "comparison"):
        (tmp_path / "b" / "results").touch()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["results"]
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot write .*file"), hold(tmp_path / "file", "client"):
        pass


def test_what_cannot_be_replaced_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "x", "old")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "replace", full)
    with pytest.raises(DiskError, match=r"cannot write .*x: No space left on device"):
        write_whole(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_half_a_line_is_taken_back(tmp_path: Path) -> None:
    import resource

    log = tmp_path / "log"
    append_whole(log, "one\n", first="version\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        with pytest.raises(DiskError, match=r"cannot write .*log: File too large"):
            append_whole(log, "t" * 30 + "\n", first="version\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert log.read_text() == "version\none\n"


def test_other_errors_than_the_disks_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("mine")


def test_a_look_at_what_a_killed_process_left_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "client.lock"
    lock.write_text("process 1 on earth")
    with lock.open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr(disk.time, "sleep", lambda seconds: fcntl.flock(look, fcntl.LOCK_UN))
        with hold(tmp_path, "client"):
            assert disk.holder(tmp_path, "client") != ""


def test_who_holds_a_folder_can_be_asked(tmp_path: Path) -> None:
    assert disk.holder(tmp_path, "client") == ""
    with hold(tmp_path, "client"):
        assert disk.holder(tmp_path, "client").startswith(f"process {os.getpid()} on")
        assert disk.holder(tmp_path, "server") == ""
        (tmp_path / "client.lock").write_text("")
        assert disk.holder(tmp_path, "client") == "another process"
    (tmp_path / "client.lock").write_text("process 1 on earth")  # who held it was killed
    assert disk.holder(tmp_path, "client") == ""
    assert disk.holder(tmp_path / "nowhere", "client") == ""
    with hold(tmp_path, "client"):
        pass
