"""Whole runs: equal over links, resumable, honest about bytes, and tidy when they fail."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitlab.core import ConfigError, SplitlabError, hookimpl, run
from splitlab.core.catalogue.links import working_transports
from splitlab.core.run.records import read_summary
from splitlab.core.run.reporter import Interrupted

TWO_PROCESS = [name for name in working_transports() if name != "inprocess"]
SMALL = {
    "weights": "none",
    "batch_size": 32,
    "threads": 1,
    "model": "vit-mini",
    "lr": 1e-3,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of IDX files: 112 training, 40 test images of 4 classes that are easily told."""
    folder = tmp_path_factory.mktemp("idx")
    draws = np.random.default_rng(0)
    for prefix, count in (("train", 112), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 4
        images = draws.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[7 * label : 7 * label + 7] += 150
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{what}-ubyte").write_bytes(head + array.tobytes())
    return str(folder)


def losses(folder: Path) -> list[str]:
    """Return every record of metrics.jsonl: losses in full precision, bytes, accuracies."""
    version, *lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(version) == {"kind": "records", "version": 2}
    return lines


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "splitlab.core.command", *arguments]


def flags(data: str, output: Path, **options: object) -> list[str]:
    chosen = {**SMALL, "data_dir": data, "output": output, **options}
    return [text for k, v in chosen.items() for text in (f"--{k.replace('_', '-')}", str(v))]


class TestResult:
    def test_run_folder_holds_what_the_documentation_says(
        self, small_data: str, tmp_path: Path
    ) -> None:
        folder = tmp_path / "r"
        result = run(
            plugins=["adc"], data_dir=small_data, output=str(folder), budget="epochs=2", **SMALL
        )
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "config.toml",
            "environment.json",
            "metrics.jsonl",
            "ledger.json",
            "summary.json",
            "checkpoints",
        }
        records = [json.loads(line) for line in losses(folder)]
        train = [r for r in records if r["kind"] == "train"]
        evaluations = [r for r in records if r["kind"] == "eval"]
        assert [r["step"] for r in train] == list(range(1, 9))
        assert [r["step"] for r in evaluations] == [4, 8]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary == json.loads(result.summary.text())
        assert read_summary(folder) == result.summary
        assert summary["steps"] == 8
        assert summary["epochs"] == pytest.approx(2)
        assert summary["bytes_up"] == sum(r["bytes_up"] for r in train)
        assert summary["bytes_down"] == sum(r["bytes_down"] for r in train)
        assert summary["accuracy"] == evaluations[-1]["accuracy"]
        assert summary["ratio_nominal"] == pytest.approx(0.1)
        # T, k of a batch of 32 (the last of an epoch has 16) over 50 tokens: T = 10 and 5, k = 15.
        payload = 2 * (3 * 10 + 5) * 15 * 64 * 4
        counts = json.loads((folder / "ledger.json").read_text())["training"]
        assert counts["up"]["activation"] == counts["down"]["gradient"] == payload
        assert counts["up"]["targets"] == counts["up"]["side"] == 2 * 112
        uncompressed = 2 * 2 * 112 * 50 * 64 * 4
        measured = (summary["bytes_up"] + summary["bytes_down"]) / uncompressed
        assert summary["ratio_measured"] == pytest.approx(measured)

    def test_learns(self, small_data: str, tmp_path: Path) -> None:
        result = run(data_dir=small_data, output=str(tmp_path / "r"), budget="epochs=8", **SMALL)
        assert result.summary["accuracy"] > 0.9

    @pytest.mark.parametrize(
        ("budget", "steps"),
        [("steps=3", 3), ("epochs=1.5", 6), ("nominal=0.2", 8), ("bytes=300kB", 5)],
    )
    def test_budget(self, budget: str, steps: int, small_data: str, tmp_path: Path) -> None:
        options: dict[str, Any] = {"eval_every": 100, **SMALL}
        result = run(
            plugins=["adc"],
            data_dir=small_data,
            output=str(tmp_path / "r"),
            budget=budget,
            **options,
        )
        assert result.summary["steps"] == steps

    def test_repeats_exactly_and_seed_matters(self, small_data: str, tmp_path: Path) -> None:
        def go(name: str, seed: int) -> list[str]:
            options = {"plugins": ["adc"], "seed": seed, "budget": "steps=3", **SMALL}
            run(data_dir=small_data, output=str(tmp_path / name), **options)
            return losses(tmp_path / name)

        assert go("a", 1) == go("b", 1)
        assert go("a2", 1) != go("c", 2)

    def test_both_evaluations_are_reported_where_a_plugin_acts(
        self, small_data: str, tmp_path: Path
    ) -> None:
        plugin = str(Path(__file__).parents[3] / "examples/half_precision.py:HalfPrecision")
        options: dict[str, Any] = {"plugins": [plugin], "budget": "steps=2", **SMALL}
        both = run(data_dir=small_data, output=str(tmp_path / "b"), **options)
        assert "accuracy_uncompressed" in both.summary
        # Half of the activations, and all of the others: 1.5 times one evaluation.
        one = 40 * 50 * 64 * 4
        assert both.ledger["evaluation"]["up"]["activation"] == one * 3 // 2
        plain = run(
            data_dir=small_data, output=str(tmp_path / "u"), evaluate="uncompressed", **options
        )
        assert "accuracy_uncompressed" not in plain.summary
        assert plain.ledger["evaluation"]["up"]["activation"] == one
        assert plain.summary["ratio_measured"] == pytest.approx(0.5, abs=0.01)

    def test_observers_see_the_hooks_of_both_peers(self, small_data: str, tmp_path: Path) -> None:
        seen: list[tuple[str, int]] = []

        class Watch:
            @hookimpl(wrapper=True)
            def before_send(self, message: Any) -> Any:
                before = sum(message[name].nbytes for name in message)
                result = yield
                seen.append((message.kind.name, before))
                return result

        options: dict[str, Any] = {"budget": "steps=1", **SMALL}
        run(data_dir=small_data, output=str(tmp_path / "r"), observers=[Watch()], **options)
        assert [kind for kind, _ in seen[:2]] == ["ACTIVATION", "GRADIENT"]
        assert seen[0][1] == 32 * 50 * 64 * 4 + 32


