"""A server serves one client: its checkpoints, its numbers, and where they lie."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from splitlab.core import (
    ConfigError,
    Kind,
    Message,
    PluginError,
    ProtocolError,
    Role,
    run,
)
from splitlab.core.command.main import main
from splitlab.core.runs.checkpoint import plan_mark
from splitlab.core.runs.config import Config
from splitlab.core.runs.records import (
    SERVER_METRICS,
    StepRecord,
    read_ledger,
    read_records,
    read_summary,
    version_line,
)
from splitlab.core.runs.serve import open_session
from splitlab.core.session.protocol import PROTOCOL
from splitlab.transports.inprocess import InProcess

AGREEMENT = {"stack": "none", "cut": "3"}
MARKS = {"run": "0123456789abcdef", "seed": "0", "plan": plan_mark(AGREEMENT)}
HELLO: dict[str, Any] = {
    "protocol": PROTOCOL,
    "agreement": AGREEMENT,
    "run": "run",
    "step": 0,
    "marks": MARKS,
}


def activation(step: int) -> Message:
    made = Message(Kind.ACTIVATION, step)
    made.put("activations", torch.zeros(10), Role.PAYLOAD)
    return made


def session_with_checkpoints(output: Path | None) -> Any:
    """Return a session that keeps real checkpoints, and the client's end of its link."""
    state: dict[str, torch.Tensor] = {"x": torch.zeros(1)}
    reported: list[Path] = []
    server: Any = SimpleNamespace(
        state=lambda: (state, {"n": 1}),
        load_state=lambda tensors, values: state.update(tensors),
        stack=SimpleNamespace(report=reported.append),
        handle=lambda message: Message(Kind.GRADIENT, message.step, meta={"loss": 1.0}),
        metrics={},
    )
    plan: Any = SimpleNamespace(agreement=AGREEMENT, batch_bytes=1000, config=Config(timeout=1.0))
    client_end, server_end = InProcess().pair(None)
    cleanup = ExitStack()
    session, report = open_session(server_end, server, plan, output, cleanup)
    return SimpleNamespace(
        client_end=client_end,
        server=session,
        report=report,
        end=cleanup.close,
        state=state,
        metrics=server.metrics,
        reported=reported,
    )


@pytest.mark.parametrize(
    "run",
    ["../other", "/etc", "a/b", "", ".", "..", ".hidden", "-x", "x" * 201, "a\n", "a b", "a\0"],
)
def test_run_names_that_are_paths_are_refused(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = session_with_checkpoints(None)
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"run": run}), 1.0)
    with pytest.raises(ProtocolError, match=r"name for the run, .*cannot name a folder"):
        table.server.turn()
    assert list(tmp_path.iterdir()) == []


def test_the_server_keeps_its_checkpoints_under_the_name_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for output, folder in (
        (None, tmp_path / "runs" / "a.b+c-1"),
        (tmp_path / "out", tmp_path / "out"),
    ):
        hello = HELLO | {"run": "a.b+c-1" if output is None else "../ignored"}
        first = session_with_checkpoints(output)
        first.state["x"] += 7
        for message in (
            Message(Kind.HELLO, meta=hello),
            Message(Kind.CONTROL, 12, meta={"do": "save"}),
        ):
            first.client_end.send(message, 1.0)
            assert first.server.turn()
        assert (folder / "checkpoints" / "step-00000012" / "server.safetensors").is_file()
        first.end()
        second = session_with_checkpoints(output)
        second.client_end.send(Message(Kind.HELLO, meta=hello | {"step": 12}), 1.0)
        assert second.server.turn()
        assert second.state["x"] == 7


def test_a_step_that_the_server_does_not_have_is_told(tmp_path: Path) -> None:
    table = session_with_checkpoints(tmp_path)
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"step": 3}), 1.0)
    with pytest.raises(ConfigError, match="the server has no checkpoint of step 3"):
        table.server.turn()
    assert "no checkpoint of step 3" in table.client_end.receive(1.0).meta["error"]


def test_the_server_logs_its_numbers_and_forgets_those_of_later_steps(tmp_path: Path) -> None:
    log = tmp_path / SERVER_METRICS
    for resumed, steps, left in ((0, (0, 1, 2), [1, 2, 3]), (0, (0,), [1])):
        table = session_with_checkpoints(tmp_path)
        table.metrics["probe"] = {"x": 0.5}
        table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"step": resumed}), 1.0)
        assert table.server.turn()
        for step in steps:
            table.client_end.send(activation(step), 1.0)
            assert table.server.turn()
        table.client_end.send(Message(Kind.CONTROL, 3, meta={"do": "finish"}), 1.0)
        assert not table.server.turn()
        records = read_records(tmp_path, SERVER_METRICS)
        assert records == [StepRecord(n, metrics={"probe": {"x": 0.5}}) for n in left]
        assert table.reported == []  # the client's goodbye waits for no probe
        table.report()
        assert table.reported == [tmp_path / "probes"]
        table.end()
    assert log.read_text().startswith(version_line())


def greet(table: Any, **changes: Any) -> None:
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | changes), 1.0)
    assert table.server.turn()


def test_a_new_run_does_not_forget_what_another_left(tmp_path: Path) -> None:
    first = session_with_checkpoints(tmp_path)
    greet(first)
    first.client_end.send(Message(Kind.CONTROL, 12, meta={"do": "save"}), 1.0)
    assert first.server.turn()
    first.end()
    other = session_with_checkpoints(tmp_path)
    with pytest.raises(ConfigError, match=r"holds checkpoints of another run, .*--output"):
        greet(other, marks=MARKS | {"run": "another"})
    other.end()
    kept = tmp_path / "checkpoints" / "step-00000012" / "server.safetensors"
    assert kept.is_file()
    with pytest.raises(
        ConfigError, match=r"server.safetensors is of plan \w+, not of plan another"
    ):
        greet(
            session := session_with_checkpoints(tmp_path),
            step=12,
            marks=MARKS | {"plan": "another"},
        )
    session.end()
    again = session_with_checkpoints(tmp_path)
    greet(again)  # the same run, whose client was killed before it wrote its first
    assert not kept.exists()
    again.end()


