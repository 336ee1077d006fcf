"""A probe that only watches passes; whatever one changes is found, and said by its name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Cut, Message, Peer, Role, hookimpl
from splitlab.core.testing import PROBE_CHECKS, check_probe, probe


class Watches:
    """Right: uses every hook of a probe, draws from the peer's generator, and changes nothing."""

    def __init__(self, *, every: int = 1) -> None:
        self._every = every
        self._sums: list[float] = []
        self._calls = 0

    @hookimpl
    def setup(self, peer: Peer) -> None:
        self._noise = torch.randn(2, generator=peer.generator("watches", 0))

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        before = float(cut.activations.detach().sum())
        yield
        self._sums.append(float(cut.activations.detach().sum()) - before)

    @hookimpl
    def plugin_ran(self, label: str) -> None:
        self._calls += 1

    @hookimpl
    def metrics(self, step: int) -> Mapping[str, float]:
        return {"calls": self._calls} if step % self._every == 0 else {}

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        return {"sums": self._sums}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = list(state["sums"])

    @hookimpl
    def report(self, folder: Path) -> None:
        (folder / "more").mkdir()
        (folder / "more" / "sums.txt").write_text(str(self._sums))


def test_a_probe_that_is_right_passes(tmp_path: Path) -> None:
    report = check_probe(Watches)
    report.raise_if_failed()
    assert report.subject == "Watches"
    assert [row.check for row in report.rows] == [check.name for check in PROBE_CHECKS]
    assert report.rows[0].reason == "10 frames, 5 losses and both states are equal"
    file = tmp_path / "mine.py"
    file.write_text(
        "from splitlab.core import hookimpl\n"
        "class Mine:\n"
        "    def __init__(self, *, every: int = 1) -> None: ...\n"
        "    run_end = hookimpl(lambda self: None)\n"
    )
    assert check_probe(f"{file}:Mine:every=3", only=["probe-changes-nothing"]).ok
    with pytest.raises(ConfigError, match="unknown check 'bytes-are-real'"):
        check_probe(Watches, only=["bytes-are-real"])
    with pytest.raises(ConfigError, match="probe 'Mine': every=x is not allowed"):
        check_probe(f"{file}:Mine:every=x")


class ChangesActivations:
    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        yield
        cut.activations = cut.activations * 1.5


class ChangesEvaluations:
    @hookimpl(wrapper=True)
    def before_server_forward(self, cut: Cut) -> Generator[None, None, None]:
        yield
        if not cut.training:
            cut.activations = cut.activations.flip(0)


class ChangesTheGradient:
    @hookimpl(wrapper=True)
    def gradient_return(self, cut: Cut) -> Generator[None, None, None]:
        yield
        cut.gradient = cut.gradient * 0  # type: ignore[operator]


class AddsToMessages:
    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Generator[None, None, None]:
        yield
        message.put("seen", torch.zeros(1), Role.SIDE)


class DrawsFromTorch:
    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        return {"noise": float(torch.rand(1))}


class DrawsFromPython:
    @hookimpl
    def setup(self, peer: Peer) -> None:
        random.random()


class ReturnsText:
    @hookimpl
    def metrics(self) -> Mapping[str, Any]:
        return {"mood": "good"}


class ReturnsATensor:
    @hookimpl
    def metrics(self) -> Any:
        return torch.ones(1)


class WritesBesideItsFolder:
    @hookimpl
    def report(self, folder: Path) -> None:
        (folder.parent / "curve.csv").write_text("1,2\n")


class WritesWhereItWasStarted:
    @hookimpl
    def report(self, folder: Path) -> None:
        Path("curve.csv").write_text("1,2\n")


class AddsToTheRecords:
    @hookimpl
    def report(self, folder: Path) -> None:
        with (folder.parents[1] / "client.jsonl").open("a") as file:
            file.write("mine\n")


class Breaks:
    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Generator[None, None, None]:
        yield
        raise ZeroDivisionError("no mean of nothing")


class Unmarked:
    def metrics(self) -> Mapping[str, float]:
        return {}


WRONG = [
    (ChangesActivations, "the run that it watches is another, first in ACTIVATION of step 1"),
    (ChangesEvaluations, "is another, first in PREDICTION of evaluation batch 1"),
    (ChangesTheGradient, "the run that it watches is another, first in ACTIVATION of step 2"),
    (AddsToMessages, "is another, first in ACTIVATION of step 1: tensors ['activations', "),
    (DrawsFromTorch, "it draws from the global random state of torch"),
    (DrawsFromPython, "it draws from the global random state of random"),
    (ReturnsText, "probe 'ReturnsText' failed in metrics: 'mood' is 'good', not a number by name"),
    (ReturnsATensor, "not numbers by name"),
    (WritesBesideItsFolder, "report changes run/probes/curve.csv outside of the folder"),
    (WritesWhereItWasStarted, "report changes curve.csv outside of the folder"),
    (AddsToTheRecords, "report changes run/client.jsonl outside of the folder"),
    (Breaks, "probe 'Breaks' failed in before_send: ZeroDivisionError: no mean of nothing"),
    (Unmarked, "put @hookimpl above it"),
]


@pytest.mark.parametrize(("wrong", "reason"), WRONG, ids=[w.__name__ for w, _ in WRONG])
def test_what_a_probe_changes_is_found(wrong: type, reason: str) -> None:
    [row] = check_probe(wrong).rows
    assert row.outcome == "failed"
    assert reason in row.reason, row.reason
    assert f"probe '{wrong.__name__}'" in row.reason


def test_a_state_or_a_loss_that_is_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(probe, "state_of", lambda worker: {'["model", "x"]': next(numbers)})
        [row] = check_probe(Watches).rows
    assert "the state of the client is another (model / x)" in row.reason
    monkeypatch.setattr(probe.Couple, "train", lambda *given: float(next(numbers)))
    monkeypatch.setattr(probe.Couple, "evaluate", lambda *given: (None, 0.0))
    [row] = check_probe(Watches).rows
    assert "loss 0 is 7.0 instead of 4.0" in row.reason