class TestLinks:
    @pytest.mark.parametrize("transport", TWO_PROCESS)
    def test_every_transport_gives_the_same_run(
        self, transport: str, small_data: str, tmp_path: Path
    ) -> None:
        for name in ("inprocess", transport):
            run(
                plugins=["adc"],
                data_dir=small_data,
                output=str(tmp_path / name / "r"),  # its name travels too
                transport=name,
                budget="steps=6",
                **SMALL,
            )
        folders = [tmp_path / name / "r" for name in ("inprocess", transport)]
        assert losses(folders[0]) == losses(folders[1])
        ledgers = [(folder / "ledger.json").read_text() for folder in folders]
        assert ledgers[0] == ledgers[1]

    def test_torchrun_starts_both_peers(self, small_data: str, tmp_path: Path) -> None:
        options = {"transport": "gloo", "budget": "steps=3", "plugin": "adc"}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--nproc-per-node", "2", "--no-python"]
        done = subprocess.run(
            [*torchrun, *command("run", *flags(small_data, tmp_path / "launched", **options))],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "served 3 steps" in done.stdout
        run(
            plugins=["adc"],
            data_dir=small_data,
            output=str(tmp_path / "inprocess"),
            budget="steps=3",
            **SMALL,
        )
        assert losses(tmp_path / "launched") == losses(tmp_path / "inprocess")

    @pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's TCP_INFO")
    def test_ledger_equals_the_kernels_counters(
        self, small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from splitlab.transports import tcp

        counters: list[tuple[int, int]] = []
        server_closed = 8  # CLOSE_WAIT, in the kernel's numbers
        close = tcp.TcpLink.close

        def read_then_close(link: Any) -> None:
            sock = link._socket
            if sock.fileno() >= 0:
                # struct tcp_info: 8 bytes, 24 u32, two u64 rates, then bytes_acked, bytes_received.
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                acked, received = struct.unpack_from("=QQ", info, 120)
                # It counts the connection's SYN and FIN as one byte each.
                counters.append((acked - 1, received - (info[0] == server_closed)))
            close(link)

        monkeypatch.setattr(tcp.TcpLink, "close", read_then_close)
        result = run(
            plugins=["adc"],
            data_dir=small_data,
            output=str(tmp_path / "r"),
            transport="tcp",
            budget="steps=3",
            **SMALL,
        )
        [(sent, received)] = counters
        totals = {
            way: sum(sum(phase[way].values()) for phase in result.ledger.values())
            for way in ("up", "down")
        }
        assert totals == {"up": sent, "down": received}


class TestResume:
    def test_interrupted_and_resumed_equals_uninterrupted(
        self, small_data: str, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {
            "plugins": ["adc"],
            "budget": "steps=9",
            "eval_every": 4,
            **SMALL,
        }
        whole = run(data_dir=small_data, output=str(tmp_path / "whole"), **options)
        asked = iter([False] * 4 + [True])
        with pytest.raises(Interrupted, match=r"step 5.*--resume"):
            run(
                data_dir=small_data,
                output=str(tmp_path / "parts"),
                should_stop=lambda: next(asked),
                **options,
            )
        resumed = run(resume=tmp_path / "parts")
        assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
        for key in ("accuracy", "loss", "steps", "bytes_up", "bytes_down", "ratio_measured"):
            assert resumed.summary[key] == whole.summary[key]

    def test_a_server_ahead_of_its_client_goes_back(self, small_data: str, tmp_path: Path) -> None:
        options: dict[str, Any] = {"budget": "steps=4", "eval_every": 2, **SMALL}
        run(data_dir=small_data, output=str(tmp_path / "r"), **options)
        checkpoints = tmp_path / "r" / "checkpoints"
        before = losses(tmp_path / "r")
        # As if the peers had been killed after the server wrote step 4, before the client did.
        (checkpoints / "step-00000004" / "client.safetensors").unlink()
        resumed = run(resume=tmp_path / "r")
        assert resumed.summary["steps"] == 4
        assert losses(tmp_path / "r") == before
        left = sorted(str(path.relative_to(checkpoints)) for path in checkpoints.glob("*/*"))
        assert left == [
            f"step-0000000{step}/{role}.safetensors"
            for step in (2, 4)
            for role in ("client", "server")
        ]

    @pytest.mark.parametrize("transport", ["inprocess", "tcp"])
    def test_killed_and_resumed_equals_not_killed(
        self, transport: str, small_data: str, tmp_path: Path
    ) -> None:
        options = {"budget": "steps=40", "checkpoint_every": 3, "eval_every": 20}
        run(
            plugins=["adc"],
            data_dir=small_data,
            output=str(tmp_path / "whole" / "r"),
            **SMALL,
            **options,
        )
        parts = tmp_path / "parts" / "r"  # its name travels too
        options |= {"transport": transport, "plugin": "adc"}
        victim = subprocess.Popen(command("run", "--quiet", *flags(small_data, parts, **options)))
        wait_for_steps(parts, 8, victim)
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
        assert not (parts / "summary.json").exists()
        run(resume=parts)
        assert losses(parts) == losses(tmp_path / "whole" / "r")

    @pytest.mark.parametrize("transport", ["inprocess", "tcp"])
    def test_ctrl_c_ends_both_peers_with_a_checkpoint(
        self, transport: str, small_data: str, tmp_path: Path
    ) -> None:
        options = {"transport": transport, "budget": "steps=100000", "eval_every": 100000}
        process = subprocess.Popen(
            command("run", *flags(small_data, tmp_path / "r", **options)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_steps(tmp_path / "r", 5, process)
        servers = children(process.pid)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 130
        told = re.fullmatch(
            r"splitlab: error: interrupted after step (\d+); go on from the checkpoint of step \1 "
            rf"with: splitlab run --resume {tmp_path / 'r'}\n",
            stderr,
        )
        assert told
        assert len(losses(tmp_path / "r")) == int(told[1])
        assert not any(alive(pid) for pid in servers)

    def test_a_finished_run_can_be_extended(self, small_data: str, tmp_path: Path) -> None:
        options: dict[str, Any] = {"eval_every": 3, **SMALL}
        run(data_dir=small_data, output=str(tmp_path / "a"), budget="steps=6", **options)
        run(data_dir=small_data, output=str(tmp_path / "b"), budget="steps=3", **options)
        longer = run(resume=tmp_path / "b", budget="steps=6")
        assert longer.summary["steps"] == 6
        assert run(resume=tmp_path / "b").summary["steps"] == 6  # the new budget is kept
        assert losses(tmp_path / "a") == losses(tmp_path / "b")

    def test_other_options_are_refused(self, small_data: str, tmp_path: Path) -> None:
        run(data_dir=small_data, output=str(tmp_path / "a"), budget="steps=1", **SMALL)
        with pytest.raises(ConfigError, match=r"--lr cannot be given with --resume"):
            run(resume=tmp_path / "a", lr=0.1)
        with pytest.raises(ConfigError, match=r"no run folder"):
            run(resume=tmp_path)


class TestTwoMachines:
    def test_serve_and_join_go_on_where_they_were(self, small_data: str, tmp_path: Path) -> None:
        options = {"plugin": "adc", "checkpoint_every": 3, "eval_every": 100}
        client = flags(small_data, tmp_path / "client" / "r", **options, budget="steps=9")
        own = {key: SMALL[key] for key in ("weights", "batch_size", "threads", "lr", "device")}
        server = ["--plugin", "adc", "--classes", "4"]
        server += [t for k, v in own.items() for t in (f"--{k.replace('_', '-')}", str(v))]

        def go(join: list[str], steps: int) -> subprocess.CompletedProcess[str]:
            """Serve in one folder, join from another; the client is stopped after some steps."""
            with subprocess.Popen(
                command("serve", *server), stdout=subprocess.PIPE, text=True, cwd=tmp_path
            ) as serving:
                assert serving.stdout is not None
                address = serving.stdout.readline().split()[-1]
                process = subprocess.Popen(command("join", address, "--quiet", *join))
                if steps:
                    wait_for_steps(tmp_path / "client" / "r", steps, process)
                    process.kill()
                status = process.wait(60)
                told, _ = serving.communicate(timeout=60)
            return subprocess.CompletedProcess([], status, told)

        go([*client[:-1], "steps=100000"], steps=7)
        done = go(["--resume", str(tmp_path / "client" / "r"), "--budget", "steps=30"], steps=0)
        assert done.returncode == 0
        assert "to the end of the client's run" in done.stdout
        run(
            plugins=["adc"],
            data_dir=small_data,
            output=str(tmp_path / "whole"),
            budget="steps=30",
            checkpoint_every=3,
            eval_every=100,
            **SMALL,
        )
        assert losses(tmp_path / "client" / "r") == losses(tmp_path / "whole")
        assert (tmp_path / "runs" / "r" / "checkpoints" / "step-00000030").is_dir()


class TestFailure:
    def test_existing_output_is_refused_and_untouched(
        self, small_data: str, tmp_path: Path
    ) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes").write_text("precious")
        with pytest.raises(ConfigError, match=r"exists already.*--resume"):
            run(data_dir=small_data, output=str(tmp_path / "mine"), **SMALL)
        assert (tmp_path / "mine" / "notes").read_text() == "precious"

    def test_a_run_that_never_began_leaves_no_folder(self, small_data: str, tmp_path: Path) -> None:
        for options in ({"plugins": ["adc:ratio=2"]}, {"cut": 99}, {"transport": "tpc"}):
            with pytest.raises(SplitlabError):
                run(data_dir=small_data, output=str(tmp_path / "r"), **{**SMALL, **options})
            assert not (tmp_path / "r").exists()

    def test_a_loss_that_is_not_finite_ends_the_run(self, small_data: str, tmp_path: Path) -> None:
        options: dict[str, Any] = {**SMALL, "lr": 1e6, "optimizer": "sgd", "budget": "steps=50"}
        with pytest.raises(SplitlabError, match=r"the loss is (nan|inf); lower --lr"):
            run(data_dir=small_data, output=str(tmp_path / "r"), **options)

    @pytest.mark.parametrize("transport", TWO_PROCESS)
    def test_a_killed_server_ends_the_client_within_its_deadline(
        self, transport: str, small_data: str, tmp_path: Path
    ) -> None:
        options = {"transport": transport, "budget": "steps=100000", "timeout": 20}
        options |= {"checkpoint_every": 5, "eval_every": 100000}
        client = subprocess.Popen(
            command("run", *flags(small_data, tmp_path / "r", **options)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_steps(tmp_path / "r", 12, client)
        [server] = children(client.pid)
        os.kill(server, signal.SIGKILL)
        killed = time.monotonic()
        _, stderr = client.communicate(timeout=60)
        assert time.monotonic() - killed < 25
        assert client.returncode == 1
        last = stderr.strip().splitlines()[-1]
        assert last.startswith("splitlab: error:")
        assert "the server process was killed" in last
        assert f"--resume {tmp_path / 'r'}" in last
        assert "Traceback" not in stderr
        resumed = run(resume=tmp_path / "r", budget="steps=16")
        assert resumed.summary["steps"] == 16 or resumed.summary["steps"] > 16

    @pytest.mark.parametrize("transport", TWO_PROCESS)
    def test_a_killed_client_ends_the_server(
        self, transport: str, small_data: str, tmp_path: Path
    ) -> None:
        options = {"transport": transport, "budget": "steps=100000", "timeout": 20}
        client = subprocess.Popen(
            command("run", "--quiet", *flags(small_data, tmp_path / "r", **options))
        )
        wait_for_steps(tmp_path / "r", 3, client)
        [server] = children(client.pid)
        client.kill()
        client.wait(10)
        deadline = time.monotonic() + 30
        while alive(server):
            assert time.monotonic() < deadline, "the server process outlived its client"
            time.sleep(0.05)
        log = (tmp_path / "r" / "server.log").read_text()
        assert "splitlab: error:" in log
        assert "Traceback" not in log


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    metrics = folder / "metrics.jsonl"  # its first line is no record
    while not metrics.exists() or metrics.read_text().count("\n") <= steps:
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
