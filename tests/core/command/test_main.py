"""The command line as its users meet it: listings, help, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.command.main import main
from splitlab.core.contract.hooks import HookSpecs
from splitlab.core.catalogue.registry import catalogue, entries
from splitlab.core.contract.link import load_transport

HERE = ["--weights", "none", "--threads", "1", "--device", "cpu"]
FAST = [*HERE, "--budget", "steps=1"]

DATA_HOOKS = [name for name in vars(HookSpecs) if not name.startswith("_")][:5]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with one line on stderr; return that line."""
    status = main(arguments)
    captured = capsys.readouterr()
    assert status == 1
    assert captured.err.startswith("splitlab: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def opening(body: int = 64, header: int = 16, version: int = 1) -> bytes:
    """Return the first bytes of a HELLO frame that declares these lengths."""
    return struct.pack("<4sHBBQQQQ", b"SPLT", version, 1, 3, 0, 0, body, header)


@contextmanager
def started_server(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `splitlab serve`; yield the process and its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "splitlab.core.command.main", "serve", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    ) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"tcp://\S+", server.stdout.readline())
            assert address is not None
            yield server, address[0]
        finally:
            server.kill()


class TestListings:
    def test_plugins(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins"]) == 0
        text = capsys.readouterr().out
        for name in catalogue()["plugins"]:
            assert re.search(rf"^\s*{name}\b", text, re.MULTILINE)
        assert main(["plugins", "--json"]) == 0
        assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {
            *catalogue()["plugins"]
        }

    @pytest.mark.parametrize("name", [*catalogue()["plugins"]])
    def test_every_plugin_is_explained(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", name, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["summary"]
        assert facts["description"]
        listed = entries("plugins")[name].facts["hooks"]
        assert [hook for hook in facts["hooks"] if hook in DATA_HOOKS] == listed
        assert main(["plugins", name]) == 0
        text = capsys.readouterr().out
        assert all(parameter["name"] in text for parameter in facts["parameters"])
        assert f"splitlab run --plugin {name}" in text

    def test_transports_say_what_is_missing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["transports", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {row["name"] for row in rows} >= {*catalogue()["transports"]}
        assert all(row["works_here"] == (row["missing"] is None) for row in rows)

    def test_datasets_and_models(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["datasets", "--json"]) == 0
        assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {
            *catalogue()["datasets"]
        }
        assert main(["models", "deit_tiny", "--json"]) == 0
        names = [row["name"] for row in json.loads(capsys.readouterr().out)]
        assert "deit_tiny_patch16_224" in names
        assert all("deit_tiny" in name for name in names)

    @pytest.mark.parametrize("command", ["run", "serve", "join", "plugins", "transports"])
    def test_help_teaches(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "usage: splitlab" in capsys.readouterr().out


class TestRun:
    def test_run_prints_accuracy_bytes_and_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["run", "--plugin", "adc", *FAST, "--output", str(tmp_path / "r")]) == 0
        text = capsys.readouterr().out
        summary = json.loads((tmp_path / "r" / "summary.json").read_text())
        assert f"{summary['accuracy']:.4f}" in text
        assert str(tmp_path / "r") in text
        for word in ("activation", "gradient", "targets", "side", "header", "measured", "nominal"):
            assert word in text

    def test_configuration_file_and_flags(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "c.toml"
        file.write_text('plugins = ["adc:ratio=0.2"]\nseed = 3\nbudget = "steps=9"\n')
        output = tmp_path / "r"
        assert main(["run", "--quiet", "--config", str(file), *FAST, "--output", str(output)]) == 0
        assert capsys.readouterr().out == ""
        resolved = (output / "config.toml").read_text()
        assert 'plugins = ["adc:ratio=0.2"]' in resolved
        assert "seed = 3" in resolved
        assert 'budget = "steps=1"' in resolved
        assert "output" not in resolved  # or the file could not be used again
        again = ["run", "--quiet", "--config", str(output / "config.toml")]
        assert main([*again, "--output", str(tmp_path / "s")]) == 0
        logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in "rs"]
        assert logs[0] == logs[1]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--plugin", "acd"], r"unknown plugin 'acd' \(did you mean 'adc'\?\); known: adc,"),
            (["--plugin", "adc:ratoi=1"], r"plugin 'adc': unknown parameter 'ratoi' .*'ratio'"),
            (["--plugin", "adc:ratio=x"], r"ratio=x is not allowed; ratio takes float"),
            (["--plugin", "adc:ratio"], r"'ratio' is not a setting"),
            (["--plugin", "adc:ratio=0"], r"ratio=0.0 is refused; allowed: more than 0, at most 1"),
            (
                ["--plugin", "adc:ratio=1.5"],
                r"ratio=1.5 is refused; allowed: more than 0, at most 1",
            ),
            (["--plugin", "adc:alloc=cubic"], r"alloc=cubic is not allowed; alloc takes sqrt"),
            (["--plugin", "nowhere.py:X"], r"plugin file 'nowhere.py' does not exist"),
            (["--plugin", "adc", "--batch-size", "1"], r"batch.*1.*2"),
            (["--plugin", "adc", "--cut", "0"], r"--cut 0 leaves the client none"),
            (["--plugin", "adc", "--model", "vit_base_patch16_siglip_224"], r"class token"),
            (["--transport", "tpc"], r"unknown transport 'tpc' \(did you mean 'tcp'\?\)"),
            (["--dataset", "mnist"], r"unknown data set 'mnist'.*fashion-mnist"),
            (["--model", "vit_tiny_patch99"], r"unknown model 'vit_tiny_patch99'"),
            (["--model", "resnet18"], r"'resnet18' is a ResNet, not a timm VisionTransformer"),
            (["--cut", "7"], r"--cut 7 is outside the model; allowed: 0 to 6"),
            (["--lr", "-1"], r"--lr -1.0 is not allowed"),
            (["--budget", "hours=3"], r"unknown budget 'hours'"),
            (["--evaluate", "never"], r"unknown value of --evaluate 'never'"),
            (["--weights", "gone.safetensors"], r"no such file"),
            (["--device", "cuda:99"], r"--device cuda:99 cannot be used here"),
            (["--device", "tpu!"], r"--device tpu! cannot be used here"),
            (["--config", "gone.toml"], r"cannot read the configuration gone.toml"),
            (["--resume", "gone"], r"--resume gone: no run folder"),
            (["--data-dir", "gone"], r"gone.*No such file"),
        ],
    )
    def test_one_clear_line(
        self,
        arguments: list[str],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        defaults = [] if "--resume" in arguments else ["--budget", "steps=1", "--threads", "1"]
        if not {"--resume", "--device"} & {*arguments}:
            defaults += ["--device", "cpu"]
        assert re.search(message, fails(capsys, "run", *defaults, *arguments))
        assert list(tmp_path.iterdir()) == []

    def test_unknown_key_in_the_configuration(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "c.toml"
        file.write_text("batchsize = 3\n")
        line = fails(capsys, "run", "--config", str(file))
        assert "unknown key 'batchsize' (did you mean 'batch_size'?)" in line
        file.write_text('batch_size = "3"\n')
        assert "batch_size = '3' is not allowed; it takes int" in fails(
            capsys, "run", "--config", str(file)
        )

    def test_data_folders(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        assert "is empty" in fails(capsys, "run", "--data-dir", str(empty), *FAST)
        for part in ("train", "test"):
            for name in ("cat", "dog"):
                folder = tmp_path / "images" / part / name
                folder.mkdir(parents=True)
                (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
        line = fails(capsys, "run", "--data-dir", str(tmp_path / "images"), *FAST)
        assert "x.png: not a readable image" in line

    def test_a_transport_that_cannot_work_names_those_that_can(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if load_transport_or_none("nccl") is not None:
            pytest.skip("NCCL works here")
        line = fails(capsys, "run", "--transport", "nccl", *FAST)
        assert re.search(r"'nccl' cannot be used here: .*; these can: gloo, inprocess, tcp", line)

    def test_no_server_at_the_address(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        line = fails(capsys, "join", f"tcp://127.0.0.1:{port}", "--timeout", "0.5", *FAST)
        assert f"127.0.0.1:{port}" in line
        assert "splitlab serve" in line
        assert "names no transport" in fails(capsys, "join", "localhost:1", *FAST)

    def test_a_port_in_use(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            line = fails(capsys, "serve", "--address", address, *HERE)
        assert address.removeprefix("tcp://") in line
        assert "in use" in line

    @pytest.mark.parametrize(
        ("option", "value"), [("--classes", "0"), ("--wait", "-1"), ("--wait", "inf")]
    )
    def test_serve_refuses_numbers_that_cannot_be(
        self, option: str, value: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert f"{option} {value}" in fails(capsys, "serve", f"{option}={value}")

    def test_serve_needs_the_number_of_classes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "unknown data set" in fails(capsys, "serve", "--dataset", "mine")

    @pytest.mark.parametrize(
        ("sent", "told"),
        [
            (b"GET / HTTP/1.1\r\nHost: splitlab.example\r\n\r\n", "does not speak splitlab's wire"),
            (opening(body=2**63), r"frame has \d+ bytes; allowed on this link: 65536"),
            (opening(body=2**12, header=2**62), r"header of \d+ bytes; allowed"),
            (opening(version=9), "speaks version 9 of the wire format, this side version 1"),
            (opening(body=64, header=48)[:20], "the peer closed the connection"),
            (b"", "the peer closed the connection"),
        ],
    )
    def test_a_server_that_meets_nonsense(
        self, sent: bytes, told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def talk() -> None:
            with connected(port) as connection:
                connection.sendall(sent)
                with suppress(OSError):  # the server may have hung up already
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)

        stranger = threading.Thread(target=talk)
        stranger.start()
        line = fails(capsys, "serve", "--address", f"tcp://127.0.0.1:{port}", *HERE)
        stranger.join()
        assert re.search(told, line)
        with socket.create_server(("127.0.0.1", port)):
            pass  # the port is free again

    @pytest.mark.parametrize(
        ("theirs", "named"),
        [
            (["--plugin", "adc:ratio=0.2"], "stack"),
            (["--cut", "2"], "cut"),
            (["--model", "vit_tiny_patch16_224", "--image-size", "32"], "model"),
        ],
    )
    def test_peers_that_differ(
        self, theirs: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        own = ["--plugin", "adc"] if named == "stack" else []
        with started_server(tmp_path, *HERE, *theirs) as (server, address):
            line = fails(capsys, "join", address, *HERE, *own, "--output", str(tmp_path / "r"))
            _, stderr = server.communicate(timeout=20)
        assert re.search(rf"the peers differ in {named}: client .+, server .+; give both", line)
        assert server.returncode == 1
        assert stderr.startswith("splitlab: error: the peers differ in")
        assert stderr.count("\n") == 1
        assert not (tmp_path / "r").exists()


def connected(port: int) -> socket.socket:
    """Connect to a port of this machine as soon as somebody listens there."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def load_transport_or_none(name: str) -> Any:
    try:
        return load_transport(name)
    except Exception:  # noqa: BLE001 - any reason will do
        return None
