"""A trace shows the step of a run: the same frames, the same loss, every hook in its order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Attention, ConfigError, run
from splitlab.core.catalogue.loading import load
from splitlab.core.catalogue.tables import ROOT
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import Diverged
from splitlab.core.contract.transfer import pretending
from splitlab.core.runs.stages import TensorFacts
from splitlab.core.runs.trace import Trace, _Peers, trace

HALF = str(ROOT / "examples" / "half_precision.py:HalfPrecision")
PLUGINS = ("adc:ratio=0.25", HALF)

ODD = '''
from splitlab.core import Kind, Message, Role, hookimpl


class Odd:
    """Scales in place, and sends a number at some steps only."""

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION:
            message["activations"].mul_(2)
            if message.step % 2:
                message.put("odd.number", message["activations"][0, 0, :1], Role.SIDE)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        pass
'''


@pytest.fixture(scope="module")
def options(two_classes: str) -> dict[str, Any]:
    """Small data, and a small batch."""
    small = {"batch_size": 8, "threads": 1, "weights": "none", "device": "cpu"}
    return {"data_dir": two_classes, **small}


@pytest.fixture(scope="module")
def traced(options: dict[str, Any]) -> Trace:
    """The first step of two plugins."""
    return trace(plugins=PLUGINS, repeats=2, **options)


def test_stages_are_in_the_order_of_the_step(traced: Trace) -> None:
    assert [(stage.direction, stage.peer, stage.plugin, stage.hook) for stage in traced.stages] == [
        ("up", "client", "", ""),
        ("up", "client", "adc", "after_client_forward"),
        ("up", "client", "HalfPrecision", "before_send"),
        ("up", "link", "", ""),
        ("up", "server", "HalfPrecision", "after_receive"),
        ("up", "server", "adc", "before_server_forward"),
        ("down", "server", "", ""),
        ("down", "server", "HalfPrecision", "before_send"),
        ("down", "link", "", ""),
        ("down", "client", "HalfPrecision", "after_receive"),
        ("down", "client", "", ""),
    ]


def test_tensors_are_those_that_a_stage_left(traced: Trace) -> None:
    # 8 rows of 50 tokens of 64 features; at a ratio of 0.25, half of the rows and of the tokens.
    half, merged, sent = traced.stages[:3]
    assert half.tensors == (
        TensorFacts("activations", "payload", (8, 50, 64), "float32", 8 * 50 * 64 * 4),
        TensorFacts("targets", "targets", (8,), "int64", 64),
        TensorFacts(str(Attention()), "local", (8, 50), "float32", 8 * 50 * 4),
    )
    by_name = {tensor.name: tensor for tensor in merged.tensors}
    assert by_name["activations"].shape == (4, 25, 64)
    assert by_name["adc.clusters"].role == "side"
    assert "targets" not in by_name  # they are merged at the server
    assert sent.tensors == (TensorFacts("activations", "payload", (4, 25, 64), "float16", 12800),)
    widened, merged_there, trained = traced.stages[4:7]
    assert [tensor.dtype for tensor in widened.tensors] == ["float32"]
    targets = TensorFacts("targets", "targets", (4, 2), "float32", 32)
    assert merged_there.tensors == (targets,)
    assert trained.tensors == (TensorFacts("gradient", "payload", (4, 25, 64), "float32", 25600),)


def test_frames_and_loss_are_those_of_a_run(
    traced: Trace, options: dict[str, Any], tmp_path: Path
) -> None:
    result = run(plugins=list(PLUGINS), budget="steps=4", output=str(tmp_path / "r"), **options)
    lines = [
        json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()
    ]
    steps = {line["step"]: line for line in lines if line["kind"] == "train"}
    third = trace(plugins=PLUGINS, step=4, repeats=1, **options)  # of the second epoch
    for shown in (traced, third):
        of_run = steps[shown.step]
        assert shown.loss == of_run["loss"]
        assert (shown.bytes("up"), shown.bytes("down")) == (
            of_run["bytes_up"],
            of_run["bytes_down"],
        )
    up = traced.stages[3].frame
    assert (up["activation"], up["targets"], up["side"]) == (12800, 8, 8)
    assert list(up) == ["activation", "targets", "side", "header"]
    assert traced.base_bytes == 2 * 8 * 50 * 64 * 4
    assert traced.ratio_measured == (traced.bytes("up") + traced.bytes("down")) / traced.base_bytes
    assert traced.ratio_nominal == pytest.approx(0.125)


def test_times_are_of_later_steps(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    inner = _Peers.step

    def step(self: _Peers, batch: Batch, number: int) -> float:
        steps.append((number, len(batch.targets)))
        return inner(self, batch, number)

    monkeypatch.setattr(_Peers, "step", step)
    shown = trace(step=3, repeats=2, **options)
    # 20 images: the third batch is of 4, and is repeated: once to warm up, twice to be timed.
    assert steps == [(0, 8), (1, 8), (2, 4), (3, 4), (4, 4), (5, 4)]
    assert (shown.rows, shown.base_bytes) == (4, 2 * 4 * 50 * 64 * 4)


def test_every_stage_took_time(traced: Trace) -> None:
    assert all(stage.milliseconds and stage.milliseconds > 0 for stage in traced.stages)
    heaviest = max(traced.stages, key=lambda stage: stage.milliseconds or 0)
    assert not heaviest.plugin


def test_changes_in_place_are_seen_and_nothing_is_said_of_the_rest(
    options: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "odd.py"
    file.write_text(ODD)
    stack = [f"{file}:Odd", f"{file}:Odd"]
    first, second, link, received, *_ = trace(plugins=stack, repeats=1, **options).stages[1:]
    assert [tensor.name for tensor in first.tensors] == ["activations"]
    assert (first.plugin, second.plugin) == ("Odd", "Odd#2")
    assert second.tensors == first.tensors
    assert link.frame.keys() == {"activation", "targets", "header"}
    assert received.tensors == received.gone == ()
    assert received.lines() == [("unchanged", "", "", "")]
    odd = trace(plugins=stack[:1], step=2, repeats=1, **options).stages[1]
    assert {tensor.name for tensor in odd.tensors} == {"activations", "odd.number"}


def test_the_empty_stack(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"ratio=0.4..0.2 changes .* here it needs one value"):
        trace(plugins=("adc:ratio=0.4..0.2",), **options)
    with pytest.raises(ConfigError, match="unknown key 'stpe'"):
        trace(stpe=1, **options)
    bare = trace(repeats=1, **options)
    assert [stage.peer for stage in bare.stages] == ["client", "link", "server", "link", "client"]
    assert bare.ratio_nominal == 1
    assert 1 < bare.ratio_measured < 1.01
    assert "the empty stack" in bare.heading()[0]
    assert "1 thread, fp32, loss" in bare.heading()[0]


def test_bf16_shows_the_dtype_that_crosses_and_half_the_ratio(options: dict[str, Any]) -> None:
    halved = trace(repeats=1, precision="bf16", plugins=["none"], **options)
    assert 0.5 < halved.ratio_measured < 0.51
    seen = {dtype for stage in halved.stages for dtype in (t.dtype for t in stage.tensors)}
    assert {"bfloat16"} <= seen
    assert "1 thread, bf16, loss" in halved.heading()[0]
    assert "uncompressed float32" in halved.totals()[0]


WATCHES = """
import time
from splitlab.core import hookimpl