def test_a_folder_serves_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitlab.core.runs.serve._PATIENCE", 0.0)
    first, second = (session_with_checkpoints(tmp_path) for _ in range(2))
    greet(first)
    with pytest.raises(ConfigError, match=r"is in use by process \d+"):
        greet(second)
    assert "is in use by process" in second.client_end.receive(1.0).meta["error"]
    first.end()
    assert not list(tmp_path.glob("*.lock"))


def test_the_client_is_offered_a_step_that_both_have(tmp_path: Path) -> None:
    table = session_with_checkpoints(tmp_path)
    greet(table)
    for step in (4, 8):
        table.client_end.send(Message(Kind.CONTROL, step, meta={"do": "save"}), 1.0)
        assert table.server.turn()
    table.end()
    file = tmp_path / "checkpoints" / "step-00000008" / "server.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for steps, older in (("4 8", 4), ("8", 0), ("x -4", 0)):
        table = session_with_checkpoints(tmp_path)
        more = {"steps": steps, "again": "splitlab join A --resume R"}
        told = (
            rf"is damaged .*; go on from step {older} with: splitlab join A --resume R --from-step"
        )
        with pytest.raises(ConfigError, match=told):
            greet(table, step=8, marks=MARKS | more)
        table.end()


FAILS_AT = """
from splitlab.core import hookimpl


class FailsAt:
    def __init__(self, *, role: str) -> None:
        self.fails = role

    @hookimpl
    def setup(self, peer):
        self.role = peer.role

    @hookimpl
    def report(self, folder):
        if self.role == self.fails:
            raise ValueError("no room")
        (folder / "done").touch()
"""


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_probe_that_fails_in_report_costs_no_summary(
    role: str, real: Any, two_classes: str, tmp_path: Path
) -> None:
    (tmp_path / "probe.py").write_text(FAILS_AT)
    options: dict[str, Any] = {"data_dir": two_classes, "budget": "steps=1", **real.SMALL}
    folder = tmp_path / "r"
    summary = f"in {folder}" if role == "client" else "at the client"
    with pytest.raises(PluginError) as caught:
        run(probes=[f"{tmp_path}/probe.py:FailsAt:role={role}"], output=str(folder), **options)
    assert str(caught.value) == (
        "probe 'FailsAt' failed in report: ValueError: no room (probe.py:16); the run is complete, "
        f"its summary is {summary}"
    )
    assert read_summary(folder).steps == 1
    assert read_ledger(folder).total("up", "training") > 0


def test_a_probe_that_fails_at_the_server_is_its_error_and_not_the_clients(
    real: Any, two_classes: str, tmp_path: Path
) -> None:
    (tmp_path / "probe.py").write_text(FAILS_AT)
    options: dict[str, Any] = {"data_dir": two_classes, "budget": "steps=1", **real.SMALL}
    folder = tmp_path / "r"
    probe = f"{tmp_path}/probe.py:FailsAt:role=server"
    result = run(probes=[probe], output=str(folder), transport="tcp", **options)
    assert result.summary.steps == 1
    assert (folder / "probes" / "FailsAt" / "done").is_file()
    last = (folder / "server.log").read_text().splitlines()[-1]
    assert last.startswith("splitlab: error: probe 'FailsAt' failed in report: ValueError: no room")


# Two machines.


@pytest.mark.usefixtures("unlistened")
def test_serve_and_join_go_on_where_they_were(real: Any, easy_data: str, tmp_path: Path) -> None:
    options = {"plugin": "adc", "checkpoint_every": 3, "eval_every": 100}
    client = real.flags(easy_data, tmp_path / "client" / "r", **options, budget="steps=9")
    own = {key: real.SMALL[key] for key in ("weights", "batch_size", "threads", "lr", "device")}
    server = ["--plugin", "adc", "--classes", "4"]
    server += [t for k, v in own.items() for t in (f"--{k.replace('_', '-')}", str(v))]

    with ExitStack() as ended:
        # Both servers start at once: importing torch is what takes long.
        first, second = (
            ended.enter_context(
                subprocess.Popen(
                    real.command("serve", *server), stdout=subprocess.PIPE, text=True, cwd=tmp_path
                )
            )
            for _ in range(2)
        )
        addresses = [serving.stdout.readline().split()[-1] for serving in (first, second)]
        more = [*client[:-1], "steps=100000"]
        stopped = subprocess.Popen(real.command("join", addresses[0], "--quiet", *more))
        real.wait_for_steps(tmp_path / "client" / "r", 7, stopped)
        stopped.kill()
        stopped.wait(60)
        assert first.communicate(timeout=60)[0].count("to the end of the client's run") == 0
        assert first.returncode != 0
        again = ["--resume", str(tmp_path / "client" / "r"), "--budget", "steps=30"]
        assert main(["join", addresses[1], "--quiet", *again]) == 0
        assert "to the end of the client's run" in second.communicate(timeout=60)[0]
        assert second.returncode == 0
    run(
        plugins=["adc"],
        data_dir=easy_data,
        output=str(tmp_path / "whole"),
        budget="steps=30",
        checkpoint_every=3,
        eval_every=100,
        **real.SMALL,
    )
    assert real.losses(tmp_path / "client" / "r") == real.losses(tmp_path / "whole")
    assert (tmp_path / "runs" / "r" / "checkpoints" / "step-00000030").is_dir()
