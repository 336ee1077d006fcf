"""The conformance kit finds what is wrong: each of these plugins fails one check, and no other.

They stand at the top of this file, where a fresh peer in another process finds them too.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitlab.core import (
    ConfigError,
    Cut,
    Kind,
    Message,
    Peer,
    Role,
    Traits,
    hookimpl,
    testing,
)
from splitlab.core.testing import (
    PLUGIN_CHECKS,
    ConformanceError,
    FreshPeers,
    Tiny,
    check_plugin,
)
from splitlab.core.testing.report import Check, Failed, Skipped, Warned, run_checks
from splitlab.core.testing.state import Belongings, GlobalRandom
from splitlab.core.testing.tiny import Seen, difference
from splitlab.core.wire.encode import encode

SMALL = Tiny(image=8, patch=4, width=8, depth=1, samples=4)
"""N = 5 tokens; enough for what does not look at them."""

# What is right.


class Shift:
    """A differentiable map on the graph: every sample by its own place, and back."""

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = 2 * cut.activations

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = cut.activations.tanh() + cut.activations / 4


class Cast:
    """Detached tensors in both directions: bfloat16 on the wire."""

    @hookimpl
    def before_send(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            if message.training and message[name].dtype == torch.float32:
                message.put(name, message[name].bfloat16(), Role.PAYLOAD)
                message.push("cast", name)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if name := message.pop("cast"):
            message.put(name, message[name].float(), Role.PAYLOAD)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return 0.5, 0.5

    @hookimpl
    def traits(self) -> Traits:
        return Traits(needs={"numbers"}, gradient="straight-through")


class Remembers(Cast):
    """Keeps state: sends what changed since the last step, and saves what the receiver has."""

    def __init__(self, *, ratio: float = 0.5) -> None:
        if ratio < 0.01:
            raise ConfigError(f"ratio={ratio} is refused; allowed: 0.01 to 1; take 0.01")
        self._sum = torch.zeros(())

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.kind is Kind.ACTIVATION:
            self._sum = self._sum + 1
            message.put("remembers.sum", self._sum.clone(), Role.SIDE)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if "remembers.sum" in message:
            message.take("remembers.sum")

    @hookimpl
    def traits(self) -> Traits:
        return Traits(stateful=True)

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        return {"sum": self._sum}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum = state["sum"]


class Corrects(Cast):
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        assert cut.gradient is not None
        cut.gradient = cut.gradient + 0.01 * cut.activations.detach()

    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="corrected")


@pytest.mark.parametrize("plugin", [Shift, Cast, Remembers, Corrects])
def test_a_plugin_that_is_right_passes(plugin: type, fresh: FreshPeers) -> None:
    report = check_plugin(plugin, fresh=fresh)
    report.raise_if_failed()
    assert report.ok
    assert [row.check for row in report.rows] == [f"G{i}" for i in range(12)]
    skipped = [row.check for row in report.rows if row.outcome == "skipped"]
    assert skipped == (["G5"] if plugin is Corrects else [])


# What is wrong: the check that finds it, and a piece of the reason.


class Unmarked(Cast):
    def after_receive(self, message: Message) -> None:
        Cast.after_receive(self, message)


class Returns:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> torch.Tensor:
        return 2 * cut.activations


class Fails:
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        raise KeyError("residual")


class Boasts(Cast):
    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return 0.5, 0.0


class Smuggles(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            message.push("smuggles", message["activations"].flatten()[:99].tolist())

    @hookimpl
    def after_receive(self, message: Message) -> None:
        message.pop("smuggles")

    @hookimpl
    def traits(self) -> Traits:
        return Traits()


class ForgetsToDecode(Cast):
    @hookimpl
    def after_receive(self, message: Message) -> None:
        message.pop("cast")


class ForgetsTheTokens:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations.flatten(1)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(changes={"layout", "tokens"})


class ForgetsTheGradient(Cast):
    @hookimpl
    def after_receive(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION:
            Cast.after_receive(self, message)
        elif message.kind is Kind.GRADIENT:
            message.put("gradient", message["gradient"][:, 1:].float(), Role.PAYLOAD)


class LosesTheGradient:
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        cut.gradient = None


class ForgetsTheLabels:
    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        if cut.training:
            C = int(cut.targets.max()) + 1
            cut.targets = torch.nn.functional.one_hot(cut.targets, max(C, 4)).float() / 2


class DrawsAnywhere:
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training:
            message.put("draw", torch.rand(1), Role.SIDE)


class DrawsInSetup(Shift):
    @hookimpl
    def setup(self, peer: Peer) -> None:
        random.random()
        np.random.rand()


class LooksAtTheClock(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        Cast.before_send(self, message)
        message.put("clock", torch.tensor(time.perf_counter_ns()), Role.SIDE)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True, gradient="straight-through")


class ActsInEvaluation(Shift):
    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations.tanh() + cut.activations / 4


class ActsInTrainingOnly(Shift):
    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True)


class LearnsFromEvaluation(Remembers):
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if not cut.training:
            self._sum = self._sum + 1


class Detaches:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = 2 * cut.activations.detach()


class Invents:
    @hookimpl
    def setup(self, peer: Peer) -> None:
        self._own = torch.nn.Parameter(torch.randn(5, 8))

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        cut.activations = self._own.expand(len(cut.targets), -1, -1)


class ScalesTheGradient(Shift):
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        assert cut.gradient is not None
        cut.gradient = 2 * cut.gradient


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: torch.Tensor) -> torch.Tensor:
        return X * X

    @staticmethod
    def backward(ctx: Any, G: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return G


class DerivesWrongly:
    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = _Backwards.apply(cut.activations)


class RoundsNaturally(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            if message.training and message.kind is Kind.ACTIVATION:
                message.put(name, (message[name] * 8).round() / 8, Role.PAYLOAD)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="natural")


class TurnsTheGradient(Cast):
    @hookimpl
    def after_receive(self, message: Message) -> None:
        Cast.after_receive(self, message)
        if message.kind is Kind.GRADIENT:
            message.put("gradient", -message["gradient"], Role.PAYLOAD)


class ChangesTheGradient:
    @hookimpl
    def after_receive(self, message: Message) -> None:
        if message.kind is Kind.GRADIENT:
            message.put("gradient", 2 * message["gradient"], Role.PAYLOAD)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="straight-through")


class Divides:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = cut.activations / cut.activations.std()


class WantsTwo(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.kind is Kind.ACTIVATION:
            assert len(message["activations"]) > 1
        Cast.before_send(self, message)


class NeedsMore(Remembers):
    @hookimpl
    def setup(self, peer: Peer) -> None:
        self._k = int(20 * self._ratio)

    def __init__(self, *, ratio: float = 0.5) -> None:
        super().__init__(ratio=ratio)
        self._ratio = ratio

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations * (self._k / self._k)


class LoopsForever(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        # As long as a test may wait for it, not for ever.
        end = time.monotonic() + 3.0
        while not message[message.names(Role.PAYLOAD)[0]].isfinite().all():
            if time.monotonic() > end:
                raise RuntimeError("the test waits no longer")
        Cast.before_send(self, message)


class CrashesOnNaN(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message["activations"].isnan().any():
            raise IndexError("index 3 is out of bounds")
        Cast.before_send(self, message)


class Decomposes:
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            torch.linalg.qr(message["activations"])


class Widens(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training:
            message.push("cast", message.names(Role.PAYLOAD)[0])


class SharesItsClass(Cast):
    seen: dict[str, torch.Tensor] = {}  # noqa: RUF012 (that is what is wrong)

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            self.seen["activations"] = message["activations"].clone()
        Cast.before_send(self, message)


_SEEN: list[torch.Tensor] = []


class SharesItsModule(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION and message.training:
            _SEEN[:] = [message["activations"]]
        Cast.before_send(self, message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        Cast.after_receive(self, message)
        if message.kind is Kind.ACTIVATION and message.training:
            message.put("activations", _SEEN[0].clone(), Role.PAYLOAD)


class LooksAtThreads(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        message.put("threads", torch.tensor(threading.active_count()), Role.SIDE)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True)


class ForgetsItsState(Remembers):
    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        return {"sum": torch.zeros(())}


class HidesItsState(Remembers):
    @hookimpl
    def traits(self) -> Traits:
        return Traits()


class Counts(Cast):
    def __init__(self) -> None:
        self._calls = 0

    @hookimpl
    def before_send(self, message: Message) -> None:
        self._calls += 1
        message.put("calls", torch.tensor(self._calls % 2), Role.SIDE)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=True)


class HidesTheTokens:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = cut.activations[:, :3]


class HidesTheRows(Shift):
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training and len(cut.targets) > 1:
            cut.activations, cut.targets = cut.activations[:-1], cut.targets[:-1]


class HidesItsCodes(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            if message.training:
                message.push("codes", str(message[name].dtype).partition(".")[2])
                codes = (message[name].float().clamp(-3, 3) * 1000).nan_to_num()
                message.put(name, codes.to(torch.int16), Role.PAYLOAD)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if dtype := message.pop("codes"):
            [name] = message.names(Role.PAYLOAD)
            message.put(name, message[name].to(getattr(torch, dtype)) / 1000, Role.PAYLOAD)


class CorrectsNothing(Cast):
    @hookimpl
    def traits(self) -> Traits:
        return Traits(gradient="corrected")


WRONG = [
    (Unmarked, "G0", "'after_receive' is called like a hook and not marked"),
    (Returns, "G0", "it returned a Tensor"),
    (Fails, "G0", "KeyError"),
    (Boasts, "G1", "nominal_ratio returns (0.5, 0.0)"),
    (Smuggles, "G1", "put numbers into a tensor of Role.SIDE"),
    (ForgetsToDecode, "G2", "the activations are torch.bfloat16"),
    (ForgetsTheTokens, "G2", "the stack gives the server activations [4, 40]"),
    (ForgetsTheGradient, "G2", "the gradient is torch.float32 [4, 4, 8]"),
    (LosesTheGradient, "G2", "cut.gradient as NoneType, not a tensor"),
    (ForgetsTheLabels, "G2", "probabilities of a row do not sum to 1"),
    (DrawsAnywhere, "G3", "it drew from global random state"),
    (DrawsInSetup, "G3", "random state of random and numpy"),
    (LooksAtTheClock, "G3", "ACTIVATION of step 0: tensor 'clock', 1 of 1 elements"),
    (ActsInEvaluation, "G4", "differs from an evaluation without the stack"),
    (ActsInTrainingOnly, "G4", "declare evaluation=False"),
    (LearnsFromEvaluation, "G4", "the client (plugins / LearnsFromEvaluation / sum)"),
    (Detaches, "G5", "it cuts cut.activations off the autograd graph"),
    (Invents, "G5", "so there is no gradient to return"),
    (ScalesTheGradient, "G5", "the loss changes along a direction"),
    (DerivesWrongly, "G5", "the loss changes along a direction"),
    (RoundsNaturally, "G5", "along a direction by 0,"),
    (TurnsTheGradient, "G5", "points away from the one that the server sent"),
    (ChangesTheGradient, "G5", "crosses the link as it is, but after_receive changes it"),
    (Divides, "G6", "with zeros everywhere: after_client_forward at the client leaves"),
    (WantsTwo, "G6", "with a single sample: plugin 'WantsTwo' failed in before_send"),
    (NeedsMore, "G6", "with ratio=0.01: plugin 'NeedsMore' failed in after_client_forward"),
    (CrashesOnNaN, "G6", "with a value that is not a number: plugin 'CrashesOnNaN' failed"),
    (Decomposes, "G7", "with bfloat16 activations"),
    (Widens, "G7", "the activations are torch.float32"),
    (SharesItsClass, "G8", "SharesItsClass.seen is one object for client and server"),
    (SharesItsModule, "G8", "a fresh server in another process cannot go by the frames alone"),
    (LooksAtThreads, "G9", "over inprocess the run is another"),
    (ForgetsItsState, "G10", "a resumed run is another, first in ACTIVATION of step 2"),
    (HidesItsState, "G10", "declare stateful=True"),
    (Counts, "G10", "encoding one batch twice differs"),
    (HidesTheTokens, "G11", "makes [4, 3, 8] of [4, 5, 8], and traits() does not say so"),
    (HidesTheRows, "G11", "add 'batch' to changes"),
    (HidesItsCodes, "G11", "before_send sends codes that are no floating-point numbers"),
    (CorrectsNothing, "G11", "no gradient_return adds anything"),
]


@pytest.mark.parametrize(
    ("plugin", "check", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG]
)
def test_what_is_wrong_fails_one_check_with_its_reason(
    plugin: type, check: str, reason: str, fresh: FreshPeers
) -> None:
    report = check_plugin(plugin, fresh=fresh, tiny=SMALL)
    assert report.failed() == [check], str(report)
    [row] = [row for row in report.rows if row.outcome == "failed"]
    assert reason in row.reason, row.reason
    assert plugin.__name__ in row.reason


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in WRONG} == {check.id for check in PLUGIN_CHECKS}


def test_a_loop_without_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing.plugin, "_PATIENCE", 1.5)
    report = check_plugin(LoopsForever, only=["G6"], tiny=SMALL)
    assert report.failed() == ["G6"]
    assert "with a value that is not a number it does not end in 1.5 s" in report.rows[0].reason


def test_pickle_is_found_in_the_module_of_the_plugin(tmp_path: Path) -> None:
    for line, found in (
        ("import pickle", "pickle"),
        ("from marshal import dumps", "marshal"),
        ("import torch\ndef save(path): torch.save({}, path)", "torch.save"),
    ):
        file = tmp_path / f"with_{found}.py"
        file.write_text(f"{line}\n\nclass Method:\n    pass\n")
        [row] = check_plugin(f"{file}:Method", only=["G11"], tiny=SMALL).rows
        assert row.outcome == "failed"
        assert f"plugin 'Method': its module uses {found}" in row.reason


# What can be checked, and what is skipped.


def test_a_plugin_is_named_in_many_ways(tmp_path: Path) -> None:
    def outcome(plugin: Any) -> tuple[str, str]:
        report = check_plugin(plugin, only=["G1"])
        return report.subject, report.rows[0].outcome

    file = tmp_path / "method.py"
    file.write_text("class Method:\n    def __init__(self, *, bits: int = 8) -> None: ...\n")
    assert outcome("adc-token-select:ratio=0.5") == ("adc-token-select:ratio=0.5", "passed")
    assert outcome("adc-q8") == ("adc-q8", "passed")
    assert outcome(f"{file}:Method:bits=4") == (f"{file}:Method:bits=4", "passed")
    assert outcome(Shift) == ("Shift", "passed")
    assert outcome(Tiny().bound(Shift, label="mine")) == ("mine", "passed")
    with pytest.raises(ConfigError, match="unknown plugin 'ad'"):
        check_plugin("ad")
    with pytest.raises(ConfigError, match=r"unknown check 'G12' .*known: G0, G1"):
        check_plugin("adc", only=["G12"])


def test_bytes_far_from_nominal_are_odd_and_no_failure() -> None:
    [row] = check_plugin("adc-batch-merge:ratio=0.01", only=["G1"]).rows
    assert row.outcome == "warning"
    assert "up 0.200 (nominal 0.01)" in row.reason
    assert "far more than nominal" in row.reason


def test_a_plugin_that_refuses_every_model_here_fails_with_its_own_words() -> None:
    report = check_plugin("c3sl:group=1000", only=["G0", "G1"])
    assert report.failed() == ["G0"]
    assert report.rows[0].reason.startswith("plugin 'c3sl': groups of 1000 samples")
    assert report.rows[1].reason == "needs steps that run, see G0"


def test_the_smallest_ratio_is_searched_and_tried() -> None:
    [row] = check_plugin(Remembers, only=["G6"], tiny=SMALL).rows
    assert row.reason == "smallest ratio taken: 0.01"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_where_there_is_a_gpu_shapes_are_checked_there_too() -> None:
    [row] = check_plugin("adc", only=["G2"]).rows
    assert (row.outcome, row.reason) == ("passed", "on CPU and GPU")


def test_without_a_link_that_works_that_check_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing.plugin, "entries", lambda kind: {})
    [row] = check_plugin(Cast, only=["G9"], tiny=SMALL).rows
    assert (row.outcome, row.reason[:23]) == ("skipped", "no transport works here")


# Fresh peers.


def test_what_no_other_process_can_find_is_skipped_there(fresh: FreshPeers) -> None:
    class Local(Cast):
        pass

    class Nameless(Cast):
        __module__ = "no_such_module"

    Nameless.__qualname__ = "Nameless"

    def reason(plugin: Any) -> str:
        [row] = check_plugin(plugin, only=["G8"], fresh=fresh, tiny=SMALL).rows
        assert row.outcome == "skipped", row
        return row.reason

    assert "not a class at the top of a module" in reason(Local)
    assert "stands in no file" in reason(Nameless)
    bound = Tiny().bound(TakesAnything, value={1, 2})
    assert "a parameter is no JSON value" in reason(bound)
    Shift.__name__, kept = "Hidden", Shift.__name__
    try:
        assert "Hidden" in reason(Shift)
    finally:
        Shift.__name__ = kept


class TakesAnything(Cast):
    def __init__(self, *, value: Any = None) -> None:
        pass


def test_a_class_bound_to_parameters_is_rebuilt_with_them_elsewhere(fresh: FreshPeers) -> None:
    bound = Tiny().bound(Remembers, label="mine", ratio=0.25)
    [row] = check_plugin(bound, only=["G8"], fresh=fresh, tiny=SMALL).rows
    assert (row.outcome, row.reason) == ("passed", "")


class Dies(Cast):
    @hookimpl
    def setup(self, peer: Peer) -> None:
        if Path(sys.argv[0]).name == "fresh.py":
            os._exit(7)


def test_a_fresh_peer_that_dies_says_so_and_the_next_one_lives(fresh: FreshPeers) -> None:
    [row] = check_plugin(Dies, only=["G8"], fresh=fresh, tiny=SMALL).rows
    assert row.outcome == "failed"
    assert "the fresh peer's process died with status" in row.reason
    [row] = check_plugin(Cast, only=["G8"], fresh=fresh, tiny=SMALL).rows
    assert row.outcome == "passed"


def test_fresh_peers_that_cannot_be_started_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    [row] = check_plugin(Cast, only=["G8"], tiny=SMALL).rows
    assert row.outcome == "failed"
    assert "fresh peers cannot be started: " in row.reason


# Reports.


def test_a_report_counts_prints_and_raises() -> None:
    def fail(subject: str) -> None:
        raise Failed(f"{subject} is wrong;\n  mend it")

    def skip(subject: str) -> None:
        raise Skipped("not here")

    def crash(subject: str) -> None:
        raise KeyError("x")

    checks: list[Check[str]] = [
        Check("A", "is right", lambda subject: None),
        Check("B", "is odd", lambda subject: Warned("odd")),
        Check("C", "is there", skip),
        Check("D", "is sound", fail),
        Check("E", "does not crash", crash),
    ]
    report = run_checks("it", "subject", checks)
    assert not report.ok
    assert report.failed() == ["D", "E"]
    assert report.counts() == "2 failed, 1 warning, 1 passed, 1 skipped"
    assert report.as_dict()["rows"][3] == {
        "check": "D",
        "title": "is sound",
        "outcome": "failed",
        "reason": "subject is wrong; mend it",
    }
    assert report.rows[4].reason == "KeyError: 'x'"
    with pytest.raises(ConformanceError, match="failed  D    is sound: subject is wrong; mend it"):
        report.raise_if_failed()
    assert issubclass(ConformanceError, AssertionError)
    assert run_checks("it", "subject", checks, only=["C", "A"]).ok


# What the checks stand on.


def test_global_random_state_is_put_back_and_draws_are_seen() -> None:
    def states() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        ]

    before = states()
    with GlobalRandom(1) as world:
        assert world.disturbed() == []
        first = torch.rand(1), random.random(), np.random.rand()
        assert world.disturbed() == ["torch", "random", "numpy"]
    assert states() == before
    with GlobalRandom(1):
        assert (torch.rand(1), random.random(), np.random.rand()) == first
    with GlobalRandom(2):
        assert torch.rand(1) != first[0]


class Owner:
    __slots__ = ("deep", "tensor")
    table = [1, 2]  # noqa: RUF012

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.deep: dict[str, Any] = {"list": [np.zeros(2)], "draws": torch.Generator()}


def test_what_two_instances_share_and_change_is_named_by_its_path() -> None:
    shared = torch.zeros(2)
    one, other = Owner(shared), Owner(shared)

    def changed(change: Callable[[], object]) -> list[str]:
        found = Belongings(one), Belongings(other)
        change()
        return Belongings.changed_together(*found)

    assert changed(lambda: None) == []
    assert changed(lambda: one.deep["list"].append(3)) == []
    assert changed(lambda: shared.add_(1)) == ["Owner.tensor"]
    assert changed(lambda: Owner.table.append(3)) == ["Owner.table"]
    assert changed(lambda: setattr(Owner, "table", [])) == ["Owner"]
    other.deep["list"] = one.deep["list"]
    assert changed(lambda: one.deep["list"].append(3)) == ["Owner.deep['list']"]
    assert changed(lambda: np.copyto(one.deep["list"][0], 5)) == ["Owner.deep['list'][0]"]
    other.deep["draws"] = one.deep["draws"]
    assert changed(lambda: one.deep["draws"].seed()) == ["Owner.deep['draws']"]


def test_where_two_rows_of_messages_differ_is_said_in_words() -> None:
    def row(**changes: Any) -> list[Seen]:
        facts = {"step": 3, "loss": float("nan"), "name": "activations", "value": 1.0} | changes
        message = Message(Kind.GRADIENT, facts["step"], meta={"loss": facts["loss"]})
        value = torch.tensor([float("nan"), facts["value"]], dtype=facts.get("dtype"))
        message.put(facts["name"], value, facts.get("role", Role.PAYLOAD))
        encode(message)
        return [Seen.of(message)]

    assert difference(row(), row()) is None
    assert difference(row(), row(value=2.0)) == (
        "GRADIENT of step 3: tensor 'activations', 2 of 2 elements"
    )
    assert "tensors ['activations'] and ['x']" in str(difference(row(), row(name="x")))
    assert "torch.float32 [2] and torch.float64 [2]" in str(
        difference(row(), row(dtype=torch.float64))
    )
    assert "metadata" in str(difference(row(), row(loss=1.0)))
    assert "tensors" in str(difference(row(), row(role=Role.SIDE)))
    assert "flags" in str(difference(row(), row(step=4)))
    assert difference(row(), row() * 2) == "1 messages and 2"
