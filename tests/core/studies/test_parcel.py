"""Run folders as bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlab.core import ConfigError
from splitlab.core.studies.parcel import pack, unpack


def test_there_and_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").write_text("seed = 1\n")
    (run / "checkpoints" / "client.safetensors").write_bytes(bytes(range(256)))
    for name in ("client.lock", "state.json.17.tmp"):
        (run / name).touch()
    parcel = pack(run)
    unpack(parcel, tmp_path / "there" / "run")
    there = tmp_path / "there" / "run"
    assert (there / "config.toml").read_text() == "seed = 1\n"
    assert (there / "checkpoints" / "client.safetensors").read_bytes() == bytes(range(256))
    assert sorted(path.name for path in there.iterdir()) == ["checkpoints", "config.toml"]

    (run / "old").touch()
    (tmp_path / ".run.new.tmp").mkdir()  # of one who was killed
    unpack(parcel, run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.toml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]


def test_a_folder_that_is_gone_is_nothing(tmp_path: Path) -> None:
    assert pack(tmp_path / "gone") == b""


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write .*file/run: Not a directory"):
        unpack(pack(tmp_path / "run"), tmp_path / "file" / "run")