class Watches:
    @hookimpl
    def metrics(self, step):
        return {"step": step}


class Slow:
    def wrap(self, link, role):
        class Slower(type(link)):
            def send(self, message, timeout):
                sent.append(role)
                return super().send(message, timeout)

        link.__class__ = Slower
        return link


sent = []
"""


def test_probes_and_links_act_as_in_a_run(
    options: dict[str, Any], tmp_path: Path, traced: Trace
) -> None:
    file = tmp_path / "watches.py"
    file.write_text(WATCHES)
    probes, links = [f"{file}:Watches"], [f"{file}:Slow"]
    shown = trace(plugins=PLUGINS, repeats=1, probes=probes, links=links, **options)
    assert shown.metrics == {peer: {"Watches": {"step": 0.0}} for peer in ("client", "server")}
    assert "Watches at the client: step 0" in shown.totals()
    assert "Watches" not in " ".join(stage.what for stage in shown.stages)
    assert [stage.frame for stage in shown.stages] == [stage.frame for stage in traced.stages]
    assert load("links", links[0]).wrap.__globals__["sent"] == ["client", "server"] * 3


LATE = '''
from splitlab.core import Cut, hookimpl
from splitlab.core.contract.errors import Diverged


class Late:
    """Finds at the last step that something is wrong, when the device says so."""

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        ok = cut.activations.detach().isfinite().all() & (cut.step != 2)
        cut.expect(ok, lambda: Diverged(f"{cut.when}: no"))
'''


def test_the_last_step_is_asked_for_what_is_told_late(
    options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "late.py").write_text(LATE)
    with pretending(), pytest.raises(Diverged, match=r"^step 3: no"):
        trace(plugins=[str(tmp_path / "late.py:Late")], repeats=1, **options)
